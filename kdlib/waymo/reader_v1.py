"""Streams the frames of a Waymo v1 segment from its TFRecord file, in time order (format spec
sections 1, 2 and 8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.types import Float32, Float64, Frame, FrameLabels
from kdlib.waymo import tfrecord
from kdlib.waymo.annotations import frame_labels
from kdlib.waymo.frame_proto import (
    BOX_FIELDS,
    context_name,
    parse_frame,
    peek_context_name,
    unpack_matrix,
)
from kdlib.waymo.lasers import (
    TOP,
    Calibration,
    calibration,
    check_size,
    laser_name,
    laser_points,
    naming,
    warn_of_uneven_timing,
)
from kdlib.waymo.range_image import RangeImageError, as_transform

_HEAD = 4096  # bytes of a record in which its context name is looked for


def segment_name(path: Path) -> str:
    """Return the context name in the first record; of a file as Waymo writes it only the first few
    kB are read.

    Raises:
        DataError: If the file is empty, damaged at its beginning or no file of frames.
    """
    head = tfrecord.first_payload(path, _HEAD)
    with naming(path, "the first record "):
        name = peek_context_name(head)
    if name is not None:
        return name
    payload = tfrecord.first_payload(path)
    with naming(path, "the first record "):
        return context_name(parse_frame(payload))


def frames_v1(path: Path, segment: str) -> Iterator[Frame]:
    """Stream the frames of a v1 segment: the same frames, to the last bit, as of its v2 files.

    Every record's checksum is verified; the file's length is before the first frame. One record is
    in memory at a time.

    Raises:
        DataError: If the file is damaged, its records are not the rising frames of this segment, or
            its LiDAR was stripped.
    """
    times: list[int] = []
    lasers: tuple[int, ...] = ()
    rows: dict[int, tuple[int, ...]] = {}
    boxes, counted = 0, False
    for index, payload in enumerate(tfrecord.iter_payloads(path)):
        with naming(path, f"record {index}: "):
            proto = parse_frame(payload)
            _check_place(proto, segment, times)
        times.append(proto.timestamp_micros)
        with naming(path, f"frame {times[-1]}: "):
            frame, present = _frame(proto, segment, index, rows)
            if present != (lasers or present):
                raise DataError(
                    f"has lasers {list(present)}, the frames before have {list(lasers)}"
                )
        lasers = present
        boxes += len(proto.laser_labels)
        counted = counted or any(
            label.HasField("num_lidar_points_in_box") for label in proto.laser_labels
        )
        yield frame
    if not times:
        raise DataError(f"{path} holds no frame; copy or download it again")
    if boxes and not counted:
        raise DataError(
            f"{path}: none of its {boxes} boxes says how many points it holds; "
            "download release 1.2 or later"
        )
    warn_of_uneven_timing(path, times)


def _check_place(proto: Any, segment: str, times: list[int]) -> None:
    name = context_name(proto)
    if name != segment:
        raise DataError(f"is of segment {name}, not of {segment}; one file must hold one segment")
    if times and proto.timestamp_micros <= times[-1]:
        raise DataError(
            f"its time {proto.timestamp_micros} does not come after the {times[-1]} of the "
            "record before; "
            "records must be in time order, each once: download the file again"
        )


def _frame(
    proto: Any, segment: str, index: int, rows: dict[int, tuple[int, ...]]
) -> tuple[Frame, tuple[int, ...]]:
    """Return one frame and its lasers, ascending; ``rows`` are those of their images so far."""
    time, pose = proto.timestamp_micros, as_transform(np.array(proto.pose.transform, np.float64))
    lasers = sorted(proto.lasers, key=lambda laser: laser.name)
    names = tuple(laser.name for laser in lasers)
    if not any(blob for laser in lasers for blob in _images(laser)):
        raise DataError(
            "has no lidar images; they were stripped from this release, download one with lidar"
        )
    if len(set(names)) < len(names):
        raise DataError(f"has a laser twice: {list(names)}")
    calibrations = _calibrations(proto.context)
    unseen = set(calibrations) - set(names)
    if unseen:
        raise DataError(f"has a calibration but no range images of laser {laser_name(min(unseen))}")
    clouds = []
    for name, laser in zip(names, lasers):
        try:
            clouds.append(_points(laser, calibrations.get(name), pose, rows))
        except DataError as error:
            raise type(error)(f"laser {laser_name(name)}: {error}") from error
    return Frame(
        segment, index, time, np.concatenate(clouds), pose, _labels(proto.laser_labels, time, pose)
    ), names


def _images(laser: Any) -> tuple[bytes, bytes]:
    return laser.ri_return1.range_image_compressed, laser.ri_return2.range_image_compressed


def _calibrations(context: Any) -> dict[int, Calibration]:
    calibrations = {}
    for row in context.laser_calibrations:
        if row.name in calibrations:
            raise DataError(f"has two calibrations of laser {laser_name(row.name)}")
        beams = (row.beam_inclination_min, row.beam_inclination_max, list(row.beam_inclinations))
        try:
            calibrations[row.name] = calibration(list(row.extrinsic.transform), *beams)
        except DataError as error:
            raise type(error)(f"laser {laser_name(row.name)}: {error}") from error
    return calibrations


def _points(
    laser: Any, calibration: Calibration | None, pose: Float64, rows: dict[int, tuple[int, ...]]
) -> Float32:
    if calibration is None:
        raise RangeImageError("has no calibration")
    returns = [unpack_matrix(blob, 4) if blob else None for blob in _images(laser)]
    pixel_pose = None
    if laser.name == TOP:
        blob = laser.ri_return1.range_image_pose_compressed
        if not blob:
            raise RangeImageError("has no pose image; its points would be up to a metre off")
        pixel_pose = unpack_matrix(blob, 6)
    points = laser_points(returns, calibration, pixel_pose, pose)
    check_size(returns, laser.name, rows)
    return points


def _labels(labels: Any, time: int, pose: Float64) -> FrameLabels:
    try:
        ids = [label.id.decode() for label in labels]
    except UnicodeDecodeError as error:
        raise DataError(f"an object id is no text: {error.object!r}") from error
    boxes = _table(BOX_FIELDS, [label.box for label in labels], np.float64)
    speeds = _table(
        ("speed_x", "speed_y", "speed_z"), [label.metadata for label in labels], np.float64
    )
    numbers = _table(
        ("type", "detection_difficulty_level", "num_lidar_points_in_box"), labels, np.int64
    )
    return frame_labels(time, pose, ids, boxes, speeds, *numbers.T)


def _table(fields: Sequence[str], messages: Any, dtype: type) -> NDArray[Any]:
    return np.array(
        [[getattr(item, field) for field in fields] for item in messages], dtype
    ).reshape(-1, len(fields))
