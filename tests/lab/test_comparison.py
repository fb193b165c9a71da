"""Scores of several arms in, verdicts out: equal arms gain nothing, better ones do; predictions are made once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from kdlib import records
from kdlib.data.store import ground_truth_table
from kdlib.errors import ConfigError, DataError
from kdlib.lab import comparison, pipeline
from kdlib.lab.comparison import Scores, compare
from kdlib.lab.pipeline import Run
from kdlib.metric.box_tables import predictions_table, read_table
from kdlib.metric.waymo_metrics import EvalResult, evaluate_tables
from kdlib.models.build import build
from kdlib.models.weights import save_weights

FRAMES = [f"segment{s}_{f:03d}" for s in range(4) for f in range(3)]
TYPES = (1, 2, 4)
EACH = 6  # objects of a class in a frame


def objects() -> tuple[list[str], np.ndarray, np.ndarray]:
    ids, boxes, types = [], [], []
    for frame in FRAMES:
        for row, kind in enumerate(TYPES):
            for column in range(EACH):
                ids.append(frame)
                boxes.append([6.0 * column + 1, 6.0 * row, 1.0, 4.0, 2.0, 1.5, 0.3])
                types.append(kind)
    return ids, np.array(boxes), np.array(types)


def truth_table() -> pa.Table:
    ids, boxes, types = objects()
    columns = dict(zip(("x", "y", "z", "length", "width", "height", "heading"), boxes.T))
    extra = {"difficulty": np.zeros(len(ids), np.int64), "num_points": np.full(len(ids), 50)}
    return pa.table({"frame_id": ids, **columns, "type": types, **extra, "speed_x": boxes[:, 0], "speed_y": boxes[:, 0]})


def scored(found: int) -> EvalResult:
    """A detector that finds the first ``found`` of every six objects."""
    ids, boxes, types = objects()
    kept = np.arange(len(ids)) % EACH < found
    names = np.array(ids)[kept].tolist()
    table = predictions_table(names, boxes[kept], types[kept], np.full(kept.sum(), 0.9), None, FRAMES)
    return evaluate_tables(table, truth_table())


@pytest.fixture(scope="module")
def results() -> dict[int, EvalResult]:
    return {found: scored(found) for found in (0, 2, 3, 4, 6)}


def outcome(results: dict[int, EvalResult], teacher: int, **arms: tuple[int, ...]) -> comparison.Outcome:
    students = {arm: {seed: results[found] for seed, found in enumerate(each, 1)} for arm, each in arms.items()}
    return compare(Scores(results[teacher], students), resamples=200)


def test_equal_arms_gain_nothing(results: dict[int, EvalResult]) -> None:
    found = outcome(results, 3, alone=(3, 3), init=(3, 3), full=(3, 3))
    assert [v["met"] for v in found.verdicts()] == [False, False, False]
    assert all("+0.00 points, 95 % interval +0.00 to +0.00" in v["result"] for v in found.verdicts())
    table = found.difference_table()
    assert len(table) == 6 and not table["a gain"].any()
    assert (table["LEVEL_2 mAPH"] == 0).all()


def test_better_arms_gain(results: dict[int, EvalResult]) -> None:
    found = outcome(results, 6, alone=(2, 3), init=(3, 4), full=(4, 6))
    assert [v["met"] for v in found.verdicts()] == [True, True, True]
    table = found.table().set_index("arm")
    assert list(table.index) == ["teacher", "student alone", "initialised from the teacher", "full SparseKD"]
    assert table.loc["teacher", "LEVEL_2 mAPH"] == pytest.approx(100, abs=0.1)
    assert table.loc["student alone", "LEVEL_2 mAPH"] == pytest.approx(100 * (2 + 3) / 12, abs=1)
    assert table.loc["student alone", "std over seeds"] == pytest.approx(100 / 6 / math.sqrt(2), abs=1)
    assert table.loc["teacher", "seeds"] == 1 and math.isnan(table.loc["teacher", "std over seeds"])
    assert table.loc["full SparseKD", "seeds"] == 2
    gains = found.difference_table().set_index("difference")
    assert gains.index[0] == "teacher − student alone"
    assert gains.loc["full SparseKD − student alone", "LEVEL_2 mAPH"] == pytest.approx(100 * 5 / 12, abs=1)
    assert bool(gains.loc["full SparseKD − student alone", "a gain"])


def test_a_worse_full_recipe_is_said_plainly(results: dict[int, EvalResult]) -> None:
    verdicts = outcome(results, 6, alone=(3, 3), init=(4, 4), full=(2, 2)).verdicts()
    assert [v["met"] for v in verdicts] == [True, False, False]
    assert verdicts[1]["wish"] == "full SparseKD at least 2 above student alone"
    assert verdicts[1]["result"].startswith("-16.")


def test_a_gain_needs_its_interval(results: dict[int, EvalResult]) -> None:
    """The full arm is better on average and worse with one of its seeds: margin met, interval not."""
    verdicts = outcome(results, 6, alone=(2, 2), init=(4, 2), full=(2, 6)).verdicts()
    assert "full SparseKD at least 0.5 above initialised" in verdicts[2]["wish"]
    assert float(verdicts[2]["result"].split()[0]) > 0.5 and verdicts[2]["met"] is False


def test_verdicts_of_missing_arms_are_left_out(results: dict[int, EvalResult]) -> None:
    assert len(outcome(results, 6, alone=(2,), full=(4,)).verdicts()) == 2
    assert outcome(results, 6, full=(4,)).verdicts() == []


def test_outcome_is_json(results: dict[int, EvalResult]) -> None:
    found = outcome(results, 6, alone=(2, 3), init=(3, 4), full=(4, 6))
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["metric"] == "LEVEL_2/mAPH"
    assert values["arms"][0]["std over seeds"] is None
    assert set(values["metrics"]) == {"teacher", "alone", "init", "full"} and set(values["metrics"]["full"]) == {"1", "2"}
    assert values["evaluation"]["frames"] == len(FRAMES)
    assert values["comparison"]["resamples"] == 200 and values["comparison"]["units"] == 4


def test_charts_get_what_they_need(results: dict[int, EvalResult]) -> None:
    found = outcome(results, 6, alone=(2, 3), full=(4, 6))
    estimates = found.estimates()
    assert [e.name for e in estimates] == ["teacher", "student alone", "full SparseKD"]
    assert all(e.low - 0.01 <= e.mean <= e.high + 0.01 for e in estimates) and len({e.color for e in estimates}) == 3
    assert len(found.precision_recall()) == 9
    assert found.last_step() == ("alone", "full")
    change = found.change("alone", "full")
    assert change.columns[:4] == ("LEVEL_1 AP", "LEVEL_1 APH", "LEVEL_2 AP", "LEVEL_2 APH")
    assert "[50, +inf) m" not in change.columns, "nobody is there"
    assert np.nanmin(change.values[:, :4]) > 0
    np.testing.assert_allclose(found.change("full", "alone").values, -change.values)


def test_no_change_where_nothing_is_found(results: dict[int, EvalResult]) -> None:
    change = outcome(results, 0, alone=(0,), full=(0,)).change("alone", "full")
    assert len(change.columns) == 4 and not change.values.any()


def test_score_frame(results: dict[int, EvalResult]) -> None:
    table = comparison.score_frame(results[3])
    assert list(table.index) == ["Vehicle", "Pedestrian", "Cyclist", "mean"]
    assert table.loc["mean", "LEVEL_2 APH"] == pytest.approx(50, abs=1)
    assert ((table >= 0) & (table <= 100)).all(axis=None)


def test_results_of_other_frames_are_refused(results: dict[int, EvalResult], monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(results[3], card={**results[3].card, "truth_fingerprint": "else"})
    with pytest.raises(ConfigError, match="other frames or ground truth"):
        compare(Scores(results[6], {"alone": {1: other}}), resamples=10)


@pytest.fixture
def own(smoke_run: Run, tmp_path: Path) -> Run:
    """The made-up run with a folder of its own for predictions."""
    for stage in ("01_train_teacher", "02_distill_student"):
        records.write_json(tmp_path / stage / "result.json", smoke_run.result(stage))
    return replace(smoke_run, folder=tmp_path)


@pytest.fixture
def predicting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts predictions and makes them cheap."""
    calls: list[str] = []

    def pretend(model, dataset, **options):
        calls.append(model.config.name)
        sample = dataset[0]
        box = np.array([[1.0, 2, 0, 4, 2, 1.5, 0], [-20.0, 20.0, 0, 4, 2, 1.5, 0], [21.0, 0, 0, 4, 2, 1.5, 0]])
        return predictions_table([sample.frame_id] * 3, box, np.array([1, 2, 4]), np.full(3, 0.5), None, [sample.frame_id])

    monkeypatch.setattr(comparison, "predict", pretend)
    return calls


