"""A finished study in; a page with every sentence and picture, a report, and nothing where it is
not finished.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdlib import records
from kdlib.errors import DataError
from kdlib.lab.profile import ABLATIONS
from kdlib.lab.profiles import profile
from kdlib.lab.publish import HEADINGS, publish_run, study_page
from kdlib.lab.report import write_run_report
from kdlib.lab.study.answers import ChapterComparison
from kdlib.lab.study.arms import QUESTIONS


@pytest.fixture
def finished(scores_of: Callable[[str], ChapterComparison], tmp_path: Path) -> Path:
    """The folder of a finished study with made-up scores."""
    card = records.provenance()
    for notebook in ABLATIONS:
        scores, parts = scores_of(notebook), []
        for question in QUESTIONS[notebook]:
            answer = scores.answer(question.name)
            (tmp_path / notebook).mkdir(exist_ok=True)
            answer.draw(tmp_path / notebook / f"{question.name}.png")
            parts.append(answer.part({f"{question.name}.png": question.title}))
        values = {"profile": "study", "simulated": True, **scores.result(parts), "card": card}
        records.write_json(tmp_path / notebook / "result.json", values)
    return tmp_path


def test_page(finished: Path, tmp_path: Path) -> None:
    write_run_report(finished, profile("study"))
    results = records.read_json(finished / "result.json")
    page = study_page(results)
    assert page.startswith("# The study: what helps a small student\n") and page.endswith("|\n")
    assert (
        "**simulated**" in page
        and ("Seeds 1, 2, 3; 300 training frames; 24 validation frames of other segments") in page
    )
    for notebook in ABLATIONS:
        assert f"## {HEADINGS[notebook]}\n" in page
        for part in results[notebook]["parts"]:
            assert all(f"- {sentence}\n" in page for sentence in part["sentences"])
            assert f"](study/{notebook[:2]}_{part['pictures'][0]['file']})" in page


def test_publish_writes_page_pictures_and_numbers(finished: Path, tmp_path: Path) -> None:
    write_run_report(finished, profile("study"))
    project = tmp_path / "project"
    page = publish_run(finished, project)
    assert page == project / "reports" / "study.md"
    numbers = records.read_json(project / "reports" / "study" / "study.json")
    assert page.read_text() == study_page(numbers)
    pictures = {path.name for path in (project / "reports" / "study").glob("*.png")}
    assert pictures == {
        f"{notebook[:2]}_{q.name}.png" for notebook, asked in QUESTIONS.items() for q in asked
    }


def test_an_unfinished_study_is_not_published(finished: Path, tmp_path: Path) -> None:
    write_run_report(finished, profile("study"))
    (finished / ABLATIONS[2] / "result.json").unlink()
    for attempt in (
        lambda: publish_run(finished, tmp_path / "p"),
        lambda: write_run_report(finished, profile("study")),
    ):
        with pytest.raises(DataError, match=ABLATIONS[2]):
            attempt()
    assert not (tmp_path / "p").exists()


def test_report(finished: Path) -> None:
    page = write_run_report(finished, profile("study")).read_text()
    assert "Simulated data" in page and "What helps a small student" in page
    assert page.count("data:image/png;base64,") == sum(map(len, QUESTIONS.values()))
    assert "On simulated data, at this budget, " in page and "Startup report" in page
    assert "95 %, paired bootstrap over 8 segments and 3 seeds" in page
