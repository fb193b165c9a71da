"""Set abstraction: key points, and the features of all sources around them (spec 4.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdlib.config import GridConfig, SetAbstractionConfig
from kdlib.models.batch_norm import RowNorm
from kdlib.models.pvrcnn.interpolate import bilinear
from kdlib.models.pvrcnn.neighbours import Cloud
from kdlib.models.pvrcnn.sampling import near_rois, nearest_roi, sector_keypoints
from kdlib.models.pvrcnn.vector_pool import VectorPool
from kdlib.models.sparse import SparseTensor
from kdlib.models.voxel_encoder import STRIDE
from kdlib.types import PointBatch


@dataclass(frozen=True)
class KeyPoints(Cloud):
    """The key points of B frames, frame by frame."""

    before: Tensor  # (K, C) BEV map, raw points, then each level: what the point head scores
    fused: Tensor  # (K, fused): what the RoI head pools


class VoxelSetAbstraction(nn.Module):
    """Picks key points and gathers what the first stage knows around them (``pfe`` in a state
    dict).
    """

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

    def forward(
        self,
        points: PointBatch,
        bev: Tensor,
        levels: Mapping[int, SparseTensor],
        rois: Sequence[Tensor],
    ) -> KeyPoints:
        """Gather the key points of B frames, differentiable in the map and the stages' features.

        ``bev`` is the map (B, bev_channels, H, W) in front of the 2D backbone, ``levels`` are
        stages of the sparse backbone by their stride, ``rois`` the boxes (M_b, 7) of each frame. A
        frame without RoIs has one key point: its first point.
        """
        keys, near, values = self.sample(points, rois)
        before = [self.read_map(bev, keys), self.SA_rawpoints(near, values, keys)]
        for stride, margin, pool in zip(
            self.config.strides, self.config.margins[1:], self.SA_layers
        ):
            before.append(pool(*self.support(levels[stride], stride, margin, rois), keys))
        gathered = torch.cat(before, dim=1)
        return KeyPoints(keys.xyz, keys.frame, gathered, self.vsa_point_feature_fusion(gathered))

    def sample(self, points: PointBatch, rois: Sequence[Tensor]) -> tuple[Cloud, Cloud, Tensor]:
        """Return the key points, then the raw points that lie near RoIs and their features (N,
        2).
        """
        config, picks, around = self.config, [], []
        cloud = Cloud(points.points[:, :3], points.batch_index)
        begin = 0
        for xyz, boxes in zip(
            cloud.xyz.split(cloud.frame.bincount(minlength=points.batch_size).tolist()), rois
        ):
            distance, reach = nearest_roi(xyz, boxes)
            near = distance < reach + config.keypoint_margin
            picks.append(begin + sector_keypoints(xyz, near, config.keypoints, config.sectors))
            around.append(begin + (distance < reach + config.margins[0]).nonzero()[:, 0])
            begin += len(xyz)
        rows = torch.cat(around)
        return (
            cloud.at(torch.cat(picks)),
            cloud.at(rows),
            points.points[:, 3:].index_select(0, rows),
        )

    def support(
        self, sites: SparseTensor, stride: int, margin: float, rois: Sequence[Tensor]
    ) -> tuple[Cloud, Tensor]:
        """Return the sites of a stage that lie near RoIs, as points in the middle of their cells,
        and their features.
        """
        cloud = Cloud(self.centres(sites.coords, stride), sites.coords[:, 0])
        near = torch.zeros_like(cloud.frame, dtype=torch.bool)
        for number, boxes in enumerate(rois):
            rows = (cloud.frame == number).nonzero()[:, 0]
            near[rows] = near_rois(cloud.xyz.index_select(0, rows), boxes, margin)
        rows = near.nonzero()[:, 0]
        return cloud.at(rows), sites.features.index_select(0, rows)

    def centres(self, coords: Tensor, stride: int) -> Tensor:
        """Return the middles (V, 3) x, y, z of cells (V, 4) batch, z, y, x, metres."""
        size = torch.tensor(self.grid.voxel_size, device=coords.device) * stride
        low = torch.tensor(self.grid.point_range[:3], device=coords.device)
        return (coords[:, 1:].flip(1) + 0.5) * size + low

    def read_map(self, bev: Tensor, keys: Cloud) -> Tensor:
        """Return the map's values (K, C) at key points; a cell's value counts as its lower
        corner's, as in the original.
        """
        low, size = (
            keys.xyz.new_tensor(self.grid.point_range[:2]),
            keys.xyz.new_tensor(self.grid.voxel_size[:2]),
        )
        cells = (keys.xyz[:, :2] - low) / size / STRIDE
        return torch.cat(
            [bilinear(values, cells[keys.frame == number]) for number, values in enumerate(bev)]
        )
