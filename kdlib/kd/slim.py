"""A wide teacher's tensors and a narrow student's shapes enter, the student's first tensors leave: FNAV2 done right (spec 8.2).

Every channel axis keeps its first n channels, which is right wherever neighbours are connected channel by channel. Where an axis
is made of several maps laid behind each other, each of them keeps its own first channels; ``RULES`` names those axes. The BEV map
of a voxel detector is none of them: its channel is c * depth + level, so the first n channels are all levels of the first c.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdlib.errors import ConfigError

# Which axes of a tensor are channels, by its number of axes. All others (kernels) must be equal.
# 1: norms and biases. 2: linear (out, in). 4: conv (out, in, ky, kx) and transposed (in, out, ky, kx). 5: sparse conv, always
# (out, kz, ky, kx, in) here: other layouts are turned when a checkpoint is imported, not guessed from shapes.
CHANNEL_AXES: Mapping[int, tuple[int, ...]] = {0: (), 1: (0,), 2: (0, 1), 4: (0, 1), 5: (0, 4)}

Parts = Callable[[Mapping[str, Tensor], str], tuple[int, ...]]  # state dict, tensor -> widths of the maps an axis is made of


def upsampled(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Return the channels of each level the 2D backbone concatenates."""
    widths: list[int] = []
    while (key := f"backbone_2d.deblocks.{len(widths)}.0.weight") in state:
        widths.append(state[key].shape[1])
    return tuple(widths)


def point_and_pillar(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Return the two halves a pillar layer hands on: every slot, and their maximum."""
    return (state[name].shape[1] // 2,) * 2


@dataclass(frozen=True)
class AxisRule:
    """An axis that is not simply its first n channels."""

    tensor: str  # regular expression over whole names
    axis: int
    parts: Parts | None  # None: the axis means something and must be equal


_COUNTERS = ("global_step", "num_batches_tracked")
_PILLAR_LAYER = r"vfe\.pfn_layers\.[1-9]\d*\.linear\.weight"
_BRANCH_END = r"dense_head\.heads_list\.\d+\.\w+\.1\.(weight|bias)"
_ANCHOR_MAPS = r"dense_head\.conv_(cls|box|dir_cls)"

RULES: tuple[AxisRule, ...] = (
    AxisRule(r"vfe\.pfn_layers\.0\.linear\.weight", 1, None),  # features of a point
    AxisRule(_PILLAR_LAYER, 1, point_and_pillar),
    AxisRule(r"backbone_3d\.conv_input\.0\.weight", 4, None),  # features of a point
    AxisRule(r"dense_head\.shared_conv\.0\.weight", 1, upsampled),
    AxisRule(_ANCHOR_MAPS + r"\.weight", 1, upsampled),
    AxisRule(_ANCHOR_MAPS + r"\.(weight|bias)", 0, None),  # anchors and classes
    AxisRule(_BRANCH_END, 0, None),  # classes, or numbers of a box
)


def slim(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, for every tensor of the student, its part of the teacher's tensor of that name; nothing is written.

    Counters, which are no weights, may be missing on either side.

    Raises:
        ConfigError: If a tensor has no counterpart, or is wider than it, or an axis that is no width differs; it is named.

    Source: SparseKD section 4.4; spec 8.2, with the channel order of the BEV map as it is (spec 11 item 9).
    """
    odd = sorted(name for name in set(teacher) ^ set(student) if not name.endswith(_COUNTERS))
    if odd:
        side = "student" if odd[0] in teacher else "teacher"
        raise ConfigError(f"the {side} has no tensor '{odd[0]}': 'first' needs a teacher that differs in width alone")
    if _depth(teacher) != _depth(student):
        raise ConfigError(
            f"the BEV map has {_depth(student)} levels in the student, {_depth(teacher)} in the teacher; make grids equal"
        )
    return {name: _narrow(name, teacher, student) for name in student if name in teacher}


def _depth(state: Mapping[str, Tensor]) -> float:
    """Return how many BEV channels each channel of the 3D backbone becomes."""
    encoder, backbone = "backbone_3d.conv_out.0.weight", "backbone_2d.blocks.0.1.weight"
    return state[backbone].shape[1] / state[encoder].shape[0] if encoder in state else 1


def _narrow(name: str, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> Tensor:
    value, shape = teacher[name], student[name].shape
    if value.dim() != len(shape) or value.dim() not in CHANNEL_AXES:
        raise ConfigError(f"{name}: student {tuple(shape)}, teacher {tuple(value.shape)}; 'first' narrows axes, it adds none")
    for axis, (ours, theirs) in enumerate(zip(shape, tuple(value.shape))):
        rule = next((r for r in RULES if r.axis == axis and re.fullmatch(r.tensor, name)), None)
        fixed = axis not in CHANNEL_AXES[value.dim()] or (rule is not None and rule.parts is None)
        if (fixed and ours != theirs) or ours > theirs:
            demand = "must be equal" if fixed else "the teacher must be at least as wide"
            raise ConfigError(f"{name}: axis {axis} has {ours} in the student, {theirs} in the teacher; {demand}")
        if rule is None or rule.parts is None:
            value = value.narrow(axis, 0, ours)
        else:
            kept = _indices(rule.parts(student, name), rule.parts(teacher, name), ours, theirs, name)
            value = value.index_select(axis, torch.tensor(kept, device=value.device))
    return value


def _indices(ours: Sequence[int], theirs: Sequence[int], narrow: int, wide: int, name: str) -> list[int]:
    """Return the first channels of every part of an axis."""
    fits = len(ours) == len(theirs) and all(a <= b for a, b in zip(ours, theirs))
    if not fits or sum(ours) != narrow or sum(theirs) != wide:
        raise ConfigError(f"{name}: inputs are made of {tuple(ours)} channels in the student, {tuple(theirs)} in the teacher")
    start = 0
    kept: list[int] = []
    for some, all_of_it in zip(ours, theirs):
        kept += range(start, start + some)
        start += all_of_it
    return kept
