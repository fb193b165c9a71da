"""Sweeps and boxes in, the TFRecord file of a Waymo v1 segment out (format spec sections 1 and 2), complete or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from kdlib.simulate.labels import BoxLabel
from kdlib.simulate.lasers import TOP, Laser
from kdlib.simulate.lidar import Sweep
from kdlib.waymo import tfrecord
from kdlib.waymo.frame_proto import frame_message, pack_matrix, pack_no_projection
from kdlib.waymo.lasers import LASER_NAMES


def segment_file(folder: Path, segment: str) -> Path:
    """Return where a segment lies below ``<root>/<split>``."""
    return folder / f"segment-{segment}_with_camera_labels.tfrecord"


class RecordWriter:
    """Writes one segment under a temporary name; leaving the ``with`` block without an error puts the file in place.

    Which boxes a frame has is known at the end of a segment only: until then the other fields of the frames wait in a nameless
    file beside it, which vanishes with the process.

    Args:
        folder: ``<root>/<split>``.
        segment: Context name.
        lasers: The lasers of the car, TOP first.
        parameters: Goes into a field of every frame outside the official ones, where other readers pass over it.

    Raises:
        OSError: If a file cannot be written; nothing is left behind.
    """

    def __init__(self, folder: Path, segment: str, lasers: Sequence[Laser], parameters: str) -> None:
        self._segment, self._lasers, self._parameters = segment, lasers, parameters
        self._path = segment_file(folder, segment)
        self._part = self._path.with_name(f".{self._path.name}.{os.getpid()}.part")
        self._lengths: list[int] = []

    def __enter__(self) -> RecordWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for left in self._path.parent.glob(f".{self._path.name}.*.part"):  # by a process that was killed
            left.unlink()
        self._waiting: IO[bytes] = tempfile.TemporaryFile(dir=self._path.parent)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._waiting.close()
            if kind is None:
                os.replace(self._part, self._path)
        finally:
            self._part.unlink(missing_ok=True)

    def add(self, timestamp: int, sweep: Sweep) -> None:
        """Take the images and poses of one frame."""
        frame = frame_message("Frame")(timestamp_micros=timestamp)
        frame.pose.transform.extend(sweep.pose.ravel().tolist())
        for laser, pair in zip(self._lasers, sweep.images):
            entry = frame.lasers.add(name=laser.name)
            for image, echo in zip(pair, (entry.ri_return1, entry.ri_return2)):
                echo.range_image_compressed = pack_matrix(image)
                echo.camera_projection_compressed = pack_no_projection(laser.height, laser.width)
            if laser.name == TOP:
                entry.ri_return1.range_image_pose_compressed = pack_matrix(sweep.pixel_pose)
        content = frame.SerializeToString()
        self._waiting.write(content)
        self._lengths.append(len(content))

    def finish(self, timestamps: Sequence[int], labels: Sequence[Sequence[BoxLabel]], surroundings: tuple[str, str, str]) -> None:
        """Take boxes and surroundings (time of day, location, weather) and write the records; timestamps are there already."""
        self._waiting.seek(0)
        with open(self._part, "wb") as out:
            for length, boxes in zip(self._lengths, labels, strict=True):
                # Messages concatenate: the bytes of the parts are the bytes of the whole, here in the order of field numbers.
                before = frame_message("Frame")(context=self._context(boxes, surroundings)).SerializeToString()
                after = frame_message("Frame")(laser_labels=[_label(box) for box in boxes], simulation=self._parameters.encode())
                tfrecord.write_record(out, before + self._waiting.read(length) + after.SerializeToString())

    def _context(self, boxes: Sequence[BoxLabel], surroundings: tuple[str, str, str]) -> Any:
        context = frame_message("Context")(name=self._segment.encode())
        for laser in sorted(self._lasers, key=lambda laser: LASER_NAMES[laser.name]):  # alphabetical, as in real files
            entry = context.laser_calibrations.add(
                name=laser.name, beam_inclination_min=laser.low, beam_inclination_max=laser.high
            )
            entry.beam_inclinations.extend([] if laser.table is None else laser.table.tolist())
            entry.extrinsic.transform.extend(laser.extrinsic.ravel().tolist())
        stats = context.stats
        for kind, count in zip(*np.unique([box.type for box in boxes], return_counts=True)):
            stats.laser_object_counts.add(type=int(kind), count=int(count))
        stats.time_of_day, stats.location, stats.weather = (word.encode() for word in surroundings)
        return context


def _label(box: BoxLabel) -> Any:
    label = frame_message("Label")(
        type=box.type, id=box.id.encode(), num_lidar_points_in_box=box.points, num_top_lidar_points_in_box=box.top_points
    )
    x, y, z, length, width, height, heading = box.box.tolist()
    place = {"center_x": x, "center_y": y, "center_z": z, "length": length, "width": width, "height": height, "heading": heading}
    label.box.CopyFrom(frame_message("Box")(**place))
    if box.speed is not None:
        label.metadata.speed_x, label.metadata.speed_y, label.metadata.speed_z = *box.speed, 0.0
    if box.acceleration is not None:
        label.metadata.accel_x, label.metadata.accel_y, label.metadata.accel_z = *box.acceleration, 0.0
    if box.hard:
        label.detection_difficulty_level = 2
    return label
