"""Rows of Waymo's ``lidar_box`` table enter, the annotated boxes of one frame leave (format spec section 5)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.types import FloatArray, FrameLabels, IntArray

_PREFIX = "[LiDARBoxComponent]."
TIMESTAMP = "key.frame_timestamp_micros"
OBJECT_ID = "key.laser_object_id"
BOX_COLUMNS = tuple(
    _PREFIX + name
    for name in ("box.center.x", "box.center.y", "box.center.z", "box.size.x", "box.size.y", "box.size.z", "box.heading")
)
SPEED_COLUMNS = tuple(_PREFIX + name for name in ("speed.x", "speed.y", "speed.z"))
TYPE = _PREFIX + "type"
NUM_POINTS = _PREFIX + "num_lidar_points_in_box"
DIFFICULTY = _PREFIX + "difficulty_level.detection"
COLUMNS = (TIMESTAMP, OBJECT_ID, *BOX_COLUMNS, TYPE, NUM_POINTS, *SPEED_COLUMNS, DIFFICULTY)
"""The columns of ``lidar_box`` that are read."""


def difficulty_level(difficulty: IntArray, num_points: IntArray) -> NDArray[np.int64]:
    """Return the metric's level: as annotated where set, otherwise LEVEL_2 up to 5 points and LEVEL_1 above (spec section 5).

    Args:
        difficulty: (M,) 0 unset, 1 LEVEL_1, 2 LEVEL_2.
        num_points: (M,) LiDAR points in the box.

    Returns:
        (M,) 1 or 2, and 0 for boxes without points, which are no ground truth.
    """
    unset = np.where(np.asarray(num_points) > 5, 1, 2)
    level = np.where(np.asarray(difficulty) > 0, difficulty, unset)
    return np.where(np.asarray(num_points) > 0, level, 0).astype(np.int64)


def labels_by_frame(table: pa.Table, poses: dict[int, NDArray[np.float64]]) -> dict[int, FrameLabels]:
    """Split a segment's ``lidar_box`` rows into the labels of every frame; rows may come in any order.

    Boxes of unknown type are dropped; the others are ordered by object id. Speeds are annotated in world coordinates and turned
    into the vehicle frame; a missing speed counts as standing still, a missing difficulty as unset.

    Args:
        table: At least ``COLUMNS``.
        poses: World from vehicle (4, 4) of every frame, by timestamp.

    Returns:
        Labels by timestamp, for every key of ``poses``.

    Raises:
        DataError: If a box belongs to no frame, misses one of its numbers or appears twice in a frame.
    """
    ids = table.column(OBJECT_ID).to_pylist()
    times = _integers(table, TIMESTAMP)
    strangers = sorted(set(times.tolist()) - set(poses))
    if strangers:
        raise DataError(f"boxes at time {strangers[0]}, for which there is no vehicle pose")
    kinds = _integers(table, TYPE, absent=0)
    boxes = np.stack([_floats(table, name) for name in BOX_COLUMNS], axis=1)
    _check_boxes(boxes, ids, times)
    speeds = np.nan_to_num(np.stack([_floats(table, name) for name in SPEED_COLUMNS], axis=1), nan=0.0)
    points, difficulty = _integers(table, NUM_POINTS), _integers(table, DIFFICULTY, absent=0)
    found = {}
    for time, rows in _groups(times, ids):
        rows = rows[kinds[rows] > 0]
        names = tuple(str(ids[row]) for row in rows)
        if len(set(names)) < len(names):
            raise DataError(f"an object has two boxes in the frame at time {time}")
        velocity = (speeds[rows] @ poses[time][:3, :3])[:, :2]  # row vectors times F is F transposed times the vector
        found[time] = FrameLabels(boxes[rows], kinds[rows], names, difficulty[rows], points[rows], velocity)
    return {time: found.get(time, FrameLabels.empty()) for time in poses}


def _groups(times: NDArray[np.int64], ids: list[str]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield (timestamp, row numbers by object id)."""
    if not len(times):
        return
    order = np.lexsort((np.array(ids, dtype=str), times))
    starts = np.flatnonzero(np.diff(times[order], prepend=times[order][0] - 1))
    for rows in np.split(order, starts[1:]):
        yield int(times[rows[0]]), rows


def _integers(table: pa.Table, name: str, absent: int | None = None) -> NDArray[np.int64]:
    column = table.column(name)
    if column.null_count:
        if absent is None:
            raise DataError(f"column '{name}' is empty in {column.null_count} of {len(column)} rows")
        column = pc.fill_null(column, absent)
    numbers: NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return numbers


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = table.column(name).cast(pa.float64()).to_numpy()  # a null becomes NaN
    return numbers


def _check_boxes(boxes: FloatArray, ids: list[str], times: NDArray[np.int64]) -> None:
    broken = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 3:6] <= 0).any(axis=1)
    if broken.any():
        row = int(np.flatnonzero(broken)[0])
        numbers = boxes[row].tolist()
        raise DataError(f"box '{ids[row]}' at time {times[row]} is not seven finite numbers with a size above 0: {numbers}")
