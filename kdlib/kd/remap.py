"""Narrows a teacher's tensors to a student's shapes, and says where each entry came from.

One choice of channels per group of :mod:`kdlib.kd.channels`, which all axes of that group obey: a
network narrowed by channels that do nothing answers as before, whatever the criterion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from kdlib.config import Initialisation
from kdlib.errors import ConfigError
from kdlib.kd.channels import (
    FIRST_2D,
    Axes,
    AxisSource,
    Chosen,
    Layer,
    Tensors,
    Widths,
    Wiring,
    bev_levels,
    layers,
)
from kdlib.types import Json

# teacher, layer, inputs kept -> (outputs,)
Score = Callable[[Tensors, Layer, Sequence[int] | None], Tensor]
_COUNTERS = ("global_step", "num_batches_tracked")
_RUNS = 3  # of indices that are written out


@dataclass(frozen=True)
class Part:
    """Which entries of one axis of a teacher's tensor the student has."""

    axis: int
    source: AxisSource
    kept: tuple[int, ...]  # in the student's order
    of: int

    @property
    def whole(self) -> bool:
        """Whether it is the whole axis as it was."""
        return self.kept == tuple(range(self.of))

    def __str__(self) -> str:
        """Say which, as ``first 24 of 32 (conv2.0)``; long lists are cut short and told apart by a
        digest.
        """
        return f"{spell(self.kept, self.of)} ({self.source})"

    def to_dict(self) -> Json:
        """Return plain values; indices themselves are in the report's groups."""
        words = {"selection": spell(self.kept, self.of), "digest": digest(self.kept)}
        return {
            "axis": self.axis,
            "groups": self.source.groups,
            "kept": len(self.kept),
            "of": self.of,
            **words,
        }


@dataclass(frozen=True)
class Remapped:
    """A student's tensors, and where they are from."""

    tensors: Tensors
    # by tensor, one for every axis of channels
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    kept: Chosen = field(default_factory=dict)


def norm_scale(teacher: Tensors, layer: Layer, inputs: Sequence[int] | None) -> Tensor:
    """Return the scale of the norm behind a layer: how much of its variation each channel hands
    on.
    """
    return teacher[f"{layer.norm}.weight"].double()


def absolute_norm_scale(teacher: Tensors, layer: Layer, inputs: Sequence[int] | None) -> Tensor:
    """Return how large the scale of the norm behind a layer is."""
    return norm_scale(teacher, layer, inputs).abs()


def weight_sum(teacher: Tensors, layer: Layer, inputs: Sequence[int] | None) -> Tensor:
    """Return the sum of the absolute weights that lead to each output, from the inputs that are
    kept or from all (None).
    """
    weight = teacher[layer.weight].double().abs()
    outputs, axis = layer.axes(weight.dim())
    if inputs is not None:
        weight = weight.index_select(axis, torch.tensor(inputs, device=weight.device))
    return weight.transpose(0, outputs).flatten(1).sum(dim=1)


@dataclass(frozen=True)
class Way:
    """How channels are chosen, and how the network they are chosen in is seen."""

    score: Score | None  # the largest are kept, largest first; None keeps the first
    wiring: Wiring = "true"


WAYS: Mapping[Initialisation, Way] = {
    "first": Way(None),
    "bn_scale": Way(absolute_norm_scale),
    "bn_scale_signed": Way(norm_scale),
    "l1": Way(weight_sum),
    "first_naive": Way(None, "flat"),
    "first_legacy": Way(None, "legacy"),
    "bn_scale_legacy": Way(absolute_norm_scale, "legacy"),
    "l1_legacy": Way(weight_sum, "legacy"),
}


def remap(teacher: Tensors, student: Tensors, how: Initialisation = "first") -> Remapped:
    """Return, for every tensor of the student, its part of the teacher's tensor of that name;
    nothing is written.

    ``first`` keeps the first channels of every group (FNAV2), ``bn_scale`` those with the largest
    absolute norm scale (BN_SCALE; ``bn_scale_signed`` goes by the scale itself), ``l1`` those with
    the largest sum of absolute weights from the inputs that are kept (OFA). Where several layers
    add to a group, each one's scores are divided by their sum, then added up; inputs about which
    nothing is decided yet count whole.

    ``first_naive`` keeps the first entries of every axis (FNAV1), which takes joined maps apart at
    the wrong places. The ``_legacy`` ways repeat SparseKD's faults: a BEV map with its levels
    behind each other, tensors of equal shape copied as they are, and for the scored ones separate
    choices where maps are added and sparse weights summed over all inputs. One fault is not
    repeated: where the 3D backbone narrows (XS, XXS), the original's sums of weights rank the
    inputs of the first 2D convolution by the last block before ``conv_out``, ``l1_legacy`` by
    ``conv_out``. Pillar layers, which it never narrowed, only ``first_legacy`` narrows: the first
    inputs of each.

    Counters, which are no weights, may be missing on either side.

    Args:
        teacher: Its state dict, sparse kernels as (out, kz, ky, kx, in).
        student: Tensors of which only the shapes are used.
        how: A key of ``WAYS``.

    Raises:
        ConfigError: If a tensor has no counterpart, is wider than it or differs in more than width;
            it is named.

    Source: SparseKD section 4.4; spec 8, with what its section 11 says of items 8 to 11.
    """
    if how not in WAYS:
        raise ConfigError(f"'{how}' narrows nothing; use one of {', '.join(WAYS)}")
    way = WAYS[how]
    _check_names(teacher, student)
    student = {name: value for name, value in student.items() if name in teacher}
    if (few := bev_levels(student)) != (many := bev_levels(teacher)):
        raise ConfigError(
            f"{FIRST_2D}: the BEV map has {few} levels in the student, {many} in "
            "the teacher; make grids equal"
        )
    order = layers(teacher, way.wiring)
    axes = {name: sources for layer in order for name, sources in layer.tensors(teacher)}
    _check_shapes(teacher, student, axes)
    wide, narrow = _widths(order, axes, teacher), _widths(order, axes, student)
    kept = _choose(order, teacher, way, wide, narrow)
    tensors, parts = {}, {}
    for name, ours in student.items():
        value, shape = teacher[name], ours.shape
        # The original looks at shapes alone: a tensor that has its size already keeps its channels,
        # whatever its neighbours do.
        sources = {} if way.wiring == "legacy" and value.shape == shape else axes.get(name, {})
        parts[name] = tuple(
            Part(
                axis,
                source,
                _entries(name, source, shape[axis], way, kept, wide),
                value.shape[axis],
            )
            for axis, source in sorted(sources.items())
            if source.groups
        )
        for part in parts[name]:
            if not part.whole:
                value = value.index_select(part.axis, torch.tensor(part.kept, device=value.device))
        tensors[name] = value
    return Remapped(tensors, parts, kept)


