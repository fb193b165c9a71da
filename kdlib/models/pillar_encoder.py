"""Pillars in, one feature vector per pillar out: PillarVFE (spec 3.3)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from kdlib.config import GridConfig, PillarEncoderConfig
from kdlib.types import VoxelBatch

_EXTRA = 6  # offsets to the mean of the points and to the pillar's centre


class PillarLayer(nn.Module):
    """Linear, BatchNorm, ReLU on every slot, then the maximum over the slots."""

    def __init__(self, inputs: int, outputs: int, last: bool) -> None:
        """Build a layer; all but the last also hand on every slot, with half the channels."""
        super().__init__()
        width = outputs if last else outputs // 2
        self.last = last
        self.linear = nn.Linear(inputs, width, bias=False)
        self.norm = nn.BatchNorm1d(width, eps=1e-3, momentum=0.01)

    def forward(self, slots: Tensor) -> Tensor:
        """Turn slots (V, P, C) into (V, P, outputs), or into (V, outputs) if this is the last layer.

        Padded slots take part in the statistics and in the maximum, as in the original; checkpoints depend on it.
        """
        flat = self.linear(slots.flatten(0, 1))
        x = torch.relu(self.norm(flat)).view(*slots.shape[:2], -1)
        best = x.amax(dim=1)
        if self.last:
            return best
        return torch.cat((x, best[:, None].expand_as(x)), dim=2)


class PillarEncoder(nn.Module):
    """The pillar feature network (``vfe`` in a state dict)."""

    def __init__(self, config: PillarEncoderConfig, grid: GridConfig) -> None:
        """Build the layers for a grid."""
        super().__init__()
        self.channels = config.filters[-1]
        widths = (config.point_features + _EXTRA, *config.filters)
        last = len(config.filters) - 1
        self.pfn_layers = nn.ModuleList(PillarLayer(a, b, i == last) for i, (a, b) in enumerate(pairwise(widths)))
        self._size, self._low = grid.voxel_size, grid.point_range[:3]

    def forward(self, pillars: VoxelBatch) -> Tensor:
        """Return the features (V, C) of every pillar."""
        if not len(pillars.features):
            return pillars.features.new_zeros((0, self.channels))
        x = self.decorate(pillars)
        for layer in self.pfn_layers:
            x = layer(x)
        return x

    def decorate(self, pillars: VoxelBatch) -> Tensor:
        """Return slots (V, P, 11): the point, its offset to the points' mean, its offset to the pillar's centre."""
        points, count = pillars.features, pillars.num_points
        xyz = points[..., :3]
        mean = xyz.sum(dim=1, keepdim=True) / count.view(-1, 1, 1).to(points.dtype)
        cell = pillars.coords[:, [3, 2, 1]].to(points.dtype)
        size, low = points.new_tensor(self._size), points.new_tensor(self._low)
        centre = cell * size + (size / 2 + low)
        x = torch.cat((points, xyz - mean, xyz - centre[:, None]), dim=2)
        used = torch.arange(points.shape[1], device=points.device) < count[:, None]
        return x * used[..., None].to(x.dtype)
