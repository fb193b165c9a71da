"""The application of notebook 04: what is chosen reaches the source, what the source says reaches the reader."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from kdlib.errors import ConfigError
from kdlib.viz import widgets
from kdlib.viz.interactive import scene_figure
from kdlib.viz.pair import Panel, draw_pair
from kdlib.viz.widgets import JUMPS, LAYERS, BrowserError, View


class Street:
    """Three frames of one street, two models; remembers the views it was asked for."""

    models: ClassVar = {"teacher": "the teacher", "full_seed1": "distilled student, seed 1"}
    frame_count = 3

    def __init__(self, cloud: Any, layers: Any) -> None:
        self.cloud, self.layers, self.seen = cloud, layers, []

    def start(self) -> View:
        return View(1, "teacher", "", 0.25)

    def name(self, view: View) -> str:
        return f"<frame {view.frame}>"

    def panels(self) -> tuple[Panel, ...]:
        return tuple(Panel(title, tuple(self.layers)) for title in self.models.values())

    def draw(self, view: View) -> Any:
        if view.map == "pivotal positions":
            raise ConfigError("this recipe has no pivotal positions")
        self.seen.append(view)
        return draw_pair(self.cloud, self.panels(), extent=(-20, -20, 20, 20), title=str(view.frame))

    def scene(self, view: View) -> Any:
        return scene_figure(self.cloud, self.panels())

    def jump(self, order: str, view: View) -> tuple[int, str]:
        if order == "hurt":
            raise ConfigError("no frame where distillation hurt")
        return 2, f"{order}, 1 of 3"


@pytest.fixture()
def street(cloud, layers) -> Street:
    return Street(cloud[:200], layers)


@pytest.fixture()
def jupyter(monkeypatch) -> None:
    """As if a kernel were running."""
    import IPython

    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))


@pytest.fixture()
def shown(street: Street, jupyter, monkeypatch) -> Any:
    """The application's widgets, by name."""
    pytest.importorskip("ipywidgets")
    made = []
    original = widgets._Application.__init__

    def kept(self: Any, *args: Any) -> None:
        made.append(self)
        original(self, *args)

    monkeypatch.setattr(widgets._Application, "__init__", kept)
    assert widgets.application({"demo": lambda: street, "broken": broken}) is made[0].widget
    return made[0]


def broken() -> Any:
    raise ConfigError("this run has no students")


def test_outside_jupyter_one_sentence(street: Street, capsys) -> None:
    assert widgets.application({"demo": lambda: street}) is None
    assert capsys.readouterr().out == "No widget outside Jupyter: the static pictures show the same.\n"


def test_without_ipywidgets_one_sentence(street: Street, capsys, monkeypatch, jupyter) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert widgets.application({"demo": lambda: street}) is None
    assert "ipywidgets is not installed" in capsys.readouterr().out


def test_first_view_is_the_sources(shown: Any, street: Street, pixels) -> None:
    assert street.seen == [View(1, "teacher", "full_seed1", 0.25)], "drawn once"
    assert (shown.frame.max, shown.score.value) == (2, 0.25)
    assert shown.note.value == "<span>&lt;frame 1&gt;</span>"
    pixels(bytes(shown.picture.value))
    assert 'data-version="1"' in shown.data.value


def test_every_choice_is_drawn(shown: Any, street: Street) -> None:
    before = bytes(shown.picture.value)
    shown.frame.value, shown.kind.value, shown.iou.value = 0, "Cyclist", 0.3
    shown.left.value, shown.map.value, shown.layers["misses"].value = "full_seed1", "heatmap", False
    layers = tuple(name for name in LAYERS if name != "misses")
    assert street.seen[-1] == View(0, "full_seed1", "full_seed1", 0.25, "Cyclist", 0.3, layers, "heatmap")
    assert len(street.seen) == 7 and bytes(shown.picture.value) != before
    assert 'data-version="7"' in shown.data.value


def test_jump_moves_the_slider_and_says_why(shown: Any, street: Street) -> None:
    shown.jumps["hardest"].click()
    assert shown.frame.value == street.seen[-1].frame == 2 and len(street.seen) == 2, "one picture for one jump"
    assert shown.note.value.endswith("hardest, 1 of 3</span>")
    assert set(shown.jumps) == set(JUMPS)


def test_errors_are_said_and_the_picture_stays(shown: Any, street: Street) -> None:
    before = bytes(shown.picture.value)
    shown.jumps["hurt"].click()
    assert "no frame where distillation hurt" in shown.note.value
    shown.map.value = "pivotal positions"
    assert "this recipe has no pivotal positions" in shown.note.value and "color" in shown.note.value
    shown.run.value = "broken"
    assert "this run has no students" in shown.note.value
    assert bytes(shown.picture.value) == before


def test_no_run(jupyter) -> None:
    with pytest.raises(BrowserError, match="no run"):
        widgets.application({})


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (View(frame=3), "frame 3 asked for, there are 0 to 2"),
        (View(left="nobody"), "'nobody' is none of: teacher, full_seed1"),
        (View(map="gold"), "'gold' is none of: none, heatmap"),
        (View(layers=("walls",)), "'walls' is none of: ground truth"),
    ],
)
def test_bad_views(view: View, message: str) -> None:
    with pytest.raises(BrowserError, match=message):
        widgets.checked(view, tuple(Street.models), 3)


def test_right_model_is_the_last_unless_named() -> None:
    assert widgets.checked(View(), ("teacher", "alone", "full"), 1).right == "full"
