"""The plain ways to compute what kdlib computes fast, with the same answers: loops, a matrix of all
pairs, spconv's wheel.
"""

from __future__ import annotations

from collections.abc import Callable

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
    """Return what :func:`kdlib.models.geometry.nms.rotated_nms` does, with shapely polygons: kept
    boxes against worse ones.

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

    def conflict(better: int, worse: int) -> bool:
        (left, low, right, high), (x0, y0, x1, y1) = bounds[better], bounds[worse]
        if x0 > right or x1 < left or y0 > high or y1 < low:
            return False
        first, second = polygons[better], polygons[worse]
        shared = first.intersection(second).area
        return bool(shared > iou * (first.area + second.area - shared))

    kept: list[int] = []
    while order and len(kept) < post:
        best, *order = order
        kept.append(best)
        order = [other for other in order if not conflict(best, other)]
    return torch.tensor(kept, dtype=torch.int64)


def matrix_nms(boxes: Tensor, scores: Tensor, iou: float, pre: int, post: int) -> Tensor:
    """Return the same from the overlaps of all pairs in one matrix, then a loop over its rows:
    O(M^2) memory and work.
    """
    order = scores.argsort(descending=True, stable=True)[:pre]
    ranked = boxes[order]
    count = len(ranked)
    rows = [
        paired_overlap(block.repeat_interleave(count, dim=0), ranked.repeat(len(block), 1))
        for block in ranked.split(_ROWS)
    ]
    overlap = torch.cat(rows).view(count, count)
    area = ranked[:, 3:5].double().prod(dim=1)
    conflict = overlap > iou * (area[:, None] + area - overlap)
    alive = torch.ones(count, dtype=torch.bool)
    for row in range(count):
        if alive[row]:
            alive[row + 1 :] &= ~conflict[row, row + 1 :]
    return order[alive][:post]


def loop_targets(
    boxes: Tensor, labels: Tensor, *, grid: GridConfig, head: HeadConfig
) -> tuple[HeadTargets, ...]:
    """Return what :func:`kdlib.models.targets.assign_targets` does, box by box: a cell, a bell, a
    slot at a time.
    """
    columns, rows = (n // head.stride for n in grid.grid_size[:2])
    slots = (len(boxes), head.targets.max_objects)
    answers = []
    for names in head.heads:
        heatmap = boxes.new_zeros((len(boxes), len(names), rows, columns))
        targets = HeadTargets(
            heatmap,
            boxes.new_zeros((*slots, 8)),
            labels.new_zeros(slots),
            torch.zeros(slots, dtype=torch.bool),
        )
        channel_of = {label_of(name, CLASS_NAMES): channel for channel, name in enumerate(names)}
        for frame, kinds in enumerate(labels.tolist()):
            known = [
                (box, channel_of[kind])
                for box, kind in zip(boxes[frame], kinds)
                if kind in channel_of
            ]
            for slot, (box, channel) in enumerate(known[: slots[1]]):
                if torch.isfinite(box).all() and (box[3:6] > 0).all():
                    _assign(box, heatmap[frame, channel], targets, (frame, slot), grid, head)
        answers.append(targets)
    return tuple(answers)


def _assign(
    box: Tensor,
    plane: Tensor,
    targets: HeadTargets,
    place: tuple[int, int],
    grid: GridConfig,
    head: HeadConfig,
) -> None:
    """Draw one box's bell into a plane of the heatmap and write its regression target into its
    slot.
    """
    rows, columns = plane.shape

    def cells(metres: Tensor, axis: int) -> Tensor:
        return metres / grid.voxel_size[axis] / head.stride

    x = cells(box[0] - grid.point_range[0], 0).clamp(0, columns - 0.5)
    y = cells(box[1] - grid.point_range[1], 1).clamp(0, rows - 0.5)
    ix, iy = int(x), int(y)
    radius = int(gaussian_radius(cells(box[3], 0), cells(box[4], 1), head.targets.gaussian_overlap))
    radius = max(head.targets.min_radius, radius)
    # Cells that the bell would cover beyond the border are cut off the bell.
    left, low = max(radius - ix, 0), max(radius - iy, 0)
    window = plane[max(iy - radius, 0) : iy + radius + 1, max(ix - radius, 0) : ix + radius + 1]
    bell = gaussian(radius)[low : low + len(window), left : left + window.shape[1]]
    torch.maximum(window, bell, out=window)
    angle = torch.stack((box[6].cos(), box[6].sin()))
    targets.boxes[place] = torch.cat((torch.stack((x - ix, y - iy, box[2])), box[3:6].log(), angle))
    targets.indices[place], targets.mask[place] = iy * columns + ix, True


def wheel_voxels(grid: GridConfig, features: int) -> Callable[[PointBatch], VoxelBatch]:
    """Return the voxeliser of spconv's wheel for processors, frame by frame, for points of so many
    features on a grid.

    Raises:
        ConfigError: If the wheel is not installed.
    """
    try:
        from spconv.pytorch.utils import PointToVoxel
    except ImportError as error:
        raise ConfigError("spconv's wheel is not installed: pip install spconv==2.3.8") from error
    make = PointToVoxel(
        vsize_xyz=list(grid.voxel_size),
        coors_range_xyz=list(grid.point_range),
        num_point_features=features,
        max_num_voxels=grid.max_voxels,
        max_num_points_per_voxel=grid.max_points,
    )

    def voxels_of(batch: PointBatch) -> VoxelBatch:
        values, coords, counts = [], [], []
        for frame in range(batch.batch_size):
            voxels, cell, count = make(batch.points[batch.batch_index == frame])
            values.append(voxels.clone())  # the wheel's buffers are copied, as its users have to
            coords.append(torch.nn.functional.pad(cell.long(), (1, 0), value=frame))
            counts.append(count.long())
        return VoxelBatch(torch.cat(values), torch.cat(coords), torch.cat(counts), batch.batch_size)

    return voxels_of
