"""Streams the frames of a Waymo v2 segment from its Parquet components, in time order (format spec
sections 6 to 8).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdlib.errors import DataError
from kdlib.types import Float64, FloatArray, Frame, FrameLabels
from kdlib.waymo.annotations import LABEL_COLUMNS, labels_by_frame
from kdlib.waymo.column_types import integers, lists, reals
from kdlib.waymo.components import (
    CALIBRATION,
    LABELS,
    LASER,
    PIXEL_POSE,
    POSE,
    RETURNS,
    TIME,
    component_files,
    iter_rows,
    read_columns,
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
from kdlib.waymo.range_image import RangeImageError, as_image, as_transform

_Poses = dict[int, Float64]


def frames_v2(folder: Path, segment: str) -> Iterator[Frame]:
    """Stream the frames of a segment in time order, points as
    :func:`kdlib.waymo.segments.read_segment` says.

    Rows of the files may come in any order; rows in time order (as published) need the memory of a
    few frames only. A split whose name begins with "testing" may lack boxes.

    Raises:
        DataError: If a component is missing, damaged or disagrees with another one; the message
            names file, frame and laser.
    """
    files = component_files(folder, segment)
    poses = _frame_poses(files["vehicle_pose"], segment)
    calibrations = _calibrations(files["lidar_calibration"], segment)
    times, lasers = _frames_and_lasers(files["lidar"], segment, calibrations)
    if times != set(poses):
        time = min(times ^ set(poses))
        raise DataError(
            f"{files['lidar']}: frame {time} is not in both lidar and vehicle_pose; "
            "download both again"
        )
    if TOP in lasers:
        _check_pixel_poses(files["lidar_pose"], segment, times)
    labels = {}
    if LABELS in files:
        columns = read_columns(files[LABELS], LABEL_COLUMNS, segment)
        with naming(files[LABELS]):
            labels = labels_by_frame(columns, poses)
    take_cloud = _by_key(_clouds(files, poses, calibrations), files["lidar"])
    for index, time in enumerate(poses):
        points = np.concatenate([take_cloud((time, laser)) for laser in lasers])
        yield Frame(
            segment, index, time, points, poses[time], labels.get(time, FrameLabels.empty())
        )


def _frame_poses(path: Path, segment: str) -> _Poses:
    """Return world from vehicle by timestamp, ascending."""
    columns = read_columns(path, {TIME: integers, POSE: lists}, segment)
    times = columns[TIME].tolist()
    if not times:
        raise DataError(f"{path} holds no frame; copy or download it again")
    _check_unique(path, times, "frame {} has two rows")
    poses = {}
    for time, values in sorted(zip(times, columns[POSE])):
        with naming(path, f"frame {time}: "):
            poses[time] = as_transform(np.array(values, np.float64))
    warn_of_uneven_timing(path, list(poses), stacklevel=4)
    return poses


def _calibrations(path: Path, segment: str) -> dict[int, Calibration]:
    """Return every laser's calibration."""
    columns = read_columns(
        path, {LASER: integers, **dict(zip(CALIBRATION, (lists, reals, reals, lists)))}, segment
    )
    lasers = columns[LASER].tolist()
    _check_unique(path, lasers, "laser {} has two rows")
    calibrations = {}
    for laser, *numbers in zip(lasers, *(columns[name] for name in CALIBRATION)):
        with naming(path, f"laser {laser_name(laser)}: "):
            calibrations[laser] = calibration(*numbers)
    return calibrations


def _keys(path: Path, segment: str) -> list[tuple[int, int]]:
    """Return (timestamp, laser) of every row, from the key columns alone."""
    columns = read_columns(path, {TIME: integers, LASER: integers}, segment)
    keys = list(zip(columns[TIME].tolist(), columns[LASER].tolist()))
    _check_unique(path, keys, "(frame, laser) {} has two rows")
    return keys


def _check_unique(path: Path, keys: Sequence[Hashable], said: str) -> None:
    for key, count in Counter(keys).items():
        if count > 1:
            raise DataError(
                f"{path}: {said.format(key)}; keys must be there once each: download the file again"
            )


