from __future__ import annotations

import math

import numpy as np
import pytest

from kdlib.viz import canvas, curves
from kdlib.viz.canvas import ChartError


def rows(count: int, factor: float) -> list[dict]:
    return [{"step": step, "loss": factor / (step + 1), "lr": 1e-3} for step in range(count)]


def test_training_has_a_panel_for_each_key_and_a_line_for_each_run(pixels, tmp_path) -> None:
    runs = {
        "alone": rows(30, 3.0),
        "full": [*rows(30, 2.0), {"step": 30, "validation": 1.0}],
        "empty": [],
    }
    figure = curves.draw_history(
        runs, keys=("loss", "lr", "validation"), colors={"full": "#E69F00"}, path=tmp_path / "t.png"
    )
    pixels(tmp_path / "t.png")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["loss", "lr", "validation"]
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["alone", "full"] and lines[
        1
    ].get_color() == "#E69F00"
    np.testing.assert_allclose(lines[0].get_ydata(), [3.0 / (step + 1) for step in range(30)])


def test_free_colours_are_not_the_given_ones() -> None:
    figure = curves.draw_history(
        {"a": rows(3, 1.0), "b": rows(3, 2.0), "c": rows(3, 3.0)}, colors={"c": "#56B4E9"}
    )
    assert len({line.get_color() for line in figure.axes[0].get_lines()}) == 3


def test_long_curves_are_a_centred_mean_over_the_raw_line() -> None:
    figure = curves.draw_history(
        {"a": [{"step": i, "loss": float(i % 2)} for i in range(120)]}, keys=("loss",)
    )
    raw, smooth = figure.axes[0].get_lines()
    assert raw.get_alpha() == 0.3
    np.testing.assert_allclose(smooth.get_ydata()[:3], [0.5, 1 / 3, 2 / 3])


def test_training_names_the_keys_there_are() -> None:
    with pytest.raises(
        ChartError, match=(r"no history row has a value for los; there are: loss, " r"lr, step")
    ):
        curves.draw_history({"a": rows(2, 1.0)}, keys=("los",))


def test_precision_recall(pixels, tmp_path) -> None:
    recall = np.linspace(0, 0.9, 20)
    made = [
        curves.PRCurve(n, c, recall, 1 - recall**2, "#0072B2", 0.61)
        for n in ("teacher", "student")
        for c in ("Vehicle", "Cyclist")
    ]
    figure = curves.draw_precision_recall(made, path=tmp_path / "pr.png")
    pixels(tmp_path / "pr.png")
    assert [len(ax.get_lines()) for ax in figure.axes] == [2, 2]
    legend = figure.axes[0].get_legend()
    assert legend.get_texts()[0].get_text() == "teacher: 61.0"
    figure.canvas.draw()
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())
    with pytest.raises(ChartError, match="no precision-recall curve"):
        curves.draw_precision_recall([])


def test_cost(pixels, tmp_path) -> None:
    made = [
        curves.CostPoint("teacher", 120.0, 62.0, 61.0, 63.0),
        curves.CostPoint("student", 30.0, 50.0),
    ]
    figure = curves.draw_accuracy_cost(made, cost_label="ms", title="cost", path=tmp_path / "c.png")
    pixels(tmp_path / "c.png")
    assert {"teacher: 62.0", "student: 50.0"} <= {t.get_text() for t in figure.axes[0].texts}


def test_names_of_models_of_one_cost_stand_apart_in_their_colours() -> None:
    colors = ("#CC79A7", "#E69F00", "#0072B2")
    made = [
        curves.CostPoint(name, 1.0, score, color=color)
        for name, score, color in zip(("alone", "full", "init"), (52.5, 53.9, 52.6), colors)
    ]
    figure = curves.draw_accuracy_cost(made, cost_label="ms")
    figure.canvas.draw()
    names = [text for text in figure.axes[0].texts if ":" in text.get_text()]
    boxes = [text.get_window_extent() for text in names]
    assert [text.get_color() for text in names] == list(colors)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert boxes[0].y0 < boxes[2].y0 < boxes[1].y0  # in the order of their scores


def test_cost_bad_input() -> None:
    with pytest.raises(ChartError, match="no model"):
        curves.draw_accuracy_cost([], cost_label="ms")


def test_figures_show_themselves_and_leave_settings_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = curves.draw_history({"a": rows(3, 1.0)})
    assert dict(matplotlib.rcParams) == before
    assert figure._repr_png_().startswith(b"\x89PNG") and canvas.to_pixels(figure).shape[2] == 4


ARMS = [
    curves.Estimate("alone", 48.0, 46.0, 50.0, (47.0, 48.0, 49.0)),
    curves.Estimate("full", 56.0, 55.0, 57.0, color="#E69F00"),
]


def test_arms_state_their_numbers(pixels, tmp_path) -> None:
    figure = curves.draw_arms(ARMS, title="arms", path=tmp_path / "a.png")
    pixels(tmp_path / "a.png")
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "alone",
        "full",
    ] and ax.yaxis_inverted()
    assert "48.00  [46.00, 50.00]" in {text.get_text() for text in ax.texts}
    np.testing.assert_allclose(ax.get_lines()[1].get_xdata(), [47, 48, 49])


def test_differences_have_a_sign_and_a_zero_line() -> None:
    difference = [curves.Estimate("full - alone", 8.0, 6.0, 10.0)]
    ax = curves.draw_arms(difference, reference=0.0).axes[0]
    assert "+8.00  [6.00, 10.00]" in {text.get_text() for text in ax.texts}
    assert any(list(line.get_xdata()) == [0.0, 0.0] for line in ax.get_lines())


def test_arms_bad_input() -> None:
    with pytest.raises(ChartError, match="no arm"):
        curves.draw_arms([])
    with pytest.raises(ChartError, match=r"'x': \[5, 4\] is no interval"):
        curves.draw_arms([curves.Estimate("x", 4.5, 5.0, 4.0)])


def test_arms_without_an_interval_are_drawn() -> None:
    """One segment has none; a mean that a resampling of few segments misses is drawn as it is."""
    alone = curves.Estimate("alone", 16.7716, math.nan, math.nan, (16.7716,))
    ax = curves.draw_arms([alone, curves.Estimate("full", 3.0, 4.0, 5.0)]).axes[0]
    assert {"16.77", "3.00  [4.00, 5.00]"} <= {text.get_text() for text in ax.texts}


def table(values) -> curves.ScoreTable:
    return curves.ScoreTable(np.array(values), ("Vehicle", "Cyclist"), ("0-30 m", "30-50 m"))


def test_names_fit_the_values() -> None:
    with pytest.raises(ChartError, match="2 row and 2 column names"):
        table(np.zeros((3, 2)))


def test_change_table_has_signs_and_zero_in_the_middle(pixels, tmp_path) -> None:
    figure = curves.draw_change_table(
        table([[0.08, -0.02], [0.0, np.nan]]), label="points", title="gain", path=tmp_path / "t.png"
    )
    pixels(tmp_path / "t.png")
    assert [text.get_text() for text in figure.axes[0].texts] == ["+8.0", "-2.0", "+0.0", "–"]
    assert figure.axes[0].images[0].get_clim() == (-8.0, 8.0)
    for value in (0.0, np.nan):
        curves.draw_change_table(table(np.full((2, 2), value)), label="points")
