"""One page of a run: everything escaped, the verdicts in plain words, an unfinished run refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kdlib import records
from kdlib.errors import DataError
from kdlib.lab import report
from kdlib.lab.profile import MAIN_LINE
from kdlib.lab.profiles import profile

EVIL = "<script>alert('x')</script>"
ROW = {
    "arm": "teacher",
    "LEVEL_2 mAPH": 61.5,
    "std over seeds": None,
    "95 % low": 60.0,
    "95 % high": 63.0,
    "seeds": 1,
}


def stage_results(simulated: bool = True, met: bool = False) -> dict[str, dict[str, Any]]:
    card = {
        "versions": {"torch": "2.x"},
        "commit": "abc",
        "hardware": {"cpu": EVIL, "gpus": []},
        "command": EVIL,
    }
    verdict = {
        "wish": "full SparseKD at least 2 above student alone",
        "result": "+0.10 points",
        "met": met,
    }
    arms = [ROW, {**ROW, "arm": "full SparseKD", "LEVEL_2 mAPH": 42.25, "std over seeds": 0.5}]
    told: dict[str, dict[str, Any]] = {stage: {} for stage in MAIN_LINE}
    told["00_explore_data"] = {"fingerprint": "0123"}
    told["03_evaluate"] = {
        "arms": arms,
        "verdicts": [verdict],
        "comparison": {"unit": "segment", "units": 8},
        "evaluation": {"frames": 50, "truth_fingerprint": "feed"},
    }
    facts = {"profile": "smoke", "simulated": simulated, "card": card}
    table = {"caption": "Scores", "rows": [{"class": EVIL, "LEVEL_2 APH": 12.0}]}
    part = {"text": f"Told in {EVIL}.", "sentences": [], "tables": [table], "pictures": []}
    return {
        stage: {**facts, **values, "parts": [{"title": f"Of {stage}", **part}]}
        for stage, values in told.items()
    }


def write(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    for stage, values in results.items():
        records.write_json(folder / stage / "result.json", values)


def test_page(tmp_path: Path) -> None:
    write(tmp_path, stage_results())
    path = report.write_run_report(tmp_path, profile("smoke"))
    page = path.read_text()
    assert path == tmp_path / "report.html"
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "Simulated data" in page
    assert (
        "✗ not met" in page
        and "full SparseKD at least 2 above student alone" in page
        and "+0.10 points" in page
    )
    assert "61.5" in page and "42.2" in page
    assert all(f"<h2>{stage[:2]} · Of {stage}</h2>" in page for stage in MAIN_LINE)
    assert (
        "LEVEL_2 mAPH on 50 frames" in page
        and "over 8 segments and seeds" in page
        and "<dd>0123</dd>" in page
    )
    assert not re.search(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=[\"']?(?:https?:)?//", page)


def test_verdicts_and_banner_follow_the_results(tmp_path: Path) -> None:
    write(tmp_path, stage_results(simulated=False, met=True))
    page = report.write_run_report(tmp_path, profile("waymo20")).read_text()
    assert "✓ met" in page and "✗ not met" not in page
    assert "Simulated data" not in page and "Waymo Open Dataset" in page


def test_result_json_holds_all_stages(tmp_path: Path) -> None:
    results = stage_results()
    write(tmp_path, results)
    report.write_run_report(tmp_path, profile("smoke"))
    values = records.read_json(tmp_path / "result.json")
    assert values == {"profile": "smoke", **results}


@pytest.mark.parametrize("broken", ["missing", "half"])
def test_an_unfinished_run_has_no_report(tmp_path: Path, broken: str) -> None:
    write(tmp_path, stage_results())
    report.write_run_report(tmp_path, profile("smoke"))
    before = (tmp_path / "report.html").read_bytes()
    path = tmp_path / "03_evaluate" / "result.json"
    path.unlink() if broken == "missing" else path.write_text('{"arms": [')
    with pytest.raises(DataError, match=r"03_evaluate/result\.json"):
        report.write_run_report(tmp_path, profile("smoke"))
    assert (tmp_path / "report.html").read_bytes() == before