def test_predictions_are_kept_until_something_changes(own: Run, tmp_path: Path, predicting: list[str]) -> None:
    teacher = pipeline.chosen_teacher(own)
    first = comparison.predict_weights(own, "teacher", teacher.model, teacher.weights)
    assert first.column("x").to_pylist() == [1.0, -20.0], "what the student cannot see takes no part"
    assert comparison.predict_weights(own, "teacher", teacher.model, teacher.weights).equals(first)
    assert len(predicting) == 1
    copied = tmp_path / "copy.safetensors"
    copied.write_bytes(teacher.weights.read_bytes())
    comparison.predict_weights(own, "teacher", teacher.model, copied)
    assert len(predicting) == 1, "same weights elsewhere"
    torch.manual_seed(99)
    save_weights(copied, build(teacher.model), {})
    comparison.predict_weights(own, "teacher", teacher.model, copied)
    assert len(predicting) == 2, "other weights"
    profile = own.profile
    other = replace(own, profile=replace(profile, evaluation=replace(profile.evaluation, interval=2)))
    comparison.predict_weights(other, "teacher", teacher.model, copied)
    assert len(predicting) == 3, "other frames"
    decode = replace(teacher.model.head.decode, score_threshold=0.2)
    comparison.predict_weights(other, "teacher", replace(teacher.model, head=replace(teacher.model.head, decode=decode)), copied)
    assert len(predicting) == 4, "other decoding"


