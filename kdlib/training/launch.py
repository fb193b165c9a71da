"""Starts or re-attaches to training children: run folders go in, progress lines and results come out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from kdlib import jsonfile
from kdlib.errors import ConfigError, KdlibError
from kdlib.training.job import TrainJob
from kdlib.training.rundir import RunDir, worker

CHILD = (sys.executable, "-m", "kdlib", "train")
LOG_LINES = 15
POLL_SECONDS = 0.2
# glibc hands large blocks back to the kernel and gets them zeroed again at every step, a tenth of a step's time on a CPU.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 30), "MALLOC_TOP_PAD_": str(64 << 20)}


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
    child: subprocess.Popen[bytes] | None = None
    log_start: int = 0
    shown: float = field(default=-1e9)  # when its last progress line was printed
    shown_step: int = -1

    def running(self) -> bool:
        """Return whether a process is at work, ours or one found at work."""
        if self.child is not None and self.child.poll() is None:
            return True
        return worker(self.run) is not None

    def complete(self) -> bool:
        return jsonfile.is_complete(self.run.path, self.key)


def log_tail(path: Path, lines: int = LOG_LINES, start: int = 0) -> str:
    """Return the last lines of a log, from a byte position on."""
    if not path.is_file():
        return "(no log)"
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(start, size - 20_000))
        text = stream.read().decode(errors="replace").rstrip()
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"


def _environment(threads: int) -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH", "")) if part)
    limits = {name: str(threads) for name in ("KDLIB_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")} if threads else {}
    return {**_MALLOC, **os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **limits}


def _start(watched: _Watched, command: Sequence[str], threads: int) -> None:
    """Start a child in a session of its own: the end of a notebook or terminal does not reach it."""
    with watched.run.log.open("ab") as log:
        watched.log_start = log.tell()
        watched.child = subprocess.Popen(
            (*command, str(watched.run.path)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(threads),
        )


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
    lines = jsonfile.read_lines(watched.run.history)
    if lines and lines[-1]["step"] != watched.shown_step:
        watched.shown, watched.shown_step = now, lines[-1]["step"]
        echo(progress_line(watched.label, lines[-1]))


def _failure(watched: _Watched, others: int) -> TrainingFailed:
    child = watched.child
    if child is None or child.returncode is None:
        how = "ended"
    elif child.returncode < 0:
        how = f"was killed by {signal.Signals(-child.returncode).name}"
    else:
        how = f"ended with code {child.returncode}"
    rest = f" {others} other runs go on in the background." if others else ""
    return TrainingFailed(
        f"training in {watched.run.path} {how} without finishing; a new start goes on from its last checkpoint.{rest} "
        f"Last lines of {watched.run.log}:\n{log_tail(watched.run.log, start=watched.log_start)}"
    )


def _watch(run_dir: Path) -> _Watched:
    job = TrainJob.read(run_dir)
    return _Watched(RunDir(run_dir), job.hash(), job.name or run_dir.name)


def _result(watched: _Watched, reused: bool) -> RunResult:
    complete = watched.complete()
    return RunResult(watched.run.path, complete, reused, jsonfile.read(watched.run.result) if complete else {})


def _follow(
    queue: list[_Watched], parallel: int, start: Callable[[_Watched], None], every: float, echo: Callable[[str], None]
) -> None:
    began = time.monotonic()
    active: list[_Watched] = []
    while queue or active:
        while queue and len(active) < parallel:
            watched = queue.pop(0)
            if watched.running():
                echo(f"{watched.label}: already in training, following it")
            else:
                echo(f"{watched.label}: starting")
                start(watched)
            active.append(watched)
        for watched in list(active):
            running = watched.running()  # asked before complete(): the mark is the last thing a child writes
            _show(watched, every, began, echo)
            if running:
                continue
            active.remove(watched)
            if not watched.complete():
                raise _failure(watched, len(active))
            steps = jsonfile.read(watched.run.result).get("steps", "?")
            echo(f"{watched.label}: done, {steps} steps")
        if active:
            time.sleep(POLL_SECONDS)


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
        parallel: Children at a time.
        threads: torch and OpenMP threads of each child; 0 leaves them all.
        follow: Wait and show progress; False returns at once and needs ``parallel`` to cover all folders.
        every: Seconds between two progress lines of a run, at least.
        command: Child's command line, to which the folder is added.
        echo: Receives progress lines; default prints.

    Raises:
        ConfigError: If a job, store or weight file is missing or wrong; nothing was started then.
        TrainingFailed: If a child ended without finishing; the message ends with its log.
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
    if follow:
        _follow(list(waiting), parallel, lambda w: _start(w, command, threads), every, say)
    else:
        if len(waiting) > parallel:
            raise ConfigError(f"{len(waiting)} runs but parallel={parallel}: without follow nobody would start the others")
        for watched in waiting:
            if not watched.running():
                _start(watched, command, threads)
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
