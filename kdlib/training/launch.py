"""Starts or re-attaches to training children: run folders go in, progress lines and results come out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from kdlib import records
from kdlib.errors import ConfigError, KdlibError
from kdlib.training.job import TrainJob
from kdlib.training.places import Child, Places, places
from kdlib.training.rundir import RunDir, worker

CHILD = (sys.executable, "-m", "kdlib", "train")
LOG_LINES = 15
POLL_SECONDS = 0.2


class TrainingFailed(KdlibError):
    """A training child ended without finishing."""


@dataclass(frozen=True)
class RunResult:
    """What became of one run folder."""

    run_dir: Path
    complete: bool  # False only where nobody waited for it
    reused: bool  # finished before this call
    values: dict[str, Any]  # result.json; empty while incomplete

    @property
    def weights(self) -> Path:
        """The trained student."""
        return RunDir(self.run_dir).weights


@dataclass
class _Watched:
    """One run folder while it is being waited for."""

    run: RunDir
    key: str
    label: str
    child: Child | None = None
    log_start: int = 0
    shown: float = field(default=-1e9)  # when its last progress line was printed
    shown_step: int = -1

    def running(self) -> bool:
        """Return whether a process is at work, ours or one found at work."""
        if self.child is not None and (self.child.poll() is None or self.child.lost):
            return not self.child.lost
        return worker(self.run) is not None

    def start(self, where: Places, command: Sequence[str]) -> bool:
        """Start a child; False if there is no room for it now."""
        self.log_start = self.run.log.stat().st_size if self.run.log.is_file() else 0
        self.child = where.start(self.run, command)
        return self.child is not None

    def ending(self) -> str:
        return self.child.ending() if self.child else "ended without finishing"

    def complete(self) -> bool:
        return records.is_complete(self.run.path, self.key)


def log_tail(path: Path, lines: int = LOG_LINES, start: int = 0) -> str:
    """Return the last lines of a log, from a byte position on."""
    if not path.is_file():
        return "(no log)"
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(start, size - 20_000))
        text = stream.read().decode(errors="replace").rstrip()
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"


def progress_line(label: str, line: dict[str, Any]) -> str:
    """Return one line of a history as text: step, loss with its parts, speed, time left."""
    step, steps = line["step"], line["steps"]
    parts = ", ".join(f"{name} {value:.3g}" for name, value in line["parts"].items())
    speed = line["samples_per_second"]
    left = line["seconds"] / step * (steps - step)
    minutes, seconds = divmod(round(left), 60)
    return f"{label}: step {step}/{steps}, loss {line['loss']:.4g} ({parts}), {speed:.1f} frames/s, {minutes}:{seconds:02d} left"


def _show(watched: _Watched, every: float, began: float, echo: Callable[[str], None]) -> None:
    # The pause grows with the run, so that a day of training is some hundred lines and not thousands.
    now = time.monotonic()
    if now - watched.shown < max(every, 0.02 * (now - began)):
        return
    lines = records.read_json_lines(watched.run.history)
    if lines and lines[-1]["step"] != watched.shown_step:
        watched.shown, watched.shown_step = now, lines[-1]["step"]
        echo(progress_line(watched.label, lines[-1]))


def _failure(failed: Sequence[_Watched], count: int) -> TrainingFailed:
    first = failed[0]
    others = f" So did {', '.join(watched.label for watched in failed[1:])}." if failed[1:] else ""
    well = count - len(failed)
    rest = f" The other {well} trainings are finished." if well > 1 else " The other training is finished." if well else ""
    return TrainingFailed(
        f"training in {first.run.path} {first.ending()}; a new start goes on from its last checkpoint.{others}{rest} "
        f"Last lines of {first.run.log}:\n{log_tail(first.run.log, start=first.log_start)}"
    )


def _watch(run_dir: Path) -> _Watched:
    job = TrainJob.read(run_dir)
    return _Watched(RunDir(run_dir), job.hash(), job.name or run_dir.name)


def _result(watched: _Watched, reused: bool) -> RunResult:
    complete = watched.complete()
    return RunResult(watched.run.path, complete, reused, records.read_json(watched.run.result) if complete else {})


def _begin(
    queue: list[_Watched], room: int, where: Places, command: Sequence[str], echo: Callable[[str], None]
) -> list[_Watched]:
    """Take as many runs from the queue as there is room for: those found at work are followed, the others started."""
    begun: list[_Watched] = []
    while queue and len(begun) < room:
        watched = queue[0]
        if watched.running():
            echo(f"{watched.label}: already in training, following it")
        elif watched.start(where, command):
            place = watched.child.place if watched.child else ""
            echo(f"{watched.label}: starting" + (f" on {place}" if place else ""))
        else:
            break
        begun.append(queue.pop(0))
    return begun


def _follow(
    queue: list[_Watched], where: Places, command: Sequence[str], every: float, echo: Callable[[str], None]
) -> list[_Watched]:
    """Bring all runs to their end and return those that failed, which keeps no other from finishing."""
    began = time.monotonic()
    active: list[_Watched] = []
    failed: list[_Watched] = []
    while queue or active:
        active += _begin(queue, where.limit - len(active), where, command, echo)
        for watched in list(active):
            running = watched.running()  # asked before complete(): the mark is the last thing a child writes
            _show(watched, every, began, echo)
            if running:
                continue
            active.remove(watched)
            if watched.complete():
                steps = records.read_json(watched.run.result).get("steps", "?")
                echo(f"{watched.label}: done, {steps} steps")
            else:
                echo(f"{watched.label}: {watched.ending()}")
                failed.append(watched)
        if queue or active:
            time.sleep(POLL_SECONDS)
    return failed


def launch(
    run_dirs: Sequence[Path],
    parallel: int = 1,
    threads: int = 1,
    follow: bool = True,
    *,
    every: float = 5.0,
    command: Sequence[str] = CHILD,
    echo: Callable[[str], None] | None = None,
) -> list[RunResult]:
    """Train in every run folder, in child processes that outlive the caller; finished runs are not repeated.

    A call that is interrupted leaves its children at work: the same call again attaches to them.

    Args:
        run_dirs: Folders with their ``job.json``.
        parallel: Children at a time; as many as there are GPUs or workers where the environment names those, see ``places``.
        threads: torch and OpenMP threads of each child; 0 leaves them all.
        follow: Wait and show progress; False returns at once and needs ``parallel`` to cover all folders.
        every: Seconds between two progress lines of a run, at least.
        command: Child's command line, to which the folder is added.
        echo: Receives progress lines; default prints.

    Raises:
        ConfigError: If a job, store or weight file is missing or wrong; nothing was started then.
        TrainingFailed: If a child ended without finishing, once all others have ended; the message ends with its log.
    """
    say = echo or _print
    folders = [Path(folder).resolve() for folder in run_dirs]
    if parallel < 1 or threads < 0:
        raise ConfigError(f"parallel must be at least 1 and threads at least 0, not {parallel} and {threads}")
    if len(set(folders)) != len(folders):
        raise ConfigError("a run folder is named twice")
    all_runs = [_watch(folder) for folder in folders]
    done = {watched.run.path for watched in all_runs if watched.complete()}
    for watched in all_runs:
        if watched.run.path in done:
            say(f"{watched.label}: finished earlier, kept")
    waiting = [watched for watched in all_runs if watched.run.path not in done]
    if not waiting:
        return [_result(watched, reused=True) for watched in all_runs]
    with places(parallel, threads) as where:
        if not follow:
            if len(waiting) > where.limit:
                raise ConfigError(f"{len(waiting)} runs but parallel={where.limit}: without follow nobody would start the others")
            _begin(list(waiting), len(waiting), where, command, lambda line: None)
        elif failed := _follow(list(waiting), where, command, every, say):
            raise _failure(failed, len(all_runs))
    return [_result(watched, watched.run.path in done) for watched in all_runs]


def stop(run_dir: Path) -> bool:
    """Ask the child of a run folder to save a checkpoint and end; False if none is at work on this machine.

    Raises:
        ConfigError: If it works on another machine.
    """
    owner = worker(RunDir(Path(run_dir)))
    if owner is None:
        return False
    try:
        process = psutil.Process(int(owner["pid"]))
        if abs(process.create_time() - owner["created"]) > 2:
            raise ConfigError(f"{run_dir} is being trained on {owner['host']}; stop it there")
        process.terminate()
    except psutil.NoSuchProcess as error:
        raise ConfigError(f"{run_dir} is being trained on {owner['host']}; stop it there") from error
    return True


def _print(line: str) -> None:
    print(line, flush=True)