def test_a_missing_table_is_made_again(own: Run, predicting: list[str]) -> None:
    teacher = pipeline.chosen_teacher(own)
    for _ in range(2):
        comparison.predict_weights(own, "teacher", teacher.model, teacher.weights)
        (own.folder / "predictions" / "teacher.parquet").unlink()
    assert len(predicting) == 2


def test_half_written_weights_are_named(own: Run, tmp_path: Path) -> None:
    teacher = pipeline.chosen_teacher(own)
    half = tmp_path / "half.safetensors"
    half.write_bytes(teacher.weights.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"half\.safetensors is no complete safetensors file"):
        comparison.evaluate_weights(own, "teacher", teacher.model, half)
    assert not (own.folder / "predictions").exists()


def test_truth_lies_within_the_models_range(smoke_run: Run) -> None:
    table = comparison.truth(smoke_run)
    everything = ground_truth_table(smoke_run.store.split("validation"))
    assert 0 < table.num_rows < everything.num_rows
    assert np.abs(np.stack([table.column(axis).to_numpy() for axis in "xy"])).max() <= 20.48


def test_a_run_is_scored_as_a_whole(smoke_run: Run) -> None:
    scores = comparison.evaluate_all(smoke_run)
    assert {arm: list(seeds) for arm, seeds in scores.students.items()} == {"alone": [1], "init": [1], "full": [1]}
    assert scores.arms["teacher"] == [scores.teacher]
    assert all(0 <= value <= 1 for value in scores.teacher.metrics.values())
    predictions = comparison.run_predictions(smoke_run)
    assert list(predictions) == ["teacher", "alone", "init", "full"]
    assert list(comparison.run_predictions(smoke_run, ("full",))) == ["teacher", "full"]
    kept = smoke_run.folder / "predictions" / "teacher.parquet"
    assert read_table(kept, "predictions").num_rows >= predictions["teacher"].num_rows
    assert set(records.read_json(kept.with_suffix(".json"))) == {"key", "model"}


def test_device_is_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch built for an accelerator names one even on a machine without."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert comparison._device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert comparison._device().type == "cuda"
