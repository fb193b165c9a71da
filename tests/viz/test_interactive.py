from __future__ import annotations

import json
import re

import numpy as np
import pytest

from kdlib.viz import interactive, palette
from kdlib.viz.layers import LayerError, Panel, layer, wireframe


def as_json(figure) -> dict:
    return json.loads(figure.to_json())


def test_figure_keeps_proportions_and_has_a_trace_each(cloud, layers) -> None:
    figure = as_json(interactive.scene_figure(cloud, [Panel("", layers)], title="frame"))
    assert figure["layout"]["scene"]["aspectmode"] == "data"
    assert [trace["type"] for trace in figure["data"]] == ["scatter3d"] * 4
    assert [trace["name"] for trace in figure["data"]] == [
        "3,800 points",
        "ground truth (4)",
        "teacher (4)",
        "student (2)",
    ]
    assert figure["data"][2]["line"]["color"] == palette.role("teacher").dark
    assert all(trace["mode"] == "lines" for trace in figure["data"][1:])


def test_boxes_are_lines_with_gaps_and_hover_texts(cloud, layers) -> None:
    trace = as_json(interactive.scene_figure(cloud, [Panel("", layers)]))["data"][3]
    assert len(trace["x"]) == len(trace["text"]) == 2 * 15 * 3
    assert trace["x"][2::3] == [None] * 30 and None not in trace["x"][0::3]
    assert re.search(
        r"<b>Vehicle</b><br>score 0\.80<br>\d+ points<br>4\.5 x 2\.0 x 1\.6 m", trace["text"][0]
    )


def test_point_budget_caps_and_repeats(cloud) -> None:
    first, again = (
        as_json(interactive.scene_figure(cloud, [Panel("", ())], point_budget=500))
        for _ in range(2)
    )
    assert len(first["data"][0]["x"]) == 500 and first["data"][0] == again["data"][0]
    assert first["data"][0]["name"] == "500 of 3,800 points"
    with pytest.raises(LayerError, match="at least 1"):
        interactive.scene_figure(cloud, [Panel("", ())], point_budget=0)


def test_axes_hold_everything_and_an_empty_scene_is_fine(cloud, layers) -> None:
    far = layer("truth", np.array([[90.0, 0, 1, 4, 2, 2, 0]]), np.array([1]))
    scene = as_json(interactive.scene_figure(cloud, [Panel("", (far,))]))["layout"]["scene"]
    assert scene["xaxis"]["range"][1] > 92
    empty = as_json(interactive.scene_figure(np.zeros((0, 3)), [Panel("", ())]))
    assert (
        empty["data"][0]["name"] == "0 points"
        and np.isfinite(list(empty["layout"]["scene"]["camera"]["eye"].values())).all()
    )


def test_camera_stands_behind_the_vehicle(cloud) -> None:
    camera = as_json(interactive.scene_figure(cloud, [Panel("", ())]))["layout"]["scene"]["camera"]
    assert camera["eye"]["x"] < camera["center"]["x"] and camera["eye"]["z"] > camera["center"]["z"]


def test_dashed_layers_have_gaps_unless_they_are_many(cloud, layers) -> None:
    box, label = layers[0].boxes[:1], layers[0].labels[:1]
    many = layer("miss", np.repeat(box, 101, axis=0), np.repeat(label, 101))
    panel = Panel("", (layer("miss", box, label), layer("false_alarm", box, label), many))
    _, missed, wrong, crowd = as_json(interactive.scene_figure(cloud, [panel]))["data"]
    assert [len(trace["x"]) for trace in (missed, wrong, crowd)] == [
        15 * 3 * 3,
        15 * 5 * 3,
        101 * 15 * 3,
    ]
    corners, _ = wireframe(box)
    drawn = np.array([missed[axis] for axis in "xyz"], float).T
    assert all(np.nanmin(np.abs(drawn - corner).sum(axis=1)) < 0.03 for corner in corners[0, :8]), (
        "dashes reach the corners"
    )


def test_two_halves_share_points_camera_and_legend(cloud, layers) -> None:
    panels = (Panel("teacher", layers[:2], "4 found"), Panel("<student>", (layers[0], layers[2])))
    figure = as_json(interactive.scene_figure(cloud, panels, title="frame", point_budget=1000))
    left, right = (
        [trace for trace in figure["data"] if trace["scene"] == name]
        for name in ("scene", "scene2")
    )
    assert [trace["name"] for trace in left] == [
        "500 of 3,800 points",
        "ground truth (4)",
        "teacher (4)",
    ]
    assert [trace["showlegend"] for trace in right] == [False, False, True]
    assert all(trace["legendgroup"] == trace["name"] for trace in (*left, *right)), (
        "one click switches both"
    )
    assert left[0]["x"] == right[0]["x"] and len(left[0]["x"]) == 500
    layout = figure["layout"]
    assert [note["text"] for note in layout["annotations"]] == [
        "teacher: 4 found",
        "&lt;student&gt;",
    ]
    assert layout["scene"]["camera"] == layout["scene2"]["camera"]
    assert (layout["scene"]["domain"]["x"], layout["scene2"]["domain"]["x"]) == ([0, 0.5], [0.5, 1])
    assert all(
        set(button["args"][0]) == {"scene.camera", "scene2.camera"}
        for button in layout["updatemenus"][0]["buttons"]
    )


def test_names_cannot_leave_the_page(cloud, layers, tmp_path) -> None:
    wicked = "</script><script>alert(1)</script>"
    odd = layer("truth", layers[0].boxes, layers[0].labels, name=wicked)
    figure = interactive.scene_figure(cloud[:10], [Panel(wicked, (odd,), wicked)], title=wicked)
    page = interactive.save_html(figure, tmp_path / "pair.html", title=wicked).read_text()
    assert wicked not in page and wicked not in interactive.live_frame(wicked, "36vh")
    data = interactive.live_data(figure, "a", 1)
    assert wicked not in data and data.count("<") == 2, "one element, nothing in it is markup"


def test_saved_page_needs_no_network(cloud, layers, tmp_path) -> None:
    figure = interactive.scene_figure(cloud, [Panel("", layers)], point_budget=300)
    page = interactive.save_html(
        figure, tmp_path / "deep" / "scene.html", title="one & two"
    ).read_text()
    assert page.count("<script>/**") == 1, "plotly.js belongs into the page once"
    assert page.count("Plotly.newPlot(") >= 1 and "one &amp; two" in page
    head = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", head)
    assert not re.search(r"<script[^>]+src", page) and "default-src 'none'" in page
