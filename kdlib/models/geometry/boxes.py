"""Corners of boxes (M, 7) and points inside them; fewer or more numbers are a ValueError."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Counter-clockwise from the front left corner, in units of half the length and half the width.
_SIGNS = ((1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0))


def check_boxes(boxes: Tensor, name: str = "boxes") -> None:
    """Check that a tensor holds boxes; raises ValueError if the last axis has not seven numbers."""
    if boxes.shape[-1] != 7:
        raise ValueError(
            f"{name} need 7 numbers each (x, y, z, dx, dy, dz, heading), not shape "
            f"{tuple(boxes.shape)}"
        )


def wrap_angle(angle: Tensor) -> Tensor:
    """Return angles (radians, any shape) in [-pi, pi)."""
    wrapped = angle - torch.floor(angle / (2 * math.pi) + 0.5) * (2 * math.pi)
    # rounding can land on +pi
    return torch.where(wrapped >= math.pi, wrapped - 2 * math.pi, wrapped)


def corners_bev(boxes: Tensor) -> Tensor:
    """Return the four corners (..., 4, 2) of boxes (..., 7) in metres, counter-clockwise from the
    front left.
    """
    check_boxes(boxes)
    signs = boxes.new_tensor(_SIGNS)
    local = 0.5 * boxes[..., None, 3:5] * signs
    cos, sin = boxes[..., 6:7].cos(), boxes[..., 6:7].sin()
    x = local[..., 0] * cos - local[..., 1] * sin + boxes[..., 0:1]
    y = local[..., 0] * sin + local[..., 1] * cos + boxes[..., 1:2]
    return torch.stack((x, y), dim=-1)


def corners_3d(boxes: Tensor) -> Tensor:
    """Return the eight corners (..., 8, 3) of boxes (..., 7) in metres: the bottom four, then the
    top four.
    """
    flat = corners_bev(boxes)
    levels = []
    for sign in (-0.5, 0.5):
        z = (boxes[..., 2:3] + sign * boxes[..., 5:6])[..., None].expand(*flat.shape[:-1], 1)
        levels.append(torch.cat((flat, z), dim=-1))
    return torch.cat(levels, dim=-2)


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Return which points (N, >=3) lie in which boxes (M, 7), borders included, as bool (N, M)."""
    check_boxes(boxes)
    offset = points[:, None, :3] - boxes[None, :, :3]
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    along = offset[..., 0] * cos + offset[..., 1] * sin
    across = offset[..., 1] * cos - offset[..., 0] * sin
    half = 0.5 * boxes[:, 3:6]
    return (
        (along.abs() <= half[:, 0])
        & (across.abs() <= half[:, 1])
        & (offset[..., 2].abs() <= half[:, 2])
    )
