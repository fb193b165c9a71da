"""Predictions are made once, until anything changes; a run is scored as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdlib import records
from kdlib.data.store import ground_truth_table
from kdlib.errors import DataError
from kdlib.lab import pipeline, scoring
from kdlib.lab.comparison import compare_run
from kdlib.lab.pipeline import Run
from kdlib.metric.box_tables import predictions_table, read_table
from kdlib.models.build import build
from kdlib.models.weights import save_weights


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
        box = np.array(
            [[1.0, 2, 0, 4, 2, 1.5, 0], [-20.0, 20.0, 0, 4, 2, 1.5, 0], [21.0, 0, 0, 4, 2, 1.5, 0]]
        )
        return predictions_table(
            [sample.frame_id] * 3,
            box,
            np.array([1, 2, 4]),
            np.full(3, 0.5),
            None,
            [sample.frame_id],
        )

    monkeypatch.setattr(scoring, "predict", pretend)
    return calls


def test_predictions_are_kept_until_something_changes(
    own: Run, tmp_path: Path, predicting: list[str]
) -> None:
    teacher = pipeline.chosen_teacher(own)
    first = scoring.predict_weights(own, "teacher", teacher)
    assert first.column("x").to_pylist() == [1.0, -20.0], (
        "what the student cannot see takes no part"
    )
    assert scoring.predict_weights(own, "teacher", teacher).equals(first)
    assert len(predicting) == 1
    copied = tmp_path / "copy.safetensors"
    copied.write_bytes(teacher.weights.read_bytes())
    scoring.predict_weights(own, "teacher", replace(teacher, weights=copied))
    assert len(predicting) == 1, "same weights elsewhere"
    torch.manual_seed(99)
    save_weights(copied, build(teacher.model), {})
    scoring.predict_weights(own, "teacher", replace(teacher, weights=copied))
    assert len(predicting) == 2, "other weights"
    profile = own.profile
    other = replace(
        own, profile=replace(profile, evaluation=replace(profile.evaluation, interval=2))
    )
    scoring.predict_weights(other, "teacher", replace(teacher, weights=copied))
    assert len(predicting) == 3, "other frames"
    decode = replace(teacher.model.head.decode, score_threshold=0.2)
    model = replace(teacher.model, head=replace(teacher.model.head, decode=decode))
    scoring.predict_weights(other, "teacher", replace(teacher, model=model, weights=copied))
    assert len(predicting) == 4, "other decoding"


def test_a_missing_table_is_made_again(own: Run, predicting: list[str]) -> None:
    teacher = pipeline.chosen_teacher(own)
    for _ in range(2):
        scoring.predict_weights(own, "teacher", teacher)
        (own.folder / "predictions" / "teacher.parquet").unlink()
    assert len(predicting) == 2


def test_half_written_weights_are_named(own: Run, tmp_path: Path) -> None:
    teacher = pipeline.chosen_teacher(own)
    half = tmp_path / "half.safetensors"
    half.write_bytes(teacher.weights.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"half\.safetensors is no complete safetensors file"):
        scoring.evaluate_weights(own, "teacher", replace(teacher, weights=half))
    assert not (own.folder / "predictions").exists()


def test_truth_lies_within_the_models_range(smoke_run: Run) -> None:
    table = scoring.truth(smoke_run)
    everything = ground_truth_table(smoke_run.store.split("validation"))
    assert 0 < table.num_rows < everything.num_rows
    assert np.abs(np.stack([table.column(axis).to_numpy() for axis in "xy"])).max() <= 20.48


def test_a_run_is_scored_as_a_whole(smoke_run: Run) -> None:
    compared = compare_run(smoke_run, resamples=10)
    assert {arm: list(seeds) for arm, seeds in compared.results.items()} == {
        "teacher": [0],
        "alone": [1],
        "init": [1],
        "full": [1],
    }
    assert all(0 <= value <= 1 for value in compared.results["teacher"][0].metrics.values())
    predictions = scoring.run_predictions(smoke_run)
    assert list(predictions) == ["teacher", "alone", "init", "full"]
    assert list(scoring.run_predictions(smoke_run, ("full",))) == ["teacher", "full"]
    kept = smoke_run.folder / "predictions" / "teacher.parquet"
    assert read_table(kept, "predictions").num_rows >= predictions["teacher"].num_rows
    assert set(records.read_json(kept.with_suffix(".json"))) == {"key", "model"}


def test_device_is_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch built for an accelerator names one even on a machine without."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert scoring._device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert scoring._device().type == "cuda"
