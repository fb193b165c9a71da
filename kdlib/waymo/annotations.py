"""Checks the annotated boxes of a frame, or of a segment's ``lidar_box`` rows, and puts them in
order (format spec section 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from kdlib.errors import DataError
from kdlib.types import WAYMO_TYPES, Bool, Float64, FloatArray, FrameLabels, Int64, IntArray
from kdlib.waymo.column_types import Converters, integers, reals, texts
from kdlib.waymo.components import OBJECT, TIME

_PREFIX = "[LiDARBoxComponent]."
_PARTS = (
    "box.center.x",
    "box.center.y",
    "box.center.z",
    "box.size.x",
    "box.size.y",
    "box.size.z",
    "box.heading",
)
LIDAR_BOX_NUMBERS = tuple(_PREFIX + name for name in _PARTS)
SPEEDS = tuple(f"{_PREFIX}speed.{axis}" for axis in "xyz")
TYPE, DIFFICULTY = f"{_PREFIX}type", f"{_PREFIX}difficulty_level.detection"
NUM_POINTS = f"{_PREFIX}num_lidar_points_in_box"
LABEL_COLUMNS: Converters = {
    TIME: integers,
    OBJECT: texts,
    **dict.fromkeys((*LIDAR_BOX_NUMBERS, *SPEEDS), reals),
    **dict.fromkeys((TYPE, DIFFICULTY), partial(integers, absent=0)),
    NUM_POINTS: integers,
}
"""The columns of ``lidar_box`` that are read."""
# beyond what any car, or float32, can be asked to hold
_FARTHEST, _FASTEST, _MOST_POINTS = 1e5, 1e4, 1 << 24
_MOST_TURNS = 3  # of a heading in radians
_AROUND, _LONGEST = 1000.0, 100.0  # metres from the vehicle, and of an object's side


def difficulty_level(difficulty: IntArray, num_points: IntArray) -> Int64:
    """Return the metric's level: as annotated where set, otherwise LEVEL_2 up to 5 points and
    LEVEL_1 above (spec section 5).

    All are (M,): difficulties 0 unset, 1 LEVEL_1, 2 LEVEL_2, LiDAR points in the boxes, and levels
    1 or 2, or 0 for boxes without points, which are no ground truth.
    """
    level = np.where(difficulty > 0, difficulty, np.where(num_points > 5, 1, 2))
    return np.where(num_points > 0, level, 0).astype(np.int64)


def labels_by_frame(
    columns: Mapping[str, Any], poses: Mapping[int, Float64]
) -> dict[int, FrameLabels]:
    """Split a segment's converted ``lidar_box`` rows, in any order, into the labels of every frame
    that has boxes, by timestamp.

    A missing speed counts as standing still, a missing difficulty as unset; ``poses`` are world
    from vehicle by timestamp.

    Raises:
        DataError: If a box belongs to no frame, misses one of its numbers or appears twice in a
            frame.
    """
    times, ids = columns[TIME], columns[OBJECT]
    for stranger in sorted(set(times.tolist()) - set(poses)):
        raise DataError(f"boxes at time {stranger}, for which there is no vehicle pose")
    boxes, speeds = (
        np.stack([columns[name] for name in names], axis=1) for names in (LIDAR_BOX_NUMBERS, SPEEDS)
    )
    speeds = np.where(np.isnan(speeds), 0.0, speeds)
    arrays = (boxes, speeds, columns[TYPE], columns[DIFFICULTY], columns[NUM_POINTS])
    labels = {}
    order = np.argsort(times, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(times[order])) + 1) if len(order) else ():
        time = int(times[rows[0]])
        labels[time] = frame_labels(
            time, poses[time], [ids[row] for row in rows], *(array[rows] for array in arrays)
        )
    return labels


def frame_labels(
    time: int,
    pose: Float64,
    ids: Sequence[str],
    boxes: FloatArray,
    speeds: FloatArray,
    types: IntArray,
    difficulty: IntArray,
    num_points: IntArray,
) -> FrameLabels:
    """Return the labels of one frame: boxes of known type, by object id, speeds turned into the
    vehicle frame.

    Args:
        time: Timestamp, for messages.
        pose: World from vehicle (4, 4).
        ids: M object ids, any order.
        boxes: (M, 7), NaN where a number is missing.
        speeds: (M, 3) world frame, 0 where there is none.
        types: (M,) Waymo's type numbers, 0 unknown.
        difficulty: (M,) 0 where unset.
        num_points: (M,).

    Raises:
        DataError: If a box misses one of its numbers, holds what no annotation can, or appears
            twice.
    """
    if not ids:
        return FrameLabels.empty()
    _check(time, ids, boxes, speeds, types, difficulty, num_points)
    order = np.argsort(np.array(ids, dtype=str), kind="stable")
    order = order[types[order] > 0]
    names = tuple(ids[row] for row in order)
    if len(set(names)) < len(names):
        raise DataError(f"an object has two boxes in the frame at time {time}")
    # row vectors times F is F transposed times the vector
    velocity = (speeds[order] @ pose[:3, :3])[:, :2]
    return FrameLabels(
        boxes[order], types[order], names, difficulty[order], num_points[order], velocity
    )


def _check(
    time: int,
    ids: Sequence[str],
    boxes: FloatArray,
    speeds: FloatArray,
    types: IntArray,
    difficulty: IntArray,
    points: IntArray,
) -> None:
    """Refuse what no annotation can be; a heading may go around a few times."""
    kinds = (
        f"0 (unknown), {', '.join(f'{number} ({name})' for name, number in WAYMO_TYPES.items())}"
    )
    broken = ~(np.abs(boxes) < _FARTHEST).all(axis=1) | (boxes[:, 3:6] <= 0).any(axis=1)
    rushing = ~(np.abs(speeds) < _FASTEST).all(axis=1)

    def outside(values: IntArray, highest: int) -> Bool:
        return (values < 0) | (values > highest)

    for wrong, values, said in (
        (np.array([not name.strip() for name in ids]), boxes, "has no object id: {}"),
        (broken, boxes, "is not seven finite numbers with a size above 0: {}"),
        (
            (np.abs(boxes[:, :3]) > _AROUND).any(axis=1) | (boxes[:, 3:6] > _LONGEST).any(axis=1),
            boxes,
            f"is no object within {_AROUND:g} m with sides up to {_LONGEST:g} m: {{}}",
        ),
        (
            np.abs(boxes[:, 6]) > _MOST_TURNS * 2 * np.pi,
            boxes[:, 6],
            "has heading {}; it must be radians, not degrees",
        ),
        (outside(types, max(WAYMO_TYPES.values())), types, f"has type {{}}, expected {kinds}"),
        (outside(difficulty, 2), difficulty, "has difficulty {}, expected 0 (unset), 1 or 2"),
        (
            outside(points, _MOST_POINTS),
            points,
            (f"has number of points {{}}, expected 0 to {_MOST_POINTS}"),
        ),
        (rushing, speeds, f"moves at {{}} m/s, expected less than {_FASTEST:g}"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"box '{ids[row][:40]}' at time {time} {said.format(values[row].tolist())}"
            )
