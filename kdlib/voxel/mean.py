"""Voxels in, the mean of each voxel's points out: MeanVFE (spec 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from kdlib.types import VoxelBatch


class MeanEncoder(nn.Module):
    """The voxel feature encoder without parameters (``vfe`` of voxel detectors)."""

    def forward(self, voxels: VoxelBatch) -> Tensor:
        """Return the mean features (V, C) of every voxel's stored points; unused slots are zeros and do not count."""
        count = voxels.num_points.clamp(min=1)[:, None]
        return voxels.features.sum(dim=1) / count.to(voxels.features.dtype)
