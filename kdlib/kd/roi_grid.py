"""Rotated grid pooling: features of a BEV map inside every box."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.config import ModelConfig
from kdlib.models.geometry.boxes import check_boxes

Region = tuple[float, float, float, float]  # metres a map spans: low x, low y, high x, high y


def bev_region(config: ModelConfig) -> Region:
    """Return the metres that a model's maps span."""
    low_x, low_y, _, high_x, high_y, _ = config.grid.point_range
    return low_x, low_y, high_x, high_y


def roi_points(boxes: Tensor, size: int) -> Tensor:
    """Return ``size`` x ``size`` places (..., size, size, 2) in metres inside boxes (..., 7).

    They are the centres of equal cells: at ``((k + 0.5) / size - 0.5)`` of the length (last grid
    axis) and of the width (the one before), turned by the heading.

    Source: spec section 7.7.
    """
    check_boxes(boxes)
    share = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size - 0.5
    x, y, _, length, width, _, heading = (value[..., None, None] for value in boxes.unbind(-1))
    along, across = share[None, :] * length, share[:, None] * width
    cos, sin = heading.cos(), heading.sin()
    return torch.stack((x + along * cos - across * sin, y + along * sin + across * cos), dim=-1)


def roi_grid_pool(maps: Tensor, boxes: Tensor, region: Region, size: int) -> Tensor:
    """Return the features (B, M, C, size, size) that maps (B, C, H, W) over a region have inside
    boxes (B, M, 7).

    Every map is read at the same metric places, whatever its cell size, bilinearly between the
    centres of its cells and with zeros beyond its border. The original wrote its grid for
    ``align_corners=True`` and sampled with ``False``, which is exact at the low edge of a map and
    about a cell off at the far one (spec section 11 item 14).

    Source: Mimic (Li et al., CVPR 2017) as in SparseKD; spec section 7.7.
    """
    frames, count = boxes.shape[:2]
    low, high = boxes.new_tensor(region).view(2, 2)
    # From -1 at one border of the map to +1 at the other: what grid_sample calls
    # align_corners=False.
    places = (roi_points(boxes, size) - low) / (high - low) * 2 - 1
    read = F.grid_sample(
        maps, places.view(frames, count * size, size, 2).to(maps.dtype), align_corners=False
    )
    return read.view(frames, maps.shape[1], count, size, size).transpose(1, 2)
