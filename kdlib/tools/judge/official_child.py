"""A script for the Python that has Waymo's own package: its metric on given boxes, or its
conversion of a file to points.

The only module of kdlib that names TensorFlow. It imports nothing of kdlib, so that the official
environment need not hold it:

    PYTHON official_child.py metric|convert REQUEST.npz ANSWER.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _run(task: str, request: str, answer: str) -> None:
    """Do a task with the values of an .npz and write what it returns as JSON, with the memory it
    took.
    """
    import numpy as np
    import tensorflow as tf

    with np.load(request, allow_pickle=False) as stored:
        values = {name: stored[name] for name in stored.files}
    answered = {"metric": _metric, "convert": _convert}[task](values)
    # Linux's ru_maxrss would count what the parent held when it forked; the package is for Linux
    # alone.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    answered |= {"peak_bytes": peak, "version": f"TensorFlow {tf.__version__}"}
    Path(answer).write_text(json.dumps(answered))


def _metric(values: dict[str, Any]) -> dict[str, Any]:
    """Score every set of boxes (``0/prediction_bbox``, ...) by the metric op."""
    import tensorflow as tf
    from waymo_open_dataset.metrics.ops import py_metrics_ops
    from waymo_open_dataset.metrics.python import config_util_py

    config = _config()
    names = config_util_py.get_breakdown_names_from_config(config)
    sets = []
    for number in range(int(values["sets"])):
        start = f"{number}/"
        columns = {
            name[len(start) :]: tf.constant(column)
            for name, column in values.items()
            if name.startswith(start)
        }
        begin = time.perf_counter()
        ap, aph, *_ = py_metrics_ops.detection_metrics(config=config.SerializeToString(), **columns)
        seconds = time.perf_counter() - begin
        sets.append(
            {
                "names": names,
                "ap": ap.numpy().tolist(),
                "aph": aph.numpy().tolist(),
                "seconds": seconds,
            }
        )
    return {"sets": sets}


def _config() -> Any:
    """Return the settings people report, and the leaderboard's distances (metric spec section
    0).
    """
    from waymo_open_dataset import label_pb2
    from waymo_open_dataset.protos import breakdown_pb2, metrics_pb2

    config = metrics_pb2.Config()
    for name in ("OBJECT_TYPE", "RANGE"):
        config.breakdown_generator_ids.append(breakdown_pb2.Breakdown.GeneratorId.Value(name))
        config.difficulties.add().levels.extend([label_pb2.Label.LEVEL_1, label_pb2.Label.LEVEL_2])
    config.matcher_type = metrics_pb2.MatcherProto.TYPE_HUNGARIAN
    config.iou_thresholds.extend([0.0, 0.7, 0.5, 0.5, 0.5])
    config.box_type = label_pb2.Label.Box.TYPE_3D
    config.score_cutoffs.extend([*(0.01 * i for i in range(100)), 1.0])
    return config


def _convert(values: dict[str, Any]) -> dict[str, Any]:
    """Convert a segment ``rounds`` times after one round to warm up; return the seconds of each,
    and points and sums by frame.

    As in the official tutorials: all lasers, both returns, x y z in vehicle coordinates, one frame
    after the other. ``read`` are the seconds until range images and poses are in memory,
    ``convert`` those from there to points; each is a pair: on the wall clock, and of all processors
    together.
    """
    clouds = {"v1": _clouds_v1, "v2": _clouds_v2}[str(values["form"])]
    rounds: list[dict[str, list[float]]] = []
    for _ in range(1 + int(values["rounds"])):
        frames: list[dict[str, Any]] = []
        start = _now()
        read = convert = 0 * start
        for ready, cloud in clouds(Path(str(values["folder"])), str(values["segment"])):
            read, convert = read + ready - start, convert + _now() - ready
            frames.append(
                {"points": len(cloud), "sum": cloud.astype("float64").sum(axis=0).tolist()}
            )
            start = _now()
        rounds.append({"read": read.tolist(), "convert": convert.tolist()})
    return {"seconds": rounds[1:], "frames": frames}


def _now() -> Any:
    import numpy as np

    return np.array((time.perf_counter(), time.process_time()))


def _clouds_v1(folder: Path, segment: str) -> Iterator[tuple[Any, Any]]:
    """Yield when each frame of a TFRecord was in memory, and its points (N, 3)."""
    import numpy as np
    import tensorflow as tf
    from waymo_open_dataset import dataset_pb2
    from waymo_open_dataset.utils import frame_utils

    (file,) = folder.glob(f"*{segment}*.tfrecord")
    for record in tf.data.TFRecordDataset(str(file), compression_type=""):
        frame = dataset_pb2.Frame()
        frame.ParseFromString(bytearray(record.numpy()))
        images, projections, _, pose = frame_utils.parse_range_image_and_camera_projection(frame)
        ready, clouds = _now(), []
        for number in (0, 1):
            points, _ = frame_utils.convert_range_image_to_point_cloud(
                frame, images, projections, pose, number
            )
            clouds += points
        yield ready, np.concatenate(clouds)


def _clouds_v2(folder: Path, segment: str) -> Iterator[tuple[Any, Any]]:
    """Yield when each frame of the Parquet components was in memory, and its points (N, 3)."""
    import numpy as np
    import pandas as pd
    from waymo_open_dataset import v2

    def table(name: str) -> Any:
        return pd.read_parquet(folder / name / f"{segment}.parquet")

    merged = v2.merge(table("lidar"), table("lidar_calibration"))
    merged = v2.merge(merged, table("vehicle_pose"))
    merged = v2.merge(merged, table("lidar_pose"), right_nullable=True)
    for _, frame in merged.groupby("key.frame_timestamp_micros", sort=True):
        rows = frame.sort_values("key.laser_name")
        ready, clouds = _now(), []
        for _, row in rows.iterrows():
            lidar = v2.LiDARComponent.from_dict(row)
            calibration = v2.LiDARCalibrationComponent.from_dict(row)
            poses: tuple[Any, ...] = ()
            if row["key.laser_name"] == v2.perception.lidar.LaserName.TOP.value:
                poses = (
                    v2.LiDARPoseComponent.from_dict(row).range_image_return1,
                    v2.VehiclePoseComponent.from_dict(row),
                )
            for image in lidar.range_image_returns:
                clouds.append(
                    v2.convert_range_image_to_point_cloud(image, calibration, *poses).numpy()
                )
        yield ready, np.concatenate(clouds)


if __name__ == "__main__":
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]  # modules beside this one are not meant when a package imports such a name
    _run(*sys.argv[1:])
