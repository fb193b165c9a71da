"""One sweep enters, from a file of KITTI, nuScenes or Waymo or from the simulator; the points a network takes leave.

For measuring a cost on real geometry, and for looking: detectors trained on Waymo know its five lasers, not these sensors.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdlib.data.store import Store
from kdlib.errors import DataError
from kdlib.types import Sample


@dataclass(frozen=True)
class _Sensor:
    columns: int  # float32 values a point
    full_scale: float  # intensity that counts as 1
    height: float  # of the sensor above the road, metres: Waymo's vehicle frame has the road at 0


_KITTI = _Sensor(4, 1.0, 1.73)
_NUSCENES = _Sensor(5, 255.0, 1.84)


def read_sweep(path: Path) -> Sample:
    """Return the points (N, 5) x, y, z, tanh(intensity), elongation of one sweep, without boxes.

    Args:
        path: ``.npy`` (N, >=4) in Waymo's vehicle frame: x, y, z, raw intensity, elongation, as OpenPCDet writes; ``.pcd.bin`` of
            nuScenes (x, y, z, intensity, ring); any other ``.bin`` is KITTI's (x, y, z, intensity).

    Raises:
        DataError: If the file is missing, of another kind, or holds numbers that are not finite.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a sweep as .npy, .bin or .pcd.bin")
    if path.suffix == ".npy":
        columns = _read_npy(path)
    elif path.suffix == ".bin":
        columns = _read_bin(path, _NUSCENES if path.name.endswith(".pcd.bin") else _KITTI)
    else:
        raise DataError(f"{path}: sweeps are .npy (Waymo), .pcd.bin (nuScenes) or .bin (KITTI), not '{path.suffix}'")
    if not np.isfinite(columns).all():
        raise DataError(f"{path} holds points that are not finite; it is damaged or of another format")
    points = np.zeros((len(columns), 5), np.float32)
    points[:, : min(columns.shape[1], 5)] = columns[:, :5]
    points[:, 3] = np.tanh(points[:, 3])
    return Sample(path.stem, points, np.zeros((0, 7), np.float32), np.zeros(0, np.int64))


def _read_npy(path: Path) -> NDArray[np.float32]:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is no array of numbers ({error}); write it with numpy.save") from error
    if values.ndim != 2 or values.shape[1] < 4 or values.dtype.kind != "f":
        raise DataError(f"{path} holds {values.dtype} of shape {values.shape}; needed are floats (N, 4 or more)")
    return values.astype(np.float32)


def _read_bin(path: Path, sensor: _Sensor) -> NDArray[np.float32]:
    values = np.fromfile(path, "<f4") if path.stat().st_size % 4 == 0 else np.zeros(1, "<f4")
    if values.size == 0 or values.size % sensor.columns:
        raise DataError(
            f"{path}: {path.stat().st_size} bytes are not a whole number of points of {sensor.columns} float32 values"
        )
    points: NDArray[np.float32] = values.reshape(-1, sensor.columns)[:, :4].astype(np.float32)
    points[:, 2] += np.float32(sensor.height)
    points[:, 3] /= np.float32(sensor.full_scale)
    return points


def simulated_sweeps(count: int, seed: int = 0, scale: str = "full") -> list[Sample]:
    """Return one sweep from each of ``count`` simulated segments, at Waymo's resolution by default.

    They take the way of all data: simulated into files, prepared, read from the store.
    """
    from kdlib.data.prepare import prepare
    from kdlib.simulate import simulate

    with tempfile.TemporaryDirectory(prefix="kdlib-sweeps-") as folder:
        source, store = Path(folder, "waymo"), Path(folder, "store")
        simulate(source, segments=count, frames=1, seed=seed, scale=scale, split="validation", workers=1, progress=False)
        prepare(source, store, splits=("validation",), workers=1, progress=False)
        split = Store.open(store).split("validation")
        empty = np.zeros((0, 7), np.float32), np.zeros(0, np.int64)
        return [Sample(split.frame_id(number), split.points(number)[:, :5], *empty) for number in range(len(split))]
