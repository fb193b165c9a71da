"""The Parquet components of a Waymo v2 segment enter, frames in time order leave, streamed (format spec sections 6 to 8)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.types import FloatArray, Frame, FrameLabels
from kdlib.waymo import labels as box_rows
from kdlib.waymo.columns import integers, lists, reals
from kdlib.waymo.components import LABELS, iter_rows, list_segments, read_columns, segment_files
from kdlib.waymo.lasers import LASER_NAMES, TOP, Calibration, calibration, laser_points, naming, warn_of_uneven_timing
from kdlib.waymo.range_image import RangeImageError, as_image, as_transform

__all__ = ["LASER_NAMES", "list_segments", "read_segment"]

_Poses = dict[int, NDArray[np.float64]]

_TIME, _LASER = "key.frame_timestamp_micros", "key.laser_name"
_POSE = "[VehiclePoseComponent].world_from_vehicle.transform"
_IMAGES = tuple(f"[LiDARComponent].range_image_return{number}" for number in (1, 2))
_PIXEL_POSE = "[LiDARPoseComponent].range_image_return1"
_CALIBRATION = "[LiDARCalibrationComponent]."
_EXTRINSIC, _TABLE = _CALIBRATION + "extrinsic.transform", _CALIBRATION + "beam_inclination.values"
_LOWEST, _HIGHEST = _CALIBRATION + "beam_inclination.min", _CALIBRATION + "beam_inclination.max"


def read_segment(folder: Path, segment: str) -> Iterator[Frame]:
    """Stream the frames of a segment in time order.

    Points are ordered by ascending laser, inside a laser return 1 before return 2, inside a return by row and column of the range
    image. Rows of the files may come in any order; rows in time order (as published) need the memory of a few frames only.

    Args:
        folder: ``<root>/<split>``; a split whose name begins with "testing" may lack boxes.
        segment: Context name, the stem of the files.

    Raises:
        DataError: If a component is missing, damaged or disagrees with another one; the message names file, frame and laser.
    """
    files = segment_files(Path(folder), segment)
    poses = _frame_poses(files["vehicle_pose"], segment)
    calibrations = _calibrations(files["lidar_calibration"], segment)
    lasers = _lasers_by_frame(files["lidar"], segment, calibrations)
    if set(lasers) != set(poses):
        time = min(set(lasers) ^ set(poses))
        raise DataError(f"{files['lidar']}: frame {time} is not in both lidar and vehicle_pose; download both again")
    if any(TOP in present for present in lasers.values()):
        _check_pixel_poses(files["lidar_pose"], segment, set(lasers))
    labels = {}
    if LABELS in files:
        table = read_columns(files[LABELS], box_rows.COLUMNS, segment)
        with naming(files[LABELS]):
            labels = box_rows.labels_by_frame(table, poses)
    clouds = _Clouds(files, poses, calibrations)
    for index, time in enumerate(poses):
        points = clouds.take(time, lasers[time])
        frame_labels = labels.get(time, FrameLabels.empty())
        yield Frame(segment, index, time, points, poses[time], frame_labels)


def _frame_poses(path: Path, segment: str) -> _Poses:
    """Return world from vehicle by timestamp, ascending."""
    table = read_columns(path, (_TIME, _POSE), segment)
    with naming(path):
        times, values = integers(table, _TIME), lists(table, _POSE)
    if not len(times):
        raise DataError(f"{path} holds no frame; copy or download it again")
    _check_unique(path, times.tolist(), "frame {} has two rows")
    poses = {}
    for row in np.argsort(times):
        with naming(path, f"frame {times[row]}: "):
            poses[int(times[row])] = as_transform(np.array(values[row] or (), np.float64))
    warn_of_uneven_timing(path, list(poses), stacklevel=4)
    return poses


def _calibrations(path: Path, segment: str) -> dict[int, Calibration]:
    """Return every laser's calibration."""
    table = read_columns(path, (_LASER, _EXTRINSIC, _LOWEST, _HIGHEST, _TABLE), segment)
    with naming(path):
        lasers, limits = integers(table, _LASER).tolist(), (reals(table, _LOWEST), reals(table, _HIGHEST))
        extrinsics, tables = lists(table, _EXTRINSIC), lists(table, _TABLE)
    _check_unique(path, lasers, "laser {} has two rows")
    found = {}
    for row, laser in enumerate(lasers):
        with naming(path, f"laser {LASER_NAMES.get(laser, laser)}: "):
            found[laser] = calibration(extrinsics[row] or (), limits[0][row], limits[1][row], tables[row])
    return found


def _keys(path: Path, segment: str) -> list[tuple[int, int]]:
    """Return (timestamp, laser) of every row, from the key columns alone."""
    table = read_columns(path, (_TIME, _LASER), segment)
    with naming(path):
        keys = list(zip(integers(table, _TIME).tolist(), integers(table, _LASER).tolist()))
    _check_unique(path, keys, "(frame, laser) {} has two rows")
    return keys


