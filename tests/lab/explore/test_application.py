"""The application of notebook 04: what is chosen reaches the source, what the source says reaches
the reader.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from kdlib.errors import ConfigError
from kdlib.lab.explore.application import Application, application
from kdlib.lab.explore.choice import JUMPS, LAYERS, BrowserError, Choice
from kdlib.viz.bev import draw_bev
from kdlib.viz.interactive import scene_figure
from kdlib.viz.layers import Panel, layer


class Street:
    """Three frames of one street, two models; remembers the views it was asked for."""

    models: ClassVar = {"teacher": "the teacher", "full_seed1": "distilled student, seed 1"}
    frame_count, class_names = 3, ("Vehicle", "Pedestrian", "Cyclist")

    def __init__(self, cloud: Any, layers: Any) -> None:
        self.cloud, self.layers, self.seen = cloud, layers, []

    def start(self) -> Choice:
        return Choice(1, "teacher", "full_seed1", 0.25)

    def name(self, view: Choice) -> str:
        return f"<frame {view.frame}>"

    def panels(self) -> tuple[Panel, ...]:
        return tuple(Panel(title, self.layers) for title in self.models.values())

    def draw(self, view: Choice) -> Any:
        if view.map == "pivotal positions":
            raise ConfigError("this recipe has no pivotal positions")
        self.seen.append(view)
        return draw_bev(self.cloud, self.panels(), extent=(-20, -20, 20, 20), title=str(view.frame))

    def scene(self, view: Choice) -> Any:
        return scene_figure(self.cloud, self.panels())

    def jump(self, order: str, view: Choice, onward: bool) -> tuple[int, str]:
        if order == "hurt":
            raise ConfigError("no frame where distillation hurt")
        return (0, f"{order}, 2 of 3") if onward else (2, f"{order}, 1 of 3")


@pytest.fixture()
def street() -> Street:
    box = np.array([[8.0, 3.5, 0.8, 4.5, 2.0, 1.6, 0.0]])
    boxes = [layer(role, box, np.array([1])) for role in ("truth", "teacher")]
    return Street(np.random.default_rng(3).uniform(-20, 20, (200, 3)), boxes)


@pytest.fixture()
def jupyter(monkeypatch) -> None:
    """As if a kernel were running."""
    import IPython

    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))


@pytest.fixture()
def shown(street: Street, jupyter) -> Any:
    """The application, its widgets by name."""
    pytest.importorskip("ipywidgets")
    return Application({"demo": lambda: street, "broken": broken}, None)


def broken() -> Any:
    raise ConfigError("this run has no students")


def test_outside_jupyter_one_sentence(street: Street, capsys) -> None:
    assert application({"demo": lambda: street}) is None
    assert capsys.readouterr().out == (
        "No widget outside Jupyter: the static pictures show the same.\n"
    )


def test_without_ipywidgets_one_sentence(street: Street, capsys, monkeypatch, jupyter) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert application({"demo": lambda: street}) is None
    assert "ipywidgets is not installed" in capsys.readouterr().out


def test_first_view_is_the_sources(shown: Any, street: Street) -> None:
    assert street.seen == [Choice(1, "teacher", "full_seed1", 0.25)], "drawn once"
    assert (shown.controls["frame"].max, shown.controls["min_score"].value) == (2, 0.25)
    assert shown.note.value.endswith(">&lt;frame 1&gt;</span>")
    assert bytes(shown.picture.value).startswith(b"\x89PNG")
    assert 'data-version="1"' in shown.data.value


def test_every_choice_is_drawn(shown: Any, street: Street) -> None:
    before = bytes(shown.picture.value)
    for name, value in {
        "frame": 0,
        "class_name": "Cyclist",
        "iou": 0.3,
        "left": "full_seed1",
        "map": "heatmap",
    }.items():
        shown.controls[name].value = value
    shown.layers["misses"].value = False
    layers = tuple(name for name in LAYERS if name != "misses")
    assert street.seen[-1] == Choice(
        0, "full_seed1", "full_seed1", 0.25, "Cyclist", 0.3, layers, "heatmap"
    )
    assert len(street.seen) == 7 and bytes(shown.picture.value) != before
    assert 'data-version="7"' in shown.data.value


def test_jump_moves_the_slider_and_says_why(shown: Any, street: Street) -> None:
    shown.jumps["hardest"].click()
    assert shown.controls["frame"].value == street.seen[-1].frame == 2 and len(street.seen) == 2, (
        "one picture for one jump"
    )
    assert shown.note.value.endswith("hardest, 1 of 3</span>")
    assert set(shown.jumps) == set(JUMPS)
    shown.jumps["hardest"].click()
    assert shown.note.value.endswith("hardest, 2 of 3</span>"), "on from there"
    shown.controls["class_name"].value = "Cyclist"
    shown.jumps["hardest"].click()
    assert shown.note.value.endswith("hardest, 1 of 3</span>"), "another question, the first again"


def test_errors_are_said_and_the_picture_stays(shown: Any, street: Street) -> None:
    before = bytes(shown.picture.value)
    shown.jumps["hurt"].click()
    assert "no frame where distillation hurt" in shown.note.value
    shown.controls["map"].value = "pivotal positions"
    assert (
        "this recipe has no pivotal positions" in shown.note.value and "color" in shown.note.value
    )
    shown.run.value = "broken"
    assert "this run has no students" in shown.note.value
    assert bytes(shown.picture.value) == before


def test_no_run(jupyter) -> None:
    with pytest.raises(BrowserError, match="no run"):
        application({})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame": 3}, "frame 3 asked for, there are 0 to 2"),
        ({"left": "nobody"}, "'nobody' is none of: teacher, full_seed1"),
        ({"right": ""}, "'' is none of: teacher, full_seed1"),
        ({"map": "gold"}, "'gold' is none of: none, heatmap"),
        ({"layers": ("walls",)}, "'walls' is none of: ground truth"),
    ],
)
def test_bad_choices(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BrowserError, match=message):
        Choice(**{"frame": 0, "left": "teacher", "right": "teacher", **change}).check(
            tuple(Street.models), 3
        )
