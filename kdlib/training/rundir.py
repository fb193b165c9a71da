"""The files of one training run and who is working on them: a folder goes in, paths and a claim come out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from kdlib import records
from kdlib.errors import DataError, KdlibError


class RunBusy(KdlibError):
    """Another process is training in this run folder."""


@dataclass(frozen=True)
class RunDir:
    """Where everything of a training run lies."""

    path: Path

    @property
    def job(self) -> Path:
        """What to train."""
        return self.path / "job.json"

    @property
    def history(self) -> Path:
        """Losses and speed over the steps, one JSON object per line."""
        return self.path / "history.jsonl"

    @property
    def log(self) -> Path:
        """Everything the child printed."""
        return self.path / "train.log"

    @property
    def checkpoints(self) -> Path:
        """Folder of resumable checkpoints."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The trained student."""
        return self.path / "weights.safetensors"

    @property
    def result(self) -> Path:
        """The run in numbers."""
        return self.path / "result.json"

    @property
    def owner(self) -> Path:
        """The process at work, while there is one."""
        return self.path / "child.json"


def _alive(owner: dict[str, Any]) -> bool:
    # Another machine's processes cannot be looked up: its claim counts until somebody deletes it.
    if owner["host"] != socket.gethostname():
        return True
    try:
        process = psutil.Process(int(owner["pid"]))
        return abs(process.create_time() - owner["created"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def worker(run: RunDir) -> dict[str, Any] | None:
    """Return pid, host and start of the living process that trains here, None where there is none."""
    try:
        owner = records.read_json(run.owner)
        return owner if _alive(owner) else None
    except (DataError, KeyError):  # no file, or one written by something else: nobody can be at work
        return None


@contextlib.contextmanager
def claim(run: RunDir) -> Iterator[None]:
    """Hold a run folder for this process; a claim of a process that is gone is taken over.

    Raises:
        RunBusy: If another living process holds it.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    # The file lock covers only the look and the entry: data workers inherit open files and would hold it after our death.
    with (run.path / ".claim").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        other = worker(run)
        if other is not None and other["pid"] != os.getpid():
            raise RunBusy(
                f"{run.path} is being trained by process {other['pid']} on {other['host']}; "
                f"wait for it, or stop it, or delete {run.owner} if that machine is gone"
            )
        me = psutil.Process()
        records.write_json(run.owner, {"pid": me.pid, "host": socket.gethostname(), "created": me.create_time()})
        for home in (run.path, run.checkpoints):  # left half-written by whoever was killed here
            records.remove_leftovers(home)
    try:
        yield
    finally:
        run.owner.unlink(missing_ok=True)
