"""The sectorised, proposal-centric sampling of key points (spec 4.6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PAIRS = 1 << 18  # distances held at once: they and their like stay in a processor's cache


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Pick points that lie as far from each other as a greedy search finds, beginning with the first one.

    Each pick is the point farthest from all picks before it, the first in order where several are; none is picked twice. Another
    order of the points therefore gives the same picks, unless distances tie.

    Args:
        points: (N, 3) metres.
        count: Points to pick, at most N.

    Returns:
        (count,) int64 rows, in the order of picking; memory grows with N alone.

    Raises:
        ValueError: If there are fewer points than picks.
    """
    if not 0 <= count <= len(points):
        raise ValueError(f"{count} points cannot be picked from {len(points)}")
    picks = torch.zeros(count, dtype=torch.int64, device=points.device)
    if not count:
        return picks
    x, y, z = (axis.contiguous() for axis in points.detach().t())
    nearest = torch.full_like(x, math.inf)
    squared, term = torch.empty_like(x), torch.empty_like(x)
    pick = picks[:1]
    for number in range(1, count):
        for axis, out in ((x, squared), (y, term), (z, term)):
            torch.sub(axis, axis.index_select(0, pick), out=out)
            out.mul_(out)
            if out is term:
                squared.add_(term)
        torch.minimum(nearest, squared, out=nearest)
        nearest.index_fill_(0, pick, -1)
        pick = picks[number : number + 1]
        torch.argmax(nearest, dim=0, keepdim=True, out=pick)
    return picks


def nearest_roi(points: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
    """Find the box whose centre is nearest to each point.

    Args:
        points: (N, 3) metres.
        rois: (M, 7) boxes.

    Returns:
        Distance to the centre (N,), infinite if there is no box, and half the diagonal of that box (N,), of the first of several
        equally near ones. Beside these, ``2^18`` distances are held, whatever N and M.
    """
    points, rois = points.detach(), rois.detach().to(points.dtype)
    distance, reach = points.new_full((len(points),), math.inf), points.new_zeros(len(points))
    if not len(rois):
        return distance, reach
    half = (rois[:, 3:6] / 2).norm(dim=1)
    rows = max(_PAIRS // len(rois), 1)
    for first in range(0, len(points), rows):
        part = points[first : first + rows]
        squared = (part[:, 0, None] - rois[:, 0]).square_()
        squared += (part[:, 1, None] - rois[:, 1]).square_()
        squared += (part[:, 2, None] - rois[:, 2]).square_()
        nearest = squared.argmin(dim=1)
        distance[first : first + rows] = squared.gather(1, nearest[:, None])[:, 0].sqrt()
        reach[first : first + rows] = half.index_select(0, nearest)
    return distance, reach


def near_rois(points: Tensor, rois: Tensor, margin: float) -> Tensor:
    """Tell which points lie in the ball around the nearest RoI, enlarged by a margin.

    Args:
        points: (N, 3) metres.
        rois: (M, 7) boxes; a point near a large box but nearer to the centre of a small one is measured by the small one.
        margin: Metres beyond half the diagonal.

    Returns:
        (N,) bool, all False without boxes.
    """
    distance, reach = nearest_roi(points, rois)
    return distance < reach + margin


def sector_keypoints(points: Tensor, near: Tensor, count: int, sectors: int) -> Tensor:
    """Pick key points near the RoIs of one frame, spread evenly within each sector of azimuth.

    Points near no RoI are left out; if all are, the first point stays alone. Every sector gives its share of ``count``, rounded
    up, by farthest points from its first point on. A point exactly behind the vehicle (azimuth +pi) belongs to the last sector;
    the original loses it.

    Args:
        points: (N, 3) metres.
        near: (N,) bool, the answer of :func:`near_rois`.
        count: Key points wanted.
        sectors: Sectors around the vehicle.

    Returns:
        (K,) int64 rows, sector by sector, K < count + sectors; K = 0 only if N = 0.
    """
    xyz = points.detach()
    kept = near.nonzero()[:, 0]
    if not len(kept):
        return torch.arange(min(len(xyz), 1), device=xyz.device)
    xyz = xyz.index_select(0, kept)
    angle = torch.atan2(xyz[:, 1], xyz[:, 0]) + math.pi
    sector = (angle / (2 * math.pi / sectors)).floor().clamp(0, sectors - 1)
    picks = []
    for number in range(sectors):
        rows = (sector == number).nonzero()[:, 0]
        share = min(len(rows), math.ceil(len(rows) / len(xyz) * count))
        picks.append(rows.index_select(0, farthest_points(xyz.index_select(0, rows), share)))
    return kept.index_select(0, torch.cat(picks))
