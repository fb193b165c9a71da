"""Fits checkpoints of OpenPCDet and SparseKD to our models, with a table of what went where; and
writes them back.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._weights_only_unpickler import UnpicklingError  # type: ignore[attr-defined]

from kdlib.config import lookup
from kdlib.errors import ConfigError, DataError
from kdlib.models.weights import Coverage, cover, read_weights, save_weights
from kdlib.records import sha256, write_bytes

# OpenPCDet and SparseKD, then everybody else
_NESTED = ("model_state", "state_dict", "model_state_dict", "model")
_PREFIX = "module."  # DistributedDataParallel

# For each layout of sparse kernels, the axes of a stored tensor in our order (Cout, kz, ky, kx,
# Cin); spec section 4.1.
_AXES = {"spconv2": (0, 1, 2, 3, 4), "spconv1": (4, 0, 1, 2, 3), "native": (3, 0, 1, 2, 4)}


@dataclass(frozen=True)
class Imported:
    """What of a foreign checkpoint fits a model."""

    tensors: Mapping[str, Tensor]  # under the model's names, in its layout and in float32
    coverage: Coverage
    layout: str | None  # of the sparse kernels in the file; None if the model has none
    sha256: str  # of the file

    def table(self) -> str:
        """Return one line per group of layers, then every tensor that did not fit."""
        groups: dict[str, list[int]] = {}
        for name in self.coverage.loaded:
            groups.setdefault(".".join(name.split(".")[:2]), []).append(self.tensors[name].numel())
        lines = [f"{'layers':28} {'tensors':>8} {'numbers':>12}"]
        lines += [
            f"{group:28} {len(sizes):>8} {sum(sizes):>12,}" for group, sizes in groups.items()
        ]
        if self.layout is not None:
            lines.append(f"sparse kernels were stored as {self.layout}")
        return "\n".join([*lines, self.coverage.table()])


def import_checkpoint(
    path: Path,
    model: nn.Module,
    *,
    layout: str | None = None,
    rename: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
) -> Imported:
    """Fit a foreign checkpoint to a model, exactly or not at all.

    It is a ``.pth`` of OpenPCDet or SparseKD, a bare state dict, or a safetensors file; the model
    is not changed. None finds the layout of sparse kernels from their shapes. ``rename`` has
    beginnings of names in the file and what they are called here, ``drop`` those (after renaming)
    to leave out, as ``roi_head`` of a two-stage detector.

    Raises:
        ConfigError: If there is no such layout, or a beginning of names is none.
        DataError: If the file cannot be read without running code from it, a tensor is missing,
            unknown, of another shape or not finite, or the kernels' layout cannot be told; the
            message names the tensors and the remedy.
    """
    own, stored = model.state_dict(), _named(read_checkpoint(path), rename or {}, drop, path)
    kernels = {name: tuple(value.shape) for name, value in own.items() if value.dim() == 5}
    if kernels:
        layout = layout or _detect(stored, kernels, path)
        axes = lookup(_AXES, layout, "layout")
        for name in kernels:
            if name in stored and stored[name].dim() == 5:
                stored[name] = stored[name].permute(axes)
    coverage = cover(stored, own)
    if not coverage.complete:
        problems = "; ".join(coverage.problems[:6])
        raise DataError(
            f"{path} does not fit the model ({problems}); name the model it was trained as, or "
            "try --rename OLD=NEW, --drop NAME"
        )
    tensors = {name: _converted(stored[name], own[name], name, path) for name in coverage.loaded}
    return Imported(tensors, coverage, layout if kernels else None, sha256(path))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under their names in the file, prefixes of wrappers taken
    off.

    Nothing in the file is executed: what torch's restricted reader does not accept is refused.

    Raises:
        DataError: If the file is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a .pth or .safetensors file")
    if path.suffix == ".safetensors":
        return read_weights(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is no complete torch checkpoint ({_first_line(error)}); copy it again"
        ) from error
    except UnpicklingError as error:
        raise DataError(
            f"{path} holds objects that only running code from the file could rebuild "
            f"({_first_line(error)}); if you trust it, "
            'save it again there with torch.save({"model_state": checkpoint["model_state"]}, FILE)'
        ) from error
    while isinstance(content, Mapping) and (
        inner := [content[key] for key in _NESTED if isinstance(content.get(key), Mapping)]
    ):
        content = inner[0]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        keys = (
            ", ".join(map(str, list(content)[:6]))
            if isinstance(content, Mapping)
            else type(content).__name__
        )
        raise DataError(
            f"{path} holds no state dict (found: {keys}); expected tensors by name, "
            "or 'model_state' with them"
        )
    wrapper = _PREFIX if all(str(name).startswith(_PREFIX) for name in content) else ""
    return {str(name).removeprefix(wrapper): value for name, value in content.items()}


def export_checkpoint(
    weights: Path, model: nn.Module, out: Path, *, layout: str = "spconv2"
) -> None:
    """Write our weights as a checkpoint OpenPCDet and SparseKD load: tensors under ``model_state``,
    whole or not at all.

    ``layout`` is that of sparse kernels: ``spconv2`` for spconv 2.x, ``spconv1`` for the 1.2.1 of
    the published runs.

    Raises:
        DataError: If the weights do not fit the model.
    """
    tensors, own = read_weights(weights), model.state_dict()
    coverage = cover(tensors, own)
    if not coverage.complete:
        raise DataError(
            f"{weights} does not fit the model ({'; '.join(coverage.problems[:3])}); name the "
            "model it was trained as"
        )
    back = np.argsort(lookup(_AXES, layout, "layout")).tolist()
    state = {
        name: (tensors[name].permute(back) if own[name].dim() == 5 else tensors[name]).contiguous()
        for name in coverage.loaded
    }
    stream = io.BytesIO()
    torch.save({"model_state": state, "epoch": 0, "it": 0, "version": "kdlib"}, stream)
    write_bytes(out, stream.getvalue())


def save_imported(out: Path, model: nn.Module, imported: Imported, card: Mapping[str, Any]) -> None:
    """Put imported tensors into a model and write its safetensors file with a card that says where
    they come from.
    """
    model.load_state_dict(dict(imported.tensors), strict=False)
    save_weights(
        out, model, {**card, "source_sha256": imported.sha256, "source_layout": imported.layout}
    )


def _named(
    tensors: Mapping[str, Tensor], rename: Mapping[str, str], drop: Sequence[str], path: Path
) -> dict[str, Tensor]:
    _check_beginnings("--rename", rename, tensors, path)
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        old = max((old for old in rename if _below(name, old)), key=len, default=None)
        ours = name if old is None else rename[old] + name[len(old) :]
        if ours in named:
            raise ConfigError(f"--rename gives two tensors of {path} the name {ours}")
        named[ours] = value
    _check_beginnings("--drop", drop, named, path)
    return {
        name: value
        for name, value in named.items()
        if not any(_below(name, beginning) for beginning in drop)
    }


def _below(name: str, beginning: str) -> bool:
    return name == beginning or name.startswith(beginning.rstrip(".") + ".")


def _check_beginnings(
    option: str, beginnings: Iterable[str], names: Iterable[str], path: Path
) -> None:
    for beginning in beginnings:
        if not any(_below(name, beginning) for name in names):
            heads = ", ".join(sorted({name.partition(".")[0] for name in names}))
            raise ConfigError(
                f"{option} {beginning}: no tensor of {path} begins so; it has {heads}"
            )


def _detect(
    stored: Mapping[str, Tensor], kernels: Mapping[str, tuple[int, ...]], path: Path
) -> str:
    """Return the one layout in which every kernel has the model's shape; kernels that fit in none
    are left to the coverage.
    """
    shapes = {
        name: tuple(stored[name].shape)
        for name in kernels
        if name in stored and stored[name].dim() == 5
    }

    def agreement(layout: str, name: str) -> int:
        """Return how many axes of a kernel are as long as the model's."""
        return sum(shapes[name][axis] == size for axis, size in zip(_AXES[layout], kernels[name]))

    fits = {
        name: layouts
        for name in shapes
        if (layouts := {layout for layout in _AXES if agreement(layout, name) == 5})
    }
    if not fits:  # the nearest says most
        return max(_AXES, key=lambda layout: sum(agreement(layout, name) for name in shapes))
    possible = set.intersection(*fits.values())
    if not possible:
        other, its = next((name, layouts) for name, layouts in fits.items() if len(layouts) == 1)
        name, theirs = next((name, layouts) for name, layouts in fits.items() if not layouts & its)
        raise DataError(
            f"{path}: the sparse kernels disagree, {name} is stored as "
            f"{'/'.join(sorted(theirs))} but {other} as {its.pop()}; "
            "the file mixes two conversions, export it again from one"
        )
    if len(possible) > 1:
        raise DataError(
            f"{path}: every sparse kernel is square, so {' and '.join(sorted(possible))} look "
            "alike; say which with --layout"
        )
    return possible.pop()


def _converted(value: Tensor, own: Tensor, name: str, path: Path) -> Tensor:
    """Return a tensor of the model's kind: floats of any width as float32, counters as integers."""
    if own.is_floating_point() != value.is_floating_point():
        raise DataError(
            f"{path}: {name} holds {value.dtype}, the model has {own.dtype} there; "
            "the file was converted wrongly"
        )
    converted = value.to(own.dtype).contiguous()
    bad = int((~converted.isfinite()).sum())
    if bad:
        raise DataError(
            f"{path}: {bad} numbers of {name} are not finite as {own.dtype}; take an "
            "earlier checkpoint"
        )
    return converted


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
