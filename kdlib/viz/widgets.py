"""Browsing frames in a notebook: frames and a drawing function in, an ipywidgets browser and its static PNG twin out.

Widgets vanish from executed notebooks, so every browser has a twin: :func:`static_frame` for one frame, :func:`contact_sheet`
for several.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure

from kdlib.config import CLASS_NAMES
from kdlib.errors import KdlibError
from kdlib.viz import canvas, palette
from kdlib.viz.layers import BoxLayer, select

F = TypeVar("F")

LAYER_NAMES = tuple(palette.role(name).title for name in ("truth", "teacher", "student"))


class BrowserError(KdlibError):
    """Frames that cannot be browsed."""


@dataclass(frozen=True)
class View:
    """What the reader chose."""

    frame: int = 0
    min_score: float = 0.3
    layers: tuple[str, ...] = ()  # names of the layers to show
    class_name: str | None = None  # None: all

    def apply(self, layers: Sequence[BoxLayer]) -> list[BoxLayer]:
        """Return the chosen layers with the chosen boxes."""
        return [
            select(layer, min_score=self.min_score, class_name=self.class_name) for layer in layers if layer.name in self.layers
        ]


Draw = Callable[[F, View], Figure]
"""Draws one frame as chosen."""


def frame_browser(
    frames: Sequence[F],
    draw: Draw[F],
    *,
    layer_names: Sequence[str] = LAYER_NAMES,
    class_names: Sequence[str] = CLASS_NAMES,
    names: Sequence[str] = (),
    start: View | None = None,
) -> Any | None:
    """Return a widget with sliders for frame and score, a box for each layer and a class list; call ``display`` on it.

    Outside Jupyter, or without ipywidgets, print one sentence and return None.

    Args:
        frames: Whatever ``draw`` takes; ``range(n)`` where it loads frames by position.
        draw: Returns the matplotlib figure of one frame as chosen.
        layer_names: Layers to switch; all start switched on.
        class_names: Classes to choose from.
        names: What the frames are called.
        start: What is shown first.

    Returns:
        An ``ipywidgets.VBox``, or None.

    Raises:
        BrowserError: If there is no frame, or ``names`` has another length.
    """
    view = _first(frames, layer_names, names, start)
    reason = _no_widgets()
    if reason:
        print(reason)
        return None
    import ipywidgets as w

    wide = w.Layout(width="22rem")
    frame = w.IntSlider(view.frame, 0, len(frames) - 1, description="frame", continuous_update=False, layout=wide)
    score = w.FloatSlider(view.min_score, min=0, max=1, step=0.05, description="score ≥", continuous_update=False, layout=wide)
    kind = w.Dropdown(options=["all", *class_names], value=view.class_name or "all", description="class")
    boxes = [
        w.Checkbox(name in view.layers, description=name, indent=False, layout=w.Layout(width="auto")) for name in layer_names
    ]
    picture, label = w.Image(format="png", layout=w.Layout(max_width="100%")), w.HTML()

    def show(_: Any = None) -> None:
        chosen = tuple(name for name, box in zip(layer_names, boxes) if box.value)
        now = View(frame.value, score.value, chosen, None if kind.value == "all" else kind.value)
        picture.value = canvas.to_png(draw(frames[now.frame], now))
        label.value = _escape(names[now.frame]) if names else ""

    for control in (frame, score, kind, *boxes):
        control.observe(show, names="value")
    show()
    return w.VBox([w.HBox([frame, score, kind]), w.HBox(boxes), label, picture])


def static_frame(
    frames: Sequence[F],
    draw: Draw[F],
    path: str | Path | None = None,
    *,
    layer_names: Sequence[str] = LAYER_NAMES,
    start: View | None = None,
) -> Figure:
    """Return what the browser shows first, and save it as PNG where a path is given.

    Raises:
        BrowserError: If there is no frame, or the chosen one does not exist.
    """
    view = _first(frames, layer_names, (), start)
    return canvas.finish(draw(frames[view.frame], view), path)


def contact_sheet(
    frames: Sequence[F],
    draw: Draw[F],
    path: str | Path | None = None,
    *,
    layer_names: Sequence[str] = LAYER_NAMES,
    indices: Sequence[int] = (),
    columns: int = 2,
    start: View | None = None,
) -> Figure:
    """Return several frames in one picture, drawn like the browser draws them; all of up to four frames by default.

    Raises:
        BrowserError: If there is no frame, or a chosen one does not exist.
    """
    view = _first(frames, layer_names, (), start)
    wanted = list(indices) or [int(index) for index in np.unique(np.linspace(0, len(frames) - 1, 4).astype(int))]
    if not all(0 <= index < len(frames) for index in wanted):
        raise BrowserError(f"frames {wanted} asked for, there are 0 to {len(frames) - 1}")
    views = [View(index, view.min_score, view.layers, view.class_name) for index in wanted]
    images = [canvas.to_pixels(draw(frames[one.frame], one)) for one in views]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    high, wide = max(image.shape[0] for image in images), max(image.shape[1] for image in images)
    figure = canvas.new_figure(columns * wide / canvas.DPI, rows * high / canvas.DPI)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        figure.figimage(image, xo=column * wide, yo=(rows - row) * high - image.shape[0], resize=False)
    return canvas.finish(figure, path)


def _first(frames: Sequence[Any], layer_names: Sequence[str], names: Sequence[str], start: View | None) -> View:
    if not len(frames):
        raise BrowserError("there is no frame to browse")
    if names and len(names) != len(frames):
        raise BrowserError(f"{len(frames)} frames but {len(names)} names")
    view = start or View()
    if not 0 <= view.frame < len(frames):
        raise BrowserError(f"frame {view.frame} asked for, there are 0 to {len(frames) - 1}")
    return view if view.layers else View(view.frame, view.min_score, tuple(layer_names), view.class_name)


def _no_widgets() -> str:
    """Return why no widget can be shown, or an empty text."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    if running is None or not hasattr(running, "kernel"):
        return "No widget outside Jupyter: the static picture shows the same."
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return "ipywidgets is not installed (pip install 'ipywidgets>=8'): the static picture shows the same."
    return ""


def _escape(words: str) -> str:
    import html

    return html.escape(str(words))
