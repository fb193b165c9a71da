"""Ends the work on a run so that it can go on: trainings save a checkpoint first, and no process is
left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from kdlib import records
from kdlib.data.cluster import connect
from kdlib.errors import DataError, KdlibError
from kdlib.lab import occupancy
from kdlib.training.job import RunDir
from kdlib.training.places import SCHEDULER

PATIENCE = 120.0  # seconds for a training to reach its next step and save; then it is killed
EVERY = 5.0  # seconds between two lines that say what is waited for
_GRACE = 8.0  # seconds for a notebook that was interrupted to clear up
_POLL_SECONDS = 0.2


class Stopped(KdlibError):
    """A signal ended this run; the same command goes on."""

    def __init__(self, message: str, number: int) -> None:
        """Keep the sentence, and the exit code a shell expects after this signal."""
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass
class Request:
    """What the signals SIGINT and SIGTERM have asked this process for."""

    number: int = 0  # the first signal's, 0 while there was none
    count: int = 0  # the second one means: at once

    def note(self, number: int, frame: Any) -> None:
        """Take a signal, as its handler."""
        self.number, self.count = self.number or number, self.count + 1


@contextlib.contextmanager
def heeded() -> Iterator[Request]:
    """Note signals instead of ending by them; whoever asks for the request has to look at it.

    A signal that is ignored stays so: a shell starts jobs in the background without Ctrl-C.
    """
    request, before = Request(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, request.note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def trainings(folder: Path) -> list[psutil.Process]:
    """Return this machine's processes that train in a folder or below it: those started for it,
    and those that claim it.

    Of several ranks it is their launcher, which hands signals on.
    """
    found = {}
    for process in psutil.process_iter(["cmdline", "uids"]):
        with contextlib.suppress(psutil.Error, AttributeError):
            place = _trained_folder(process)
            if process.info["uids"].real == os.getuid() and place and place.is_relative_to(folder):
                found[process.pid] = process
    for claim in claims(folder):
        owner = records.living_process(claim)
        if owner and owner["host"] == records.this_process()["host"]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found[owner["pid"]] = psutil.Process(owner["pid"])
    found.pop(os.getpid(), None)
    return [process for process in found.values() if _parent(process) not in found]


def claims(folder: Path) -> list[Path]:
    """Return the files by which trainings claim a folder or those below it."""
    return sorted(folder.rglob(RunDir(folder).owner.name))


def _parent(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return process.ppid()
    return 0


def _trained_folder(process: psutil.Process) -> Path | None:
    """Return where ``kdlib train FOLDER`` trains, None for all other processes."""
    words = process.info["cmdline"] or []
    for verb, word, folder in zip(words, words[1:], words[2:]):
        if Path(verb).name == "kdlib" and word == "train" and process.status() != "zombie":
            return Path(process.cwd(), folder).resolve()
    return None


def signal_trainings(folder: str, number: int) -> int:
    """Send a signal to all trainings below a folder on this machine and return how many there are;
    0 only counts them. A Dask worker runs this, too.
    """
    found = trainings(Path(folder))
    for process in found:
        send(process, number)
    return len(found)


def send(process: psutil.Process, number: int) -> None:
    """Send a signal to a training, SIGKILL also to its data workers, which would not notice.

    Raises:
        DataError: If it is another user's.
    """
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            whole = process.children(recursive=True) if number == signal.SIGKILL else []
            for each in (process, *whole):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.send_signal(number)
    except psutil.AccessDenied as error:
        raise DataError(f"process {process.pid} is {process.username()}'s; ask them") from error


def stop_run(
    folder: Path,
    request: Request,
    busy: Callable[[], bool],
    echo: Callable[[str], None],
) -> None:
    """End the notebook and the trainings of the run this process drives, those on Dask workers,
    too; returns when all are gone.

    Args:
        folder: The run's.
        request: A second signal kills at once what has not ended.
        busy: Whether the notebook is still being executed.
        echo: Receives a line now and then.
    """
    for kernel in occupancy.kernels(folder):
        send(kernel, signal.SIGINT)
    began, asked = time.monotonic(), set[int]()
    shown = began - EVERY
    while True:
        now = time.monotonic()
        kill = request.count > 1 or now - began > PATIENCE
        alive = trainings(folder)
        for process in alive:
            if kill or process.pid not in asked:
                send(process, signal.SIGKILL if kill else signal.SIGTERM)
                asked.add(process.pid)
        # A kernel between two cells has ignored the interruption.
        if busy() and (kill or now - began > _GRACE):
            occupancy.end_orphans(folder)
        if not alive and not busy():
            break
        if now - shown >= EVERY:
            shown = now
            words = f" and {len(alive)} trainings, which save a checkpoint" if alive else ""
            echo(f"stopping the notebook{words}; once more kills at once")
        time.sleep(_POLL_SECONDS)
    if os.environ.get(SCHEDULER):
        _stop_workers(os.environ[SCHEDULER], folder, request, echo)
    tidy(folder)


def _stop_workers(
    address: str, folder: Path, request: Request, echo: Callable[[str], None]
) -> None:
    """Stop the trainings of a run on the workers of a Dask cluster."""
    began = time.monotonic()
    try:
        with connect(address) as client:
            alive = client.run(signal_trainings, str(folder), signal.SIGTERM)
            while any(alive.values()):
                time.sleep(_POLL_SECONDS)
                kill = request.count > 1 or time.monotonic() - began > PATIENCE
                alive = client.run(signal_trainings, str(folder), signal.SIGKILL if kill else 0)
    except (DataError, OSError) as error:
        echo(f"trainings on workers of {address} go on, and the same command finds them: {error}")


def tidy(folder: Path) -> None:
    """End what else was started for a run, and remove what processes that are gone had only begun
    to write.
    """
    left = [process for process in occupancy.started_for(folder) if process.pid != os.getpid()]
    for process in left:
        send(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=EVERY)
    for claim in claims(folder):
        if records.living_process(claim) is None:
            claim.unlink(missing_ok=True)
    for home in {path.parent for path in folder.rglob(".*.tmp")}:
        records.remove_leftovers(home)
