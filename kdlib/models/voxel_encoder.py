"""The sparse 3D backbones of CP-Voxel and SECOND, with height compression (spec 4.1, 4.2)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from kdlib.config import GridConfig, VoxelEncoderConfig
from kdlib.models.batch_norm import RowNorm
from kdlib.models.sparse import SparseConv3d, SparseTensor, SubmConv3d
from kdlib.types import VoxelBatch

STRIDE = 8  # cells of the grid per cell of the BEV map
_BLOCKS = 2  # layers behind the strided one of each stage
_PADDING = {2: (1, 1, 1), 3: (1, 1, 1), 4: (0, 1, 1)}  # z, y, x of each stage's strided layer


class MeanEncoder(nn.Module):
    """The voxel feature encoder without parameters (``vfe`` of voxel detectors)."""

    def forward(self, voxels: VoxelBatch) -> Tensor:
        """Return the mean features (V, C) of every voxel's stored points; unused slots are zeros
        and do not count.
        """
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
        return convolved.replace(torch.relu(self[1](convolved.features)))


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
    return SparseLayer(SubmConv3d(inputs, channels, 3, key=key), channels)


class VoxelBackbone(nn.Module):
    """VoxelResBackBone8x, or VoxelBackBone8x without residuals (``backbone_3d`` in a state dict).

    Source: spec 4.1. Tensors have the original's names; sparse kernels are (Cout, kz, ky, kx, Cin).
    """

    def __init__(self, config: VoxelEncoderConfig, grid: GridConfig) -> None:
        """Build the stages for a grid; its height becomes channels."""
        super().__init__()
        columns, rows, layers = grid.grid_size
        self.spatial_shape = (layers + 1, rows, columns)
        first, *stages, last = config.channels
        self.conv_input = _same(config.point_features, first, "same1")
        if config.residual:
            self.conv1 = nn.Sequential(*(ResidualBlock(first, "same1") for _ in range(_BLOCKS)))
        else:
            self.conv1 = nn.Sequential(_same(first, stages[0], "same1"))
        for (stage, padding), inputs, channels in zip(_PADDING.items(), stages, stages[1:]):
            key = f"same{stage}"
            down = SparseConv3d(inputs, channels, 3, stride=2, padding=padding, key=f"down{stage}")
            parts: list[nn.Module] = [SparseLayer(down, channels)]
            for _ in range(_BLOCKS):
                parts.append(
                    ResidualBlock(channels, key)
                    if config.residual
                    else _same(channels, channels, key)
                )
            self.add_module(f"conv{stage}", nn.Sequential(*parts))
        self.conv_out = SparseLayer(
            SparseConv3d(stages[-1], last, (3, 1, 1), stride=(2, 1, 1), key="down_out"), last
        )
        self.channels = last * bev_depth(layers)

    def sites(self, features: Tensor, voxels: VoxelBatch) -> SparseTensor:
        """Return voxel features (V, C) as a sparse tensor of this grid."""
        return SparseTensor(features, voxels.coords, self.spatial_shape, voxels.batch_size)

    def forward(
        self, features: Tensor, voxels: VoxelBatch, strides: Collection[int] = ()
    ) -> tuple[SparseTensor, dict[int, SparseTensor]]:
        """Return the last stage's sites for features (V, C), and those of the stages whose strides
        (1, 2, 4, 8) are asked for.
        """
        # metres again: 16 bits place a point to half a metre
        with torch.autocast(features.device.type, enabled=False):
            sites = self.conv_input(self.sites(features, voxels))
        levels = {}
        for number in range(4):
            sites = self.get_submodule(f"conv{number + 1}")(sites)
            if 2**number in strides:
                levels[2**number] = sites
        return self.conv_out(sites), levels


def bev_depth(layers: int) -> int:
    """Return how many levels are left of a grid with that many cells in z, at most 0 if it is too
    flat.
    """
    height = layers + 1
    for padding, *_ in _PADDING.values():
        height = (height + 2 * padding - 3) // 2 + 1
    return (height - 3) // 2 + 1
