from __future__ import annotations

import numpy as np
import pytest

from kdlib.viz import scores
from kdlib.viz.canvas import ChartError

ARMS = [
    scores.Estimate("alone", 48.0, 46.0, 50.0, (47.0, 48.0, 49.0)),
    scores.Estimate("full", 56.0, 55.0, 57.0, color="#E69F00"),
]


def test_arms_state_their_numbers(pixels, tmp_path) -> None:
    figure = scores.draw_arms(ARMS, title="arms", path=tmp_path / "a.png")
    pixels(tmp_path / "a.png")
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["alone", "full"] and ax.yaxis_inverted()
    assert "48.00  [46.00, 50.00]" in {text.get_text() for text in ax.texts}
    np.testing.assert_allclose(ax.get_lines()[1].get_xdata(), [47, 48, 49])


def test_differences_have_a_sign_and_a_zero_line() -> None:
    difference = [scores.Estimate("full - alone", 8.0, 6.0, 10.0)]
    ax = scores.draw_arms(difference, reference=0.0).axes[0]
    assert "+8.00  [6.00, 10.00]" in {text.get_text() for text in ax.texts}
    assert any(list(line.get_xdata()) == [0.0, 0.0] for line in ax.get_lines())


def test_arms_bad_input() -> None:
    with pytest.raises(ChartError, match="no arm"):
        scores.draw_arms([])
    with pytest.raises(ChartError, match="'x': mean 3 lies outside its interval"):
        scores.draw_arms([scores.Estimate("x", 3.0, 4.0, 5.0)])


def table(values) -> scores.ScoreTable:
    return scores.ScoreTable(np.array(values), ("Vehicle", "Cyclist"), ("0-30 m", "30-50 m"))


def test_names_fit_the_values() -> None:
    with pytest.raises(ChartError, match="2 row and 2 column names"):
        table(np.zeros((3, 2)))


def test_change_table_has_signs_and_zero_in_the_middle(pixels, tmp_path) -> None:
    figure = scores.draw_change_table(
        table([[0.08, -0.02], [0.0, np.nan]]), label="points", title="gain", path=tmp_path / "t.png"
    )
    pixels(tmp_path / "t.png")
    assert [text.get_text() for text in figure.axes[0].texts] == ["+8.0", "-2.0", "+0.0", "–"]
    assert figure.axes[0].images[0].get_clim() == (-8.0, 8.0)
    for value in (0.0, np.nan):
        scores.draw_change_table(table(np.full((2, 2), value)), label="points")
