"""Starts trainings as child processes, or attaches to those at work, and follows them to their
results.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdlib import records
from kdlib.errors import ConfigError, KdlibError
from kdlib.training.job import RunDir, TrainJob, worker
from kdlib.training.places import Child, Places, places
from kdlib.types import Json

_COMMAND = (sys.executable, "-m", "kdlib", "train")
_LOG_LINES = 15
_POLL_SECONDS = 0.2


class TrainingFailed(KdlibError):
    """A training child ended without finishing."""


@dataclass(frozen=True)
class RunResult:
    """A finished training."""

    run_dir: Path
    values: Json  # result.json

    @property
    def weights(self) -> Path:
        """The trained student."""
        return RunDir(self.run_dir).weights


@dataclass(eq=False)
class _Watched:
    """One run folder while it is being waited for."""

    run: RunDir
    key: str
    label: str
    child: Child | None = None
    log_start: int = 0
    shown: float = -math.inf  # when its last progress line was printed
    shown_step: int = -1

    def begin(self, where: Places, command: Sequence[str]) -> str:
        """Find a process at work or start one, and say which; "" where there is no room for it
        now.
        """
        if worker(self.run):
            return "already in training, following it"
        self.log_start = self.run.log.stat().st_size if self.run.log.is_file() else 0
        self.child = where.start(self.run, command)
        if self.child is None:
            return ""
        return f"starting on {self.child.place}" if self.child.place else "starting"

    def running(self) -> bool:
        """Return whether a process is at work, ours or another one."""
        if self.child and self.child.poll() is None:
            return True
        # What is lost may go on where nobody sees it: only the next call can tell.
        return not (self.child and self.child.lost) and worker(self.run) is not None

    def show(self, every: float, began: float, echo: Callable[[str], None]) -> None:
        # The pause grows with the run, so that a day of training is some hundred lines and not
        # thousands.
        now = time.monotonic()
        if now - self.shown < max(every, 0.02 * (now - began)):
            return
        lines = records.read_json_lines(self.run.history)
        if lines and lines[-1]["step"] != self.shown_step:
            self.shown, self.shown_step = now, lines[-1]["step"]
            echo(progress_line(self.label, lines[-1]))

    def complete(self) -> bool:
        return records.is_complete(self.run.path, self.key)

    def ending(self) -> str:
        if self.child is None:
            return "ended without finishing"
        if self.child.poll() == 0:
            return (
                "was trained on other inputs than were there when it was started: its store, "
                "a weight file or a term changed meanwhile"
            )
        return self.child.ending()

    def result(self) -> RunResult:
        return RunResult(self.run.path, records.read_json(self.run.result))


def log_tail(path: Path, lines: int = _LOG_LINES, start: int = 0) -> str:
    """Return the last lines of a log, from a byte position on."""
    if not path.is_file():
        return "(no log)"
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(start, size - 20_000))
        text = stream.read().decode(errors="replace").rstrip()
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"


def progress_line(label: str, line: Json) -> str:
    """Return one line of a history as text: step, loss with its parts, speed, time left."""
    step, steps = line["step"], line["steps"]
    parts = ", ".join(f"{name} {value:.3g}" for name, value in line["parts"].items())
    speed = line["samples_per_second"]
    minutes, seconds = divmod(round(line["seconds"] / step * (steps - step)), 60)
    return (
        f"{label}: step {step}/{steps}, loss {line['loss']:.4g} ({parts}), {speed:.1f} "
        f"frames/s, {minutes}:{seconds:02d} left"
    )


def _failure(failed: Sequence[_Watched], count: int) -> TrainingFailed:
    first = failed[0]
    others = f" So did {', '.join(watched.label for watched in failed[1:])}." if failed[1:] else ""
    well = count - len(failed)
    rest = (
        f" The other {well} trainings are finished."
        if well > 1
        else (" The other training is finished.")
        if well
        else ""
    )
    return TrainingFailed(
        f"training in {first.run.path} {first.ending()}; a new start goes on from its last "
        f"checkpoint.{others}{rest} "
        f"Last lines of {first.run.log}:\n{log_tail(first.run.log, start=first.log_start)}"
    )


def _follow(
    queue: list[_Watched],
    where: Places,
    command: Sequence[str],
    every: float,
    echo: Callable[[str], None],
) -> list[_Watched]:
    """Bring all runs to their end and return those that failed, which keeps no other from
    finishing.
    """
    began = time.monotonic()
    active, failed = list[_Watched](), list[_Watched]()
    while queue or active:
        while queue and len(active) < where.limit:
            begun = queue[0].begin(where, command)
            if not begun:
                break
            echo(f"{queue[0].label}: {begun}")
            active.append(queue.pop(0))
        time.sleep(_POLL_SECONDS)
        for watched in list(active):
            # asked before complete(): the mark is the last thing a child writes
            running = watched.running()
            watched.show(every, began, echo)
            if running:
                continue
            active.remove(watched)
            if watched.complete():
                echo(f"{watched.label}: done, {watched.result().values.get('steps', '?')} steps")
            else:
                echo(f"{watched.label}: {watched.ending()}")
                failed.append(watched)
    return failed


def launch(
    run_dirs: Sequence[Path],
    parallel: int = 1,
    threads: int = 1,
    *,
    every: float = 5.0,
    command: Sequence[str] = _COMMAND,
    echo: Callable[[str], None] = functools.partial(print, flush=True),
) -> list[RunResult]:
    """Train in every run folder, in child processes that outlive the caller; finished runs are not
    repeated.

    A call that is interrupted leaves its children at work: the same call again attaches to them.

    Args:
        run_dirs: Folders with their ``job.json``.
        parallel: Children at a time; as many as there are GPUs or workers where the environment
            names those, see ``places``.
        threads: torch and OpenMP threads of each child; 0 leaves them all.
        every: Seconds between two progress lines of a run, at least.
        command: Child's command line, to which the folder is added.
        echo: Receives progress lines.

    Raises:
        ConfigError: If a job, store or weight file is missing or wrong; nothing was started then.
        TrainingFailed: If a child ended without finishing, once all others have ended; the message
            ends with its log.
    """
    folders = [Path(folder).resolve() for folder in run_dirs]
    if parallel < 1 or threads < 0:
        raise ConfigError(
            f"parallel must be at least 1 and threads at least 0, not {parallel} and {threads}"
        )
    if len(set(folders)) != len(folders):
        raise ConfigError("a run folder is named twice")
    jobs = [TrainJob.read(folder) for folder in folders]
    runs = [
        _Watched(RunDir(folder), job.hash(), job.name or folder.name)
        for folder, job in zip(folders, jobs)
    ]
    waiting = [watched for watched in runs if not watched.complete()]
    for watched in runs:
        if watched not in waiting:
            echo(f"{watched.label}: finished earlier, kept")
    if waiting:
        with places(parallel, threads) as where:
            failed = _follow(waiting, where, command, every, echo)
        if failed:
            raise _failure(failed, len(runs))
    return [watched.result() for watched in runs]
