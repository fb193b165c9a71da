"""Points, the BEV map, two stages of the sparse backbone and RoIs in; key points with features out (spec 4.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdlib.config import GridConfig
from kdlib.config.two_stage import SetAbstractionConfig
from kdlib.models.pvrcnn.interpolate import bilinear
from kdlib.models.pvrcnn.sampling import near_rois, nearest_roi, sector_keypoints
from kdlib.models.pvrcnn.vector_pool import RowNorm, VectorPool
from kdlib.models.sparse import SparseTensor
from kdlib.models.voxel_encoder import STRIDE
from kdlib.types import PointBatch


@dataclass(frozen=True)
class KeyPoints:
    """The key points of B frames, concatenated."""

    xyz: Tensor  # (K, 3) metres
    frame: Tensor  # (K,) int64, ascending
    before: Tensor  # (K, C) BEV map, raw points, then each level: what the point head scores
    fused: Tensor  # (K, fused): what the RoI head pools


@dataclass(frozen=True)
class _Support:
    """What is left of a source near the RoIs."""

    xyz: Tensor  # (N, 3)
    features: Tensor  # (N, C)
    frame: Tensor  # (N,)


class VoxelSetAbstraction(nn.Module):
    """Picks key points and gathers what the first stage knows around them (``pfe`` in a state dict)."""

    def __init__(self, config: SetAbstractionConfig, grid: GridConfig, bev_channels: int) -> None:
        """Build for a first stage's grid and the width of its BEV map."""
        super().__init__()
        self.config, self.grid = config, grid
        self.SA_layers = nn.ModuleList(VectorPool(level) for level in config.levels)
        self.SA_rawpoints = VectorPool(config.raw)
        self.channels = bev_channels + config.gathered
        self.vsa_point_feature_fusion = nn.Sequential(
            nn.Linear(self.channels, config.fused, bias=False), RowNorm(config.fused), nn.ReLU()
        )

    def forward(self, points: PointBatch, bev: Tensor, levels: Mapping[int, SparseTensor], rois: Sequence[Tensor]) -> KeyPoints:
        """Gather key points.

        Args:
            points: Of B frames.
            bev: (B, bev_channels, H, W) map in front of the 2D backbone.
            levels: Stages of the sparse backbone by their stride.
            rois: (M_b, 7) boxes of each frame, without padding.

        Returns:
            Key points of all frames, differentiable in the map and the stages' features. A frame without RoIs has one: its first
            point.
        """
        xyz, frame, raw = self.sample(points, rois)
        before = [self.read_map(bev, xyz, frame), self.SA_rawpoints(raw.xyz, raw.features, xyz, raw.frame, frame)]
        for stride, margin, pool in zip(self.config.strides, self.config.margins[1:], self.SA_layers):
            support = self.support(levels[stride], stride, margin, rois)
            before.append(pool(support.xyz, support.features, xyz, support.frame, frame))
        gathered = torch.cat(before, dim=1)
        return KeyPoints(xyz, frame, gathered, self.vsa_point_feature_fusion(gathered))

    def sample(self, points: PointBatch, rois: Sequence[Tensor]) -> tuple[Tensor, Tensor, _Support]:
        """Return the key points (K, 3), their frames (K,) and the raw points that lie near RoIs."""
        config, picks, kept = self.config, [], []
        begin = 0
        for length, boxes in zip(points.batch_index.bincount(minlength=points.batch_size).tolist(), rois):
            xyz = points.points[begin : begin + length, :3]
            distance, reach = nearest_roi(xyz, boxes)
            near = distance < reach + config.keypoint_margin
            picks.append(begin + sector_keypoints(xyz, boxes, config.keypoints, config.sectors, near=near))
            kept.append(begin + (distance < reach + config.margins[0]).nonzero()[:, 0])
            begin += length
        chosen, rows = torch.cat(picks), torch.cat(kept)
        values = points.points.index_select(0, rows)
        raw = _Support(values[:, :3], values[:, 3:], points.batch_index.index_select(0, rows))
        return points.points.index_select(0, chosen)[:, :3], points.batch_index.index_select(0, chosen), raw

    def support(self, sites: SparseTensor, stride: int, margin: float, rois: Sequence[Tensor]) -> _Support:
        """Return the sites of a stage that lie near RoIs, as points in the middle of their cells."""
        xyz = self.centres(sites.coords, stride)
        near = torch.zeros_like(sites.coords[:, 0], dtype=torch.bool)
        for number, boxes in enumerate(rois):
            rows = (sites.coords[:, 0] == number).nonzero()[:, 0]
            near[rows] = near_rois(xyz.index_select(0, rows), boxes, margin)
        kept = near.nonzero()[:, 0]
        return _Support(xyz.index_select(0, kept), sites.features.index_select(0, kept), sites.coords[:, 0].index_select(0, kept))

    def centres(self, coords: Tensor, stride: int) -> Tensor:
        """Return the middles (V, 3) x, y, z of cells (V, 4) batch, z, y, x, metres."""
        size = torch.tensor(self.grid.voxel_size, device=coords.device) * stride
        low = torch.tensor(self.grid.point_range[:3], device=coords.device)
        return (coords[:, 1:].flip(1) + 0.5) * size + low

    def read_map(self, bev: Tensor, xyz: Tensor, frame: Tensor) -> Tensor:
        """Return the map's values (K, C) at key points; a cell's value counts as its lower corner's, as in the original."""
        low, size = xyz.new_tensor(self.grid.point_range[:2]), xyz.new_tensor(self.grid.voxel_size[:2])
        cells = (xyz[:, :2] - low) / size / STRIDE
        return torch.cat([bilinear(values, cells[frame == number]) for number, values in enumerate(bev)])
