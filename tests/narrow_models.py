"""Small detectors of every kind and width, with random channels, some of them silenced."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdlib.config import (
    AnchorHeadConfig,
    BackboneConfig,
    GridConfig,
    HeadConfig,
    ModelConfig,
    PillarEncoderConfig,
    VoxelEncoderConfig,
)
from kdlib.kd.channels import layers
from kdlib.models.build import build
from kdlib.types import PointBatch

GRID = GridConfig((-3.2, -1.6, -2.0, 3.2, 1.6, 4.0), (0.2, 0.2, 0.15), 5)
PILLARS = replace(GRID, voxel_size=(0.2, 0.2, 6.0))
WIDTHS = (1.0, 0.75, 0.5, 0.25)
RIGHT = ("first", "bn_scale", "bn_scale_signed", "l1")
WAYS_OF_LAYOUT = ("spconv2", "spconv1", "native")


def voxel(width, *, residual=True, anchors=False, levels=(12, 16)):
    filters = (8, 8, 8, 12, 12, 16)
    return ModelConfig(
        name="voxel",
        grid=GRID,
        encoder=VoxelEncoderConfig(filters, width, residual),
        backbone=BackboneConfig((1, 1), (1, 2), (8, 12), (1, 2), levels, width),
        head=AnchorHeadConfig(stride=8)
        if anchors
        else HeadConfig(shared_channels=int(8 * width), stride=8),
    )


def pillar(width, *, anchors=False):
    return ModelConfig(
        name="pillar",
        grid=PILLARS,
        encoder=PillarEncoderConfig(filters=(int(8 * width), int(16 * width))),
        backbone=BackboneConfig((1, 1, 1), (1, 2, 2), (8, 12, 8), (1, 2, 4), (8, 4, 12), width),
        head=AnchorHeadConfig() if anchors else HeadConfig(shared_channels=int(8 * width)),
    )


KINDS = {
    "CP-Voxel": voxel,
    "SECOND": lambda width: voxel(width, residual=False, anchors=True),
    "CP-Pillar": pillar,
    "PointPillar": lambda width: pillar(width, anchors=True),
}

every_kind = pytest.mark.parametrize("kind", KINDS)
every_right_way = pytest.mark.parametrize("how", RIGHT)


def random_model(config, seed=0):
    """Build a model in which no channel is like another: random scales, shifts and statistics,
    too.
    """
    torch.manual_seed(seed)
    model = build(config).double()
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and value.dim() == 1:
            value.normal_()
        elif name.endswith("num_batches_tracked"):
            value.fill_(5)
    return model


def positive_scales(model):
    """Make every norm's scale positive, so that a dead one is the least by sign, too."""
    with torch.no_grad():
        for layer in norms(model).values():
            layer.weight.abs_().add_(0.01)
    return model


def cloud(x=6.0, y=3.0):
    gen = torch.Generator().manual_seed(0)
    points = (torch.rand(300, 5, generator=gen, dtype=torch.float64) - 0.5) * torch.tensor(
        [x, y, 5.5, 1, 1]
    ).double()
    points[:, 2] += 1
    return PointBatch(points, torch.arange(2).repeat_interleave(150), 2, ("a", "b"))


def answer(model, points=None):
    (head,) = model(points or cloud()).heads
    return torch.cat([value.flatten() for value in vars(head).values()])


def norms(model):
    return {
        n: layer
        for n, layer in model.named_modules()
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)
    }


def silence(teacher, student, *, anywhere):
    """Make every channel of the teacher that the student has no room for exactly zero, and the
    weights that lead to it.

    It knows no rule of narrowing but one: where maps are added, the same channels must be silent in
    all of them.
    """
    rooms, tied, silenced = norms(student), {}, 0
    convolutions = {layer.norm: layer for layer in layers(teacher.state_dict())}
    tensors = teacher.state_dict()
    for name, norm in norms(teacher).items():
        kept, many = rooms[name].num_features, norm.num_features
        stage = name.removeprefix("backbone_3d.").partition(".")[0].replace("conv_input", "conv1")
        sums = (
            name.endswith(".bn2")
            or name == "backbone_3d.conv_input.1"
            or (stage in "conv2 conv3 conv4" and ".0.1" in name)
        )
        order = torch.randperm(many) if anywhere else torch.arange(many)
        dead = (
            tied.setdefault(stage, order) if sums and name.startswith("backbone_3d") else order
        )[kept:]
        layer = convolutions[name]
        weight = tensors[layer.weight]
        with torch.no_grad():
            norm.weight[dead] = 0
            norm.bias[dead] = 0
            weight.index_fill_(layer.axes(weight.dim())[0], dead, 0)
        silenced += len(dead)
    return silenced


def same(found, want):
    torch.testing.assert_close(found, want, rtol=0, atol=1e-11 * float(want.abs().max()))


def numbered(model):
    """A state dict in which every number is its own position."""
    return {
        name: torch.arange(value.numel()).view(value.shape)
        for name, value in model.state_dict().items()
    }
