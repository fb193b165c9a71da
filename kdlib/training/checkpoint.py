"""Checkpoints to resume from: the state of a training as one safetensors file, which is whole or
not there at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdlib import records
from kdlib.errors import KdlibError

log = logging.getLogger(__name__)

_KEEP = 2


class CheckpointError(KdlibError):
    """A checkpoint that cannot be written, or does not belong to this run."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped."""

    step: int  # optimiser steps done
    job: str  # hash of the job
    tensors: Mapping[str, Tensor]  # weights, optimiser moments, generator states
    notes: Mapping[str, Any]  # plain JSON values: running means, seconds so far, versions


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(safetensors.torch.save({"": tensors[name]}))
    return digest.hexdigest()


def files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step_*.safetensors"))


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``step_NNNNNNN.safetensors`` and keep the newest two.

    Raises:
        CheckpointError: If the disk refuses; earlier checkpoints are untouched.
    """
    tensors = {
        name: value.detach().cpu().clone().contiguous()
        for name, value in checkpoint.tensors.items()
    }
    head = {
        "step": checkpoint.step,
        "job": checkpoint.job,
        "notes": checkpoint.notes,
        "digest": _digest(tensors),
    }
    path = folder / f"step_{checkpoint.step:07d}.safetensors"
    try:
        records.write_bytes(path, safetensors.torch.save(tensors, {"kdlib": json.dumps(head)}))
    except OSError as error:
        earlier = files(folder)
        rest = (
            f"the run can go on from {earlier[-1].name}"
            if earlier
            else ("there is no earlier checkpoint")
        )
        raise CheckpointError(
            f"cannot write {path} ({error.strerror or error}); free some space and start again: "
            f"{rest}"
        ) from error
    for old in files(folder)[:-_KEEP]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint and check its digest.

    Raises:
        CheckpointError: If the file is truncated, damaged or not a kdlib checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            head = json.loads((stream.metadata() or {})["kdlib"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}
        digest, checkpoint = (
            head["digest"],
            Checkpoint(head["step"], head["job"], tensors, head["notes"]),
        )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole kdlib checkpoint ({error})") from error
    if digest != _digest(tensors):
        raise CheckpointError(f"{path} is damaged: its contents do not match their digest")
    return checkpoint


def latest(folder: Path, job: str) -> Checkpoint | None:
    """Return the newest readable checkpoint; a damaged one is named in a warning and the one before
    it is used.

    Raises:
        CheckpointError: If the newest readable checkpoint belongs to another job.
    """
    for path in reversed(files(folder)):
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            log.warning("%s; going back to the checkpoint before it", error)
            continue
        if checkpoint.job != job:
            raise CheckpointError(
                f"{path} belongs to job {checkpoint.job}, this run is job {job}: "
                "the settings, the store or a weight file changed; "
                f"choose another run folder, or delete {folder} to start over; for more epochs "
                "after the end, name the trained weights as init_weights of a job in another folder"
            )
        return checkpoint
    return None
