"""The four notebooks of the study, once, headless, from another folder: everything real but tiny."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdlib import jsonfile
from kdlib.profiles import ABLATIONS


@dataclass(frozen=True)
class Chain:
    """The smoke run."""

    folder: Path
    command: tuple[str, ...]
    printed: str

    def again(self) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(self.command, cwd=self.folder.parent, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def chain(smoke_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """``python -m kdlib run study_smoke`` from a folder that has nothing to do with the project."""
    root = tmp_path_factory.mktemp("study")
    values = {"DATA_ROOT": smoke_data, "REPEATS": 2, "RESAMPLES": 50}
    parameters = [word for name, value in values.items() for word in ("-p", f"{name}={value}")]
    command = (sys.executable, "-m", "kdlib", "run", "study_smoke", "--out", "a study", *parameters)
    done = Chain(root / "a study", command, "").again()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Chain(root / "a study", command, done.stdout)


def marked(test: Any) -> Any:
    """The first of these tests pays for the chain: minutes on a busy machine."""
    return pytest.mark.notebooks(pytest.mark.timeout(1800)(test))


@marked
def test_every_notebook_hands_over_what_the_report_needs(chain: Chain) -> None:
    for stage in ABLATIONS:
        values = jsonfile.read(chain.folder / stage / "result.json")
        assert (values["profile"], values["simulated"], values["seeds"]) == ("study_smoke", True, [1])
        assert all(0 <= row["LEVEL_2 mAPH"] <= 100 for row in values["scores"])
        assert {row["name"] for row in values["terms"]} >= {"heatmap", "box"}
        for part in values["parts"]:
            for text in part["sentences"]:
                assert text.startswith("On simulated data, at this budget, ") and text in chain.printed
            for one in part["pictures"]:
                with Image.open(chain.folder / stage / one["file"]) as image:
                    grey = np.asarray(image.convert("L"), float)
                assert min(grey.shape) >= 150 and grey.std() > 5, f"{stage}/{one['file']} is blank"
    assert "CPR, G MACs" in values["parts"][-1]["tables"][1]["rows"][0]
    assert set(jsonfile.read(chain.folder / "result.json")) == {"profile", *ABLATIONS}


@marked
def test_the_estimate_stands_before_the_first_training(chain: Chain) -> None:
    estimate = chain.printed.index("study: 6 trainings to do, 0 kept from earlier; about ")
    assert estimate < chain.printed.index(": starting")


@marked
def test_shared_arms_are_trained_once(chain: Chain) -> None:
    assert len(list((chain.folder / "students").iterdir())) == 6 == chain.printed.count(": starting")
    assert "base, seed 1: finished earlier, kept" in chain.printed


@marked
def test_report_shows_every_picture(chain: Chain) -> None:
    page = (chain.folder / "report.html").read_text()
    results = [jsonfile.read(chain.folder / stage / "result.json") for stage in ABLATIONS]
    assert page.count("data:image/png;base64,") == sum(len(part["pictures"]) for r in results for part in r["parts"]) == 13
    assert "Simulated data" in page and "Startup report" in page


@marked
def test_executed_notebooks_have_no_errors_and_no_flood(chain: Chain) -> None:
    for stage in ABLATIONS:
        cells = json.loads((chain.folder / f"{stage}.ipynb").read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        assert not [output for output in outputs if output["output_type"] == "error"]
        assert sum(len(output["text"]) for output in outputs if output["output_type"] == "stream") < 100


@marked
def test_a_second_call_does_no_work_twice_and_a_lost_stage_retrains_nothing(chain: Chain) -> None:
    (chain.folder / ABLATIONS[3] / "result.json").unlink()
    weights = {path: path.stat().st_mtime_ns for path in chain.folder.rglob("*.safetensors")}
    tables = {path: path.stat().st_mtime_ns for path in chain.folder.rglob("*.parquet")}
    done = chain.again()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": kept from an earlier run") == 3 and ": starting" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert {path: path.stat().st_mtime_ns for path in tables} == tables, "predictions are kept, too"
