"""``python -m kdlib train RUN_DIR --devices N``: a number of processes enters, as many ranks train, one exit code leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from kdlib.data.sampler import check_shares
from kdlib.errors import ConfigError
from kdlib.training.job import TrainJob
from kdlib.training.launcher import LOST, SUPERVISOR, TERMINATED, check_devices, from_torchrun, srun_tasks

DEVICES = "KDLIB_DEVICES"  # how a whole chain of notebooks says --devices
POLL_SECONDS = 0.1
GRACE_SECONDS = 2.0  # for a second rank to end, so that the first to fail is told from those that lost it
RANK = (sys.executable, "-m", "kdlib", "train")


def train(run_dir: Path, devices: int | None = None) -> None:
    """Train the job of a run folder in one process or in several on this machine; under torchrun or srun be one of theirs.

    Args:
        run_dir: Folder with its ``job.json``.
        devices: Processes; each takes a GPU where there are some, and an equal share of every batch. None: as many as
            KDLIB_DEVICES says, else one; or what the launcher started.

    Raises:
        ConfigError: If the processes cannot share the batch, are more than the GPUs, or contradict the launcher.
        SystemExit: With the code of the rank that failed; 143 after SIGTERM.
    """
    if from_torchrun() or srun_tasks() > 1:
        told = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 0)
        if devices not in (None, told):
            raise ConfigError(f"--devices {devices} but the launcher started {told} processes here; leave --devices away")
    elif (devices := devices or _wanted()) > 1:
        check_shares(TrainJob.read(run_dir).train.batch_size, devices)
        check_devices(devices)
        code = supervise((*RANK, str(run_dir)), devices)
        if code:
            raise SystemExit(code)
        return
    from kdlib.training.loop import train as train_here  # not above: a supervisor needs neither torch's nor Lightning's memory

    train_here(run_dir)


def _wanted() -> int:
    text = os.environ.get(DEVICES) or "1"
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{DEVICES}='{text}' must be a positive number")
    return int(text)


def supervise(command: Sequence[str], count: int) -> int:
    """Run a command as ``count`` ranks and return one exit code for all: 0, 143 after SIGTERM, else that of the first to fail.

    SIGTERM is handed on to every rank. If one dies the others, who would wait for it for ever, are killed.
    """
    port = _free_port()
    children = [subprocess.Popen(command, env=_environment(rank, count, port)) for rank in range(count)]

    def hand_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)  # does nothing to one that has ended

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _watch(children)
    finally:
        for child in children:
            child.kill()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(children: Sequence[subprocess.Popen[bytes]]) -> int:
    failed: float | None = None
    while True:
        codes = [child.poll() for child in children]
        guilty = [rank for rank, code in enumerate(codes) if code not in (None, 0, LOST, TERMINATED)]
        if failed is None and any(code not in (None, 0, TERMINATED) for code in codes):
            failed = time.monotonic()
        ended = all(code is not None for code in codes)
        if failed is None and ended:
            return max(code or 0 for code in codes)
        if failed is not None and (guilty or ended or time.monotonic() - failed > GRACE_SECONDS):
            rank = guilty[0] if guilty else next(i for i, code in enumerate(codes) if code not in (None, 0, TERMINATED))
            code = codes[rank]
            assert code is not None
            print(_sentence(rank, len(children), code), file=sys.stderr, flush=True)
            return code if code > 0 else 128 - code
        time.sleep(POLL_SECONDS)


def _sentence(rank: int, count: int, code: int) -> str:
    how = f"ended with code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
    return f"kdlib: rank {rank} of {count} {how}, so all were stopped; a new start goes on from the last checkpoint"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    """Return the variables that torchrun would set, and a fair share of the cores unless threads are limited already."""
    told: dict[str, object] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": f"kdlib-{os.getpid()}"}
    told |= {SUPERVISOR: os.getpid(), "PYTHONUNBUFFERED": 1}
    if not (os.environ.get("KDLIB_THREADS") or os.environ.get("OMP_NUM_THREADS")):
        told["OMP_NUM_THREADS"] = max(1, (os.cpu_count() or 1) // count)
    return {**os.environ, **{name: str(value) for name, value in told.items()}}
