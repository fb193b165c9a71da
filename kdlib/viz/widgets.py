"""The application of notebook 04: something that draws two models on a frame in, widgets that pass on what the reader chose out.

Widgets vanish from executed notebooks, so all they show has a static twin: the same ``draw`` and ``scene`` called with one view.
"""

from __future__ import annotations

import html
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from matplotlib.figure import Figure

from kdlib.config import CLASS_NAMES
from kdlib.errors import KdlibError
from kdlib.viz import canvas, interactive

LAYERS = ("ground truth", "found boxes", "misses", "false alarms")
MAPS = ("none", "heatmap", "pivotal positions", "BEV features", "KD masks")
JUMPS = {"helped": "distillation helped most", "hurt": "distillation hurt most", "hardest": "most misses, right"}
IOUS: dict[str, float | None] = {"Waymo's (0.7, 0.5, 0.5)": None, "0.3": 0.3, "0.5": 0.5, "0.7": 0.7}
_SERIAL = itertools.count(1)  # a page may hold several applications


class BrowserError(KdlibError):
    """Something to look at that is not there."""


@dataclass(frozen=True)
class View:
    """What the reader chose."""

    frame: int = 0  # position among the evaluated frames
    left: str = "teacher"
    right: str = ""  # a model's name
    min_score: float = 0.5
    class_name: str | None = None  # None: all
    iou: float | None = None  # that a match needs; None: Waymo's own
    layers: tuple[str, ...] = LAYERS
    map: str = "none"  # one of MAPS, under the boxes


class Source(Protocol):
    """What the application shows: the frames and models of one run."""

    @property
    def models(self) -> Mapping[str, str]:
        """Name of each model, and what people call it."""

    @property
    def frame_count(self) -> int:
        """Number of frames."""

    def start(self) -> View:
        """Return what is shown first."""

    def name(self, view: View) -> str:
        """Return what the frame is called."""

    def draw(self, view: View) -> Figure:
        """Return both models from above."""

    def scene(self, view: View) -> Any:
        """Return both models in space, as :func:`kdlib.viz.interactive.scene_figure` does."""

    def jump(self, order: str, view: View) -> tuple[int, str]:
        """Return the frame after this one in an order of JUMPS, and a sentence about it."""


def application(sources: Mapping[str, Callable[[], Source]], start: View | None = None) -> Any | None:
    """Return the application as a widget; outside Jupyter, or without ipywidgets, print one sentence and return None.

    Args:
        sources: Runs to choose from, opened when they are chosen; the first one is shown.
        start: What is shown first; None asks the source.

    Raises:
        BrowserError: If there is no run.
    """
    if not sources:
        raise BrowserError("there is no run to look at")
    reason = _no_widgets()
    if reason:
        print(reason)
        return None
    return _Application(sources, start).widget


