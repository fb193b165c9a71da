"""The head that gives each RoI a confidence and a refined box (spec 4.6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlib.config import RoiHeadConfig
from kdlib.models.batch_norm import RowNorm
from kdlib.models.precision import wide
from kdlib.models.pvrcnn.neighbours import Cloud
from kdlib.models.pvrcnn.rois import Rois, grid_points
from kdlib.models.pvrcnn.set_abstraction import KeyPoints
from kdlib.models.pvrcnn.vector_pool import RowConv, VectorPool, row_layers

_CODES = 7
_ROIS = 64  # pooled at once where rows do not meet in a BatchNorm; 200 MB at full size


class RoiHead(nn.Module):
    """Refines RoIs (``roi_head`` in a state dict)."""

    def __init__(self, config: RoiHeadConfig) -> None:
        """Build and initialise; Dropout stands behind all shared layers but the last, and the first
        of each branch.
        """
        super().__init__()
        self.config = config
        self.roi_grid_pool_layer = VectorPool(config.pool)
        pooled, dropped = config.pool.channels[-1] * config.grid**3, range(len(config.shared) - 1)
        self.shared_fc_layer = row_layers(
            pooled, config.shared, dropout=config.dropout, dropped=dropped
        )
        self.cls_layers = self._branch(1)
        self.reg_layers = self._branch(_CODES)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.reg_layers[-1].weight, std=0.001)  # type: ignore[arg-type]

    def _branch(self, outputs: int) -> nn.Sequential:
        config = self.config
        layers = row_layers(
            config.shared[-1], config.branches, dropout=config.dropout, dropped=(0,)
        )
        return nn.Sequential(*layers, RowConv(config.branches[-1], outputs, bias=True))

    def forward(self, points: KeyPoints, scores: Tensor, rois: Rois) -> tuple[Tensor, Tensor]:
        """Return logits (R,) and box codes (R, 7), at least float32, of RoIs.

        Key points are of the same frames; ``scores`` (K,), their confidence to lie on an object,
        weigh their features.
        """
        shared = self.shared_fc_layer(self.pool(points, scores, rois))
        return wide(self.cls_layers(shared)[:, 0]), wide(self.reg_layers(shared))

    def pool(self, points: KeyPoints, scores: Tensor, rois: Rois) -> Tensor:
        """Return the features (R, channels * grid^3) around the grid points of RoIs, channel by
        channel.
        """
        weighed = points.fused * scores[:, None]
        cells = self.config.grid**3
        queries = grid_points(rois.boxes.to(points.xyz.dtype), self.config.grid)
        norms = [
            module for module in self.roi_grid_pool_layer.modules() if isinstance(module, RowNorm)
        ]
        alone = not any(norm.training or norm.running_mean is None for norm in norms)
        step = _ROIS if alone else max(len(queries), 1)
        parts = []
        for grid, frame in zip(queries.split(step), rois.frame.split(step)):
            places = Cloud(grid.flatten(0, 1), frame.repeat_interleave(cells))
            pooled = self.roi_grid_pool_layer(points, weighed, places).unflatten(
                0, (len(grid), cells)
            )
            parts.append(pooled.transpose(1, 2).flatten(1))
        return torch.cat(parts)
