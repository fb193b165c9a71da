from __future__ import annotations

import numpy as np
import pytest

from kdlib.viz import canvas, curves
from kdlib.viz.canvas import ChartError


def rows(count: int, factor: float) -> list[dict]:
    return [{"step": step, "loss": factor / (step + 1), "lr": 1e-3} for step in range(count)]


def test_training_has_a_panel_for_each_key_and_a_line_for_each_run(pixels, tmp_path) -> None:
    runs = {"alone": rows(30, 3.0), "full": [*rows(30, 2.0), {"step": 30, "validation": 1.0}], "empty": []}
    figure = curves.draw_history(runs, keys=("loss", "lr", "validation"), colors={"full": "#E69F00"}, path=tmp_path / "t.png")
    pixels(tmp_path / "t.png")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["loss", "lr", "validation"]
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["alone", "full"] and lines[1].get_color() == "#E69F00"
    np.testing.assert_allclose(lines[0].get_ydata(), [3.0 / (step + 1) for step in range(30)])


def test_free_colours_are_not_the_given_ones() -> None:
    figure = curves.draw_history({"a": rows(3, 1.0), "b": rows(3, 2.0), "c": rows(3, 3.0)}, colors={"c": "#56B4E9"})
    assert len({line.get_color() for line in figure.axes[0].get_lines()}) == 3


def test_long_curves_are_a_centred_mean_over_the_raw_line() -> None:
    figure = curves.draw_history({"a": [{"step": i, "loss": float(i % 2)} for i in range(120)]}, keys=("loss",))
    raw, smooth = figure.axes[0].get_lines()
    assert raw.get_alpha() == 0.3
    np.testing.assert_allclose(smooth.get_ydata()[:3], [0.5, 1 / 3, 2 / 3])


def test_training_names_the_keys_there_are() -> None:
    with pytest.raises(ChartError, match=r"no history row has a value for los; there are: loss, lr, step"):
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
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "teacher: 61.0"
    with pytest.raises(ChartError, match="no precision-recall curve"):
        curves.draw_precision_recall([])


def test_cost(pixels, tmp_path) -> None:
    made = [curves.CostPoint("teacher", 120.0, 62.0, 61.0, 63.0), curves.CostPoint("student", 30.0, 50.0)]
    figure = curves.draw_accuracy_cost(made, cost_label="ms", title="cost", path=tmp_path / "c.png")
    pixels(tmp_path / "c.png")
    assert {"teacher", "student"} <= {text.get_text() for text in figure.axes[0].texts}


def test_cost_bad_input() -> None:
    with pytest.raises(ChartError, match="no model"):
        curves.draw_accuracy_cost([], cost_label="ms")


def test_figures_show_themselves_and_leave_settings_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = curves.draw_history({"a": rows(3, 1.0)})
    assert dict(matplotlib.rcParams) == before
    assert figure._repr_png_().startswith(b"\x89PNG") and canvas.to_pixels(figure).shape[2] == 4
