"""The graph of a detector's channels: what every axis of its tensors is made of (spec 8.5).

A group is one set of channels, however many tensors have an axis of it: to narrow a network is to
choose once per group and cut all of its axes alike. Most axes are one group. The others are what
makes narrowing hard, and they are all here:

    sums of a stage     each residual block of a stage adds to one map, so all that write into it
    share a group the BEV map         height compression turns a channel into ``levels`` of them: c
    * levels + level joined levels       what the 2D backbone hands on is its deblocks' groups
      behind each other
    pillar layers       all but the last hand on every slot and their maximum: their group twice
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kdlib.errors import ConfigError

# "legacy" is as SparseKD sees it (spec 8.2, 8.3): levels of the BEV map laid behind each other,
# nothing known of pillar layers, a group for each layer even where maps are added. "flat" sees no
# composition at all.
Wiring = Literal["true", "legacy", "flat"]
Tensors = Mapping[str, Tensor]  # a state dict
Chosen = Mapping[str, tuple[int, ...]]  # by group: channels of the teacher, in the student's order
Widths = Mapping[str, int]  # by group: how many channels there are
# axis of a tensor -> what it is made of; axes that are no channels are missing
Axes = Mapping[int, "AxisSource"]

_PILLAR_LAYER = "vfe.pfn_layers.{}.linear"
_CONV_INPUT, _CONV_OUT = "backbone_3d.conv_input.0", "backbone_3d.conv_out.0"
_STAGES = ("conv_input", "conv1", "conv2", "conv3", "conv4", "conv_out")
FIRST_2D = "backbone_2d.blocks.0.1.weight"
_ANCHOR_MAPS = ("dense_head.conv_cls", "dense_head.conv_box", "dense_head.conv_dir_cls")


@dataclass(frozen=True)
class AxisSource:
    """What an axis is made of: the channels of groups laid behind each other."""

    # none: features of a point, classes, numbers of a box, none of which can be narrowed
    groups: tuple[str, ...]
    levels: int = 1  # entries per channel: channel * levels + level
    flat: bool = False  # narrowed to its first entries, whatever it is made of

    def width(self, widths: Widths) -> int:
        """Return the axis' length, given the channels of every group."""
        return sum(widths[group] for group in self.groups) * self.levels

    def entries(self, kept: Chosen, widths: Widths) -> list[int]:
        """Return which entries of a wide axis are left, given the channels kept of every group and
        how many there were.
        """
        start = 0
        channels = []
        for group in self.groups:
            channels += [start + channel for channel in kept[group]]
            start += widths[group]
        return [
            channel * self.levels + level for channel in channels for level in range(self.levels)
        ]

    def __str__(self) -> str:
        """Name the groups."""
        return " + ".join(self.groups) + (f" x {self.levels} levels" if self.levels > 1 else "")


