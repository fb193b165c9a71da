"""Overlaps of boxes (M, 7) seen from above, in float64; other shapes are a ValueError."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlib.models.geometry.boxes import check_boxes, corners_bev

_PAIRS = 2**15  # pairs worked on at once: their float64 intermediates stay in a CPU's cache
_ROWS = 256  # rows of the distance matrix held at once
_LEVEL = 1e-200  # metres; a quotient by less could overflow, and so short a rise holds no area
_MARGIN = 1 + 1e-5  # circles are taken a little too large, so that rounding loses no pair


def paired_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection areas (N,) in square metres of the rectangles of ``a[i]`` and
    ``b[i]``, both (N, 7).

    Seen from ``b``, whose sides are then ``|x| = dx / 2`` and ``|y| = dy / 2``, Green's theorem
    gives the area as the integral of ``clamp(x, -dx/2, dx/2) dy`` along the part of the outline of
    ``a`` between the two lines of constant y. No polygon is built.

    Raises:
        ValueError: If the shapes are not (N, 7), twice the same N.
    """
    check_boxes(a, "a")
    check_boxes(b, "b")
    if a.shape != b.shape:
        raise ValueError(
            f"paired boxes need equal shapes, not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return torch.cat([_overlap(x, y) for x, y in zip(a.split(_PAIRS), b.split(_PAIRS))])


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double(), b.double()
    seen = torch.cat(
        (_rotate(a[:, :2] - b[:, :2], b[:, 6]), a[:, 2:6], (a[:, 6] - b[:, 6])[:, None]), dim=1
    )
    start = corners_bev(seen)  # (N, 4, 2)
    end = start.roll(-1, dims=1)
    half_x, half_y = 0.5 * b[:, 3, None], 0.5 * b[:, 4, None]
    x0, y0, x1, y1 = start[..., 0], start[..., 1], end[..., 0], end[..., 1]
    low, high = y0.clamp(-half_y, half_y), y1.clamp(-half_y, half_y)
    rise = y1 - y0
    slope = (x1 - x0) / torch.where(rise.abs() < _LEVEL, 1.0, rise)
    area = _clamped_integral(x0 + slope * (low - y0), x0 + slope * (high - y0), high - low, half_x)
    return area.sum(dim=1).clamp(min=0)


def _rotate(offset: Tensor, angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack(
        (offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin), dim=1
    )


def _clamped_integral(x0: Tensor, x1: Tensor, rise: Tensor, half: Tensor) -> Tensor:
    """Integrate clamp(x, -half, half) dy along straight pieces from x0 to x1 that rise by
    ``rise``.
    """
    run = x1 - x0
    flat = run.abs() < 1e-9  # metres; a difference quotient over less would be rounding noise
    safe = torch.where(flat, 1.0, run)
    # The antiderivative of the clamp in x: quadratic inside, linear outside.
    inner0, inner1 = x0.clamp(-half, half), x1.clamp(-half, half)
    inside = 0.5 * (inner1 - inner0) * (inner1 + inner0)
    outside = half * ((x1.abs() - half).clamp(min=0) - (x0.abs() - half).clamp(min=0))
    return rise * torch.where(flat, 0.5 * (inner0 + inner1), (inside + outside) / safe)


def touching_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index pairs of boxes (M, 7), (K, 7) whose circumscribed circles meet; only they
    can overlap.

    Pairs come row by row, in ascending order.
    """
    radius_a, radius_b = (0.5 * torch.hypot(boxes[:, 3], boxes[:, 4]) * _MARGIN for boxes in (a, b))
    # Contiguous columns and no root of every pair's distance: most of the time of a suppression is
    # spent here.
    (ax, ay), (bx, by) = (boxes[:, :2].t().contiguous() for boxes in (a, b))
    blocks = []
    for start in range(0, len(a), _ROWS):
        rows = slice(start, start + _ROWS)
        distance = (ax[rows, None] - bx).square_().add_((ay[rows, None] - by).square_())
        pairs = torch.nonzero(distance <= (radius_a[rows, None] + radius_b).square_())
        blocks.append(pairs + pairs.new_tensor((start, 0)))
    both = torch.cat(blocks) if blocks else torch.zeros((0, 2), dtype=torch.long, device=a.device)
    return both[:, 0], both[:, 1]


def bev_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the overlap areas (M, K) in square metres of all pairs of boxes (M, 7) and (K, 7)."""
    check_boxes(a, "a")
    check_boxes(b, "b")
    overlap = a.new_zeros((len(a), len(b)), dtype=torch.float64)
    first, second = touching_pairs(a, b)
    overlap[first, second] = paired_overlap(a[first], b[second])
    return overlap


def bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the bird's-eye IoU (M, K) of all pairs of boxes, in the boxes' dtype."""
    overlap = bev_overlap(a, b)
    area_a, area_b = a[:, 3].double() * a[:, 4].double(), b[:, 3].double() * b[:, 4].double()
    union = area_a[:, None] + area_b[None, :] - overlap
    return _ratio(overlap, union).to(a.dtype)


def volume_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of volumes (M, K) of all pairs of boxes (spec 5.3), in the boxes' dtype."""
    overlap = bev_overlap(a, b)
    a64, b64 = a.double(), b.double()
    top = torch.minimum((a64[:, 2] + a64[:, 5] / 2)[:, None], (b64[:, 2] + b64[:, 5] / 2)[None])
    bottom = torch.maximum((a64[:, 2] - a64[:, 5] / 2)[:, None], (b64[:, 2] - b64[:, 5] / 2)[None])
    shared = overlap * (top - bottom).clamp(min=0)
    union = a64[:, 3:6].prod(dim=1)[:, None] + b64[:, 3:6].prod(dim=1)[None] - shared
    return _ratio(shared, union).to(a.dtype)


def _ratio(shared: Tensor, union: Tensor) -> Tensor:
    """Divide; two boxes without size have nothing in common."""
    solid = union > 0
    return torch.where(solid, shared / torch.where(solid, union, 1.0), 0.0)
