"""The Parquet components of a Waymo v2 segment enter, frames in time order leave, streamed (format spec sections 6 to 8)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.types import FloatArray, Frame, FrameLabels
from kdlib.waymo import labels as box_rows
from kdlib.waymo.components import LABELS, iter_rows, list_segments, read_columns, segment_files
from kdlib.waymo.range_image import RangeImageError, as_image, as_transform, range_image_to_points, row_inclinations

__all__ = ["LASER_NAMES", "list_segments", "read_segment"]

TOP = 1
LASER_NAMES = {1: "TOP", 2: "FRONT", 3: "SIDE_LEFT", 4: "SIDE_RIGHT", 5: "REAR"}

_Poses = dict[int, NDArray[np.float64]]

_TIME, _LASER = "key.frame_timestamp_micros", "key.laser_name"
_POSE = "[VehiclePoseComponent].world_from_vehicle.transform"
_IMAGES = tuple(f"[LiDARComponent].range_image_return{number}" for number in (1, 2))
_PIXEL_POSE = "[LiDARPoseComponent].range_image_return1"
_CALIBRATION = "[LiDARCalibrationComponent]."
_EXTRINSIC, _TABLE = _CALIBRATION + "extrinsic.transform", _CALIBRATION + "beam_inclination.values"
_LOWEST, _HIGHEST = _CALIBRATION + "beam_inclination.min", _CALIBRATION + "beam_inclination.max"


@dataclass(frozen=True)
class Calibration:
    """Where one laser sits and how its beams are spread."""

    extrinsic: NDArray[np.float64]  # (4, 4) vehicle from laser
    lowest: float  # radians
    highest: float
    table: NDArray[np.float64] | None  # ascending beam inclinations, None where they are even


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
        _check_pixel_poses(files["lidar_pose"], segment, [time for time, present in lasers.items() if TOP in present])
    labels = {}
    if LABELS in files:
        table = read_columns(files[LABELS], box_rows.COLUMNS, segment)
        with _naming(files[LABELS]):
            labels = box_rows.labels_by_frame(table, poses)
    clouds = _Clouds(files, poses, calibrations)
    for index, time in enumerate(poses):
        points = clouds.take(time, lasers[time])
        frame_labels = labels.get(time, FrameLabels.empty())
        yield Frame(segment, index, time, points, poses[time], frame_labels)


@contextmanager
def _naming(path: Path, place: str = "") -> Iterator[None]:
    """Put file and place in front of an error."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{path}: {place}{error}") from error


def _frame_poses(path: Path, segment: str) -> _Poses:
    """Return world from vehicle by timestamp, ascending."""
    table = read_columns(path, (_TIME, _POSE), segment)
    times = table.column(_TIME).to_pylist()
    if not times:
        raise DataError(f"{path} holds no frame")
    if None in times or len(set(times)) < len(times):
        raise DataError(f"{path}: timestamps must be there once each")
    values = table.column(_POSE).to_pylist()
    poses = {}
    for row in np.argsort(np.array(times)):
        with _naming(path, f"frame {times[row]}: "):
            poses[int(times[row])] = as_transform(np.array(values[row] or (), np.float64))
    gaps = np.diff(list(poses)) / 1000.0
    odd = (gaps < 95) | (gaps > 105)
    if odd.any():
        message = f"{path}: {int(odd.sum())} frames are not 95 to 105 ms after the one before (the first: {gaps[odd][0]:.1f} ms)"
        warnings.warn(message, stacklevel=3)
    return poses


def _calibrations(path: Path, segment: str) -> dict[int, Calibration]:
    """Return every laser's calibration."""
    found = {}
    for row in read_columns(path, (_LASER, _EXTRINSIC, _LOWEST, _HIGHEST, _TABLE), segment).to_pylist():
        with _naming(path, f"laser {LASER_NAMES.get(row[_LASER], row[_LASER])}: "):
            table = np.array(row[_TABLE], np.float64) if row[_TABLE] else None
            limits = np.array([row[_LOWEST], row[_HIGHEST]], np.float64)  # None becomes NaN
            if not np.isfinite(limits if table is None else table).all():
                raise DataError("beam inclinations are missing or not finite")
            extrinsic = as_transform(np.array(row[_EXTRINSIC] or (), np.float64))
        found[int(row[_LASER])] = Calibration(extrinsic, float(limits[0]), float(limits[1]), table)
    return found


