"""Scores in; differences with the sign of what was made up, sentences that agree with tables,
pictures that show something.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdlib.lab import costs
from kdlib.lab.comparison import contrasts_among
from kdlib.lab.profile import ABLATIONS
from kdlib.lab.study import compression
from kdlib.lab.study.answers import ChapterComparison
from kdlib.lab.study.arms import ARM_LINES, QUESTIONS
from kdlib.lab.study.pictures import ScheduleLine, draw_schedule
from kdlib.viz import curves
from kdlib.viz.canvas import ChartError

Made = Callable[[str], ChapterComparison]


def test_differences_have_the_sign_of_what_was_made_up(scores_of: Made) -> None:
    answer = scores_of("11_ablate_signals").answer("signals")
    found = {one.first: gain for one, gain in zip(answer.contrasts, answer.gains)}
    assert found["full"].low > 0 > found["labels"].high
    assert found["full"].mean == pytest.approx(np.mean(found["full"].seeds))
    table = answer.table().set_index("difference from initialisation alone")
    assert (
        table.loc["full SparseKD", "shown"] == "above"
        and table.loc["labels from the teacher", "shown"] == "below"
    )
    assert table.loc["KD under Gaussians", "shown"] == "no difference"


@pytest.mark.parametrize("notebook", ABLATIONS)
def test_sentences_agree_with_their_table(scores_of: Made, notebook: str) -> None:
    scores = scores_of(notebook)
    for question in QUESTIONS[notebook]:
        answer = scores.answer(question.name)
        table, sentences = answer.table(), answer.sentences()
        contrasts = contrasts_among(question.contrasts, scores.results)
        assert len(table) == len(sentences) == len(contrasts)
        for shown, low, high, text in zip(
            table["shown"], table["95 % low"], table["95 % high"], sentences
        ):
            assert ("includes 0" in text) == (low <= 0 <= high) == (shown == "no difference")
            assert text.startswith("On simulated data, at this budget, ")
            assert f"{low:+.2f} to {high:+.2f}" in text.replace("-0.00", "+0.00")


def test_rows_are_named_by_what_differs(scores_of: Made) -> None:
    scores = scores_of("12_ablate_initialisation")
    assert scores.answer("channels").base == "narrow student (fresh weights)"
    start = scores.answer("start")
    assert start.base == "its own base" and start.labels()[0] == (
        "initialisation alone − fresh weights"
    )


def test_scores_of_teachers_and_arms(scores_of: Made) -> None:
    table = scores_of("11_ablate_signals").table().set_index("arm")
    assert list(table.index[:2]) == ["strong teacher", "weak teacher"]
    assert table.loc["strong teacher", "LEVEL_2 mAPH"] > table.loc["full SparseKD", "LEVEL_2 mAPH"]
    assert (
        np.isnan(table.loc["weak teacher", "95 % low"]) and table.loc["full SparseKD", "seeds"] == 3
    )


def test_breakdown_and_classes(scores_of: Made) -> None:
    scores = scores_of("11_ablate_signals")
    change = scores.breakdown("full", "base")
    assert change.rows[:2] == ("Vehicle LEVEL_1", "Vehicle LEVEL_2") and change.columns == (
        "AP",
        "APH",
    )
    assert change.values[:, 0].mean() > 0
    np.testing.assert_allclose(change.values, -scores.breakdown("base", "full").values)
    classes = scores.answer("signals").classes()
    assert len(classes.rows) == 13 and len(classes.columns) == 6
    row = classes.rows.index("full SparseKD")
    np.testing.assert_allclose(classes.values[row], change.values[:, 1])


def test_lines_of_schedules(scores_of: Made) -> None:
    lines = scores_of("11_ablate_signals").lines("schedule")
    assert [line.name for line in lines] == [line.name for line in ARM_LINES["schedule"]]
    assert all(line.samples == (1200, 3000) for line in lines)
    assert all(
        low - 0.01 <= mean <= high + 0.01 for line in lines for mean, low, high in line.scores
    )
    assert len({(line.color, line.dashed) for line in lines}) == len(lines)


@pytest.mark.parametrize("notebook", ABLATIONS)
def test_pictures_show_something(scores_of: Made, notebook: str, tmp_path: Path) -> None:
    scores = scores_of(notebook)
    for question in QUESTIONS[notebook]:
        answer = scores.answer(question.name)
        answer.draw(tmp_path / f"{question.name}.png")
        curves.draw_change_table(
            answer.classes(), label="points", path=tmp_path / f"{question.name}_classes.png"
        )
        if question.name in ARM_LINES:
            draw_schedule(
                scores.lines(question.name), title="t", path=tmp_path / f"{question.name}_lines.png"
            )
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            values = np.asarray(image.convert("L"), float)
        assert min(values.shape) >= 150 and values.std() > 5, path.name


def test_lines_without_points_are_refused() -> None:
    with pytest.raises(ChartError, match="as many scores as lengths"):
        draw_schedule([ScheduleLine("a", ())])
    with pytest.raises(ChartError):
        draw_schedule([])


def test_what_is_handed_over_is_json(scores_of: Made) -> None:
    scores = scores_of("14_compress_by_width_or_resolution")
    part = scores.answer("narrow").part({"narrow.png": "Above the step before"})
    values = json.loads(json.dumps(scores.result([part], hardware={"cpu": "x"}), allow_nan=False))
    assert (
        values["seeds"] == [1, 2, 3]
        and values["frames"] == 300
        and values["hardware"] == {"cpu": "x"}
    )
    assert values["parts"][0]["text"].startswith("Of 2 comparisons, ")
    assert values["parts"][0]["pictures"] == [
        {"file": "narrow.png", "caption": ("Above the step before")}
    ]
    assert values["scores"][0]["95 % low"] is None, "teachers have no interval"
    assert values["comparison"] == {
        "unit": "segment",
        "units": 8,
        "resamples": 200,
        "basis": "95 %, paired bootstrap over 8 segments and 3 seeds",
    }


def test_costs_and_ratios(scores_of: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(trained, frames, repeats):
        share = {"cp_pillar_demo": 1.0}.get(trained.model.name, 0.25)
        numbers = {
            "G MACs": share,
            "M acts": 2 * share,
            "parameters": 100,
            "latency p50 ms": 20 * share,
            "latency p95 ms": 30 * share,
        }
        return {"model": trained.model.name, **numbers}

    monkeypatch.setattr(costs, "measure_model", measured)
    monkeypatch.setattr(costs, "frames_for", lambda run, model, count: [])
    scores = scores_of("14_compress_by_width_or_resolution")
    table = compression.shape_costs(scores, 2)
    assert list(table["role"]) == ["teacher", "cp_pillar_demo_v0.64", "cp_pillar_demo_w0.5"]
    ratios = compression.shape_ratios(scores, table).set_index("arm")
    kept = ratios["share of mAPH kept"]
    np.testing.assert_allclose(ratios["CPR, G MACs"], 4 * kept, atol=0.01)
    np.testing.assert_allclose(ratios["CPR, parameters"], kept, atol=0.01)
    points = compression.shape_points(scores, table)
    assert points[0].name == "teacher" and len(points) == 5
    assert {point.cost for point in points} == {20.0, 5.0}
    part = compression.cost_part(table, ratios.reset_index())
    assert [len(table["rows"]) for table in part["tables"]] == [3, 5]
