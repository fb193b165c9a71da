"""The application of notebook 04: widgets that show two models on a frame, from above and in space.

Widgets vanish from executed notebooks, so all they show has a static twin: the same pictures drawn
for one choice.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import sys
from collections.abc import Iterator
from typing import Any

from kdlib.errors import KdlibError
from kdlib.lab.explore.choice import JUMPS, LAYERS, MAP_NAMES, BrowserError, Choice
from kdlib.lab.explore.studio import Studios
from kdlib.viz import canvas, interactive

_IOUS = {"Waymo's (0.7, 0.5, 0.5)": None, "0.3": 0.3, "0.5": 0.5, "0.7": 0.7}
# of the screen's height: the view from above, at its own proportions, and the one in space
_VIEW = {"max_width": "100%", "max_height": "46vh", "object_fit": "contain", "margin": "0 auto"}
_SPACE = "34vh"
_WRAPPED = '<span style="white-space:normal;overflow-wrap:anywhere">'
_SERIAL = itertools.count(1)  # a page may hold several applications


def application(studios: Studios, start: Choice | None = None) -> Any | None:
    """Return the application as a widget; outside Jupyter, or without ipywidgets, print one
    sentence and return None.

    The first of the studios is shown, first with ``start`` (None asks the run); BrowserError if
    there is none.
    """
    if not studios:
        raise BrowserError("there is no run to look at")
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        print("No widget outside Jupyter: the static pictures show the same.")
        return None
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        print(
            "ipywidgets is not installed (pip install 'ipywidgets>=8'): the static pictures "
            "show the same."
        )
        return None
    return Application(studios, start).widget


class Application:
    """Widgets and what they mean; kept alive by its own callbacks."""

    def __init__(self, studios: Studios, start: Choice | None) -> None:
        """Show the first run."""
        import ipywidgets as w

        self._studios, self._quiet, self._version = studios, False, 0
        self._jumped: tuple[str, Choice] | None = None  # by which button, and where that led
        self._channel = f"kdlib-scene-{next(_SERIAL)}"
        common = {"layout": w.Layout(width="auto"), "style": {"description_width": "3.4rem"}}
        slide = {**common, "continuous_update": False}
        self.run = w.Dropdown(options=list(studios), description="run", **common)
        self.controls = {  # by field of Choice
            "left": w.Dropdown(description="left", **common),
            "right": w.Dropdown(description="right", **common),
            "frame": w.IntSlider(0, 0, 0, description="frame", **slide),
            "min_score": w.FloatSlider(
                0.5, min=0.1, max=0.95, step=0.05, description="score ≥", **slide
            ),
            "class_name": w.Dropdown(options=[("all", None)], description="class", **common),
            "iou": w.Dropdown(options=list(_IOUS.items()), description="IoU ≥", **common),
            "map": w.Dropdown(options=list(MAP_NAMES), description="map", **common),
        }
        self.layers = {
            name: w.Checkbox(True, description=name, indent=False, layout=w.Layout(width="7.4rem"))
            for name in LAYERS
        }
        self.jumps = {
            o: w.Button(description=f"next: {words}", layout=w.Layout(width="auto"))
            for o, words in JUMPS.items()
        }
        self.note = w.HTML()
        self.picture = w.Image(format="png", layout=_VIEW)
        self.picture.add_class("kdlib-picture")
        self.data = w.HTML(layout=w.Layout(display="none"))
        boxes = w.HBox(list(self.layers.values()), layout=w.Layout(flex_flow="row wrap"))
        # Beside the views, and as high as both together: a laptop's screen holds all at once.
        side = w.VBox(
            [self.run, *self.controls.values(), boxes, *self.jumps.values(), self.note],
            layout=w.Layout(width="16.5rem", flex="0 0 auto"),
        )
        views = w.VBox(
            [self.picture, w.HTML(interactive.live_frame(self._channel, _SPACE)), self.data],
            layout=w.Layout(flex="1 1 auto", min_width="0"),
        )
        self.widget = w.HBox([side, views])
        self._open(start)
        self.run.observe(lambda _: self._open(None), names="value")
        for control in (*self.controls.values(), *self.layers.values()):
            control.observe(lambda _: self._show(), names="value")
        for order, button in self.jumps.items():
            button.on_click(lambda _, order=order: self._jump(order))

    @property
    def choice(self) -> Choice:
        """What is chosen now."""
        layers = tuple(name for name, box in self.layers.items() if box.value)
        return Choice(
            layers=layers, **{name: control.value for name, control in self.controls.items()}
        )

    def _open(self, start: Choice | None) -> None:
        with self._errors_said():
            self._studio = self._studios[self.run.value]()
            first = start or self._studio.start()
            self._quiet = True
            for side in ("left", "right"):
                self.controls[side].options = [
                    (title, name) for name, title in self._studio.models.items()
                ]
            self.controls["frame"].max = self._studio.frame_count - 1
            names = self._studio.class_names
            self.controls["class_name"].options = [("all", None), *zip(names, names)]
            for name, control in self.controls.items():
                control.value = getattr(first, name)
            self._quiet = False
            self._show()

    def _jump(self, order: str) -> None:
        with self._errors_said():
            onward = self._jumped == (order, self.choice)  # nothing was changed since
            frame, sentence = self._studio.jump(order, self.choice, onward)
            self._quiet, self.controls["frame"].value, self._quiet = True, frame, False
            self._jumped = (order, self.choice)
            self._show(sentence)

    def _show(self, sentence: str = "") -> None:
        if self._quiet:
            return
        with self._errors_said():
            png, scene = (
                canvas.to_png(self._studio.draw(self.choice)),
                self._studio.scene(self.choice),
            )
            self.picture.value = png
            self._version += 1
            self.data.value = interactive.live_data(scene, self._channel, self._version)
            words = " · ".join(part for part in (self._studio.name(self.choice), sentence) if part)
            self.note.value = f"{_WRAPPED}{html.escape(words)}</span>"

    @contextlib.contextmanager
    def _errors_said(self) -> Iterator[None]:
        """Say what went wrong where the reader looks; the last picture stays."""
        try:
            yield
        except (KdlibError, OSError) as error:
            self.note.value = f'<span style="color:#b3400a">{html.escape(str(error))}</span>'
