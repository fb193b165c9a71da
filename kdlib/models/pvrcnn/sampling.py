"""The sectorised, proposal-centric sampling of key points (spec 4.6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PAIRS = 1 << 18  # distances held at once: they and their like stay in a processor's cache


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Pick points far from each other: each is the farthest from all picks before it, beginning
    with the first point.

    The first in order counts where several are equally far; none is picked twice. Of points (N, 3)
    that gives (count,) rows, in the order of picking; memory grows with N alone.

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
    """Find for each point (N, 3) the box (M, 7) with the nearest centre, the first of several
    equally near ones.

    Returns:
        Distance to the centre (N,), infinite if there is no box, and half the diagonal of that box
        (N,).
    """
    points, rois = points.detach(), rois.detach().to(points.dtype)
    if not len(rois):
        return points.new_full((len(points),), math.inf), points.new_zeros(len(points))
    half = (rois[:, 3:6] / 2).norm(dim=1)
    distances, reaches = [], []
    for part in points.split(max(_PAIRS // len(rois), 1)):
        squared = (part[:, 0, None] - rois[:, 0]).square_()
        for axis in (1, 2):
            squared += (part[:, axis, None] - rois[:, axis]).square_()
        nearest = squared.argmin(dim=1)
        distances.append(squared.gather(1, nearest[:, None])[:, 0].sqrt())
        reaches.append(half.index_select(0, nearest))
    return torch.cat(distances), torch.cat(reaches)


def near_rois(points: Tensor, rois: Tensor, margin: float) -> Tensor:
    """Tell which points (N, 3) lie in the ball around the nearest of RoIs (M, 7), as bool (N,).

    A ball reaches ``margin`` metres beyond half the diagonal. A point near a large box but nearer
    to the centre of a small one is measured by the small one.
    """
    distance, reach = nearest_roi(points, rois)
    return distance < reach + margin


def sector_keypoints(points: Tensor, near: Tensor, count: int, sectors: int) -> Tensor:
    """Pick key points near the RoIs of one frame, spread evenly within each sector of azimuth.

    Points (N, 3) near no RoI, as ``near`` (N,) says, are left out; if all are, the first point
    stays alone. Every sector gives its share of ``count``, rounded up, by farthest points from its
    first point on. A point exactly behind the vehicle (azimuth +pi) belongs to the last sector; the
    original loses it.

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
