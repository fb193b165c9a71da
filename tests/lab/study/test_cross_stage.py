"""Notebook 07 once, headless, from another folder; then what it refuses and what it keeps."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdlib import zoo
from kdlib.config import TwoStageConfig
from kdlib.errors import ConfigError, DataError
from kdlib.lab import pipeline, profiles
from kdlib.lab.publish import publish_run
from kdlib.lab.study import cross_stage
from kdlib.models.weights import read_card

STAGE = "07_cross_stage"


@pytest.fixture(scope="module")
def finished(headless: Any) -> Any:
    """``python -m kdlib run smoke_cross_stage``."""
    own = Path(__file__).parents[2] / "kd" / "own_term.py"
    return headless("smoke_cross_stage", "across", TERMS=f"{own}:HEADING")


def marked(test: Any) -> Any:
    """The first of these tests pays for the run."""
    return pytest.mark.long(pytest.mark.timeout(900)(test))


@marked
def test_what_is_handed_over(finished: Any) -> None:
    values = finished.result(STAGE)
    assert (values["profile"], values["simulated"], values["seeds"]) == (
        "smoke_cross_stage",
        True,
        [1],
    )
    assert [row["arm"] for row in values["scores"]][:2] == [
        "first stage alone",
        "two-stage teacher",
    ]
    assert all(0 <= row["LEVEL_2 mAPH"] <= 100 for row in values["scores"])
    by_arm: dict[str, set[str]] = {}
    for term in values["terms"]:
        by_arm.setdefault(term["arm"], set()).add(term["name"])
    assert by_arm["two-stage teacher"] == {"point", "roi_class", "roi_box", "roi_corner"}, (
        "a frozen first stage has no loss"
    )
    assert by_arm["student alone"] == {"heatmap", "box"}
    assert by_arm["full SparseKD"] >= {"heatmap", "box", "kd_heatmap", "kd_box"}
    own = by_arm["full SparseKD and own terms"]
    assert own == by_arm["full SparseKD"] | {"kd_heading"}
    (part,) = values["parts"]
    for text in part["sentences"]:
        assert text.startswith("On simulated data, at this budget, ") and text in finished.printed
    for one in part["pictures"]:
        with Image.open(finished.folder / STAGE / one["file"]) as image:
            grey = np.asarray(image.convert("L"), float)
        assert min(grey.shape) >= 150 and grey.std() > 5, f"{one['file']} is blank"


@marked
def test_the_first_stage_is_below_and_at_the_start_of_all(finished: Any) -> None:
    from safetensors.torch import load_file

    weights = {
        name: load_file(finished.folder / name / "weights.safetensors")
        for name in ("teacher/first_stage", "teacher/seed1", "students/init_seed1")
    }
    first, both, student = weights.values()
    assert set(first) < set(both) and all(
        (both[key] == value).all() for key, value in first.items()
    ), "frozen, bit for bit"
    assert set(student) == set(first), "nothing of a second stage in a student"
    assert read_card(finished.folder / "students/full_seed1/weights.safetensors")["dataset"]


@marked
def test_report_page_and_publication(finished: Any, tmp_path: Path) -> None:
    report = (finished.folder / "report.html").read_text()
    assert "A teacher of two stages" in report and "simulated" in report.lower()
    (tmp_path / "reports").mkdir()
    page = publish_run(finished.folder, tmp_path).read_text()
    assert (
        "# The smoke cross stage: a teacher of two stages" in page
        and "| two-stage teacher |" in page
    )


@marked
def test_a_second_call_does_no_work_twice_and_a_lost_notebook_retrains_nothing(
    finished: Any,
) -> None:
    trained = {
        path: path.stat().st_mtime_ns for path in finished.folder.rglob("weights.safetensors")
    }
    assert len(trained) == 6
    done = finished.again()
    assert done.returncode == 0 and f"{STAGE}: kept from an earlier run" in done.stdout
    (finished.folder / STAGE / "result.json").unlink()
    done = finished.again()
    assert done.returncode == 0, done.stderr[-2000:]
    assert {
        path: path.stat().st_mtime_ns for path in finished.folder.rglob("weights.safetensors")
    } == trained


@marked
def test_the_notebook_has_no_errors_and_no_flood(finished: Any) -> None:
    notebook = json.loads((finished.folder / f"{STAGE}.ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    assert outputs and all(output["output_type"] != "error" for output in outputs)
    assert max(len(str(output.get("text", ""))) for output in outputs) < 20_000


def test_profiles_without_two_stages() -> None:
    with pytest.raises(
        ConfigError,
        match=(r"profile demo has no teacher of two stages; take one " r"of demo_cross_stage"),
    ):
        cross_stage.first_stage(pipeline.open_run("demo"))


def test_a_first_stage_that_is_not_there(smoke_data: Path, tmp_path: Path) -> None:
    run = pipeline.open_run("smoke_cross_stage", str(tmp_path), str(smoke_data))
    with pytest.raises(ConfigError, match=r"FIRST_STAGE=nothing\.safetensors is neither auto"):
        cross_stage.first_stage(run, "nothing.safetensors")
    assert (
        cross_stage.first_stage(replace(run, profile=profiles.profile("waymo20_cross_stage")))
        is None
    ), "both at once"


def test_a_first_stage_of_other_data_is_refused(
    smoke_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdlib.models.build import build
    from kdlib.models.weights import save_weights

    lender = tmp_path / "demo_voxel" / "teacher" / "scratch"
    lender.mkdir(parents=True)
    save_weights(
        lender / "weights.safetensors",
        build(zoo.model("cp_voxel_demo")),
        {"dataset": "0123456789abcdef"},
    )
    monkeypatch.setattr(cross_stage, "run_folder", lambda name: tmp_path / name)
    run = pipeline.open_run("demo_cross_stage", str(tmp_path / "run"), str(smoke_data))
    with pytest.raises(DataError, match="trained on dataset 0123456789abcdef"):
        cross_stage.first_stage(run)
    shutil.rmtree(tmp_path / "demo_voxel")


@pytest.mark.parametrize("name", ["cp_voxel_from_pv_rcnn_pp", "cp_voxel_demo_from_pv_rcnn_pp_demo"])
def test_the_pair_has_the_published_settings(name: str) -> None:
    """Spec 6 and 7.11: heatmap weight 15, boxes 0.2, labels above 0.6, whatever has a tensor's name
    and shape to begin with.
    """
    pair = zoo.pair(name)
    assert isinstance(pair.teacher, TwoStageConfig) and not isinstance(pair.student, TwoStageConfig)
    logit, label = pair.kd.logit, pair.kd.label
    assert logit is not None and (logit.weight, logit.regression_weight) == (15.0, 0.2)
    assert label is not None and label.thresholds == (0.6, 0.6, 0.6)
    assert pair.kd.teacher_norm == "batch" and pair.kd.feature is None
    published = profiles.profile("waymo20_cross_stage")
    assert published.cross is not None and not published.cross.above_first
    teacher = published.cross.teacher
    assert (teacher.learning_rate, teacher.weight_decay, teacher.batch_size, teacher.epochs) == (
        0.01,
        0.001,
        2,
        30,
    )
