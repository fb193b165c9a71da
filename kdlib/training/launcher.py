"""Starts the ranks of one training through torchrun, and tells a process which launcher it was
started by.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from kdlib.errors import ConfigError

DEVICES = "KDLIB_DEVICES"  # how a whole chain of notebooks says --devices
LOST = 75  # exit code of a rank that lost another one
TERMINATED = 143  # the shell's code for SIGTERM
_FOLLOWING = (LOST, TERMINATED, -signal.SIGTERM)  # how ranks end because another one did


def from_torchrun() -> bool:
    """Return whether torchrun started this process as one of its ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def srun_tasks() -> int:
    """Return how many processes SLURM's srun started together with this one; a batch script alone
    counts as none.
    """
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 0)


def positive_number(name: str) -> int | None:
    """Return the number in a variable of the environment, None where it is not set.

    Raises:
        ConfigError: If it is no positive number.
    """
    text = os.environ.get(name, "")
    if text and (not text.isdigit() or int(text) < 1):
        raise ConfigError(f"{name}='{text}' must be a positive number")
    return int(text) if text else None


def ranks_to_start(devices: int | None) -> int:
    """Return how many ranks to start here, 1 where this process is to train itself.

    ``devices`` is what the user asked for; None: as many as KDLIB_DEVICES says, else one; or what
    the launcher started.

    Raises:
        ConfigError: If the number contradicts the launcher.
    """
    if not from_torchrun() and srun_tasks() <= 1:
        return devices or positive_number(DEVICES) or 1
    told = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 0)
    if devices not in (None, told):
        raise ConfigError(
            f"--devices {devices} but the launcher started {told} processes here; "
            "leave --devices away"
        )
    return 1


def check_devices(processes: int) -> None:
    """Refuse more processes than there are GPUs; a machine without any takes as many as one likes.

    Raises:
        ConfigError: Naming both numbers.
    """
    gpus = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if 0 < gpus < processes:
        raise ConfigError(
            f"{processes} processes on this machine but only {gpus} GPU{'s' * (gpus > 1)} visible; "
            f"use --devices {gpus} (torchrun: --nproc-per-node, SLURM: --ntasks-per-node), "
            "or let every process see all GPUs"
        )


def start_ranks(arguments: Sequence[str], count: int) -> int:
    """Run ``python ARGUMENTS`` as ``count`` ranks of this machine and return one exit code for all.

    torchrun hands SIGTERM on to every rank, waits for them to save, and kills what is left after 30
    seconds; the same happens to the others, who would wait for it for ever, when one rank dies. The
    code is 0, 143 after SIGTERM, else that of the first rank to fail, which is named on stderr.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"kdlib-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # ranks print where this process prints
    )
    if not (os.environ.get("KDLIB_THREADS") or os.environ.get("OMP_NUM_THREADS")):
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    logging.disable(logging.CRITICAL)  # torchrun reports a failure on a page, we in one sentence
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except SignalException as ending:
        return 128 + ending.sigval
    except ChildFailedError as ending:
        return _name_the_first(
            {rank: failure.exitcode for rank, failure in ending.failures.items()}, count
        )
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _name_the_first(codes: Mapping[int, int], count: int) -> int:
    guilty = [rank for rank, code in codes.items() if code not in _FOLLOWING]
    rank = guilty[0] if guilty else next(iter(codes))
    code = codes[rank]
    if code in (TERMINATED, -signal.SIGTERM):
        return TERMINATED
    how = f"ended with code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
    print(
        f"kdlib: rank {rank} of {count} {how}, so all were stopped; a new start goes on from the "
        "last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    return code if code > 0 else 128 - code
