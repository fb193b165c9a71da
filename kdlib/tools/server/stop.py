"""Stops runs and trainings from another terminal, at a checkpoint or at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from kdlib import records
from kdlib.errors import ConfigError
from kdlib.lab import stopping
from kdlib.lab.occupancy import DRIVER, RUN
from kdlib.types import Json

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class _Driver:
    """A driver at work on this machine."""

    folder: Path
    process: psutil.Process
    command: str


def stop_runs(
    roots: Sequence[Path], now: bool = False, patience: float = stopping.PATIENCE + 30
) -> bool:
    """Stop whatever is at work in folders (of runs, a run or a training), wait until it is gone and
    say how to go on. Trainings save a checkpoint first, unless it is to be ``now``.

    Returns:
        Whether nothing is left at work.

    Raises:
        ConfigError: If a folder does not exist.
        DataError: If a process is another user's.
    """
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"{root} does not exist; name a folder of runs, a run or a training")
    gone = [_stop(root.resolve(), now, patience) for root in roots]
    return all(gone)


def _stop(root: Path, now: bool, patience: float) -> bool:
    elsewhere, drivers = _at_work_elsewhere(root), _drivers(root)
    for driver in drivers:
        print(f"stopping run {driver.folder.name}, process {driver.process.pid}", flush=True)
    asked = _end(root, {driver.process for driver in drivers}, now, patience)
    if asked is None:
        print(f"still at work in {root} after {patience:.0f} s; --now ends it at once")
        return False
    for folder in {path.parent for path in (*root.rglob(RUN), *root.rglob(DRIVER))} or {root}:
        stopping.tidy(folder)
    for driver in drivers:
        print(f"stopped {driver.folder}; it goes on with: {driver.command}")
    if asked and not drivers:
        print(
            f"stopped {len(asked)} trainings in {root}; they go on from their checkpoints when "
            "their run, their notebook or 'python -m kdlib train FOLDER' is called again"
        )
    if not (asked or drivers or elsewhere):
        print(f"nothing is at work in {root}")
    for path, owner in elsewhere:
        print(
            f"process {owner['pid']} works on {path.parent} on {owner['host']}; call this command "
            f"there, or delete {path} if that machine is gone"
        )
    return not elsewhere


def _end(root: Path, drivers: set[psutil.Process], now: bool, patience: float) -> set[int] | None:
    """Signal drivers and trainings until none is left; return the trainings' numbers, None where
    some outlast the patience.
    """
    for process in drivers:
        stopping.send(process, signal.SIGTERM)
    began = shown = time.monotonic()
    asked = set[int]()
    while (alive := stopping.trainings(root)) or any(map(_lives, drivers)):
        waited = time.monotonic() - began
        if waited > patience:
            return None
        for process in alive:
            if process.pid not in asked:
                asked.add(process.pid)
                stopping.send(process, signal.SIGKILL if now else signal.SIGTERM)
        if now and waited > 2 * _POLL_SECONDS:  # a second signal, which a driver takes so
            for process in drivers:
                stopping.send(process, signal.SIGTERM)
        if time.monotonic() - shown >= stopping.EVERY:
            shown = time.monotonic()
            what = f"{len(alive)} trainings to save a checkpoint" if alive else "notebooks to end"
            print(f"waiting for {what}", flush=True)
        time.sleep(_POLL_SECONDS)
    return asked


def _drivers(root: Path) -> list[_Driver]:
    """Return the drivers on this machine; of several runs that one command started it is that
    command's process, unless only one of them is to be stopped.
    """
    found = []
    for path in sorted(root.rglob(DRIVER)):
        owner = records.living_process(path)
        if owner is None or owner["host"] != records.this_process()["host"]:
            continue
        process = psutil.Process(owner["pid"])
        starter = process.parent()
        if path.parent != root and starter and {"kdlib", "run"} <= set(starter.cmdline()):
            process = starter
        found.append(_Driver(path.parent, process, str(owner.get("command", "the same call"))))
    return found


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _at_work_elsewhere(root: Path) -> list[tuple[Path, Json]]:
    here = records.this_process()["host"]
    files = [*root.rglob(DRIVER), *stopping.claims(root)]
    owners = [(path, records.living_process(path)) for path in files]
    return [(path, owner) for path, owner in owners if owner and owner["host"] != here]