class _Application:
    """Widgets and what they mean; kept alive by its own callbacks."""

    def __init__(self, sources: Mapping[str, Callable[[], Source]], start: View | None) -> None:
        import ipywidgets as w

        self._sources, self._quiet, self._version = sources, False, 0
        self._channel = f"kdlib-scene-{next(_SERIAL)}"
        wide, label = w.Layout(width="25rem"), {"description_width": "4.5rem"}
        common: dict[str, Any] = {"layout": wide, "style": label}
        slide: dict[str, Any] = {**common, "continuous_update": False}
        self.run = w.Dropdown(options=list(sources), description="run", **common)
        self.left = w.Dropdown(description="left", **common)
        self.right = w.Dropdown(description="right", **common)
        self.frame = w.IntSlider(0, 0, 0, description="frame", **slide)
        self.score = w.FloatSlider(0.5, min=0.1, max=0.95, step=0.05, description="score ≥", **slide)
        self.kind = w.Dropdown(options=["all", *CLASS_NAMES], description="class", **common)
        self.iou = w.Dropdown(options=list(IOUS.items()), description="IoU ≥", **common)
        self.layers = {name: w.Checkbox(True, description=name, indent=False, layout=w.Layout(width="9rem")) for name in LAYERS}
        self.map = w.ToggleButtons(options=list(MAPS), description="map", style={**label, "button_width": "auto"})
        self.jumps = {o: w.Button(description=f"next: {words}", layout=w.Layout(width="auto")) for o, words in JUMPS.items()}
        self.note, self.picture = w.HTML(), w.Image(format="png", layout=w.Layout(max_width="100%"))
        self.space, self.data = w.HTML(interactive.live_frame(self._channel)), w.HTML(layout=w.Layout(display="none"))
        self.picture.add_class("kdlib-picture")
        self.widget = self._arranged(w)
        self._open(start)
        self._listen()

    def _arranged(self, w: Any) -> Any:
        three = [(self.run, self.left, self.right), (self.frame, self.score), (self.kind, self.iou)]
        first = w.HBox([w.VBox(list(column)) for column in three], layout=w.Layout(flex_flow="row wrap"))
        boxes = w.HBox([w.HTML("boxes", layout=w.Layout(width="4.2rem")), *self.layers.values()])
        jumps = w.HBox(list(self.jumps.values()), layout=w.Layout(flex_flow="row wrap"))
        return w.VBox([first, boxes, self.map, jumps, self.note, self.picture, self.space, self.data])

    def _listen(self) -> None:
        self.run.observe(lambda _: self._open(None), names="value")
        for control in (self.left, self.right, self.frame, self.score, self.kind, self.iou, self.map, *self.layers.values()):
            control.observe(lambda _: self._show(), names="value")
        for order, button in self.jumps.items():
            button.on_click(lambda _, order=order: self._jump(order))

    @property
    def view(self) -> View:
        """What is chosen now."""
        layers = tuple(name for name, box in self.layers.items() if box.value)
        kind = None if self.kind.value == "all" else self.kind.value
        return View(
            self.frame.value, self.left.value, self.right.value, self.score.value, kind, self.iou.value, layers, self.map.value
        )

    def _open(self, start: View | None) -> None:
        try:
            self._source = self._sources[self.run.value]()
            first = start or self._source.start()
        except (KdlibError, OSError) as error:
            self._say(str(error), bad=True)
            return
        self._quiet = True
        options = [(title, name) for name, title in self._source.models.items()]
        self.left.options, self.right.options = options, options
        self.left.value, self.right.value = first.left, first.right or options[-1][1]
        self.frame.max = self._source.frame_count - 1
        self.frame.value, self.score.value, self.kind.value = first.frame, first.min_score, first.class_name or "all"
        self.iou.value, self.map.value = first.iou, first.map
        self._quiet = False
        self._show()

    def _jump(self, order: str) -> None:
        try:
            frame, sentence = self._source.jump(order, self.view)
        except (KdlibError, OSError) as error:
            self._say(str(error), bad=True)
            return
        self._quiet, self.frame.value, self._quiet = True, frame, False
        self._show(sentence)

    def _show(self, sentence: str = "") -> None:
        if self._quiet:
            return
        view = self.view
        try:
            png, scene = canvas.to_png(self._source.draw(view)), self._source.scene(view)
        except (KdlibError, OSError) as error:  # say it where the reader looks, and keep the last picture
            self._say(str(error), bad=True)
            return
        self.picture.value = png
        self._version += 1
        self.data.value = interactive.live_data(scene, self._channel, self._version)
        self._say(" · ".join(part for part in (self._source.name(view), sentence) if part))

    def _say(self, words: str, bad: bool = False) -> None:
        style = ' style="color:#b3400a"' if bad else ""
        self.note.value = f"<span{style}>{html.escape(words)}</span>"


def checked(view: View, models: Sequence[str], frames: int) -> View:
    """Return a view whose right model is named, after checking that all it names exists.

    Raises:
        BrowserError: If the frame, a model, a layer or the map does not exist.
    """
    view = view if view.right else replace(view, right=list(models)[-1])
    if not 0 <= view.frame < frames:
        raise BrowserError(f"frame {view.frame} asked for, there are 0 to {frames - 1}")
    for wanted, known in ((view.left, models), (view.right, models), (view.map, MAPS), *((name, LAYERS) for name in view.layers)):
        if wanted not in known:
            raise BrowserError(f"'{wanted}' is none of: {', '.join(known)}")
    return view


def _no_widgets() -> str:
    """Return why no widget can be shown, or an empty text."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    if running is None or not hasattr(running, "kernel"):
        return "No widget outside Jupyter: the static pictures show the same."
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return "ipywidgets is not installed (pip install 'ipywidgets>=8'): the static pictures show the same."
    return ""
