"""The pillar encoder, PillarVFE: one feature vector per pillar (spec 3.3).

The original runs every slot of a pillar through its layers, empty ones included, and they count in
the BatchNorm statistics and in the maximum. All empty slots of a pillar hold the same values, so
one of them, weighted by their number, gives the same answer for a fraction of the work: here a
pillar's rows are its points and, if it is not full, one empty slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from kdlib.config import GridConfig, PillarEncoderConfig
from kdlib.models.batch_norm import RowNorm
from kdlib.types import VoxelBatch

_EXTRA = 6  # offsets to the mean of the points and to the pillar's centre


@dataclass(frozen=True)
class PillarRows:
    """The slots that differ, pillar by pillar."""

    values: Tensor  # (R, C)
    weight: Tensor  # (R,) how many slots a row stands for
    lengths: Tensor  # (V,) rows of each pillar


class PillarLayer(nn.Module):
    """Linear, BatchNorm, ReLU on every slot, then the maximum over the slots."""

    def __init__(self, inputs: int, outputs: int, last: bool) -> None:
        """Build a layer; all but the last also hand on every slot, with half the channels."""
        super().__init__()
        width = outputs if last else outputs // 2
        self.linear = nn.Linear(inputs, width, bias=False)
        self.norm = RowNorm(width, eps=1e-3, momentum=0.01)

    def forward(self, rows: PillarRows) -> tuple[Tensor, Tensor]:
        """Return the slots (R, width) and their maximum in each pillar (V, width)."""
        x = torch.relu(self.norm(self.linear(rows.values), rows.weight))
        return x, torch.segment_reduce(x, "max", lengths=rows.lengths, unsafe=True)


class PillarEncoder(nn.Module):
    """The pillar feature network (``vfe`` in a state dict)."""

    def __init__(self, config: PillarEncoderConfig, grid: GridConfig) -> None:
        """Build the layers for a grid."""
        super().__init__()
        self.channels = config.filters[-1]
        widths = (config.point_features + _EXTRA, *config.filters)
        last = len(config.filters) - 1
        self.pfn_layers = nn.ModuleList(
            PillarLayer(a, b, i == last) for i, (a, b) in enumerate(pairwise(widths))
        )
        self._size, self._low = grid.voxel_size, grid.point_range[:3]

    def forward(self, pillars: VoxelBatch) -> Tensor:
        """Return the features (V, C) of every pillar."""
        rows = self.decorate(pillars)
        pillar = torch.repeat_interleave(rows.lengths)
        for layer in self.pfn_layers:
            slots, best = layer(rows)
            rows = PillarRows(torch.cat((slots, best[pillar]), dim=1), rows.weight, rows.lengths)
        return best

    def decorate(self, pillars: VoxelBatch) -> PillarRows:
        """Return the features of each slot's point, its offset to the points' mean, and its offset
        to the pillar's centre.
        """
        points, count, slots = pillars.features, pillars.num_points, pillars.features.shape[1]
        mean = points[..., :3].sum(dim=1) / count[:, None].to(points.dtype)
        size, low = points.new_tensor(self._size), points.new_tensor(self._low)
        centre = pillars.coords[:, [3, 2, 1]].to(points.dtype) * size + (size / 2 + low)
        slot = torch.arange(slots, device=points.device)
        # a pillar's points, then its first empty slot
        pillar, place = torch.nonzero(slot <= count[:, None], as_tuple=True)
        value = points[pillar, place]
        x = torch.cat((value, value[:, :3] - mean[pillar], value[:, :3] - centre[pillar]), dim=1)
        empty = place == count[pillar]
        weight = torch.where(empty, slots - count[pillar], torch.ones_like(place)).to(x.dtype)
        return PillarRows(x * ~empty[:, None], weight, (count + 1).clamp(max=slots))
