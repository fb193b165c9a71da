from __future__ import annotations

import json
import re

import numpy as np
import pytest

from kdlib.viz import interactive, palette
from kdlib.viz.layers import LayerError, layer


def as_json(figure) -> dict:
    return json.loads(figure.to_json())


def test_figure_keeps_proportions_and_has_a_trace_each(cloud, layers) -> None:
    figure = as_json(interactive.scene_figure(cloud, layers, title="frame"))
    assert figure["layout"]["scene"]["aspectmode"] == "data"
    assert [trace["type"] for trace in figure["data"]] == ["scatter3d"] * 4
    assert [trace["name"] for trace in figure["data"]] == ["3,800 points", "ground truth (4)", "teacher (4)", "student (2)"]
    assert figure["data"][2]["line"]["color"] == palette.role("teacher").dark
    assert all(trace["mode"] == "lines" for trace in figure["data"][1:])


def test_boxes_are_lines_with_gaps_and_hover_texts(cloud, layers) -> None:
    trace = as_json(interactive.scene_figure(cloud, layers))["data"][3]
    assert len(trace["x"]) == len(trace["text"]) == 2 * 15 * 3
    assert trace["x"][2::3] == [None] * 30 and None not in trace["x"][0::3]
    assert re.search(r"<b>Vehicle</b><br>score 0\.80<br>\d+ points<br>4\.5 x 2\.0 x 1\.6 m", trace["text"][0])


def test_point_budget_caps_and_repeats(cloud) -> None:
    first, again = (as_json(interactive.scene_figure(cloud, [], point_budget=500)) for _ in range(2))
    assert len(first["data"][0]["x"]) == 500 and first["data"][0] == again["data"][0]
    assert first["data"][0]["name"] == "500 of 3,800 points"
    with pytest.raises(LayerError, match="at least 1"):
        interactive.scene_figure(cloud, [], point_budget=0)


def test_axes_hold_everything_and_an_empty_scene_is_fine(cloud, layers) -> None:
    far = layer("truth", np.array([[90.0, 0, 1, 4, 2, 2, 0]]), np.array([1]))
    scene = as_json(interactive.scene_figure(cloud, [far]))["layout"]["scene"]
    assert scene["xaxis"]["range"][1] > 92
    empty = as_json(interactive.scene_figure(np.zeros((0, 3)), []))
    assert empty["data"][0]["name"] == "0 points" and np.isfinite(list(empty["layout"]["scene"]["camera"]["eye"].values())).all()


def test_camera_stands_behind_the_vehicle(cloud) -> None:
    camera = as_json(interactive.scene_figure(cloud, []))["layout"]["scene"]["camera"]
    assert camera["eye"]["x"] < camera["center"]["x"] and camera["eye"]["z"] > camera["center"]["z"]


def test_names_are_escaped(cloud) -> None:
    odd = layer("truth", np.array([[5.0, 0, 1, 4, 2, 2, 0]]), np.array([1]), name="<img src=x>")
    figure = as_json(interactive.scene_figure(cloud, [odd], title="<b>x"))
    assert figure["data"][1]["name"].startswith("&lt;img") and figure["layout"]["title"]["text"] == "&lt;b&gt;x"


def test_saved_page_needs_no_network(cloud, layers, tmp_path) -> None:
    figure = interactive.scene_figure(cloud, layers, point_budget=300)
    path = interactive.save_html({"one & two": figure, "second": figure}, tmp_path / "deep" / "scene.html")
    page = path.read_text()
    assert page.count("<script>/**") == 1, "plotly.js belongs into the page once"
    assert page.count("Plotly.newPlot(") >= 2 and "one &amp; two" in page
    head = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", head)
    assert not re.search(r"<script[^>]+src", page) and "default-src 'none'" in page


def test_one_figure_or_a_list_is_fine_too(tmp_path) -> None:
    figure = interactive.scene_figure(np.zeros((1, 3)), [])
    assert "<h2>" not in interactive.save_html(figure, tmp_path / "a.html").read_text()
    assert "<h2>scene 2</h2>" in interactive.save_html([figure, figure], tmp_path / "b.html").read_text()
