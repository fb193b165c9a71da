"""Two models side by side from above: panels on one scale, maps on the ground, one legend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdlib.viz import canvas, palette
from kdlib.viz.pair import GroundMap, Panel, contact_sheet, draw_pair

EXTENT = (-20.0, -20.0, 20.0, 20.0)


def test_both_panels_show_their_boxes_on_one_scale(cloud, layers, tmp_path: Path, pixels: Any) -> None:
    panels = (Panel("teacher", tuple(layers[:2]), "2 found"), Panel("student", tuple(layers[:1])))
    figure = draw_pair(cloud, panels, extent=EXTENT, title="frame", note="score", path=tmp_path / "pair.png")
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim() == (-20, 20) and left.get_ylim() == right.get_ylim()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ground truth", "teacher"], "each look once"
    assert {"frame", "score"} <= {text.get_text() for text in figure.texts}
    pixels(tmp_path / "pair.png")


def test_a_map_lies_where_its_cells_are(cloud, layers) -> None:
    values = np.zeros((40, 40))
    values[30, 35] = 1  # metre cells: x 15 to 16, y 10 to 11
    panels = (Panel("teacher", tuple(layers[:1]), ground=GroundMap(values, "heat")), Panel("student", ()))
    figure = draw_pair(cloud[:1], panels, extent=EXTENT)
    shown = canvas.to_pixels(figure)[..., :3].astype(int)
    dark = np.array([int(palette.rgb("#4B2E83")[i] * 255) for i in range(3)])
    figure.canvas.draw()
    column, row = figure.axes[0].transData.transform((15.5, 10.5))
    assert np.abs(shown[shown.shape[0] - 1 - int(row), int(column)] - dark).max() < 8
    column, row = figure.axes[0].transData.transform((12.5, 6.5))
    assert shown[shown.shape[0] - 1 - int(row), int(column)].min() > 200


def test_contact_sheet_holds_all(cloud, layers, pixels: Any, tmp_path: Path) -> None:
    one = draw_pair(cloud, (Panel("teacher", tuple(layers)),), extent=EXTENT)
    sheet = contact_sheet([one, one, one], tmp_path / "sheet.png")
    read = pixels(tmp_path / "sheet.png")
    high, wide = (round(0.64 * side) for side in canvas.to_pixels(one).shape[:2])
    assert read.shape[:2] == pytest.approx((2 * high, 2 * wide), abs=4)
    np.testing.assert_allclose(read[:high, :wide], read[:high, wide : 2 * wide], atol=3)
    assert sheet.get_figwidth() * canvas.DPI == pytest.approx(2 * wide, abs=4)
