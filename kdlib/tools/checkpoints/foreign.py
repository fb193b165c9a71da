"""Fits checkpoints of OpenPCDet and SparseKD to our models, with a table of what went where; and
writes them back.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._weights_only_unpickler import UnpicklingError  # type: ignore[attr-defined]

from kdlib.config import lookup
from kdlib.errors import ConfigError, DataError
from kdlib.models.weights import (
    Coverage,
    cover,
    read_tensors,
    read_weights,
    refuse_untrained,
    save_weights,
    weights_format,
)
from kdlib.records import sha256, write_bytes
from kdlib.tools.checkpoints.names import named

# OpenPCDet and SparseKD, then everybody else
_SETS = ("model_state", "state_dict", "model_state_dict", "model")
# what torch's restricted reader stumbles over in damaged files
_DAMAGED = (
    *(RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, AssertionError, ImportError, MemoryError, struct.error),
)

# For each layout of sparse kernels, the axes of a stored tensor in our order (Cout, kz, ky, kx,
# Cin); spec section 4.1.
_AXES = {"spconv2": (0, 1, 2, 3, 4), "spconv1": (4, 0, 1, 2, 3), "native": (3, 0, 1, 2, 4)}


class NumPyValue:
    """Stands in for a NumPy scalar or array beside the weights, which nobody asks for: NumPy itself
    would believe whatever a damaged file says of its memory.
    """

    def __init__(self, *arguments: Any) -> None:
        """Pass over what describes the value."""

    def __setstate__(self, state: Any) -> None:
        """Pass over its numbers."""


_PASSED_OVER: list[Any] = [
    (NumPyValue, f"numpy.{name}")
    for name in (
        *("dtype", "ndarray", "core.multiarray.scalar", "_core.multiarray.scalar"),
        *("core.multiarray._reconstruct", "_core.multiarray._reconstruct"),
    )
]


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
    take: str | None = None,
) -> Imported:
    """Fit a foreign checkpoint to a model, exactly or not at all.

    It is a ``.pth`` of OpenPCDet or SparseKD, a ``.ckpt`` of Lightning, a bare state dict, or a
    safetensors file; the model is not changed. Prefixes of wrappers (``module.``, ``_orig_mod.``,
    ``model.``) and one that all names share are taken off.

    Args:
        path: The checkpoint.
        model: What it is to fit.
        layout: Of sparse kernels; None finds it from their shapes.
        rename: Beginnings of names in the file and what they are called here.
        drop: Beginnings (after renaming) to leave out, as ``roi_head`` of a two-stage detector.
        take: Which of several sets of weights; None takes the usual one, and warns.

    Raises:
        ConfigError: If there is no such layout or set, or a beginning of names is none.
        DataError: If the file cannot be read without running code from it, a tensor is missing,
            unknown, of another shape or not finite, or the kernels' layout cannot be told; the
            message names the tensors and the remedy.
    """
    own = model.state_dict()
    stored = named(read_checkpoint(path, take), rename or {}, drop, path, own)
    kernels = {name: tuple(value.shape) for name, value in own.items() if value.dim() == 5}
    if kernels:
        layout = layout or _detect(stored, kernels, path)
        axes = lookup(_AXES, layout, "layout")
        for name in kernels:
            if name in stored and stored[name].dim() == 5:
                stored[name] = stored[name].permute(axes)
    coverage = cover(stored, own)
    if not coverage.complete:
        raise DataError(
            f"{path} does not fit the model ({coverage.excerpt()}); name the model it was trained "
            "as, or try --rename OLD=NEW, --drop NAME"
        )
    tensors = {name: _converted(stored[name], own[name], name, path) for name in coverage.loaded}
    refuse_untrained(tensors, path)
    return Imported(tensors, coverage, layout if kernels else None, sha256(path))


def read_checkpoint(path: Path, take: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under their names in the file.

    Nothing in the file is executed: what torch's restricted reader does not accept is refused.
    ``take`` names one of several sets of weights; None takes the usual one and warns of the others.

    Raises:
        ConfigError: If there is no such set.
        DataError: If the file is missing, damaged, or holds more than tensors and plain values.
    """
    content = (
        read_tensors(path) if weights_format(path) == "safetensors" else _restricted_load(path)
    )
    sets = _weight_sets(content)
    if not sets:
        raise DataError(
            f"{path} holds no state dict ({_inventory(content)}); expected tensors by "
            "name, or 'model_state' with them"
        )
    if take is not None and take not in sets:
        raise ConfigError(f"{path} has no set of weights '{take}', it has: {', '.join(sets)}")
    usual = [name for key in _SETS for name in sets if name.split("/")[0] == key]
    chosen = take or (usual or list(sets))[0]
    if take is None and len(sets) > 1:
        others = ", ".join(name for name in sets if name != chosen)
        if not usual:
            raise DataError(
                f"{path} holds several sets of weights, {', '.join(sets)}; say which with --take"
            )
        warnings.warn(
            f"{path} holds {len(sets)} sets of weights: '{chosen}' is taken, not {others} "
            "(--take NAME takes another)",
            stacklevel=2,
        )
    return {name: _plain(value, name, path) for name, value in sets[chosen].items()}


