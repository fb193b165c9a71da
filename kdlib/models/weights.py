"""Detector weights as safetensors files, each with its card; loading says what fitted."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kdlib.errors import DataError
from kdlib.records import write_bytes
from kdlib.types import Json

_COUNTERS = ("global_step", "num_batches_tracked")  # last parts of names: counters, not weights
_LISTED = 3  # tensors of each kind that a message names
_ARCHIVES = {  # first bytes of what comes packed, or from other programs
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"(\xb5/\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
}
_TEXT = frozenset(b"\t\n\f\r\x1b") | frozenset(range(32, 256)) - {127}


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

    def excerpt(self) -> str:
        """Return what does not fit, in one line: first names of both sides, how many follow."""
        kinds = (
            ("missing in the file: ", [name for name in self.missing if not _is_counter(name)]),
            ("unknown to the model: ", self.unexpected),
            (
                "",
                [f"{name}: model {ours}, file {theirs}" for name, ours, theirs in self.mismatched],
            ),
        )
        return "; ".join(
            what
            + ", ".join(names[:_LISTED])
            + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
            for what, names in kinds
            if names
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


def weights_format(path: Path) -> Literal["safetensors", "torch"]:
    """Return how a file of weights is stored, by its first bytes, whatever it is called.

    Raises:
        DataError: If the file is missing or something else; the message says what it is.
    """
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.is_file())
        there = f"one of its files: {', '.join(inside[:_LISTED])}" if inside else "a file"
        raise DataError(f"{path} is a folder; give {there}")
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a .safetensors or .pth file")
    try:
        with path.open("rb") as stream:
            head = stream.read(1024)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); copy it again") from error
    if head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80" or (head[:2] == b"PK" and _is_torch_archive(path)):
        return "torch"
    raise DataError(f"{path} {_impostor(head)}")


def _is_torch_archive(path: Path) -> bool:
    """Tell torch's own archives, also those cut short, from others; a DataError says what those
    are.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError):
        return True
    tops = {name.partition("/")[2] for name in names}
    if "constants.pkl" in tops:
        raise DataError(
            f"{path} is TorchScript, a program with weights in it; load it where it comes from "
            "and torch.save its state_dict()"
        )
    if "data.pkl" not in tops:
        raise DataError(
            f"{path} is a zip archive of {', '.join(names[:_LISTED]) or 'nothing'}; unpack it and "
            "give the checkpoint inside"
        )
    return True


def _impostor(head: bytes) -> str:
    """Say what a file that holds no weights is, by its first bytes, and what to do."""
    if not head:
        return "is empty; copy or download it again"
    packed = next((what for magic, what in _ARCHIVES.items() if head.startswith(magic)), None)
    if packed is None and head[257:262] == b"ustar":
        packed = "a tar archive"
    if packed is not None:
        return f"is {packed}; unpack it and give the checkpoint inside"
    if set(head) <= _TEXT:
        text = " ".join(head.decode(errors="replace").split())
        if text.startswith("version https://git-lfs"):
            return (
                "is a git LFS pointer, the address of the weights and not the weights; run "
                "'git lfs pull' where it comes from"
            )
        if text.lower().lstrip("\ufeff").startswith(("<!doctype", "<html", "<head", "<?xml")):
            return "is a web page, no weights; download the file itself"
        return f"is a text ('{text[:40]}'), no weights; give a .safetensors or .pth file"
    return (
        f"holds no weights that can be read here, it begins with {head[:8]!r}; give a .safetensors "
        "or .pth file, copied whole"
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file as they are; 16-bit floats come back as float32.

    Raises:
        DataError: If the file is missing, truncated or no safetensors file.
    """
    with _open(path) as file:
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, RuntimeError, AttributeError) as error:  # kinds torch lacks
            raise DataError(f"{path} holds a tensor torch cannot ({error}); convert it") from error
    return {
        name: value.float() if value.dtype == torch.float16 else value
        for name, value in tensors.items()
    }


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; 16-bit floats come back as float32.

    Raises:
        DataError: If the file is missing, truncated or no safetensors file, a number in it is not
            finite, or all are 0.
    """
    tensors = read_tensors(path)
    bad = {
        name: count
        for name, value in tensors.items()
        if value.is_floating_point() and (count := int((~value.float().isfinite()).sum()))
    }
    if bad:
        name, count = next(iter(bad.items()))
        others = f" and in {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise DataError(
            f"{path}: {count} numbers of {name}{others} are NaN or infinite; take an earlier "
            "checkpoint, or train it again"
        )
    refuse_untrained(tensors, path)
    return tensors


def refuse_untrained(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise DataError where the weights are all 0, or the variance of a norm is negative: finite
    numbers that no training ends with.
    """
    matrices = [value for value in tensors.values() if value.dim() > 1]
    if matrices and not any(value.any() for value in matrices):
        raise DataError(f"{path}: all its weights are 0, nothing was learned; train it again")
    for name, value in tensors.items():
        if name.endswith("running_var") and bool((value < 0).any()):
            raise DataError(
                f"{path}: {name} holds negative variances, down to {float(value.min()):g}; the "
                "file is damaged or was converted wrongly, copy it again"
            )


def read_card(path: str | Path) -> Json:
    """Return the card a file carries, empty if it has none.

    Raises:
        DataError: If the file is missing, truncated or no safetensors file.
    """
    with _open(Path(path)) as file:
        text = (file.metadata() or {}).get("card", "{}")
    try:
        card = json.loads(text)
    except ValueError:
        card = None
    if not isinstance(card, dict):
        raise DataError(f"the card in {path} is no JSON object: '{text[:40]}'; write it with none")
    return card


def load_weights(path: Path, model: nn.Module) -> Coverage:
    """Copy a safetensors file's tensors into a model and say what fitted: all, but for counters
    that may be missing.

    Raises:
        DataError: If the file cannot be read, holds numbers that are not finite, or does not fit;
            the message names the first tensors, and none is touched.
    """
    tensors = read_weights(path)
    coverage = cover(tensors, model.state_dict())
    if not coverage.complete:
        raise DataError(
            f"{path} does not fit the model ({coverage.excerpt()}); give the model it was trained "
            "as, or bring it in with 'python -m kdlib import-checkpoint' where it is another's"
        )
    model.load_state_dict({name: tensors[name] for name in coverage.loaded}, strict=False)
    return coverage


def _open(path: Path) -> Any:
    if weights_format(path) == "torch":
        raise DataError(
            f"{path} is a torch checkpoint, no safetensors file; turn it into one with "
            f"'python -m kdlib import-checkpoint {path} --model NAME'"
        )
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is no complete safetensors file ({error}); copy or train it again"
        ) from error
