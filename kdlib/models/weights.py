"""Detector weights as safetensors files, each with its card; loading says what fitted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kdlib.errors import DataError
from kdlib.records import write_bytes
from kdlib.types import Json

_COUNTERS = ("global_step", "num_batches_tracked")  # last parts of names: counters, not weights


@dataclass(frozen=True)
class Coverage:
    """What of a file went into a model."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # in the model, not in the file; counters may be, they are no weights
    unexpected: tuple[str, ...]  # in the file, not in the model
    # name, shape in the model, shape in the file
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def complete(self) -> bool:
        """Whether model and file fit exactly, but for counters."""
        return not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence per tensor that does not fit."""
        return (
            *(f"missing in the file: {name}" for name in self.missing if not _is_counter(name)),
            *(f"unknown to the model: {name}" for name in self.unexpected),
            *(f"{name}: model {ours}, file {theirs}" for name, ours, theirs in self.mismatched),
        )

    def table(self) -> str:
        """Return the number of tensors loaded, then one line per tensor that was not."""
        lines = [f"{len(self.loaded)} tensors loaded", *self.problems]
        lines += [
            f"missing in the file: {name} (a counter, no weight)"
            for name in self.missing
            if _is_counter(name)
        ]
        return "\n".join(lines)


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS


def cover(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Coverage:
    """Compare a file's tensors with a model's, by name and shape."""
    shapes = {
        name: (tuple(own[name].shape), tuple(value.shape))
        for name, value in tensors.items()
        if name in own
    }
    bad = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    return Coverage(
        loaded=tuple(name for name in own if name in shapes and name not in bad),
        missing=tuple(name for name in own if name not in tensors),
        unexpected=tuple(name for name in tensors if name not in own),
        mismatched=tuple((name, *pair) for name, pair in bad.items()),
    )


def save_weights(path: Path, model: nn.Module, card: Mapping[str, Any]) -> None:
    """Write a model's ``state_dict`` and a card, JSON values that say where the numbers come from,
    to one safetensors file.

    Raises:
        OSError: If the disk is full or read-only; an old file is untouched and nothing new is left
            behind.
    """
    tensors = {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.state_dict().items()
    }
    write_bytes(path, save(tensors, metadata={"card": json.dumps(dict(card), sort_keys=True)}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; 16-bit floats come back as float32.

    Raises:
        DataError: If the file is missing, truncated or no safetensors file.
    """
    with _open(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return {
        name: value.float() if value.dtype == torch.float16 else value
        for name, value in tensors.items()
    }


def read_card(path: Path) -> Json:
    """Return the card a file carries, empty if it has none.

    Raises:
        DataError: If the file is missing, truncated or no safetensors file.
    """
    with _open(path) as file:
        return json.loads((file.metadata() or {}).get("card", "{}"))


def load_weights(path: Path, model: nn.Module) -> Coverage:
    """Copy a safetensors file's tensors into a model and say what fitted: all, but for counters
    that may be missing.

    Raises:
        DataError: If the file cannot be read, or does not fit; the message names the first tensors,
            and none is touched.
    """
    tensors = read_weights(path)
    coverage = cover(tensors, model.state_dict())
    if not coverage.complete:
        first = "; ".join(coverage.problems[:3])
        raise DataError(
            f"{path} does not fit the model ({first}); give the model it was trained as"
        )
    model.load_state_dict({name: tensors[name] for name in coverage.loaded}, strict=False)
    return coverage


def _open(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a safetensors file")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise DataError(
            f"{path} is no complete safetensors file ({error}); copy or train it again"
        ) from error
