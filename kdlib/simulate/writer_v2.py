"""Writes the six Parquet components of a simulated Waymo v2 segment (spec section 7), complete or
not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdlib import records
from kdlib.simulate.box_labels import BoxLabel, Conditions, LabelledFrame, seen_once
from kdlib.simulate.lidar import Sweep
from kdlib.simulate.sensors import Laser
from kdlib.types import FloatArray
from kdlib.waymo.annotations import DIFFICULTY, LIDAR_BOX_NUMBERS, NUM_POINTS, SPEEDS, TYPE
from kdlib.waymo.components import (
    CALIBRATION,
    LASER,
    OBJECT,
    PIXEL_POSE,
    POSE,
    RETURNS,
    SEGMENT,
    TIME,
    component_file,
)
from kdlib.waymo.lasers import TOP
from kdlib.waymo.simulated import PARAMETERS

Row = dict[str, Any]
_BATCH_BYTES = 48 << 20

_TEXT, _BYTE, _LONG, _REAL, _MATRIX = (
    pa.string(),
    pa.int8(),
    pa.int64(),
    pa.float64(),
    pa.list_(pa.float64(), 16),
)
_BOX, _STATS = "[LiDARBoxComponent].", "[StatsComponent]."
_ACCELERATIONS = tuple(f"{_BOX}acceleration.{axis}" for axis in "xyz")
_TOP_POINTS, _TRACKING = f"{_BOX}num_top_lidar_points_in_box", f"{_BOX}difficulty_level.tracking"
_CONDITIONS = tuple(f"{_STATS}{name}" for name in ("time_of_day", "location", "weather"))
_TYPES, _COUNTS = f"{_STATS}lidar_object_counts.types", f"{_STATS}lidar_object_counts.counts"
_OPTIONS = {
    "compression": "zstd",
    "compression_level": 1,
    # Floats with noise have no repeated values: dictionaries would cost time and save nothing.
    "use_dictionary": False,
    "write_statistics": False,
    "use_compliant_nested_type": False,  # list items are called "item", as in the official files
}


def _image_fields(*names: str) -> dict[str, pa.DataType]:
    kinds = {"values": pa.list_(pa.float32()), "shape": pa.list_(pa.int32(), 3)}
    return {f"{name}.{part}": kind for name in names for part, kind in kinds.items()}


_FRAME = {SEGMENT: _TEXT, TIME: _LONG}
_TALLY = {_TYPES: pa.list_(_BYTE), _COUNTS: pa.list_(pa.int32())}
_FIELDS = {
    "lidar": {**_FRAME, LASER: _BYTE, **_image_fields(*RETURNS)},
    "lidar_pose": {**_FRAME, LASER: _BYTE, **_image_fields(PIXEL_POSE)},
    "lidar_calibration": {
        SEGMENT: _TEXT,
        LASER: _BYTE,
        **dict(zip(CALIBRATION, (_MATRIX, _REAL, _REAL, pa.list_(_REAL)))),
    },
    "lidar_box": {
        **_FRAME,
        OBJECT: _TEXT,
        **dict.fromkeys(LIDAR_BOX_NUMBERS, _REAL),
        TYPE: _BYTE,
        **dict.fromkeys((NUM_POINTS, _TOP_POINTS), _LONG),
        **dict.fromkeys((*SPEEDS, *_ACCELERATIONS), _REAL),
        **dict.fromkeys((DIFFICULTY, _TRACKING), _BYTE),
    },
    "vehicle_pose": {**_FRAME, POSE: _MATRIX},
    "stats": {
        **_FRAME,
        **dict.fromkeys(_CONDITIONS, _TEXT),
        **_TALLY,
        **{name.replace("lidar", "camera"): kind for name, kind in _TALLY.items()},
    },
}
SCHEMAS = {component: pa.schema(list(fields.items())) for component, fields in _FIELDS.items()}
"""The official columns and types of the components that are written."""


def write_v2(
    folder: Path,
    segment: str,
    lasers: Sequence[Laser],
    parameters: str,
    frames: Iterable[LabelledFrame],
    conditions: Conditions,
) -> None:
    """Write one segment; what :func:`write_v1` says holds, but the parameters go into the metadata
    of every file.
    """
    paths = [component_file(folder, component, segment) for component in SCHEMAS]
    for path in paths:
        records.remove_leftovers(path.parent)
    with ExitStack() as stack:
        parts = [stack.enter_context(records.replacing(path)) for path in paths]
        schemas = {
            component: schema.with_metadata({PARAMETERS: parameters})
            for component, schema in SCHEMAS.items()
        }
        writers = {
            component: stack.enter_context(pq.ParquetWriter(part, schema, **_OPTIONS))
            for part, (component, schema) in zip(parts, schemas.items())
        }

        def write(component: str, rows: list[Row]) -> None:
            writers[component].write_table(pa.Table.from_pylist(rows, schemas[component]))

        batch = max(1, _BATCH_BYTES // (48 * sum(laser.height * laser.width for laser in lasers)))
        keys: list[Row] = []
        labels: list[list[BoxLabel]] = []
        stream = iter(frames)
        while chunk := list(islice(stream, batch)):
            sweeps = [({SEGMENT: segment, TIME: timestamp}, sweep) for timestamp, sweep, _ in chunk]
            keys += [key for key, _ in sweeps]
            labels += [boxes for _, _, boxes in chunk]
            write(
                "lidar", [{**key, **row} for key, sweep in sweeps for row in _images(lasers, sweep)]
            )
            write(
                "lidar_pose",
                [
                    {**key, LASER: TOP, **_image(PIXEL_POSE, sweep.pixel_pose)}
                    for key, sweep in sweeps
                ],
            )
            write("vehicle_pose", [{**key, POSE: sweep.pose.ravel()} for key, sweep in sweeps])
        mounted = [
            (laser.name, laser.extrinsic.ravel(), laser.lowest, laser.highest, laser.table)
            for laser in lasers
        ]
        write(
            "lidar_calibration",
            [{SEGMENT: segment, **dict(zip((LASER, *CALIBRATION), values))} for values in mounted],
        )
        rows = list(zip(keys, seen_once(labels)))
        write("lidar_box", [{**key, **_label(label)} for key, boxes in rows for label in boxes])
        words = dict(zip(_CONDITIONS, conditions))
        write("stats", [{**key, **words, **_tally(boxes)} for key, boxes in rows])


def _image(name: str, image: FloatArray) -> Row:
    return {f"{name}.values": np.ravel(image), f"{name}.shape": image.shape}


def _images(lasers: Sequence[Laser], sweep: Sweep) -> Iterator[Row]:
    for laser, (first, second) in zip(lasers, sweep.images):
        yield {LASER: laser.name, **_image(RETURNS[0], first), **_image(RETURNS[1], second)}


def _label(label: BoxLabel) -> Row:
    row: Row = {
        OBJECT: label.id,
        TYPE: label.type,
        NUM_POINTS: label.points,
        _TOP_POINTS: label.top_points,
    }
    row |= zip(LIDAR_BOX_NUMBERS, label.box.tolist())
    if label.motion is not None:
        row |= zip((*SPEEDS, *_ACCELERATIONS), label.motion)
    return {**row, DIFFICULTY: 2, _TRACKING: 0} if label.hard else row


def _tally(boxes: Sequence[BoxLabel]) -> Row:
    types, counts = np.unique([label.type for label in boxes], return_counts=True)
    return {_TYPES: types, _COUNTS: counts} if boxes else {}
