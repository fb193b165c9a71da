"""What launcher started this process: torchrun or SLURM's srun, and the words that ranks and their starter share."""

from __future__ import annotations

import os

from kdlib.errors import ConfigError

LOST = 75  # exit code of a rank that lost another one
TERMINATED = 143  # the shell's code for SIGTERM
SUPERVISOR = "KDLIB_SUPERVISOR"  # tells a rank whose child it is


def from_torchrun() -> bool:
    """Return whether torchrun, or this module in its manner, started this process as one of its ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def srun_tasks() -> int:
    """Return how many processes SLURM's srun started together with this one; a batch script alone counts as none."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 0)


def check_devices(processes: int) -> None:
    """Refuse more processes than there are GPUs; a machine without any takes as many as one likes.

    Raises:
        ConfigError: Naming both numbers.
    """
    import torch

    found = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if 0 < found < processes:
        raise ConfigError(
            f"{processes} processes on this machine but only {found} GPU{'s' * (found > 1)} visible; use --devices {found} "
            "(torchrun: --nproc-per-node, SLURM: --ntasks-per-node), or let every process see all GPUs"
        )
