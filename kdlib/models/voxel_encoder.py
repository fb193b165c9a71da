"""The sparse 3D backbones of CP-Voxel and SECOND, with height compression (spec 4.1, 4.2)."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from kdlib.config import GridConfig, VoxelEncoderConfig
from kdlib.models.batch_norm import RowNorm
from kdlib.models.sparse import SparseConv3d, SparseTensor, SubmConv3d
from kdlib.types import VoxelBatch

STRIDE = 8  # cells of the grid per cell of the BEV map
_BLOCKS = {2: 2, 3: 2, 4: 2}  # layers behind the strided one of each stage
_PADDING = {2: (1, 1, 1), 3: (1, 1, 1), 4: (0, 1, 1)}  # z, y, x of each stage's strided layer


class MeanEncoder(nn.Module):
    """The voxel feature encoder without parameters (``vfe`` of voxel detectors)."""

    def forward(self, voxels: VoxelBatch) -> Tensor:
        """Return the mean features (V, C) of every voxel's stored points; unused slots are zeros and do not count."""
        count = voxels.num_points.clamp(min=1)[:, None]
        return voxels.features.sum(dim=1) / count.to(voxels.features.dtype)


def _norm(channels: int) -> RowNorm:
    return RowNorm(channels, eps=1e-3, momentum=0.01)


class SparseLayer(nn.Sequential):
    """Convolution, BatchNorm, ReLU; named ``0`` and ``1`` in a state dict."""

    def __init__(self, convolution: nn.Module, channels: int) -> None:
        """Take over a sparse convolution with that many outputs."""
        super().__init__(convolution, _norm(channels))

    def forward(self, sites: SparseTensor) -> SparseTensor:
        """Return the activated sites."""
        convolved = self[0](sites)
        return cast(SparseTensor, convolved.replace(torch.relu(self[1](convolved.features))))


class ResidualBlock(nn.Module):
    """Two submanifold convolutions with bias and a way around them."""

    def __init__(self, channels: int, key: str) -> None:
        """Build; both convolutions share their stage's indices."""
        super().__init__()
        self.conv1 = SubmConv3d(channels, channels, 3, bias=True, key=key)
        self.bn1 = _norm(channels)
        self.conv2 = SubmConv3d(channels, channels, 3, bias=True, key=key)
        self.bn2 = _norm(channels)

    def forward(self, sites: SparseTensor) -> SparseTensor:
        """Return the sites with the block's correction added."""
        inner = self.conv1(sites)
        inner = self.conv2(inner.replace(torch.relu(self.bn1(inner.features))))
        return inner.replace(torch.relu(self.bn2(inner.features) + sites.features))


def _same(inputs: int, channels: int, key: str) -> SparseLayer:
    return SparseLayer(SubmConv3d(inputs, channels, 3, bias=False, key=key), channels)


def _strided(inputs: int, channels: int, stage: int) -> SparseLayer:
    convolution = SparseConv3d(inputs, channels, 3, stride=2, padding=_PADDING[stage], bias=False, key=f"down{stage}")
    return SparseLayer(convolution, channels)


class VoxelBackbone(nn.Module):
    """VoxelResBackBone8x, or VoxelBackBone8x without residuals (``backbone_3d`` in a state dict).

    Source: spec 4.1. Tensors have the original's names; sparse kernels are stored as (Cout, kz, ky, kx, Cin).
    """

    def __init__(self, config: VoxelEncoderConfig, grid: GridConfig) -> None:
        """Build the stages for a grid; its height becomes channels."""
        super().__init__()
        columns, rows, layers = grid.grid_size
        self.spatial_shape = (layers + 1, rows, columns)
        first, *stages, last = config.channels
        self.conv_input = _same(config.point_features, first, "same1")
        if config.residual:
            self.conv1 = nn.Sequential(*(ResidualBlock(first, "same1") for _ in range(2)))
        else:
            self.conv1 = nn.Sequential(_same(first, stages[0], "same1"))
        for stage, inputs, channels in zip(_BLOCKS, stages, stages[1:]):
            key = f"same{stage}"
            parts: list[nn.Module] = [_strided(inputs, channels, stage)]
            for _ in range(_BLOCKS[stage]):
                parts.append(ResidualBlock(channels, key) if config.residual else _same(channels, channels, key))
            self.add_module(f"conv{stage}", nn.Sequential(*parts))
        out = SparseConv3d(stages[-1], last, (3, 1, 1), stride=(2, 1, 1), padding=0, bias=False, key="down_out")
        self.conv_out = SparseLayer(out, last)
        self.channels = last * bev_depth(layers)

    def sites(self, features: Tensor, voxels: VoxelBatch) -> SparseTensor:
        """Return voxel features (V, C) as a sparse tensor of this grid."""
        return SparseTensor(features, voxels.coords, self.spatial_shape, voxels.batch_size)

    def forward(self, features: Tensor, voxels: VoxelBatch) -> Tensor:
        """Turn the features (V, C) of voxels into a BEV map (B, channels, H / 8, W / 8); channel = c * depth + level."""
        return self.compress(self.stages(features, voxels)[0])

    def stages(
        self, features: Tensor, voxels: VoxelBatch, strides: Collection[int] = ()
    ) -> tuple[SparseTensor, dict[int, SparseTensor]]:
        """Return the sites of the last stage, and of those stages before it whose strides (1, 2, 4 or 8) are asked for."""
        with torch.autocast(features.device.type, enabled=False):  # metres again: 16 bits place a point to half a metre
            sites = self.conv_input(self.sites(features, voxels))
        kept = {}
        for number, name in enumerate(("conv1", "conv2", "conv3", "conv4")):
            sites = self.get_submodule(name)(sites)
            if 2**number in strides:
                kept[2**number] = sites
        return self.conv_out(sites), kept

    def compress(self, sites: SparseTensor) -> Tensor:
        """Return the BEV map of the last stage's sites, their height among the channels."""
        # Channels stay the fastest axis in memory: convolutions on a CPU are half as fast again that way.
        return sites.dense().permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)


def bev_depth(layers: int) -> int:
    """Return how many levels are left of a grid with that many cells in z, at most 0 if it is too flat."""
    height = layers + 1
    for stage in _BLOCKS:
        height = (height + 2 * _PADDING[stage][0] - 3) // 2 + 1
    return (height - 3) // 2 + 1