def _check_unique(path: Path, keys: Sequence[Hashable], said: str) -> None:
    seen: set[Hashable] = set()
    for key in keys:
        if key in seen:
            raise DataError(f"{path}: {said.format(key)}; keys must be there once each: download the file again")
        seen.add(key)


def _lasers_by_frame(path: Path, segment: str, calibrations: dict[int, Calibration]) -> dict[int, tuple[int, ...]]:
    """Return the lasers of every frame, ascending."""
    lasers: dict[int, list[int]] = {}
    for time, laser in _keys(path, segment):
        lasers.setdefault(time, []).append(laser)
    everyone = sorted(set().union(*lasers.values()))
    for time, present in lasers.items():
        if sorted(present) != everyone:
            raise DataError(f"{path}: frame {time} has lasers {sorted(present)}, others have {everyone}; download the file again")
    for laser in sorted(set(everyone) ^ set(calibrations)):
        name, place = LASER_NAMES.get(laser, laser), "lidar_calibration" if laser in everyone else "lidar"
        raise DataError(f"{path}: laser {name} has no row in {place}; download both components again")
    return {time: tuple(everyone) for time in lasers}


def _check_pixel_poses(path: Path, segment: str, times: set[int]) -> None:
    there = {time for time, laser in _keys(path, segment) if laser == TOP}
    for time in sorted(times - there):
        raise DataError(
            f"{path}: frame {time} has no pose image of the TOP laser; its points would be up to a metre off: download it again"
        )
    for time in sorted(there - times):
        raise DataError(f"{path}: frame {time} is in lidar_pose, but neither in lidar nor in vehicle_pose; download them again")


class _Clouds:
    """Reads range images in file order and hands out the points of the frame asked for; each image is converted on arrival."""

    def __init__(self, files: dict[str, Path], poses: _Poses, calibrations: dict[int, Calibration]) -> None:
        self._path, self._pose_path = files["lidar"], files["lidar_pose"]
        self._poses, self._calibrations = poses, calibrations
        image_columns = [f"{image}.{part}" for image in _IMAGES for part in ("values", "shape")]
        self._rows = iter_rows(self._path, (_TIME, _LASER, *image_columns), batch_size=5)
        pose_columns = (_TIME, _LASER, f"{_PIXEL_POSE}.values", f"{_PIXEL_POSE}.shape")
        self._pose_rows = iter_rows(self._pose_path, pose_columns, batch_size=1)
        self._early: dict[tuple[int, int], NDArray[np.float32]] = {}
        self._early_poses: dict[int, FloatArray] = {}

    def take(self, time: int, lasers: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the points (N, 6) of a frame, reading on until all its lasers are there."""
        keys = [(time, laser) for laser in lasers]
        while any(key not in self._early for key in keys):
            row = _next(self._rows, self._path)
            key = (int(row[_TIME].as_py()), int(row[_LASER].as_py()))
            place = f"frame {key[0]}, laser {LASER_NAMES.get(key[1], key[1])}: "
            with naming(self._path, place):
                self._early[key] = self._convert(row, *key)
        return np.concatenate([self._early.pop(key) for key in keys])

    def _convert(self, row: dict[str, Any], time: int, laser: int) -> NDArray[np.float32]:
        pixel_pose = self._pixel_pose(time) if laser == TOP else None
        returns = [_image(row, image, 4) for image in _IMAGES]
        return laser_points(returns, self._calibrations[laser], pixel_pose, self._poses[time])

    def _pixel_pose(self, time: int) -> FloatArray:
        """Return the TOP laser's pose image; those of later frames met on the way are kept for their turn."""
        while time not in self._early_poses:
            row = _next(self._pose_rows, self._pose_path)
            if row[_LASER].as_py() == TOP:
                image = _image(row, _PIXEL_POSE, 6)
                if image is None:
                    raise RangeImageError(f"the pose image in {self._pose_path.name} of lidar_pose is an empty cell")
                self._early_poses[int(row[_TIME].as_py())] = image
        return self._early_poses.pop(time)


def _next(rows: Iterator[dict[str, Any]], path: Path) -> dict[str, Any]:
    row = next(rows, None)
    if row is None:
        raise DataError(f"{path}: its columns have different numbers of rows; copy or download it again")
    return row


def _image(row: dict[str, Any], name: str, channels: int) -> FloatArray | None:
    """Return one range image (H, W, C), or None if its cell is null."""
    values: pa.Array | None = row[f"{name}.values"].values
    shape = row[f"{name}.shape"].as_py()
    if values is None and shape is None:
        return None
    if values is None or shape is None or None in shape:
        raise RangeImageError(f"of '{name}' only the {'values' if values is not None else 'shape'} are there, shape {shape}")
    flat = values.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):  # infinity is found where points are made
        return as_image(np.asarray(flat, np.float32), tuple(map(int, shape)), channels)
