"""A point batch and a grid enter, hard voxels leave: the first points of a cell, cells in order of first appearance."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlib.config import GridConfig
from kdlib.errors import DataError
from kdlib.types import PointBatch, VoxelBatch


def voxelize(batch: PointBatch, grid: GridConfig) -> VoxelBatch:
    """Gather points into voxels (spec 3.1).

    A voxel keeps its first ``max_points`` points; a frame keeps its first ``max_voxels`` voxels, whose later points still count.
    Cells are found in float32, as the original does, so that points on a boundary fall to the same side.

    Raises:
        DataError: If a coordinate is not finite; the message names the frame.
    """
    points, frame = batch.points, batch.batch_index
    _check_finite(batch)
    low = points.new_tensor(grid.point_range[:3])
    size = points.new_tensor(grid.voxel_size)
    nx, ny, nz = grid.grid_size
    cell = torch.floor((points[:, :3] - low) / size).long()
    inside = ((cell >= 0) & (cell < cell.new_tensor((nx, ny, nz)))).all(dim=1)
    points, frame, cell = points[inside], frame[inside], cell[inside]
    key = ((frame * nz + cell[:, 2]) * ny + cell[:, 1]) * nx + cell[:, 0]
    keys, voxel = _number_by_appearance(key)
    keys, voxel, kept = _cap_voxels(keys, voxel, nx * ny * nz, grid.max_voxels)
    points, voxel = points[kept], voxel[kept]
    slot, counts = _slots(voxel, len(keys))
    stored = slot < grid.max_points
    features = points.new_zeros((len(keys), grid.max_points, points.shape[1]))
    features[voxel[stored], slot[stored]] = points[stored]
    x, rest = keys % nx, keys // nx
    y, rest = rest % ny, rest // ny
    coords = torch.stack((rest // nz, rest % nz, y, x), dim=1)
    return VoxelBatch(features, coords, counts.clamp(max=grid.max_points), batch.batch_size)


def _check_finite(batch: PointBatch) -> None:
    bad = ~torch.isfinite(batch.points).all(dim=1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        name = batch.frame_ids[int(batch.batch_index[row])] if batch.frame_ids else f"frame {int(batch.batch_index[row])}"
        raise DataError(f"{name}: point {batch.points[row].tolist()} is not finite; prepare the store again or drop the frame")


def _number_by_appearance(key: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct keys in order of first appearance and, for every point, the number of its key."""
    keys, inverse = torch.unique(key, return_inverse=True)
    first = torch.full_like(keys, len(key))
    first.scatter_reduce_(0, inverse, torch.arange(len(key), device=key.device), "amin")
    order = first.argsort()
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order), device=key.device)
    return keys[order], number[inverse]


def _cap_voxels(keys: Tensor, voxel: Tensor, cells: int, cap: int) -> tuple[Tensor, Tensor, Tensor]:
    """Drop what lies beyond the first ``cap`` voxels of a frame: keys, renumbered voxels, and the mask of points kept."""
    frame = keys // cells
    start = torch.searchsorted(frame.contiguous(), frame.contiguous())  # frames follow each other
    allowed = torch.arange(len(keys), device=keys.device) - start < cap
    if bool(allowed.all()):
        return keys, voxel, torch.ones_like(voxel, dtype=torch.bool)
    number = allowed.cumsum(0) - 1
    return keys[allowed], number[voxel], allowed[voxel]


def _slots(voxel: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return every point's position inside its voxel, and the number of points of each voxel."""
    counts = torch.bincount(voxel, minlength=count)
    order = voxel.argsort(stable=True)
    slot = torch.empty_like(voxel)
    slot[order] = torch.arange(len(voxel), device=voxel.device) - (counts.cumsum(0) - counts)[voxel[order]]
    return slot, counts
