"""Tables of cost: the published family in the published convention (spec 10.2), and a run's own models."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from kdlib import costs, pipeline, runs
from kdlib.errors import ConfigError
from kdlib.pipeline import Run

# dense part at the shipped grids: G in the published convention, G of true multiply-accumulates, M activations
DENSE = {
    "cp_pillar": (337.118, 220.1, 284.837),
    "cp_pillar_v0.4": (212.05, 138.4, 179.17),
    "cp_pillar_v0.48": (152.42, 99.5, 128.79),
    "cp_pillar_v0.64": (84.28, 55.0, 71.21),
}


@pytest.fixture(scope="module")
def family() -> pd.DataFrame:
    return costs.family_table().set_index("model")


@pytest.mark.parametrize("name", DENSE)
def test_published_convention(name: str, family: pd.DataFrame) -> None:
    published, true, acts = DENSE[name]
    row = family.loc[name]
    assert row["dense G, published convention"] == pytest.approx(published, rel=1e-3)
    assert row["dense M acts"] == pytest.approx(acts, rel=1e-3)
    assert row["dense G MACs"] == pytest.approx(true, rel=1e-3)
    assert row["parameters"] == 5_224_043


def test_published_cells_are_those_of_the_tables(family: pd.DataFrame) -> None:
    assert list(family.index) == list(DENSE)
    assert family["published G"].tolist() == [333.9, 212.9, 149.4, 85.1]
    assert family["published M acts"].tolist() == [303.0, 197.7, 142.3, 88.0]
    assert family["published LEVEL_2 mAPH on Waymo"].tolist() == [59.09, 57.55, 56.27, 52.81]
    assert family["published ms (GTX 1060)"].tolist() == [157.90, 103.37, 81.87, 54.52]


def test_dense_cost_of_a_name() -> None:
    values = costs.dense_cost("cp_pillar_v0.64")
    assert json.loads(json.dumps(values)) == values
    with pytest.raises(ConfigError, match="'cp_pilar'"):
        costs.dense_cost("cp_pilar")


def test_a_runs_models(smoke_run: Run) -> None:
    table = costs.measure_run(smoke_run, repeats=2).set_index("role")
    teacher, student = table.loc["teacher"], table.loc["student"]
    assert teacher["parameters"] == student["parameters"] > 300_000
    assert 3.5 < teacher["G MACs"] / student["G MACs"] < 4.2, "a quarter of the cells"
    assert teacher["G MACs (published convention)"] > teacher["G MACs"]
    assert (table["latency p95 ms"] >= table["latency p50 ms"]).all() and (table["latency p50 ms"] > 0).all()
    stages = [name for name in table.columns if name.endswith(" ms") and not name.startswith("latency")]
    assert stages == ["voxelise ms", "encoder ms", "backbone ms", "head ms", "decode ms"]


def test_frames_are_spread_over_the_split(smoke_run: Run) -> None:
    model = smoke_run.profile.student_model
    frames = costs.frames_for(smoke_run, model, 3)
    ids = smoke_run.store.split("validation").frame_ids()
    assert [frame.frame_ids for frame in frames] == [(ids[0],), (ids[3],), (ids[7],)]
    assert len(costs.frames_for(smoke_run, model, 99)) == len(ids)


def test_accuracy_over_cost(smoke_run: Run, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = [
        {"arm": name, "LEVEL_2 mAPH": score, "95 % low": score - 1, "95 % high": score + 1}
        for name, score in (("teacher", 60.0), ("student alone", 40.0), ("full SparseKD", 50.0))
    ]
    run = pipeline.open_run("smoke", str(tmp_path))
    pipeline.save_result(run, "03_evaluate", {"arms": arms})
    table = pd.DataFrame([{"role": "teacher", "G MACs": 4.0}, {"role": "student", "G MACs": 1.0}])
    points = costs.accuracy_points(run, table)
    assert [(p.name, p.cost, p.score, p.low, p.high) for p in points] == [
        ("teacher", 4.0, 60.0, 59.0, 61.0),
        ("student alone", 1.0, 40.0, 39.0, 41.0),
        ("full SparseKD", 1.0, 50.0, 49.0, 51.0),
    ]
    assert runs.records(table)[0] == {"role": "teacher", "G MACs": 4.0}
