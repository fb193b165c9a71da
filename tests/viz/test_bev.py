from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from kdlib.viz import bev, canvas, palette
from kdlib.viz.layers import LayerError, layer

EXTENT = (-20.0, -20.0, 20.0, 20.0)
EMPTY = np.zeros((0, 4), np.float32)


def has_color(image: np.ndarray, color: str, tolerance: float = 20) -> bool:
    return bool((np.abs(image - 255 * np.array(to_rgb(color))).max(axis=-1) < tolerance).any())


def test_bev_shows_every_origin_in_its_colour(cloud, layers, pixels, tmp_path) -> None:
    alone = bev.draw_bev(cloud, layers[1:], extent=EXTENT, title="street", letters=True, path=tmp_path / "bev.png")
    image = pixels(tmp_path / "bev.png")
    assert has_color(image, palette.role("teacher").color) and has_color(image, palette.role("student").color)
    assert not has_color(image, palette.role("miss").color)
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["teacher (4)", "student (2)"]


def test_bev_places_boxes_where_they_are(layers) -> None:
    figure = bev.draw_bev(EMPTY, layers[:1], extent=EXTENT)
    outlines = figure.axes[0].collections[1].get_segments()
    np.testing.assert_allclose(outlines[0].min(axis=0), (8 - 2.25, 3.5 - 1), atol=1e-9)
    assert figure.axes[0].get_aspect() in (1, 1.0, "equal")


def test_bev_of_nothing_and_by_intensity(cloud, pixels) -> None:
    pixels(canvas.to_png(bev.draw_bev(EMPTY, [], extent=EXTENT)))
    by_height = canvas.to_pixels(bev.draw_bev(cloud, [], extent=EXTENT))
    by_intensity = canvas.to_pixels(bev.draw_bev(cloud, [], extent=EXTENT, color_by="intensity"))
    assert (by_height != by_intensity).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extent": (0, 0, 0, 1)}, "min below max"),
        ({"color_by": "rainbow"}, "neither 'height' nor 'intensity'"),
        ({"points": np.zeros((4, 3)), "color_by": "intensity"}, "fourth column"),
    ],
)
def test_bev_bad_input(cloud, change, message) -> None:
    with pytest.raises(LayerError, match=message):
        bev.draw_bev(**{"points": cloud, "layers": [], "extent": EXTENT, **change})


def test_comparison_has_a_panel_each_and_one_legend(cloud, layers, pixels, tmp_path) -> None:
    panels = {"ground truth": layers[:1], "teacher": layers[:2], "student": [layers[0], layers[2]]}
    figure = bev.draw_comparison(cloud, panels, extent=EXTENT, title="frame", path=tmp_path / "cmp.png")
    pixels(tmp_path / "cmp.png")
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(panels)
    assert len(figure.legends) == 1 and len(figure.legends[0].get_texts()) == 3
    with pytest.raises(LayerError, match="at least one panel"):
        bev.draw_comparison(cloud, {}, extent=EXTENT)


def test_heatmap_row_zero_is_at_the_right_of_the_vehicle(layers, pixels, tmp_path) -> None:
    maps = np.zeros((3, 40, 40))
    maps[0, 0, 39] = 1.0  # y_min, x_max
    names = ("Vehicle", "Pedestrian", "Cyclist")
    figure = bev.draw_heatmap(maps, extent=EXTENT, class_names=names, layers=layers[:1], title="heat", path=tmp_path / "heat.png")
    pixels(tmp_path / "heat.png")
    image = figure.axes[0].images[0]
    assert image.origin == "lower" and list(image.get_extent()) == [-20, 20, -20, 20]
    assert [len(ax.collections) for ax in figure.axes[:3]] == [3, 3, 3]  # every panel outlines the boxes of its class
    assert len(figure.axes[1].collections[1].get_segments()) == 1


def test_heatmap_single_map_and_bad_input(cloud, pixels) -> None:
    plain = bev.draw_heatmap(np.eye(20) * 7, EXTENT, vmax=None)
    pixels(canvas.to_png(plain))
    dotted = bev.draw_heatmap(np.eye(20) * 7, EXTENT, vmax=None, points=cloud)
    assert (canvas.to_pixels(plain) != canvas.to_pixels(dotted)).any()
    pixels(canvas.to_png(bev.draw_heatmap(np.random.default_rng(0).random((2, 8, 8)), extent=EXTENT)))
    with pytest.raises(LayerError, match="expected"):
        bev.draw_heatmap(np.zeros(5), extent=EXTENT)
    with pytest.raises(LayerError, match="3 heat maps but 2 class names"):
        bev.draw_heatmap(np.zeros((3, 4, 4)), extent=EXTENT, class_names=("a", "b"))


def test_errors_are_dashed_and_legend_follows(layers) -> None:
    miss = layer("miss", layers[0].boxes[:1], layers[0].labels[:1])
    handles = bev.legend_handles([miss])
    assert bev.legend_handles([miss], extent=(-5, -5, 5, 5))[0].get_label() == "missed object (0)"
    assert handles[0].get_linestyle() == "--" and handles[0].get_label() == "missed object (1)"
    assert bev.legend_handles([miss], dark=True)[0].get_color() == palette.role("miss").dark


def test_pyplot_is_left_alone(cloud, layers) -> None:
    bev.draw_bev(cloud, layers, extent=EXTENT)
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_a_failed_write_leaves_the_earlier_picture(tmp_path, monkeypatch) -> None:
    path = canvas.write_bytes(tmp_path / "new" / "a.png", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        canvas.write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and [file.name for file in path.parent.iterdir()] == ["a.png"]
