"""This process's place among the ranks of a training, as torchrun or SLURM's srun told it, and what
the ranks agree on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from kdlib.errors import ConfigError
from kdlib.training.launcher import LOST, TERMINATED, check_devices, from_torchrun, srun_tasks

_SETTLE_SECONDS = 0.3
_MOURN_SECONDS = 1.0
_LOST_SIGNS = (
    "closed by peer",
    "reset by peer",
    "broken pipe",
    "connection closed",
    "connection was closed",
    "socket closed",
)


@dataclass(frozen=True)
class Processes:
    """Who takes part in a training, and which of them this is."""

    world: int = 1  # processes, on all machines
    rank: int = 0
    devices: int = 1  # processes on this machine, and on every other one
    slurm: bool = False  # started by srun, not by torchrun

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.world > 1

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """Return every number summed over the processes; all of them wait for each other, no device
        is waited for.
        """
        if not self.several:
            return numbers
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values)
        return tuple(values.tolist())

    def from_first(self, number: int) -> int:
        """Return the first process's number; the others wait for it."""
        if not self.several:
            return number
        message = torch.tensor(int(number))
        dist.broadcast(message, src=0)
        return int(message)

    def trainer_options(self) -> dict[str, Any]:
        """Return what Lightning's Trainer has to know."""
        if not self.several:
            return {"devices": 1}
        # Statistics are computed alike on all ranks, so no buffer is handed round. Newer torch has
        # another name for it.
        warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*")
        strategy = DDPStrategy(cluster_environment=self.environment(), broadcast_buffers=False)
        return {
            "devices": self.devices,
            "num_nodes": self.world // self.devices,
            "strategy": strategy,
        }

    def environment(self) -> ClusterEnvironment:
        """Return Lightning's view of the launcher."""
        return SLURMEnvironment(auto_requeue=False) if self.slurm else TorchElasticEnvironment()


ONE_PROCESS = Processes()


def here() -> Processes:
    """Return this process's place as torchrun or srun tell it; without them it is the only one.

    Raises:
        ConfigError: If machines have unequal numbers of processes, or this one has fewer GPUs than
            processes.
    """
    if from_torchrun():
        world, rank, devices = (
            int(os.environ[name]) for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE")
        )
    elif srun_tasks() > 1:
        world, rank = srun_tasks(), int(os.environ["SLURM_PROCID"])
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
        devices = world // nodes if world % nodes == 0 else 0
    else:
        return ONE_PROCESS
    try:
        if devices < 1 or world % devices:
            raise ConfigError(
                f"{world} processes are not shared evenly by the machines; start "
                "as many on each of them"
            )
        check_devices(devices)
    except ConfigError:
        if rank != 0:
            raise SystemExit(2) from None  # one sentence, not one from every rank
        raise
    return Processes(world, rank, devices, slurm=not from_torchrun())


@contextlib.contextmanager
def joined(processes: Processes) -> Iterator[None]:
    """Hold this process's connection to the other ranks; all but the first keep quiet.

    Raises:
        SystemExit: With :data:`kdlib.training.launcher.LOST` where another rank has gone.
    """
    if not processes.several:
        yield
        return
    if from_torchrun():
        threading.Thread(target=_follow_starter, args=(os.getppid(),), daemon=True).start()
    with contextlib.ExitStack() as quiet:
        if not processes.first:
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            logging.getLogger("kdlib").setLevel(logging.ERROR)
        try:
            place = processes.environment()
            os.environ.setdefault("MASTER_ADDR", place.main_address)
            os.environ.setdefault("MASTER_PORT", str(place.main_port))
            # gloo, and nccl where there are GPUs
            dist.init_process_group(rank=processes.rank, world_size=processes.world)
            try:
                yield
            except SystemExit as ending:
                if ending.code == TERMINATED:  # which all ranks do together
                    _part()
                raise
            _part()
        except RuntimeError as error:
            if not any(sign in str(error).lower() for sign in _LOST_SIGNS):
                raise
            print(
                f"rank {processes.rank} of {processes.world} lost another rank and ends",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(_MOURN_SECONDS)  # so that torchrun sees the end of the other one first
            os._exit(LOST)  # without farewells to a group that is no more


def settle() -> None:
    """Let gloo's threads finish with the tensors of past collectives, for which they need the
    interpreter for a moment.

    A fork in that moment leaves a child that hangs. Taking the group down then hangs, too: it joins
    the threads with the interpreter held.
    """
    time.sleep(_SETTLE_SECONDS)


def _part() -> None:
    last = torch.zeros(1)
    dist.all_reduce(last)  # whoever leaves first would look lost to the others
    settle()
    dist.destroy_process_group()
    del last  # not before: the group's threads would have to free it


@contextlib.contextmanager
def held_back_termination(processes: Processes) -> Iterator[None]:
    """Let SIGTERM wait while the ranks get ready to train, until somebody unblocks it: Lightning's
    handler would talk to them.
    """
    if not processes.several or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_termination_in() -> None:
    """Deliver a SIGTERM that :func:`held_back_termination` held back, and all later ones."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def ignore_termination(worker: int) -> None:
    """Make a data worker leave SIGTERM, which a scheduler sends to all processes at once, to its
    trainer.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    let_termination_in()


def _follow_starter(starter: int) -> None:
    """Save and end, as after SIGTERM, if the process that started this rank dies: nobody would
    notice a rank that hangs.
    """
    while os.getppid() == starter:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
