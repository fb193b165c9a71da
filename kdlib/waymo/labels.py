"""Rows of ``lidar_box`` or one frame's columns enter, the annotated boxes of a frame leave (format spec section 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.types import WAYMO_TYPES, FloatArray, FrameLabels, IntArray
from kdlib.waymo.columns import integers, reals, texts

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
_FARTHEST, _FASTEST, _MOST_POINTS = 1e5, 1e4, 1 << 24  # beyond what any car, or float32, can be asked to hold


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
    ids, times = texts(table, OBJECT_ID), integers(table, TIMESTAMP)
    strangers = sorted(set(times.tolist()) - set(poses))
    if strangers:
        raise DataError(f"boxes at time {strangers[0]}, for which there is no vehicle pose")
    kinds = integers(table, TYPE, absent=0)
    boxes = np.stack([reals(table, name) for name in BOX_COLUMNS], axis=1)
    speeds = np.stack([reals(table, name) for name in SPEED_COLUMNS], axis=1)
    speeds = np.where(np.isnan(speeds), 0.0, speeds)
    points, difficulty = integers(table, NUM_POINTS), integers(table, DIFFICULTY, absent=0)
    _check(ids, times, boxes, kinds, difficulty, points, speeds)
    found = {}
    for time, rows in _groups(times, ids):
        names = [ids[row] for row in rows]
        columns = (boxes[rows], kinds[rows], difficulty[rows], points[rows], speeds[rows])
        found[time] = _of_frame(time, poses[time], names, *columns)
    return {time: found.get(time, FrameLabels.empty()) for time in poses}


def frame_labels(
    time: int,
    pose: NDArray[np.float64],
    ids: Sequence[str],
    boxes: FloatArray,
    types: IntArray,
    difficulty: IntArray,
    num_points: IntArray,
    speeds: FloatArray,
) -> FrameLabels:
    """Return the labels of one frame as :func:`labels_by_frame` would: known types only, by object id, speeds turned.

    Args:
        time: Timestamp, for messages.
        pose: World from vehicle (4, 4).
        ids: Object ids, any order.
        boxes: (M, 7), NaN where a number is missing.
        types: (M,) Waymo's type numbers, 0 unknown.
        difficulty: (M,) 0 where unset.
        num_points: (M,).
        speeds: (M, 3) world frame, 0 where there is none.

    Raises:
        DataError: If a box misses one of its numbers or appears twice.
    """
    if not ids:
        return FrameLabels.empty()
    _check(ids, np.full(len(ids), time), boxes, types, difficulty, num_points, speeds)
    order = np.argsort(np.array(ids, dtype=str), kind="stable")
    names = [ids[row] for row in order]
    return _of_frame(time, pose, names, boxes[order], types[order], difficulty[order], num_points[order], speeds[order])


def _of_frame(
    time: int,
    pose: NDArray[np.float64],
    ids: Sequence[str],
    boxes: FloatArray,
    types: IntArray,
    difficulty: IntArray,
    num_points: IntArray,
    speeds: FloatArray,
) -> FrameLabels:
    known = types > 0
    names = tuple(compress(ids, known))
    if len(set(names)) < len(names):
        raise DataError(f"an object has two boxes in the frame at time {time}")
    velocity = (speeds[known] @ pose[:3, :3])[:, :2]  # row vectors times F is F transposed times the vector
    return FrameLabels(boxes[known], types[known], names, difficulty[known], num_points[known], velocity)


def _groups(times: NDArray[np.int64], ids: list[str]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield (timestamp, row numbers by object id)."""
    if not len(times):
        return
    order = np.lexsort((np.array(ids, dtype=str), times))
    starts = np.flatnonzero(np.diff(times[order], prepend=times[order][0] - 1))
    for rows in np.split(order, starts[1:]):
        yield int(times[rows[0]]), rows


def _check(
    ids: Sequence[str],
    times: IntArray,
    boxes: FloatArray,
    types: IntArray,
    difficulty: IntArray,
    num_points: IntArray,
    speeds: FloatArray,
) -> None:
    """Refuse what no annotation can be; any heading is legal."""
    broken = ~(np.abs(boxes) < _FARTHEST).all(axis=1) | (boxes[:, 3:6] <= 0).any(axis=1)
    if broken.any():
        row = int(np.flatnonzero(broken)[0])
        numbers = boxes[row].tolist()
        raise DataError(f"box {_place(ids, times, row)} is not seven finite numbers with a size above 0: {numbers}")
    known = f"0 (unknown), {', '.join(f'{number} ({name})' for name, number in WAYMO_TYPES.items())}"
    for name, values, highest, expected in (
        ("type", types, max(WAYMO_TYPES.values()), known),
        ("difficulty", difficulty, 2, "0 (unset), 1 or 2"),
        ("number of points", num_points, _MOST_POINTS, f"0 to {_MOST_POINTS}"),
    ):
        odd = np.flatnonzero((values < 0) | (values > highest))
        if len(odd):
            raise DataError(f"box {_place(ids, times, odd[0])} has {name} {values[odd[0]]}, expected {expected}")
    odd = np.flatnonzero(~(np.abs(speeds) < _FASTEST).all(axis=1))
    if len(odd):
        raise DataError(
            f"box {_place(ids, times, odd[0])} moves at {speeds[odd[0]].tolist()} m/s, expected less than {_FASTEST:g}"
        )


def _place(ids: Sequence[str], times: IntArray, row: int) -> str:
    return f"'{ids[row][:40]}' at time {times[row]}"
