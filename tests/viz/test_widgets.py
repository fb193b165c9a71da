from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from kdlib.viz import canvas, widgets
from kdlib.viz.bev import draw_bev
from kdlib.viz.widgets import BrowserError, View

NAMES = ("ground truth", "teacher", "student")


@pytest.fixture()
def frames(cloud, layers):
    return [(cloud, layers), (cloud[:100], layers[:1]), (cloud[:10], [])]


@pytest.fixture()
def seen():
    return []


@pytest.fixture()
def draw(seen):
    def drawn(frame, view):
        seen.append(view)
        return draw_bev(frame[0], view.apply(frame[1]), extent=(-20, -20, 20, 20))

    return drawn


@pytest.fixture()
def jupyter(monkeypatch):
    """As if a kernel were running."""
    import IPython

    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))


def test_view_applies_to_layers(layers) -> None:
    shown = View(min_score=0.75, layers=("teacher", "ground truth"), class_name="Vehicle").apply(layers)
    assert [(one.name, len(one)) for one in shown] == [("ground truth", 2), ("teacher", 2)]
    assert View().apply(layers) == []


def test_outside_jupyter_one_sentence(frames, draw, capsys) -> None:
    assert widgets.frame_browser(frames, draw, layer_names=NAMES) is None
    assert capsys.readouterr().out == "No widget outside Jupyter: the static picture shows the same.\n"


def test_without_ipywidgets_one_sentence(frames, draw, capsys, monkeypatch, jupyter) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert widgets.frame_browser(frames, draw, layer_names=NAMES) is None
    assert "ipywidgets is not installed" in capsys.readouterr().out


def test_browser_redraws_what_is_chosen(frames, draw, seen, pixels, jupyter) -> None:
    pytest.importorskip("ipywidgets")
    box = widgets.frame_browser(
        frames, draw, layer_names=NAMES, class_names=("Vehicle", "Cyclist"), names=("a", "<b>", "c"), start=View(min_score=0.25)
    )
    controls, checks, label, picture = box.children
    frame, score, kind = controls.children
    assert (frame.max, score.value, kind.options) == (2, 0.25, ("all", "Vehicle", "Cyclist"))
    assert seen[-1] == View(0, 0.25, NAMES, None)
    pixels(bytes(picture.value))
    frame.value, kind.value, checks.children[1].value, score.value = 1, "Cyclist", False, 0.5
    assert seen[-1] == View(1, 0.5, ("ground truth", "student"), "Cyclist")
    assert label.value == "&lt;b&gt;"


def test_static_twins(frames, draw, pixels, tmp_path) -> None:
    widgets.static_frame(frames, draw, tmp_path / "one.png", layer_names=NAMES)
    one = pixels(tmp_path / "one.png")
    sheet = widgets.contact_sheet(frames, draw, tmp_path / "all.png", layer_names=NAMES)
    everything = pixels(tmp_path / "all.png")
    assert everything.shape[0] == pytest.approx(2 * one.shape[0], abs=2)
    assert everything.shape[1] == pytest.approx(2 * one.shape[1], abs=2)
    np.testing.assert_allclose(everything[: one.shape[0], : one.shape[1]], one, atol=2)
    assert canvas.to_pixels(sheet).shape[:2] == everything.shape[:2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda draw: widgets.frame_browser([], draw, layer_names=()), "no frame to browse"),
        (lambda draw: widgets.frame_browser([1], draw, layer_names=(), names=("a", "b")), "1 frames but 2 names"),
        (lambda draw: widgets.static_frame([1], draw, layer_names=(), start=View(frame=3)), "there are 0 to 0"),
        (lambda draw: widgets.contact_sheet([1], draw, layer_names=(), indices=(4,)), "there are 0 to 0"),
    ],
)
def test_bad_input(draw, call, message) -> None:
    with pytest.raises(BrowserError, match=message):
        call(draw)
