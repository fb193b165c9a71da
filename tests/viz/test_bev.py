"""Pictures from above: boxes and maps where they are, panels on one scale, one legend."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from kdlib.viz import bev, canvas, palette
from kdlib.viz.layers import GroundMap, LayerError, Panel, layer

EXTENT = (-20.0, -20.0, 20.0, 20.0)
EMPTY = np.zeros((0, 4), np.float32)


def has_color(image: np.ndarray, color: str, tolerance: float = 20) -> bool:
    return bool((np.abs(image - 255 * np.array(to_rgb(color))).max(axis=-1) < tolerance).any())


def test_bev_shows_every_origin_in_its_colour(cloud, layers, pixels, tmp_path) -> None:
    panel = Panel("street", layers[1:])
    alone = bev.draw_bev(cloud, [panel], extent=EXTENT, letters=True, path=tmp_path / "bev.png")
    image = pixels(tmp_path / "bev.png")
    assert has_color(image, palette.role("teacher").color) and has_color(
        image, palette.role("student").color
    )
    assert not has_color(image, palette.role("miss").color)
    assert [text.get_text() for text in alone.legends[0].get_texts()] == [
        "teacher (4)",
        "student (2)",
    ]
    assert {"V", "P", "C"} <= {text.get_text() for text in alone.axes[0].texts}


def test_bev_places_boxes_where_they_are(layers) -> None:
    figure = bev.draw_bev(EMPTY, [Panel("", layers[:1])], extent=EXTENT)
    outlines = figure.axes[0].collections[2].get_segments()
    np.testing.assert_allclose(outlines[0].min(axis=0), (8 - 2.25, 3.5 - 1), atol=1e-9)
    assert figure.axes[0].get_aspect() in (1, 1.0, "equal")


def test_bev_of_nothing(pixels) -> None:
    empty = layer("truth", np.zeros((0, 7)), np.zeros(0, int))
    pixels(canvas.to_png(bev.draw_bev(EMPTY, [Panel("")], extent=EXTENT)))
    pixels(canvas.to_png(bev.draw_bev(EMPTY, [Panel("", (empty,))], extent=EXTENT, letters=True)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extent": (0, 0, 0, 1)}, "min below max"),
        ({"panels": []}, "at least one panel"),
        ({"points": np.zeros((4, 2))}, "expected"),
    ],
)
def test_bev_bad_input(cloud, change, message) -> None:
    with pytest.raises(LayerError, match=message):
        bev.draw_bev(**{"points": cloud, "panels": [Panel("")], "extent": EXTENT, **change})


def test_panels_share_scale_legend_and_title(cloud, layers, pixels, tmp_path) -> None:
    panels = [
        Panel("teacher", layers[:2], "2 found"),
        Panel("student", [layers[0], layers[2]]),
        Panel("none"),
    ]
    figure = bev.draw_bev(
        cloud, panels, extent=EXTENT, title="frame", note="score", path=tmp_path / "cmp.png"
    )
    pixels(tmp_path / "cmp.png")
    assert [ax.get_title(loc="left").strip() for ax in figure.axes] == [
        "teacher",
        "student",
        "none",
    ]
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes}) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "ground truth (4)",
        "teacher (4)",
        "student (2)",
    ]
    assert {"frame", "score"} <= {text.get_text() for text in figure.texts}
    assert [ax.get_ylabel() != "" for ax in figure.axes] == [True, False, False]


def test_a_map_lies_where_its_cells_are(cloud, layers) -> None:
    values = np.zeros((40, 40))
    values[30, 35] = 1  # metre cells: x 15 to 16, y 10 to 11
    panels = (Panel("teacher", layers[:1], ground=GroundMap(values, "heat")), Panel("student"))
    figure = bev.draw_bev(cloud[:1], panels, extent=EXTENT)
    shown = canvas.to_pixels(figure)[..., :3].astype(int)
    dark = np.array([int(palette.rgb("#4B2E83")[i] * 255) for i in range(3)])
    figure.canvas.draw()
    column, row = figure.axes[0].transData.transform((15.5, 10.5))
    assert np.abs(shown[shown.shape[0] - 1 - int(row), int(column)] - dark).max() < 8
    column, row = figure.axes[0].transData.transform((12.5, 6.5))
    assert shown[shown.shape[0] - 1 - int(row), int(column)].min() > 200
    assert "heat, none to most" in {text.get_text() for text in figure.texts}


def test_contact_sheet_holds_all(cloud, layers, pixels, tmp_path) -> None:
    one = bev.draw_bev(cloud, [Panel("teacher", layers)], extent=EXTENT)
    sheet = bev.contact_sheet([one, one, one], tmp_path / "sheet.png")
    read = pixels(tmp_path / "sheet.png")
    high, wide = (round(0.64 * side) for side in canvas.to_pixels(one).shape[:2])
    assert read.shape[:2] == pytest.approx((2 * high, 2 * wide), abs=4)
    np.testing.assert_allclose(read[:high, :wide], read[:high, wide : 2 * wide], atol=3)
    assert sheet.size == read.shape[1::-1]


def test_errors_are_dashed(layers) -> None:
    miss = layer("miss", layers[0].boxes[:1], layers[0].labels[:1])
    (handle,) = bev.legend_handles([Panel("", (miss,))])
    assert handle.get_linestyle() == "--" and handle.get_label() == "missed object (1)"


def test_pyplot_is_left_alone(cloud, layers) -> None:
    bev.draw_bev(cloud, [Panel("", layers)], extent=EXTENT)
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()
