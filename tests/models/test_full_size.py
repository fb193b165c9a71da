"""One frame through the published pair at its full size, once, on whatever processor there is."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from kdlib import zoo
from kdlib.kd.objective import Distillation
from kdlib.models.detector import build
from kdlib.types import Batch, GroundTruth, PointBatch


@pytest.mark.slow
def test_one_distillation_step(goldens, record_property):
    scan = np.load(goldens / "original/08_forward/scan_and_voxels.npz")
    points, boxes = torch.from_numpy(scan["points"]), torch.from_numpy(scan["gt_boxes"]).float()
    batch = Batch(
        PointBatch(points, torch.zeros(len(points), dtype=torch.long), 1, ("scan",)),
        GroundTruth(boxes[None, :, :7], boxes[None, :, 7].long()),
    )
    pair = zoo.pair("cp_pillar_v0.64_sparsekd")
    torch.manual_seed(0)
    step = Distillation(build(pair.student), build(pair.teacher), pair.kd)
    optimiser = torch.optim.SGD(step.parameters(), lr=1e-3)
    start = time.perf_counter()
    terms = step(batch)
    terms.loss.backward()
    optimiser.step()
    record_property("seconds", round(time.perf_counter() - start, 1))
    assert set(terms.parts) == {"heatmap", "box", "kd_heatmap"}
    assert all(part.isfinite() and float(part.detach()) > 0 for part in terms.parts.values())
    for name, parameter in step.student.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.isfinite().all(), name
    with torch.no_grad():
        prediction = step.student.eval()(batch.points)
        (found,) = step.student.detect(prediction)
    assert prediction.heads[0].heatmap.shape == (1, 3, 232, 232) and found.boxes.shape[1] == 7
