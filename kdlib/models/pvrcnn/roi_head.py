"""Key points and RoIs in, a confidence and a refined box for each RoI out (spec 4.6)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.config import RoiHeadConfig
from kdlib.models.pvrcnn.rois import Rois, grid_points
from kdlib.models.pvrcnn.set_abstraction import KeyPoints
from kdlib.models.pvrcnn.vector_pool import RowConv, RowNorm, VectorPool

_CODES = 7
_ROIS = 64  # pooled at once where rows do not meet in a BatchNorm; 200 MB at full size


class RowAnswer(nn.Conv1d):
    """A 1x1 convolution with bias on rows (R, Cin); its weight is the original's (Cout, Cin, 1)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Build with torch's initial weights."""
        super().__init__(inputs, outputs, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """Return rows (R, Cout)."""
        return F.linear(rows, self.weight[:, :, 0], self.bias)


def _layers(inputs: int, channels: Sequence[int]) -> list[list[nn.Module]]:
    widths = (inputs, *channels)
    return [[RowConv(a, b), RowNorm(b), nn.ReLU()] for a, b in pairwise(widths)]


class RoiHead(nn.Module):
    """Refines RoIs (``roi_head`` in a state dict)."""

    def __init__(self, config: RoiHeadConfig) -> None:
        """Build and initialise; Dropout stands behind all shared layers but the last, and the first of each branch."""
        super().__init__()
        self.config = config
        self.roi_grid_pool_layer = VectorPool(config.pool)
        shared = _layers(config.pool.channels[-1] * config.grid**3, config.shared)
        for layer in shared[:-1]:
            layer.append(nn.Dropout(config.dropout))
        self.shared_fc_layer = nn.Sequential(*(part for layer in shared for part in layer))
        self.cls_layers = self._branch(1)
        self.reg_layers = self._branch(_CODES)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.reg_layers[-1].weight, std=0.001)  # type: ignore[arg-type]

    def _branch(self, outputs: int) -> nn.Sequential:
        layers = _layers(self.config.shared[-1], self.config.branches)
        layers[0].append(nn.Dropout(self.config.dropout))
        return nn.Sequential(*(part for layer in layers for part in layer), RowAnswer(self.config.branches[-1], outputs))

    def forward(self, points: KeyPoints, scores: Tensor, rois: Rois) -> tuple[Tensor, Tensor]:
        """Return logits (R,) and box codes (R, 7), at least float32.

        Args:
            points: Key points of all frames.
            scores: (K,) confidence of each to lie on an object, by which its features are weighed.
            rois: Boxes of the same frames.
        """
        shared = self.shared_fc_layer(self.pool(points, scores, rois))
        logits, codes = self.cls_layers(shared)[:, 0], self.reg_layers(shared)
        if logits.dtype in (torch.float16, torch.bfloat16):
            return logits.float(), codes.float()
        return logits, codes

    def pool(self, points: KeyPoints, scores: Tensor, rois: Rois) -> Tensor:
        """Return the features (R, channels * grid^3) around the grid points of RoIs, channel by channel."""
        weighed = points.fused * scores[:, None]
        cells = self.config.grid**3
        queries = grid_points(rois.boxes.to(points.xyz.dtype), self.config.grid)
        norms = [module for module in self.roi_grid_pool_layer.modules() if isinstance(module, RowNorm)]
        alone = not any(norm.training or norm.running_mean is None for norm in norms)
        step = _ROIS if alone else max(len(queries), 1)
        parts = []
        for begin in range(0, max(len(queries), 1), step):
            some, frame = queries[begin : begin + step], rois.frame[begin : begin + step]
            around = (points.xyz, weighed, some.flatten(0, 1), points.frame, frame.repeat_interleave(cells))
            pooled = self.roi_grid_pool_layer(*around).unflatten(0, (len(some), cells))
            parts.append(pooled.transpose(1, 2).flatten(1))
        return torch.cat(parts)