def _restricted_load(path: Path) -> Any:
    try:
        # a stream: of a path, torch believes the ending
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_PASSED_OVER),
            path.open("rb") as stream,
        ):
            warnings.simplefilter("ignore")  # of torch, to its own developers
            return torch.load(stream, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        name = re.search(
            r"GLOBAL ([\w.]+)|Can only (?:create|build).*<class '([\w.]+)'>", str(error)
        )
        if name is None:  # torch's own text is long, and speaks of running what the file says
            raise DataError(
                f"{path} is a pickle that torch.save did not write, or damaged; copy it again, or "
                "write it with torch.save"
            ) from error
        raise DataError(
            f"{path} holds {name[1] or name[2]}, an object that only running code from the file "
            "could rebuild; if you trust it, save it again there with "
            'torch.save({"model_state": model.state_dict()}, FILE)'
        ) from error
    except _DAMAGED as error:
        # of a file cut short the system says only "Invalid argument"
        reason = "it is cut short" if isinstance(error, OSError) else _first_line(error)
        raise DataError(
            f"{path} is no complete torch checkpoint ({reason}); copy it again"
        ) from error


def _weight_sets(content: Any, place: str = "") -> dict[str, Mapping[str, Tensor]]:
    """Return every group of tensors by name, by the keys that lead to it; those of optimisers are
    none. Plain values among the tensors, as an epoch, are passed over.
    """
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return {}
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    nested = any(isinstance(value, Mapping) for value in content.values())
    if 2 * len(tensors) > len(content) and not nested:
        # a detector has matrices; the state of a gradient scaler or of statistics has none
        return {place: tensors} if any(value.dim() > 1 for value in tensors.values()) else {}
    return {
        name: tensors
        for key, value in content.items()
        if "optim" not in key
        for name, tensors in _weight_sets(value, f"{place}/{key}".lstrip("/")).items()
    }


def _inventory(content: Any) -> str:
    """Say what a file holds instead of weights."""
    if not isinstance(content, Mapping):
        return f"found: {_kind(content)}"
    kinds = [f"{key!r}: {_kind(value)}" for key, value in content.items()]
    rest = f" and {len(kinds) - 6} more" if len(kinds) > 6 else ""
    return f"found: {', '.join(kinds[:6]) or 'nothing'}{rest}"


def _kind(value: Any) -> str:
    if isinstance(value, NumPyValue):
        return "a NumPy array, save torch.from_numpy of it"
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping) and value:
        name, first = next(iter(value.items()))
        return f"{len(value)} values, {name!r}: {_kind(first)}"
    return type(value).__name__


def _plain(value: Tensor, name: str, path: Path) -> Tensor:
    if value.is_quantized or value.is_complex() or value.is_meta or value.is_nested:
        raise DataError(
            f"{path}: {name} is stored as {value.dtype} on {value.device}, which no model has; "
            "save its plain numbers"
        )
    return value if value.layout == torch.strided else value.to_dense()


def export_checkpoint(
    weights: Path, model: nn.Module, out: Path, *, layout: str = "spconv2"
) -> None:
    """Write our weights as a checkpoint OpenPCDet and SparseKD load: tensors under ``model_state``,
    whole or not at all.

    ``layout`` is that of sparse kernels: ``spconv2`` for spconv 2.x, ``spconv1`` for the 1.2.1 of
    the published runs.

    Raises:
        DataError: If the weights do not fit the model, or are not finite.
    """
    tensors, own = read_weights(weights), model.state_dict()
    coverage = cover(tensors, own)
    if not coverage.complete:
        raise DataError(
            f"{weights} does not fit the model ({coverage.excerpt()}); name the model it was "
            "trained as"
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