def _lasers_by_frame(path: Path, segment: str, calibrations: dict[int, Calibration]) -> dict[int, tuple[int, ...]]:
    """Return the lasers of every frame, ascending, from the key columns alone."""
    table = read_columns(path, (_TIME, _LASER), segment)
    keys = list(zip(table.column(_TIME).to_pylist(), table.column(_LASER).to_pylist()))
    if len(set(keys)) < len(keys):
        raise DataError(f"{path}: a laser has two rows in one frame")
    lasers: dict[int, list[int]] = {}
    for time, laser in keys:
        lasers.setdefault(time, []).append(laser)
    everyone = sorted({laser for _, laser in keys})
    for time, present in lasers.items():
        if sorted(present) != everyone:
            raise DataError(f"{path}: frame {time} has lasers {sorted(present)}, others have {everyone}; download the file again")
    unknown = set(everyone) - set(calibrations)
    if unknown:
        raise DataError(f"{path}: laser {LASER_NAMES.get(min(unknown), min(unknown))} has no row in lidar_calibration")
    return {time: tuple(everyone) for time in lasers}


def _check_pixel_poses(path: Path, segment: str, times: list[int]) -> None:
    table = read_columns(path, (_TIME, _LASER), segment)
    there = {time for time, laser in zip(table.column(_TIME).to_pylist(), table.column(_LASER).to_pylist()) if laser == TOP}
    missing = sorted(set(times) - there)
    if missing:
        raise DataError(f"{path}: frame {missing[0]} has no pose image of the TOP laser; its points would be up to a metre off")


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
            row = next(self._rows)  # the key columns promised every row, so this cannot run out
            key = (int(row[_TIME].as_py()), int(row[_LASER].as_py()))
            place = f"frame {key[0]}, laser {LASER_NAMES.get(key[1], key[1])}: "
            with _naming(self._path, place):
                self._early[key] = self._convert(row, *key)
        return np.concatenate([self._early.pop(key) for key in keys])

    def _convert(self, row: dict[str, Any], time: int, laser: int) -> NDArray[np.float32]:
        calibration = self._calibrations[laser]
        pixel_pose = self._pixel_pose(time) if laser == TOP else None
        clouds = []
        for image in _IMAGES:
            pixels = _image(row, image, 4)
            if pixels is None:
                continue  # this laser has no such return
            table = row_inclinations(calibration.table, calibration.lowest, calibration.highest, pixels.shape[0])
            clouds.append(range_image_to_points(pixels, calibration.extrinsic, table, pixel_pose, self._poses[time]))
        if not clouds:
            raise RangeImageError("both returns are empty cells; the lidar images were stripped from this file")
        return np.concatenate(clouds)

    def _pixel_pose(self, time: int) -> FloatArray:
        """Return the TOP laser's pose image; those of later frames met on the way are kept for their turn."""
        while time not in self._early_poses:
            row = next(self._pose_rows)
            if row[_LASER].as_py() == TOP:
                image = _image(row, _PIXEL_POSE, 6)
                if image is None:
                    raise RangeImageError(f"the pose image in {self._pose_path.name} of lidar_pose is an empty cell")
                self._early_poses[int(row[_TIME].as_py())] = image
        return self._early_poses.pop(time)


def _image(row: dict[str, Any], name: str, channels: int) -> FloatArray | None:
    """Return one range image (H, W, C), or None if its cell is null."""
    values: pa.Array | None = row[f"{name}.values"].values
    shape = row[f"{name}.shape"].as_py()
    if values is None or shape is None:
        return None
    flat = values.to_numpy(zero_copy_only=False)
    return as_image(flat, tuple(shape), channels)