FIXED = AxisSource(())


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, and the norm that follows it."""

    name: str  # of its tensors, before ``.weight`` and ``.bias``
    inputs: AxisSource
    output: str | None  # the group it writes; None: outputs mean something
    norm: str | None = None
    transposed: bool = False  # weight is (in, out, ...)

    @property
    def weight(self) -> str:
        """Name of its weight."""
        return f"{self.name}.weight"

    def axes(self, dimensions: int) -> tuple[int, int]:
        """Return the axes of outputs and inputs of a weight with that many axes.

        Linear (out, in), convolution (out, in, ky, kx), transposed (in, out, ky, kx), sparse (out,
        kz, ky, kx, in). The sparse layout is always this one here: others are turned when a
        checkpoint is imported, not guessed from shapes.
        """
        if self.transposed:
            return 1, 0
        return 0, 4 if dimensions == 5 else 1

    def tensors(self, state: Tensors) -> Iterator[tuple[str, Axes]]:
        """Yield every tensor of the layer and of its norm with what its channel axes are made
        of.
        """
        result = FIXED if self.output is None else AxisSource((self.output,))
        outputs, inputs = self.axes(state[self.weight].dim())
        yield self.weight, {outputs: result, inputs: self.inputs}
        vectors = [f"{self.name}.bias"]
        if self.norm is not None:
            vectors += [
                f"{self.norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")
            ]
        yield from ((name, {0: result}) for name in vectors if name in state)


def layers(state: Tensors, wiring: Wiring = "true") -> tuple[Layer, ...]:
    """Return the layers of a detector's state dict in the order data passes through them;
    ``wiring`` composes groups.

    Tensors have the original's names (spec appendix A); of the shapes, only the height of the BEV
    map is looked at.

    Raises:
        ConfigError: If it is no detector's, or its BEV map is no whole number of levels.
    """
    if _PILLAR_LAYER.format(0) + ".weight" in state:
        encoder, bev = _pillars(state, wiring)
    elif f"{_CONV_INPUT}.weight" in state:
        encoder, bev = _voxels(state, wiring)
    else:
        raise ConfigError(
            "no detector: its tensors include neither "
            f"{_PILLAR_LAYER.format(0)}.weight nor {_CONV_INPUT}.weight"
        )
    backbone, joined = _levels(state, bev, wiring)
    return (*encoder, *backbone, *_head(state, joined))


def bev_levels(state: Tensors) -> int:
    """Return how many channels of the BEV map each channel of the encoder becomes: 1 for pillars.

    Raises:
        ConfigError: If that is no whole number.
    """
    if f"{_CONV_OUT}.weight" not in state or FIRST_2D not in state:
        return 1
    wide, encoder = state[FIRST_2D].shape[1], state[f"{_CONV_OUT}.weight"].shape[0]
    if wide % encoder:
        raise ConfigError(
            f"{FIRST_2D}: its {wide} inputs are no whole number of levels of the "
            f"{encoder} outputs of {_CONV_OUT}"
        )
    return int(wide // encoder)


def _pillars(state: Tensors, wiring: Wiring) -> tuple[list[Layer], AxisSource]:
    chain: list[Layer] = []
    source, bev = FIXED, FIXED
    while f"{(name := _PILLAR_LAYER.format(len(chain)))}.weight" in state:
        group = f"pillar layer {len(chain)}"
        chain.append(Layer(name, source, group, f"{name.rpartition('.')[0]}.norm"))
        source, bev = AxisSource((group, group), flat=wiring != "true"), AxisSource((group,))
    return chain, bev


def _voxels(state: Tensors, wiring: Wiring) -> tuple[list[Layer], AxisSource]:
    chain = []
    source, group = FIXED, ""
    for prefix in _parts(state):
        short = prefix.partition(".")[2]
        if f"{prefix}.conv1.weight" in state:
            inner = f"{short} inside"
            group = f"{short} sum" if wiring == "legacy" else group
            chain.append(Layer(f"{prefix}.conv1", source, inner, f"{prefix}.bn1"))
            chain.append(Layer(f"{prefix}.conv2", AxisSource((inner,)), group, f"{prefix}.bn2"))
        else:
            group = short
            chain.append(Layer(f"{prefix}.0", source, group, f"{prefix}.1"))
        source = AxisSource((group,))
    levels = bev_levels(state)
    return chain, AxisSource((group,) * levels) if wiring == "legacy" else AxisSource(
        (group,), levels
    )


def _parts(state: Tensors) -> Iterator[str]:
    """Yield the blocks of the 3D backbone in order."""
    for stage in _STAGES:
        prefix = f"backbone_3d.{stage}"
        if f"{prefix}.0.weight" in state:
            yield prefix
            continue
        block = 0
        while any(f"{prefix}.{block}.{first}.weight" in state for first in ("0", "conv1")):
            yield f"{prefix}.{block}"
            block += 1


def _levels(state: Tensors, bev: AxisSource, wiring: Wiring) -> tuple[list[Layer], AxisSource]:
    chain = []
    joined: list[str] = []
    while f"backbone_2d.{(deblock := f'deblocks.{len(joined)}')}.0.weight" in state:
        # behind the padding; convolution, norm and ReLU from there on
        block, place = f"blocks.{len(joined)}", 1
        while f"backbone_2d.{(group := f'{block}.{place}')}.weight" in state:
            chain.append(
                Layer(f"backbone_2d.{group}", bev, group, f"backbone_2d.{block}.{place + 1}")
            )
            bev, place = AxisSource((group,)), place + 3
        chain.append(
            Layer(
                f"backbone_2d.{deblock}.0",
                bev,
                deblock,
                f"backbone_2d.{deblock}.1",
                transposed=True,
            )
        )
        joined.append(deblock)
    return chain, AxisSource(tuple(joined), flat=wiring == "flat")


def _head(state: Tensors, joined: AxisSource) -> Iterator[Layer]:
    for name in _ANCHOR_MAPS:
        if f"{name}.weight" in state:
            yield Layer(name, joined, None)
    if "dense_head.shared_conv.0.weight" in state:
        yield Layer("dense_head.shared_conv.0", joined, "shared_conv", "dense_head.shared_conv.1")
    for name in state:
        branch, first, rest = name.partition(".0.0.weight")
        if branch.startswith("dense_head.heads_list.") and first and not rest:
            group = branch.partition(".")[2]
            yield Layer(f"{branch}.0.0", AxisSource(("shared_conv",)), group, f"{branch}.0.1")
            yield Layer(f"{branch}.1", AxisSource((group,)), None)
