"""One full-size simulated frame through every published model at its full size, on whatever
processor there is.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlib import zoo
from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.data.prepare import prepare
from kdlib.data.store import Store
from kdlib.kd.objective import Distillation, Plain
from kdlib.models.build import build
from kdlib.models.detector import CenterPoint
from kdlib.simulate import simulate
from kdlib.types import Batch

# One pair of pillars and one of voxels always; the others, and PV-RCNN++'s pair, in the long suite.
QUICK = ("cp_pillar_v0.64_sparsekd", "cp_voxel_xxs_sparsekd", "cp_pillar_v0.64", "cp_voxel_xxs")


def published(named: dict[str, Any]) -> list[Any]:
    """The models or pairs of full size as parameters of a test."""
    return [
        pytest.param(value, id=name, marks=() if name in QUICK else pytest.mark.long)
        for name, value in named.items()
        if "demo" not in name
    ]


MEMORY = 8.0  # GB, of one step of a voxel model
# A process of its own, for its memory: store, model or pair; prints the loss and the process's
# highest memory in GB.
STEP = """
import json, resource, sys
from pathlib import Path
from kdlib import zoo
from kdlib.kd.objective import Distillation, Plain
from kdlib.models.build import build
sys.path.insert(0, sys.argv[3])
from test_full_size import read
frame, name = read(Path(sys.argv[1])), sys.argv[2]
pair = zoo.PAIRS.get(name)
if pair:
    step = Distillation(build(pair.student), build(pair.teacher), pair.kd)
else:
    step = Plain(build(zoo.model(name)))
loss = step(frame).loss
loss.backward()
print(json.dumps([loss.item(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
"""


def read(store: Path) -> Batch:
    return collate([FrameDataset(Store.open(store).split("training"), drop_empty=True)[0]])


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    simulate(folder / "waymo", 1, 1, 3, "full", workers=1, progress=False)
    prepare(folder / "waymo", folder / "store", splits=("training",), progress=False)
    return folder / "store"


@pytest.fixture(scope="module")
def frame(store) -> Batch:
    return read(store)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("pair", published(zoo.PAIRS))
def test_one_distillation_step(frame, pair):
    assert len(frame.points.points) > 100_000
    torch.manual_seed(0)
    step = Distillation(build(pair.student), build(pair.teacher), pair.kd)
    terms = step(frame)
    terms.loss.backward()
    regression = {"kd_box"} if pair.kd.logit.regression_weight else set()
    assert set(terms.parts) == {"heatmap", "box", "kd_heatmap"} | regression
    assert all(part.isfinite() and float(part.detach()) > 0 for part in terms.parts.values())
    for parameter_name, parameter in step.student.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("config", published(zoo.MODELS))
def test_one_frames_boxes(frame, config):
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.inference_mode():
        prediction = model(frame.points)
        (found,) = model.detect(prediction)
    assert found.boxes.shape[1] == 7 and found.boxes.isfinite().all()
    if isinstance(model, CenterPoint):
        columns, rows = (cells // model.head.stride for cells in config.grid.grid_size[:2])
        assert prediction.heads[0].heatmap.shape == (1, 3, rows, columns)


@pytest.mark.long
@pytest.mark.timeout(1200)
# that are in no pair's student
@pytest.mark.parametrize("config", [zoo.SECOND, zoo.CP_PILLAR], ids=lambda model: model.name)
def test_one_plain_step(frame, config):
    torch.manual_seed(0)
    model = build(config)
    terms = Plain(model)(frame)
    terms.loss.backward()
    assert all(part.isfinite() and float(part.detach()) > 0 for part in terms.parts.values())
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("config", "tolerance"),
    [(zoo.CP_PILLAR_V064, 0.01), (zoo.CP_VOXEL_XXS, 0.03)],
    ids=["pillars", "voxels"],
)
def test_a_step_in_32_bits_computes_that_in_64(frame, config, tolerance):
    """Both from the same voxels: which one a point on a border falls into is another matter."""
    torch.manual_seed(0)
    model = build(config)
    exact = copy.deepcopy(model).double()
    voxels = model.voxelize(frame.points)
    exact.voxelize = lambda points: replace(voxels, features=voxels.features.double())
    truth = replace(frame.truth, boxes=frame.truth.boxes.double())
    loss, expected = Plain(model)(frame).loss, Plain(exact)(replace(frame, truth=truth)).loss
    loss.backward()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in exact.named_parameters()}
    off = {}
    for name, parameter in model.named_parameters():
        norm = float(gradients[name].norm())
        if norm > 1e-9:  # the bias of a layer in front of a norm moves nothing, but for rounding
            off[name] = abs(float(parameter.grad.norm()) / norm - 1)
    assert len(off) > 60
    assert max(off.values()) < tolerance, max(off.items(), key=lambda item: item[1])


@pytest.mark.long
@pytest.mark.timeout(1200)
# the largest model, the largest pair
@pytest.mark.parametrize("name", ["cp_voxel", "cp_voxel_s_sparsekd"])
def test_memory_of_one_step(store, name):
    given = [sys.executable, "-c", STEP, str(store), name, str(Path(__file__).parent)]
    child = subprocess.run(
        given,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    loss, memory = json.loads(child.stdout.splitlines()[-1])
    assert loss > 0 and 0.5 < memory < MEMORY
