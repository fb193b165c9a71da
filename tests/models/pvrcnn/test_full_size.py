"""The published detector on a full-size simulated sweep: a frame's boxes within 12 GB of a process
of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LIMIT = 12e9  # bytes
SCRIPT = """
import json, resource
import torch
from kdlib import zoo
from kdlib.data.collate import collate
from kdlib.profiling.sweep import simulated_sweeps
from kdlib.models.build import build

torch.manual_seed(0)
model = build(zoo.model("pv_rcnn_pp")).eval()
points = collate(simulated_sweeps(1)).points
with torch.no_grad():
    prediction = model(points)
    (found,) = model.detect(prediction)
second = prediction.second
print(json.dumps({
    "points": len(points.points), "rois": len(second.rois.boxes),
    "keypoints": len(second.points), "found": len(found.boxes),
    "finite": bool(torch.isfinite(found.boxes).all() and torch.isfinite(second.codes).all()),
    "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
}))
"""


@pytest.mark.timeout(600)
def test_a_frame_within_its_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["points"] > 100_000 and seen["keypoints"] > 1000 and seen["rois"] > 0, (
        "a frame that costs something"
    )
    assert seen["finite"] and seen["peak"] < LIMIT, seen
