"""One full-size simulated frame through every published pillar model at its full size, on whatever processor there is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdlib import zoo
from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.data.prepare import prepare
from kdlib.data.store import Store
from kdlib.kd.objective import Distillation
from kdlib.models.detector import build
from kdlib.simulate import simulate
from kdlib.types import Batch

RECIPE = zoo.pair("cp_pillar_v0.64_sparsekd")
PAIRS = [pair for name, pair in zoo.PAIRS.items() if "demo" not in name]
PAIRS.append(replace(RECIPE, name="cp_pillar_by_itself", teacher=zoo.CP_PILLAR, student=zoo.CP_PILLAR))


@pytest.fixture(scope="module")
def frame(tmp_path_factory) -> Batch:
    folder = tmp_path_factory.mktemp("full")
    simulate(folder / "waymo", 1, 1, 3, "full", workers=1, progress=False)
    prepare(folder / "waymo", folder / "store", splits=("training",), progress=False)
    return collate([FrameDataset(Store.open(folder / "store").split("training"), drop_empty=True)[0]])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_one_distillation_step(frame, pair):
    assert len(frame.points.points) > 100_000
    torch.manual_seed(0)
    step = Distillation(build(pair.student), build(pair.teacher), pair.kd)
    terms = step(frame)
    terms.loss.backward()
    assert set(terms.parts) == {"heatmap", "box", "kd_heatmap"}
    assert all(part.isfinite() and float(part.detach()) > 0 for part in terms.parts.values())
    for parameter_name, parameter in step.student.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    for model in (step.student, step.teacher.model):
        columns, rows, _ = model.config.grid.grid_size
        with torch.inference_mode():
            prediction = model.eval()(frame.points)
            (found,) = model.detect(prediction)
        assert prediction.heads[0].heatmap.shape == (1, 3, rows, columns) and found.boxes.shape[1] == 7