def spell(kept: Sequence[int], of: int) -> str:
    """Return a choice of indices in words: runs of neighbours if they are few, the first ones and a
    digest if they are many.
    """
    count = len(kept)
    if list(kept) == list(range(count)):
        return f"all {of}" if count == of else f"first {count} of {of}"
    # Of neighbours in a run, index and place rise together.
    runs = [
        [index for _, index in run]
        for _, run in groupby(enumerate(kept), lambda item: item[1] - item[0])
    ]
    if len(runs) <= _RUNS:
        listed = " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    else:
        listed = f"{' '.join(map(str, kept[:_RUNS]))} ... #{digest(kept)}"
    return f"{listed}, {count} of {of}"


def digest(kept: Sequence[int]) -> str:
    """Return 6 hexadecimal digits that differ where choices do."""
    return hashlib.sha256(" ".join(map(str, kept)).encode()).hexdigest()[:6]


def _check_names(teacher: Tensors, student: Tensors) -> None:
    odd = sorted(name for name in set(teacher) ^ set(student) if not name.endswith(_COUNTERS))
    if odd:
        side = "student" if odd[0] in teacher else "teacher"
        raise ConfigError(
            f"the {side} has no tensor '{odd[0]}': channels can only be chosen of a teacher that "
            "differs in width alone"
        )


def _check_shapes(teacher: Tensors, student: Tensors, axes: Mapping[str, Axes]) -> None:
    for name, narrow in student.items():
        ours, theirs = tuple(narrow.shape), tuple(teacher[name].shape)
        sources = axes.get(name, {})
        if len(ours) != len(theirs):
            raise ConfigError(
                f"{name}: student {ours}, teacher {theirs}; channels are chosen "
                "along axes, none is added"
            )
        if not sources and not name.endswith(_COUNTERS):
            raise ConfigError(
                f"{name}: nothing says what its axes are made of; teach "
                "kdlib/kd/channels.py this layer"
            )
        for axis, (a, b) in enumerate(zip(ours, theirs)):
            fixed = axis not in sources or not sources[axis].groups
            if (fixed and a != b) or a > b:
                demand = "the teacher must be at least as wide"
                if fixed:
                    demand = (
                        "its entries mean something (features of a point, classes, numbers of a "
                        "box): give both models the same, or start with 'matching'"
                    )
                raise ConfigError(
                    f"{name}: axis {axis} has {a} in the student, {b} in the teacher; {demand}"
                )


def _widths(order: Sequence[Layer], axes: Mapping[str, Axes], state: Tensors) -> dict[str, int]:
    """Return the channels of every group; what writes a group says how many, all others must
    agree.
    """
    widths: dict[str, int] = {}
    for layer in order:
        if layer.output is not None:
            weight = state[layer.weight]
            widths.setdefault(layer.output, weight.shape[layer.axes(weight.dim())[0]])
    for name, sources in axes.items():
        for axis, source in sources.items():
            length, together = state[name].shape[axis], source.width(widths)
            if source.groups and length != together:
                raise ConfigError(f"{name}: axis {axis} has {length}, {source} together {together}")
    return widths


def _choose(
    order: Sequence[Layer], teacher: Tensors, way: Way, wide: Widths, narrow: Widths
) -> Chosen:
    """Choose the channels of every group, in the order of the data."""
    if way.score is None:
        return {group: tuple(range(narrow[group])) for group in wide}
    kept: dict[str, tuple[int, ...]] = {}
    for group in wide:
        shares = []
        for layer in order:
            if layer.output != group:
                continue
            # Only inputs whose own channels are chosen can count alone; the original never does so
            # for sparse weights.
            known = bool(layer.inputs.groups) and all(name in kept for name in layer.inputs.groups)
            known &= way.wiring != "legacy" or teacher[layer.weight].dim() != 5
            score = way.score(teacher, layer, layer.inputs.entries(kept, wide) if known else None)
            # Layers that add to one map may have scores of any size: each has one vote.
            shares.append(score / score.abs().sum().clamp(min=torch.finfo(score.dtype).tiny))
        total = sum(shares[1:], shares[0])
        kept[group] = tuple(total.argsort(descending=True, stable=True)[: narrow[group]].tolist())
    return kept


def _entries(
    name: str, source: AxisSource, length: int, way: Way, kept: Chosen, wide: Widths
) -> tuple[int, ...]:
    """Return which entries of an axis are left for a student that has ``length`` of them."""
    if not source.flat:
        return tuple(source.entries(kept, wide))
    if way.score is not None:
        raise ConfigError(
            f"{name}: SparseKD has no rule for the inputs of a pillar layer; "
            "choose a way that is not legacy"
        )
    return tuple(range(length))
