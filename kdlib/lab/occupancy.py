"""One driver to a run folder: a lock that dies with its holder, and what a killed holder left is cleared away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from kdlib import records
from kdlib.errors import KdlibError

LOCK = ".lock"
FOLDER = "KDLIB_RUN_FOLDER"  # in the environment of a driver and its kernels
_KERNEL = "ipykernel_launcher"
_PATIENCE = 5.0  # seconds for a process that was killed to be gone


class FolderBusy(KdlibError):
    """Another driver is at work in this run folder."""


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process: end orphaned kernels and remove half-written files, then keep others out.

    The lock is the system's, not a file that could outlive its writer; it is not handed on to kernels or trainings.

    Raises:
        FolderBusy: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            who = stream.read().strip() or "another process"
            raise FolderBusy(f"{folder} is being run by {who}; wait for it, stop it, or choose another folder (--out)") from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        try:
            end_orphans(folder)
            for home in (folder, *(path for path in folder.iterdir() if path.is_dir())):
                records.remove_leftovers(home)
            with _named(folder):
                yield
        finally:
            stream.truncate(0)


def driver(folder: Path) -> dict[str, Any] | None:
    """Return pid, host and, where that can be told, whether it is ``alive`` of a folder's newest driver; None if there was none.

    To look does not touch the lock, which would refuse a driver that starts at the same moment.
    """
    lock = folder / LOCK
    found = re.fullmatch(r"process (\d+) on (\S+)\n?", lock.read_text()) if lock.is_file() else None
    if found is None:
        return None
    pid, host = int(found[1]), found[2]
    if host != socket.gethostname():
        return {"pid": pid, "host": host, "alive": None}
    try:
        process = psutil.Process(pid)
        alive = process.create_time() < lock.stat().st_mtime + 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        alive = False
    return {"pid": pid, "host": host, "alive": alive}


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Hold a folder that several runs share, after waiting for whoever holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: waiting for another run, which makes it", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Let the environment name the folder, so that the kernels this process starts can be told from anybody else's."""
    before = os.environ.get(FOLDER)
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        del os.environ[FOLDER]
        if before is not None:
            os.environ[FOLDER] = before


def end_orphans(folder: Path) -> int:
    """End the kernels a killed driver left in a folder and return how many: one may still be writing a result.

    A kernel notices only within a second that its driver is gone, and only if it was up by then.
    """
    orphans = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        if not any(_KERNEL in word for word in process.info["cmdline"] or ()) or process.info["uids"].real != os.getuid():
            continue
        with contextlib.suppress(psutil.Error):
            if process.environ().get(FOLDER) == str(folder):
                process.kill()
                orphans.append(process)
    psutil.wait_procs(orphans, timeout=_PATIENCE)
    return len(orphans)
