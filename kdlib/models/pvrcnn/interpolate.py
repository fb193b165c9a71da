"""Interpolation on a map and between points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear(values: Tensor, xy: Tensor) -> Tensor:
    """Read a map (C, H, W) between its cells, at columns and rows (K, 2), as (K, C); differentiable
    in the map.

    Corners outside the map are moved to its border before they are weighted, as the original does:
    a place below the first cell or at and beyond the last one therefore reads zero, not the
    border's value.
    """
    rows, columns = values.shape[1:]
    x, y = xy.detach().unbind(1)  # in the places' own precision: 16 bits cannot tell cells apart
    left, top = x.floor().long(), y.floor().long()
    left, right = left.clamp(0, columns - 1), (left + 1).clamp(0, columns - 1)
    top, bottom = top.clamp(0, rows - 1), (top + 1).clamp(0, rows - 1)
    cells = torch.stack(
        [row * columns + column for column in (left, right) for row in (top, bottom)], dim=1
    )
    weights = torch.stack(
        [across * down for across in (right - x, x - left) for down in (bottom - y, y - top)], dim=1
    )
    corners = values.permute(1, 2, 0).flatten(0, 1).index_select(0, cells.flatten())
    return (corners.view(*cells.shape, len(values)) * weights[:, :, None]).sum(dim=1)


def three_point(features: Tensor, index: Tensor, distance: Tensor) -> Tensor:
    """Mix the features (N, C) of three points by the inverse of their distances (R, 3) in metres,
    as (R, C).

    Weights are 1 / (d + 1e-8), divided by their sum; a missing second or third point is to be given
    as the first once more. Where there is no point at all, the first of its rows ``index`` (R, 3)
    is -1 and the answer zero.
    """
    if not len(features) or not len(index):
        return features.sum() * features.new_zeros((len(index), features.shape[1]))
    inverse = 1 / (distance.detach() + 1e-8)
    weights = inverse / inverse.sum(dim=1, keepdim=True)
    weights = torch.where(index[:, :1] < 0, 0.0, weights)
    return F.embedding_bag(
        index.clamp(min=0), features, mode="sum", per_sample_weights=weights.to(features.dtype)
    )
