"""Tables of cost: the published family in the published convention (spec 10.2), and a run's own
models.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from kdlib import records, zoo
from kdlib.errors import ConfigError
from kdlib.lab import costs, pipeline
from kdlib.lab.pipeline import Run
from kdlib.lab.profile import ARMS
from kdlib.lab.trained import TrainedWeights
from kdlib.metric.waymo_metrics import EvalResult


@pytest.fixture(scope="module")
def family() -> pd.DataFrame:
    return costs.family_table().set_index("model")


def test_published_cells_are_those_of_the_tables(family: pd.DataFrame) -> None:
    rows = family.loc[["cp_voxel", "cp_voxel_xxs", "cp_pillar", "cp_pillar_v0.64"]]
    assert rows["published G"].tolist() == [114.8, 12.0, 333.9, 85.1]
    assert rows["published M acts"].tolist() == [101.9, 33.1, 303.0, 88.0]
    assert rows["published LEVEL_2 mAPH on Waymo"].tolist() == [64.29, 56.26, 59.09, 52.81]
    assert rows["published ms (GTX 1060)"].tolist() == [125.70, 70.44, 157.90, 54.52]
    assert family.loc[["second", "pointpillar"], "published ms (GTX 1060)"].tolist() == [
        84.56,
        129.12,
    ]
    assert family.loc["cp_voxel", "dense G, published convention"] == pytest.approx(92.89, rel=1e-3)


def test_a_runs_models(smoke_run: Run) -> None:
    table = costs.measure_run(smoke_run, repeats=2).set_index("role")
    teacher, student = table.loc["teacher"], table.loc["student"]
    assert teacher["parameters"] == student["parameters"] > 300_000
    assert 3.5 < teacher["G MACs"] / student["G MACs"] < 4.2, "a quarter of the cells"
    assert teacher["G MACs (published convention)"] > teacher["G MACs"]
    assert (table["latency p95 ms"] >= table["latency p50 ms"]).all() and (
        table["latency p50 ms"] > 0
    ).all()
    stages = [
        name for name in table.columns if name.endswith(" ms") and not name.startswith("latency")
    ]
    assert stages == ["voxelise ms", "encoder ms", "backbone ms", "head ms", "decode ms"]


def test_cost_performance_ratio() -> None:
    assert costs.cpr(64.29, 64.29, 114.8, 114.8) == 1.0, "the teacher itself"
    assert costs.cpr(30.0, 60.0, 10.0, 40.0) == 2.0, "half of the score for a quarter of the cost"
    assert costs.cpr(64.25, 64.29, 47.8, 114.8) == pytest.approx((64.25 / 64.29) * (114.8 / 47.8))
    for bad in ((1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0), (1.0, 1.0, 1.0, 0.0)):
        with pytest.raises(ConfigError, match="positive costs"):
            costs.cpr(*bad)


def test_a_teacher_that_scores_nothing_has_no_ratio(tmp_path) -> None:
    arms = [{"arm": name, "LEVEL_2 mAPH": score} for name, score in (("teacher", 0.0), ("full", 3))]
    run = pipeline.open_run("smoke", str(tmp_path))
    pipeline.save_result(run, "03_evaluate", {"arms": arms})
    table = pd.DataFrame(
        [{"role": role, **dict.fromkeys(costs.COSTS, 1.0)} for role in ("teacher", "student")]
    )
    ratios = costs.ratio_table(run, table)
    assert len(ratios.columns) == 6 and ratios.iloc[0, 1:].isna().all()
    assert set(records.table_rows(ratios)[0].values()) == {"full", None}
    assert ratios.astype(object).fillna("–").iloc[0, 1] == "–"


def test_a_useless_teacher_is_called_so() -> None:
    teacher = TrainedWeights(zoo.CP_PILLAR_DEMO, Path("/data/random.safetensors"))

    def scored(mean: float, over: tuple[str, ...] = ("VEHICLE", "PEDESTRIAN")) -> EvalResult:
        names = {"VEHICLE": 0.9, "PEDESTRIAN": 0.5}
        metrics = {f"OBJECT_TYPE_TYPE_{name}_LEVEL_2/APH": value for name, value in names.items()}
        card = {"settings": {"mean_over": over}}
        return EvalResult({"LEVEL_2/mAPH": mean, **metrics}, {}, card)

    assert teacher.verdict(scored(0.8444)) == (
        "The teacher scores 84.44 LEVEL_2 mAPH, best at Vehicle (90.00 LEVEL_2 APH) and worst at "
        "Pedestrian (50.00 LEVEL_2 APH)."
    )
    assert teacher.verdict(scored(0.9, ("VEHICLE",))).endswith(", Vehicle (90.00 LEVEL_2 APH).")
    assert "WARNING: THIS TEACHER IS USELESS. It scores 0.00" in teacher.verdict(scored(0.0))
    assert "learn from random.safetensors" in teacher.verdict(scored(0.049))


def test_the_reading_of_costs_follows_their_numbers() -> None:
    columns = {"G MACs": (4.0, 1.0), "latency p50 ms": (40.0, 10.0)}
    table = pd.DataFrame([{"role": r} for r in ("teacher", "student")]).assign(**columns)
    ratios = pd.DataFrame({"arm": ["a", "b"], "share of mAPH kept": [0.6, 0.45]})
    said = costs.cost_reading(table, ratios)
    assert "25% of the teacher's multiply" in said and "10 ms a frame instead of 40" in said
    assert said.endswith("It keeps most with 'a': 60% of the teacher's LEVEL_2 mAPH.")
    nothing = costs.cost_reading(table, ratios.assign(**{"share of mAPH kept": float("nan")}))
    assert nothing.endswith("there is nothing to keep.")


def test_frames_are_spread_over_the_split(smoke_run: Run) -> None:
    model = smoke_run.profile.student_model
    frames = costs.frames_for(smoke_run, model, 3)
    ids = smoke_run.store.split("validation").frame_ids()
    assert [frame.frame_ids for frame in frames] == [(ids[0],), (ids[3],), (ids[7],)]
    assert len(costs.frames_for(smoke_run, model, 99)) == len(ids)


def test_accuracy_over_cost(smoke_run: Run, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = [
        {"arm": name, "LEVEL_2 mAPH": score, "95 % low": score - 1, "95 % high": score + 1}
        for name, score in (
            ("teacher", 60.0),
            ("student alone", 40.0),
            ("initialised from the teacher", 45.0),
            ("full SparseKD", 50.0),
        )
    ]
    run = pipeline.open_run("smoke", str(tmp_path))
    pipeline.save_result(run, "03_evaluate", {"arms": arms})
    table = pd.DataFrame([{"role": "teacher", "G MACs": 4.0}, {"role": "student", "G MACs": 1.0}])
    ratios = costs.ratio_table(
        run,
        table.assign(
            **{"M acts": [2.0, 1.0], "parameters": [5, 5], "latency p50 ms": [30.0, 10.0]}
        ),
    )
    assert ratios["arm"].tolist() == list(ARMS.values())[:3]
    assert ratios.loc[0].tolist()[1:] == pytest.approx([0.667, 2.667, 1.333, 0.667, 2.0])
    points = costs.accuracy_points(run, table)
    assert [(p.name, p.cost, p.score, p.low, p.high) for p in points] == [
        ("teacher", 4.0, 60.0, 59.0, 61.0),
        ("student alone", 1.0, 40.0, 39.0, 41.0),
        ("initialised from the teacher", 1.0, 45.0, 44.0, 46.0),
        ("full SparseKD", 1.0, 50.0, 49.0, 51.0),
    ]
    assert len({point.color for point in points}) == 4
    assert records.table_rows(table)[0] == {"role": "teacher", "G MACs": 4.0}
    own = {**arms[1], "arm": "full SparseKD and own terms", "LEVEL_2 mAPH": 45.0}
    pipeline.save_result(run, "03_evaluate", {"arms": [*arms, own]})
    assert "full SparseKD and own terms" in [one.name for one in costs.accuracy_points(run, table)]
