"""The four notebooks of the study, once, headless, from another folder: everything real but
tiny.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdlib import records
from kdlib.lab.profile import ABLATIONS

OWN = f"{Path(__file__).parents[2]}/kd/own_term.py:HEADING"


@pytest.fixture(scope="module")
def chain(headless: Any) -> Any:
    """``python -m kdlib run study_smoke``."""
    return headless("study_smoke", "a study", REPEATS=2, TERMS=OWN)


def marked(test: Any) -> Any:
    """The first of these tests pays for the chain: minutes on a busy machine."""
    return pytest.mark.long(pytest.mark.timeout(1800)(test))


@marked
def test_every_notebook_hands_over_what_the_report_needs(chain: Any) -> None:
    for stage in ABLATIONS:
        values = records.read_json(chain.folder / stage / "result.json")
        assert (values["profile"], values["simulated"], values["seeds"]) == (
            "study_smoke",
            True,
            [1],
        )
        assert all(0 <= row["LEVEL_2 mAPH"] <= 100 for row in values["scores"])
        assert {row["name"] for row in values["terms"]} >= {"heatmap", "box"}
        for part in values["parts"]:
            for text in part["sentences"]:
                assert (
                    text.startswith("On simulated data, at this budget, ") and text in chain.printed
                )
            for one in part["pictures"]:
                with Image.open(chain.folder / stage / one["file"]) as image:
                    grey = np.asarray(image.convert("L"), float)
                assert min(grey.shape) >= 150 and grey.std() > 5, f"{stage}/{one['file']} is blank"
    assert "CPR, G MACs" in values["parts"][-1]["tables"][1]["rows"][0]
    assert set(records.read_json(chain.folder / "result.json")) == {"profile", *ABLATIONS}


@marked
def test_terms_of_ones_own_are_one_signal(chain: Any) -> None:
    values = chain.result("11_ablate_signals")
    (term,) = [row for row in values["terms"] if row["name"] == "kd_heading"]
    assert term["arm"] == "own terms" and term["value"] > 0
    assert "own terms" in [row["arm"] for row in values["scores"]]
    assert [text for text in values["parts"][0]["sentences"] if " own terms " in text]


@marked
def test_the_estimate_stands_before_the_first_training(chain: Any) -> None:
    estimate = chain.printed.index("study: 7 trainings to do, 0 kept from earlier; about ")
    assert estimate < chain.printed.index(": starting")


@marked
def test_shared_arms_are_trained_once(chain: Any) -> None:
    assert (
        len(list((chain.folder / "students").iterdir())) == 7 == chain.printed.count(": starting")
    )
    assert "initialisation alone, seed 1: finished earlier, kept" in chain.printed


@marked
def test_report_shows_every_picture(chain: Any) -> None:
    page = (chain.folder / "report.html").read_text()
    results = [records.read_json(chain.folder / stage / "result.json") for stage in ABLATIONS]
    assert (
        page.count("data:image/png;base64,")
        == sum(len(part["pictures"]) for r in results for part in r["parts"])
        == 13
    )
    assert "Simulated data" in page and "Startup report" in page


@marked
def test_executed_notebooks_have_no_errors_and_no_flood(chain: Any) -> None:
    for stage in ABLATIONS:
        cells = json.loads((chain.folder / f"{stage}.ipynb").read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        assert not [output for output in outputs if output["output_type"] == "error"]
        assert (
            sum(len(output["text"]) for output in outputs if output["output_type"] == "stream")
            < 100
        )


@marked
def test_a_second_call_does_no_work_twice_and_a_lost_stage_retrains_nothing(chain: Any) -> None:
    (chain.folder / ABLATIONS[3] / "result.json").unlink()
    weights = {path: path.stat().st_mtime_ns for path in chain.folder.rglob("*.safetensors")}
    tables = {path: path.stat().st_mtime_ns for path in chain.folder.rglob("*.parquet")}
    done = chain.again()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": kept from an earlier run") == 3 and ": starting" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert {path: path.stat().st_mtime_ns for path in tables} == tables, "predictions are kept, too"
