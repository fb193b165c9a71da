"""One driver to a run folder: a lock that dies with its holder, and what a killed holder left is
cleared away.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from kdlib import records
from kdlib.data.processes import refuse_unguarded
from kdlib.errors import KdlibError
from kdlib.types import Json

RUN = "run.json"  # what a run folder is to hold, profile and stages, and how each stage stands
LOCK = ".lock"
DRIVER = "driver.json"  # who holds the folder, while somebody does
FOLDER = "KDLIB_RUN_FOLDER"  # in the environment of a driver and its kernels
_KERNEL = "ipykernel_launcher"
_PATIENCE = 5.0  # seconds for a process that was killed to be gone


class FolderBusy(KdlibError):
    """Another driver is at work in this run folder."""


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process: end orphaned kernels and remove half-written files, then
    keep others out.

    The lock is the system's, not a file that could outlive its writer; it is not handed on to
    kernels or trainings.

    FolderBusy if another process holds it.
    """
    refuse_unguarded()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = driver(folder)
        who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
        raise FolderBusy(
            f"{folder} is being run by {who}; wait for it, end it with 'python -m kdlib stop "
            f"{folder}', or choose another folder (--out)"
        ) from error
    handed, command = os.environ.get(records.COMMAND), records.command()
    try:
        records.write_json(folder / DRIVER, {**records.this_process(), "command": command})
        end_orphans(folder)
        for home in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            records.remove_leftovers(home)
        # The kernels this process starts can be told from anybody else's by their environment.
        os.environ.update({FOLDER: str(folder), records.COMMAND: command})
        yield
    finally:
        os.environ.pop(FOLDER, None)
        if handed is None:
            os.environ.pop(records.COMMAND, None)
        (folder / DRIVER).unlink(missing_ok=True)
        lock.release()


def driver(folder: Path) -> Json | None:
    """Return pid and host of the living driver of a folder, or None; the lock is not touched:
    another may just be taking it.
    """
    return records.living_process(folder / DRIVER)


@contextlib.contextmanager
def take_turn(folder: Path) -> Iterator[None]:
    """Hold a folder that several runs share, after waiting for whoever holds it.

    ConfigError where the holder is this process's own parent, whose script lacks a main guard.
    """
    refuse_unguarded()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder}: waiting for another run, which makes it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def started_for(folder: Path) -> list[psutil.Process]:
    """Return this user's processes that drivers of a run folder have started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            own = process.uids().real == os.getuid()
            if own and process.environ().get(FOLDER) == str(folder):
                found.append(process)
    return found


def kernels(folder: Path) -> list[psutil.Process]:
    """Return the kernels that drivers of a run folder have started."""
    found = []
    for process in started_for(folder):
        with contextlib.suppress(psutil.Error):
            if any(_KERNEL in word for word in process.cmdline()):
                found.append(process)
    return found


def end_orphans(folder: Path) -> None:
    """End the kernels a killed driver left in a folder: one may still be writing a result.

    A kernel notices only within a second that its driver is gone, and only if it was up by then.
    """
    orphans = kernels(folder)
    for process in orphans:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(orphans, timeout=_PATIENCE)