def _frames_and_lasers(
    path: Path, segment: str, calibrations: dict[int, Calibration]
) -> tuple[set[int], list[int]]:
    """Return the timestamps and the lasers, ascending, which every frame must have."""
    by_frame: dict[int, list[int]] = {}
    for time, laser in sorted(_keys(path, segment)):
        by_frame.setdefault(time, []).append(laser)
    lasers = sorted(set().union(*by_frame.values()))
    for time, present in by_frame.items():
        if present != lasers:
            raise DataError(
                f"{path}: frame {time} has lasers {present}, others have {lasers}; "
                "download the file again"
            )
    for laser in sorted(set(lasers) ^ set(calibrations)):
        place = "lidar_calibration" if laser in lasers else "lidar"
        raise DataError(
            f"{path}: laser {laser_name(laser)} has no row in {place}; download both "
            "components again"
        )
    return set(by_frame), lasers


def _check_pixel_poses(path: Path, segment: str, times: set[int]) -> None:
    there = {time for time, laser in _keys(path, segment) if laser == TOP}
    for time in sorted(times - there):
        raise DataError(
            f"{path}: frame {time} has no pose image of the TOP laser, without it "
            "points are off: download it again"
        )
    for time in sorted(there - times):
        raise DataError(
            f"{path}: frame {time} is in lidar_pose, but neither in lidar nor in "
            "vehicle_pose; download them again"
        )


def _by_key(
    stream: Iterator[tuple[Hashable, FloatArray]], path: Path
) -> Callable[[Hashable], FloatArray]:
    """Return what hands out the values of a stream by key; those of other keys met on the way are
    kept for their turn.
    """
    early: dict[Hashable, FloatArray] = {}

    def take(key: Hashable) -> FloatArray:
        while key not in early:
            met = next(stream, None)
            if met is None:
                raise DataError(
                    f"{path}: its columns have different numbers of rows; copy or download it again"
                )
            early.update([met])
        return early.pop(key)

    return take


def _clouds(
    files: dict[str, Path], poses: _Poses, calibrations: dict[int, Calibration]
) -> Iterator[tuple[tuple[int, int], FloatArray]]:
    """Stream the points (n, 6) of each laser by (timestamp, laser), in file order; each image is
    converted on arrival.
    """
    path = files["lidar"]
    rows: dict[int, tuple[int, ...]] = {}
    take_pose = _by_key(_pixel_poses(files["lidar_pose"]), files["lidar_pose"])
    for row in iter_rows(
        path, (TIME, LASER, *(part for name in RETURNS for part in _parts(name))), batch_size=5
    ):
        time, laser = int(row[TIME].as_py()), int(row[LASER].as_py())
        with naming(path, f"frame {time}, laser {laser_name(laser)}: "):
            pixel_pose = take_pose(time) if laser == TOP else None
            returns = [_image(row, name, 4) for name in RETURNS]
            points = laser_points(returns, calibrations[laser], pixel_pose, poses[time])
            check_size(returns, laser, rows)
        yield (time, laser), points


def _pixel_poses(path: Path) -> Iterator[tuple[int, FloatArray]]:
    """Stream the TOP laser's pose images by timestamp."""
    for row in iter_rows(path, (TIME, LASER, *_parts(PIXEL_POSE)), batch_size=1):
        if row[LASER].as_py() == TOP:
            image = _image(row, PIXEL_POSE, 6)
            if image is None:
                raise RangeImageError(
                    f"the pose image in {path.name} of lidar_pose is an empty cell"
                )
            yield int(row[TIME].as_py()), image


def _parts(image: str) -> tuple[str, str]:
    return f"{image}.values", f"{image}.shape"


def _image(row: dict[str, Any], name: str, channels: int) -> FloatArray | None:
    """Return one range image (H, W, C), or None if its cell is null."""
    values, shape = row[f"{name}.values"].values, row[f"{name}.shape"].as_py()
    if values is None and shape is None:
        return None
    if values is None or shape is None or None in shape:
        raise RangeImageError(
            f"of '{name}' only the "
            f"{'values' if values is not None else 'shape'} are there, shape {shape}"
        )
    with np.errstate(over="ignore"):  # infinity is found where points are made
        flat = np.asarray(values.to_numpy(zero_copy_only=False), np.float32)
    return as_image(flat, tuple(map(int, shape)), channels)
