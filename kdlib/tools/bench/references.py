"""The plain way to compute what kdlib computes fast: boxes or points in, the same answers out, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdlib.config import CLASS_NAMES, GridConfig, HeadConfig
from kdlib.errors import ConfigError
from kdlib.models.geometry.boxes import corners_bev
from kdlib.models.geometry.rotated_iou import paired_overlap
from kdlib.models.targets import gaussian, gaussian_radius, label_of
from kdlib.types import HeadTargets, PointBatch, VoxelBatch

_ROWS = 64  # of the overlap matrix computed at once


def shapely_nms(boxes: Tensor, scores: Tensor, iou: float, pre: int, post: int) -> Tensor:
    """Return what :func:`kdlib.models.geometry.nms.rotated_nms` does, with shapely polygons: kept boxes against worse ones.

    Polygons whose upright rectangles do not meet are not intersected.

    Raises:
        ConfigError: If shapely is not installed.
    """
    try:
        from shapely.geometry import Polygon
    except ImportError as error:
        raise ConfigError("shapely is not installed: pip install shapely") from error
    order = scores.argsort(descending=True, stable=True)[:pre].tolist()
    polygons = [Polygon(corners) for corners in corners_bev(boxes.double()).numpy()]
    bounds = [polygon.bounds for polygon in polygons]
    kept: list[int] = []
    while order and len(kept) < post:
        best, *order = order
        kept.append(best)
        own, (left, low, right, high) = polygons[best], bounds[best]
        rest = []
        for other in order:
            x0, y0, x1, y1 = bounds[other]
            if x0 <= right and x1 >= left and y0 <= high and y1 >= low:
                shared = own.intersection(polygons[other]).area
                if shared > iou * (own.area + polygons[other].area - shared):
                    continue
            rest.append(other)
        order = rest
    return torch.tensor(kept, dtype=torch.int64)


def matrix_nms(boxes: Tensor, scores: Tensor, iou: float, pre: int, post: int) -> Tensor:
    """Return the same from the overlaps of all pairs in one matrix, then a loop over its rows: O(M^2) memory and work."""
    order = scores.argsort(descending=True, stable=True)[:pre]
    ranked = boxes[order]
    count = len(ranked)
    rows = []
    for block in ranked.split(_ROWS):
        pairs = paired_overlap(block.repeat_interleave(count, dim=0), ranked.repeat(len(block), 1))
        rows.append(pairs.view(len(block), count))
    overlap = torch.cat(rows) if rows else boxes.new_zeros((0, 0), dtype=torch.float64)
    area = ranked[:, 3].double() * ranked[:, 4].double()
    conflict = overlap > iou * (area[:, None] + area - overlap)
    alive = torch.ones(count, dtype=torch.bool, device=boxes.device)
    for row in range(count):
        if alive[row]:
            alive[row + 1 :] &= ~conflict[row, row + 1 :]
    return order[alive][:post]


def loop_targets(
    boxes: Tensor, labels: Tensor, *, grid: GridConfig, head: HeadConfig, class_names: tuple[str, ...] = CLASS_NAMES
) -> tuple[HeadTargets, ...]:
    """Return what :func:`kdlib.models.targets.assign_targets` does, box by box: a cell, a bell, a slot at a time."""
    columns, rows = (n // head.stride for n in grid.grid_size[:2])
    found = []
    for names in head.heads:
        slots = head.targets.max_objects
        heatmap = boxes.new_zeros((len(boxes), len(names), rows, columns))
        target = boxes.new_zeros((len(boxes), slots, 8))
        indices = labels.new_zeros((len(boxes), slots))
        mask = torch.zeros((len(boxes), slots), dtype=torch.bool)
        channel_of = {label_of(name, class_names): channel for channel, name in enumerate(names)}
        for frame in range(len(boxes)):
            slot = 0
            for box, label in zip(boxes[frame], labels[frame].tolist()):
                if label not in channel_of or slot == slots:
                    continue
                _one_box(box, heatmap[frame, channel_of[label]], target[frame], indices[frame], mask[frame], slot, grid, head)
                slot += 1
        found.append(HeadTargets(heatmap, target, indices, mask))
    return tuple(found)


def _one_box(
    box: Tensor,
    plane: Tensor,
    target: Tensor,
    indices: Tensor,
    mask: Tensor,
    slot: int,
    grid: GridConfig,
    head: HeadConfig,
) -> None:
    if not (torch.isfinite(box).all() and (box[3:6] > 0).all()):
        return
    rows, columns = plane.shape
    size_x, size_y, stride = grid.voxel_size[0], grid.voxel_size[1], head.stride
    x = ((box[0] - grid.point_range[0]) / size_x / stride).clamp(0, columns - 0.5)
    y = ((box[1] - grid.point_range[1]) / size_y / stride).clamp(0, rows - 0.5)
    ix, iy = int(x), int(y)
    overlap = head.targets.gaussian_overlap
    radius = max(head.targets.min_radius, int(gaussian_radius(box[3] / size_x / stride, box[4] / size_y / stride, overlap)))
    bell = gaussian(radius)
    left, right, low, high = min(ix, radius), min(columns - ix, radius + 1), min(iy, radius), min(rows - iy, radius + 1)
    window = plane[iy - low : iy + high, ix - left : ix + right]
    torch.maximum(window, bell[radius - low : radius + high, radius - left : radius + right], out=window)
    target[slot, 0], target[slot, 1], target[slot, 2] = x - ix, y - iy, box[2]
    target[slot, 3:6] = box[3:6].log()
    target[slot, 6], target[slot, 7] = box[6].cos(), box[6].sin()
    indices[slot], mask[slot] = iy * columns + ix, True


class WheelVoxels:
    """The voxeliser of spconv's wheel for processors, frame by frame, on one grid."""

    def __init__(self, grid: GridConfig, features: int) -> None:
        """Prepare it for points of so many features.

        Raises:
            ConfigError: If the wheel is not installed.
        """
        try:
            from spconv.pytorch.utils import PointToVoxel
        except ImportError as error:
            raise ConfigError("spconv's wheel is not installed: pip install spconv==2.3.8") from error
        self._make: Any = PointToVoxel(
            vsize_xyz=list(grid.voxel_size),
            coors_range_xyz=list(grid.point_range),
            num_point_features=features,
            max_num_voxels=grid.max_voxels,
            max_num_points_per_voxel=grid.max_points,
        )

    def __call__(self, batch: PointBatch) -> VoxelBatch:
        """Return the voxels of a batch; the wheel's buffers are copied, as its users have to."""
        values, coords, counts = [], [], []
        for frame in range(batch.batch_size):
            found, cell, count = self._make(batch.points[batch.batch_index == frame])
            values.append(found.clone())
            coords.append(torch.nn.functional.pad(cell.long(), (1, 0), value=frame))
            counts.append(count.long())
        return VoxelBatch(torch.cat(values), torch.cat(coords), torch.cat(counts), batch.batch_size)


def crowded_boxes(count: int, seed: int = 0, objects: int = 256, half: float = 75.0) -> tuple[Tensor, Tensor]:
    """Return boxes (count, 7) and scores (count,) as an untidy head answers: several of every object, centimetres apart."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(-half, half, (objects, 2))
    kind = rng.integers(3, size=objects)
    size = np.array([(4.6, 2.0, 1.7), (0.9, 0.9, 1.75), (1.8, 0.8, 1.75)])[kind]
    heading = rng.uniform(-np.pi, np.pi, objects)
    which = rng.integers(objects, size=count)
    boxes = np.zeros((count, 7))
    boxes[:, :2] = centre[which] + rng.normal(0, 0.4, (count, 2))
    boxes[:, 2] = rng.normal(0, 0.3, count)
    boxes[:, 3:6] = size[which] * rng.lognormal(0, 0.1, (count, 3))
    boxes[:, 6] = heading[which] + rng.normal(0, 0.1, count)
    return torch.from_numpy(boxes).float(), torch.from_numpy(rng.uniform(0, 1, count)).float()
