"""Sweeps and boxes in, the six Parquet components of a Waymo v2 segment out (spec section 7), complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdlib.simulate.labels import BoxLabel
from kdlib.simulate.lasers import TOP, Laser
from kdlib.simulate.lidar import Sweep
from kdlib.types import FloatArray
from kdlib.waymo.simulated import PARAMETERS

SEGMENT, TIME, LASER, OBJECT = "key.segment_context_name", "key.frame_timestamp_micros", "key.laser_name", "key.laser_object_id"
_BATCH_BYTES = 48 << 20

_SHAPE, _MATRIX, _DOUBLE = pa.list_(pa.int32(), 3), pa.list_(pa.float64(), 16), pa.float64()
_BOX_NUMBERS = ("box.center.x", "box.center.y", "box.center.z", "box.size.x", "box.size.y", "box.size.z", "box.heading")
_MOTION = ("speed.x", "speed.y", "speed.z", "acceleration.x", "acceleration.y", "acceleration.z")


def _image_fields(prefix: str, names: Sequence[str]) -> list[tuple[str, pa.DataType]]:
    return [
        (f"[{prefix}].{name}.{part}", kind)
        for name in names
        for part, kind in (("values", pa.list_(pa.float32())), ("shape", _SHAPE))
    ]


_FRAME_KEYS = [(SEGMENT, pa.string()), (TIME, pa.int64())]
_BOX = "[LiDARBoxComponent]."
_CALIBRATION = "[LiDARCalibrationComponent]."
_STATS = "[StatsComponent]."
_COUNTS = (("types", pa.list_(pa.int8())), ("counts", pa.list_(pa.int32())))
SCHEMAS: Mapping[str, pa.Schema] = {
    "lidar": pa.schema(
        [*_FRAME_KEYS, (LASER, pa.int8()), *_image_fields("LiDARComponent", ("range_image_return1", "range_image_return2"))]
    ),
    "lidar_pose": pa.schema([*_FRAME_KEYS, (LASER, pa.int8()), *_image_fields("LiDARPoseComponent", ("range_image_return1",))]),
    "lidar_calibration": pa.schema(
        [
            (SEGMENT, pa.string()),
            (LASER, pa.int8()),
            (f"{_CALIBRATION}extrinsic.transform", _MATRIX),
            (f"{_CALIBRATION}beam_inclination.min", _DOUBLE),
            (f"{_CALIBRATION}beam_inclination.max", _DOUBLE),
            (f"{_CALIBRATION}beam_inclination.values", pa.list_(_DOUBLE)),
        ]
    ),
    "lidar_box": pa.schema(
        [
            *_FRAME_KEYS,
            (OBJECT, pa.string()),
            *((_BOX + name, _DOUBLE) for name in _BOX_NUMBERS),
            (f"{_BOX}type", pa.int8()),
            *((_BOX + name, pa.int64()) for name in ("num_lidar_points_in_box", "num_top_lidar_points_in_box")),
            *((_BOX + name, _DOUBLE) for name in _MOTION),
            *((_BOX + name, pa.int8()) for name in ("difficulty_level.detection", "difficulty_level.tracking")),
        ]
    ),
    "vehicle_pose": pa.schema([*_FRAME_KEYS, ("[VehiclePoseComponent].world_from_vehicle.transform", _MATRIX)]),
    "stats": pa.schema(
        [
            *_FRAME_KEYS,
            *((_STATS + name, pa.string()) for name in ("time_of_day", "location", "weather")),
            *((f"{_STATS}{who}_object_counts.{part}", kind) for who in ("lidar", "camera") for part, kind in _COUNTS),
        ]
    ),
}
"""The official columns and types of the components that are written."""


def segment_files(folder: Path, segment: str) -> dict[str, Path]:
    """Return where the components of a segment lie below ``<root>/<split>``."""
    return {component: folder / component / f"{segment}.parquet" for component in SCHEMAS}


def _lists(arrays: Sequence[FloatArray]) -> pa.Array:
    offsets = np.cumsum([0, *(array.size for array in arrays)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate([np.ravel(array) for array in arrays])))


def _fixed(arrays: Sequence[Sequence[int]] | Sequence[FloatArray], dtype: type) -> pa.Array:
    rows: FloatArray = np.array([np.ravel(array) for array in arrays], dtype)
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


class SegmentWriter:
    """Writes one segment under temporary names; leaving the ``with`` block without an error puts all files in place.

    Args:
        folder: ``<root>/<split>``.
        segment: Context name.
        lasers: The lasers of the car, TOP first.
        parameters: Goes into the metadata of every file.

    Raises:
        OSError: If a file cannot be written; nothing is left behind.
    """

    def __init__(self, folder: Path, segment: str, lasers: Sequence[Laser], parameters: str) -> None:
        self._segment, self._lasers = segment, lasers
        self._files = segment_files(folder, segment)
        self._parts = {name: path.with_name(f".{path.name}.{os.getpid()}.part") for name, path in self._files.items()}
        self._schemas = {name: schema.with_metadata({PARAMETERS: parameters}) for name, schema in SCHEMAS.items()}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._waiting: list[tuple[int, Sweep]] = []
        image_bytes = 48 * sum(laser.height * laser.width for laser in lasers)
        self._batch = max(1, _BATCH_BYTES // image_bytes)

    def __enter__(self) -> SegmentWriter:
        try:
            for name, part in self._parts.items():
                part.parent.mkdir(parents=True, exist_ok=True)
                for left in part.parent.glob(f".{self._segment}.parquet.*.part"):  # by a process that was killed
                    left.unlink()
                # Floats with noise have no repeated values: dictionaries would cost time and save nothing.
                self._writers[name] = pq.ParquetWriter(
                    part,
                    self._schemas[name],
                    compression="zstd",
                    compression_level=1,
                    use_dictionary=False,
                    write_statistics=False,
                    use_compliant_nested_type=False,  # list items are called "item", as in the official files
                )
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
                for writer in self._writers.values():
                    writer.close()
                for name, path in self._files.items():
                    os.replace(self._parts[name], path)
        finally:
            self._discard()

    def add(self, timestamp: int, sweep: Sweep) -> None:
        """Take the images and poses of one frame."""
        self._waiting.append((timestamp, sweep))
        if len(self._waiting) >= self._batch:
            self._flush()

    def finish(self, timestamps: Sequence[int], labels: Sequence[Sequence[BoxLabel]], surroundings: tuple[str, str, str]) -> None:
        """Take what belongs to the whole segment: calibrations, boxes and statistics (time of day, location, weather)."""
        self._write("lidar_calibration", self._calibration())
        self._write("lidar_box", self._boxes(timestamps, labels))
        self._write("stats", self._stats(timestamps, labels, surroundings))

    def _write(self, component: str, columns: Sequence[Any]) -> None:
        schema = self._schemas[component]
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, kind) for column, kind in zip(columns, schema.types)
        ]
        self._writers[component].write_table(pa.Table.from_arrays(arrays, schema=schema))

    def _flush(self) -> None:
        if not self._waiting:
            return
        times, sweeps = [time for time, _ in self._waiting], [sweep for _, sweep in self._waiting]
        count, names = len(times), [laser.name for laser in self._lasers]
        images = [[pair[number] for sweep in sweeps for pair in sweep.images] for number in (0, 1)]
        keys = [[self._segment] * (count * len(names)), np.repeat(times, len(names)), names * count]
        halves = [part for some in images for part in (_lists(some), _fixed([image.shape for image in some], np.int32))]
        self._write("lidar", [*keys, *halves])
        poses = [sweep.pixel_pose for sweep in sweeps]
        shapes = _fixed([pose.shape for pose in poses], np.int32)
        self._write("lidar_pose", [[self._segment] * count, times, [TOP] * count, _lists(poses), shapes])
        self._write("vehicle_pose", [[self._segment] * count, times, _fixed([sweep.pose for sweep in sweeps], np.float64)])
        self._waiting = []

    def _calibration(self) -> list[Any]:
        tables = [None if laser.table is None else laser.table.tolist() for laser in self._lasers]
        extrinsics = _fixed([laser.extrinsic for laser in self._lasers], np.float64)
        limits = [[laser.low for laser in self._lasers], [laser.high for laser in self._lasers]]
        return [[self._segment] * len(tables), [laser.name for laser in self._lasers], extrinsics, *limits, tables]

    def _boxes(self, timestamps: Sequence[int], frames: Sequence[Sequence[BoxLabel]]) -> list[Any]:
        rows = [(time, label) for time, labels in zip(timestamps, frames) for label in labels]
        labels = [label for _, label in rows]
        numbers = [[float(label.box[axis]) for label in labels] for axis in range(7)]
        motion = [
            [None if pair is None else (*pair, 0.0)[axis] for pair in pairs]
            for pairs in ([label.speed for label in labels], [label.acceleration for label in labels])
            for axis in range(3)
        ]
        difficulty = [[2 if label.hard else None for label in labels], [0 if label.hard else None for label in labels]]
        counts = [[label.points for label in labels], [label.top_points for label in labels]]
        keys = [[self._segment] * len(rows), [time for time, _ in rows], [label.id for label in labels]]
        return [*keys, *numbers, [label.type for label in labels], *counts, *motion, *difficulty]

    def _stats(
        self, timestamps: Sequence[int], frames: Sequence[Sequence[BoxLabel]], surroundings: tuple[str, str, str]
    ) -> list[Any]:
        tallies = [np.unique([label.type for label in labels], return_counts=True) for labels in frames]
        types = [[int(value) for value in values] or None for values, _ in tallies]
        counts = [[int(count) for count in many] or None for _, many in tallies]
        nothing = [None] * len(frames)
        words = [[word] * len(frames) for word in surroundings]
        return [[self._segment] * len(frames), timestamps, *words, types, counts, nothing, nothing]

    def _discard(self) -> None:
        """Close what is open and remove what has not become a segment."""
        for writer in self._writers.values():
            try:
                writer.close()
            except OSError:  # the disk is full: the error that matters is already on its way
                continue
        for part in self._parts.values():
            if part.exists():
                part.unlink()
