"""A Waymo file in, the time Waymo's own code takes to turn it into points out: a script for its Python, never imported.

It imports nothing of kdlib, so that the official environment need not hold it:

    PYTHON official_child.py v1|v2 FOLDER SEGMENT ROUNDS RESULT.json

Both ways are those of the official tutorials: all lasers, both returns, x y z in vehicle coordinates, one frame after the other.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main(form: str, folder: str, segment: str, rounds: str, result: str) -> None:
    """Convert a segment ``rounds`` times after one round to warm up; write the seconds of each, and points and sums by frame.

    ``read`` are the seconds until range images and poses are in memory, ``convert`` those from there to points; each is a pair:
    on the wall clock, and of all processors together.
    """
    frames = {"v1": _frames_v1, "v2": _frames_v2}[form]
    seconds: list[dict[str, list[float]]] = []
    found: list[dict[str, Any]] = []
    for _ in range(1 + int(rounds)):
        spent, found, start = {"read": [0.0, 0.0], "convert": [0.0, 0.0]}, [], _now()
        for inputs, convert in frames(Path(folder), segment):
            ready = _now()
            cloud = convert(*inputs)
            done = _now()
            for clock in (0, 1):
                spent["read"][clock] += ready[clock] - start[clock]
                spent["convert"][clock] += done[clock] - ready[clock]
            found.append({"points": len(cloud), "sum": cloud.astype("float64").sum(axis=0).tolist()})
            start = _now()
        seconds.append(spent)
    Path(result).write_text(json.dumps({"seconds": seconds[1:], "frames": found, "version": _version()}))


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _version() -> str:
    import tensorflow as tf

    return f"TensorFlow {tf.__version__}"


def _frames_v1(folder: Path, segment: str) -> Iterator[tuple[Any, Any]]:
    """Yield what each frame of a TFRecord is converted from, and the conversion."""
    import tensorflow as tf
    from waymo_open_dataset import dataset_pb2
    from waymo_open_dataset.utils import frame_utils

    (file,) = folder.glob(f"*{segment}*.tfrecord")
    for record in tf.data.TFRecordDataset(str(file), compression_type=""):
        frame = dataset_pb2.Frame()
        frame.ParseFromString(bytearray(record.numpy()))
        images, projections, _, pose = frame_utils.parse_range_image_and_camera_projection(frame)
        yield (frame, images, projections, pose), _convert_v1


def _convert_v1(frame: Any, images: Any, projections: Any, pose: Any) -> Any:
    """Return the points (N, 3) of both returns."""
    import numpy as np
    from waymo_open_dataset.utils import frame_utils

    clouds = []
    for number in (0, 1):
        points, _ = frame_utils.convert_range_image_to_point_cloud(frame, images, projections, pose, number)
        clouds += points
    return np.concatenate(clouds)


def _frames_v2(folder: Path, segment: str) -> Iterator[tuple[Any, Any]]:
    """Yield the joined rows of each frame of the Parquet components, and the conversion."""
    import pandas as pd
    from waymo_open_dataset import v2

    def table(name: str) -> Any:
        return pd.read_parquet(folder / name / f"{segment}.parquet")

    merged = v2.merge(table("lidar"), table("lidar_calibration"))
    merged = v2.merge(merged, table("vehicle_pose"))
    merged = v2.merge(merged, table("lidar_pose"), right_nullable=True)
    for _, rows in merged.groupby("key.frame_timestamp_micros", sort=True):
        yield (rows.sort_values("key.laser_name"),), _convert_v2


def _convert_v2(rows: Any) -> Any:
    """Return the points (N, 3) of both returns of all lasers."""
    import numpy as np
    from waymo_open_dataset import v2

    clouds = []
    for _, row in rows.iterrows():
        lidar = v2.LiDARComponent.from_dict(row)
        calibration = v2.LiDARCalibrationComponent.from_dict(row)
        poses: tuple[Any, ...] = ()
        if row["key.laser_name"] == v2.perception.lidar.LaserName.TOP.value:
            poses = (v2.LiDARPoseComponent.from_dict(row).range_image_return1, v2.VehiclePoseComponent.from_dict(row))
        for image in lidar.range_image_returns:
            clouds.append(v2.convert_range_image_to_point_cloud(image, calibration, *poses).numpy())
    return np.concatenate(clouds)


if __name__ == "__main__":
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]  # modules beside this one are not meant when a package imports such a name
    main(*sys.argv[1:])
