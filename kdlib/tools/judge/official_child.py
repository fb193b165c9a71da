"""An .npz of boxes in, a JSON file of Waymo's own AP and APH out: a script for the official package's Python, never imported.

The only module of kdlib that names TensorFlow. It imports nothing of kdlib, so that the official environment need not hold it:

    PYTHON official_child.py BOXES.npz SCORES.json
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

COLUMNS = ("pd_frame", "pd_box", "pd_type", "pd_score", "pd_nlz", "gt_frame", "gt_box", "gt_type", "gt_difficulty")


def main(boxes: str, scores: str) -> None:
    """Score every set of an .npz (``0/pd_box``, ..., ``ranges``) and write the numbers, the times and the memory as JSON."""
    import numpy as np
    import tensorflow as tf
    from waymo_open_dataset.metrics.ops import py_metrics_ops
    from waymo_open_dataset.metrics.python import config_util_py

    with np.load(boxes, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    config = _config(ranges=bool(arrays["ranges"]))
    names = config_util_py.get_breakdown_names_from_config(config)
    idle, sets = _peak_bytes(), []
    for number in range(int(arrays["sets"])):
        columns = {name: tf.constant(arrays[f"{number}/{name}"]) for name in COLUMNS}
        start = time.perf_counter()
        ap, aph, *_ = py_metrics_ops.detection_metrics(
            prediction_bbox=columns["pd_box"],
            prediction_type=columns["pd_type"],
            prediction_score=columns["pd_score"],
            prediction_frame_id=columns["pd_frame"],
            prediction_overlap_nlz=columns["pd_nlz"],
            ground_truth_bbox=columns["gt_box"],
            ground_truth_type=columns["gt_type"],
            ground_truth_frame_id=columns["gt_frame"],
            ground_truth_difficulty=columns["gt_difficulty"],
            config=config.SerializeToString(),
        )
        seconds = time.perf_counter() - start
        sets.append({"names": names, "ap": ap.numpy().tolist(), "aph": aph.numpy().tolist(), "seconds": seconds})
    result = {"sets": sets, "idle_bytes": idle, "peak_bytes": _peak_bytes(), "version": f"TensorFlow {tf.__version__}"}
    with open(scores, "w") as file:
        json.dump(result, file)


def _config(ranges: bool) -> Any:
    """Return the settings people report, and the leaderboard's distances if asked for (metric spec section 0)."""
    from waymo_open_dataset import label_pb2
    from waymo_open_dataset.protos import breakdown_pb2, metrics_pb2

    config = metrics_pb2.Config()
    for name in ("OBJECT_TYPE", "RANGE") if ranges else ("OBJECT_TYPE",):
        config.breakdown_generator_ids.append(breakdown_pb2.Breakdown.GeneratorId.Value(name))
        config.difficulties.add().levels.extend([label_pb2.Label.LEVEL_1, label_pb2.Label.LEVEL_2])
    config.matcher_type = metrics_pb2.MatcherProto.TYPE_HUNGARIAN
    config.iou_thresholds.extend([0.0, 0.7, 0.5, 0.5, 0.5])
    config.box_type = label_pb2.Label.Box.TYPE_3D
    config.score_cutoffs.extend([*(0.01 * i for i in range(100)), 1.0])
    return config


def _peak_bytes() -> int:
    """Return the most memory this process has held; Linux's ru_maxrss would count what its parent held when it forked."""
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]  # modules beside this one (tables, objects, report) are not meant when a package imports such a name
    main(*sys.argv[1:])
