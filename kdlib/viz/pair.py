"""Two models on one frame from above: points, judged boxes and maps in, a matplotlib figure with two linked panels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from kdlib.types import FloatArray
from kdlib.viz import canvas
from kdlib.viz.bev import Extent, draw_bev
from kdlib.viz.layers import BoxLayer

# No box is violet, so a map below boxes is never taken for one; its lightness alone tells the value.
_MAP = LinearSegmentedColormap.from_list("map", ("#FFFFFF", "#E4DDF1", "#B9A7DB", "#8465B9", "#4B2E83"))


@dataclass(frozen=True)
class GroundMap:
    """A map that lies on the ground, from nothing (0) to most (1)."""

    values: FloatArray  # (H, W), row 0 at y_min, column 0 at x_min
    name: str  # what it shows


@dataclass(frozen=True)
class Panel:
    """One model's half of a picture."""

    title: str
    layers: tuple[BoxLayer, ...]
    note: str = ""  # below the title
    ground: GroundMap | None = None


def draw_pair(
    points: FloatArray,
    panels: Sequence[Panel],
    *,
    extent: Extent,
    title: str = "",
    note: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Draw panels side by side on one scale, with one legend for all; maps lie beneath points and boxes.

    Args:
        points: (N, >=3) x, y, z in metres.
        panels: Usually the teacher's and the student's.
        extent: x_min, y_min, x_max, y_max in metres; maps cover all of it.
        title: Above both.
        note: What was chosen, in small letters beside the title.
        path: Also save as PNG.

    Raises:
        LayerError: If the points or the extent do not make sense.
    """
    side = 4.6
    mapped = any(panel.ground is not None for panel in panels)
    with canvas.styled():
        height = side * (extent[3] - extent[1]) / (extent[2] - extent[0]) + (1.95 if mapped else 1.7)
        figure = canvas.new_figure(side * len(panels) + 0.75, height)
        axes = list(np.ravel(figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)))
        width, bottom = figure.get_figwidth(), (1.1 if mapped else 0.85) / height
        figure.subplots_adjust(left=0.62 / width, right=1 - 0.1 / width, bottom=bottom, top=1 - 0.8 / height, wspace=0.07)
        for index, (ax, panel) in enumerate(zip(axes, panels)):
            draw_bev(points, panel.layers, extent=extent, title=f"{panel.title}\n" if panel.note else panel.title, ax=ax)
            ax.text(0, 1 + 0.08 / side, panel.note, transform=ax.transAxes, fontsize=9)
            if panel.ground is not None:
                _ground(ax, panel.ground, extent)
            if index:
                ax.set_ylabel("")
                ax.tick_params(labelleft=False)
        if title:
            figure.text(axes[0].get_position().x0, 1 - 0.1 / height, title, fontsize=12, fontweight="bold", va="top")
        if note:
            figure.text(1 - 0.12 / width, 1 - 0.14 / height, note, fontsize=8.5, ha="right", va="top")
        _legend(figure, [layer for panel in panels for layer in panel.layers])
        return canvas.finish(figure, path)


def contact_sheet(figures: Sequence[Figure], path: str | Path | None = None, columns: int = 2) -> Figure:
    """Return several figures as one picture, row by row, each a little smaller: side by side they would not fit a page anyway."""
    images = [_smaller(canvas.to_pixels(figure)) for figure in figures]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    high, wide = max(image.shape[0] for image in images), max(image.shape[1] for image in images)
    sheet = canvas.new_figure(columns * wide / canvas.DPI, rows * high / canvas.DPI)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet.figimage(image, xo=column * wide, yo=(rows - row) * high - image.shape[0], resize=False)
    return canvas.finish(sheet, path)


def _smaller(pixels: NDArray[np.uint8], scale: float = 0.64) -> NDArray[np.uint8]:
    from PIL import Image

    image = Image.fromarray(pixels).convert("RGB")
    size = round(image.width * scale), round(image.height * scale)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def _ground(ax: Axes, ground: GroundMap, extent: Extent) -> None:
    place = (extent[0], extent[2], extent[1], extent[3])
    options: dict[str, Any] = {"origin": "lower", "extent": place, "interpolation": "nearest", "zorder": 0.5}
    ax.imshow(ground.values, _MAP, vmin=0, vmax=1, **options)
    ax.set(xlim=(extent[0], extent[2]), ylim=(extent[1], extent[3]))
    figure, box = ax.figure, ax.get_position()
    high, wide = figure.get_figheight(), figure.get_figwidth()  # type: ignore[union-attr]
    bar = figure.add_axes((box.x0 + box.width - 0.95 / wide, 0.47 / high, 0.9 / wide, 0.09 / high))
    bar.imshow(np.linspace(0, 1, 64)[None], _MAP, aspect="auto")
    bar.set(xticks=(), yticks=())
    for spine in bar.spines.values():
        spine.set(visible=True, linewidth=0.5)
    style: dict[str, Any] = {"fontsize": 8, "va": "center", "transform": figure.transFigure}
    bar.text(box.x0 + box.width - 1.03 / wide, 0.515 / high, f"{ground.name}, none to most", ha="right", **style)


def _legend(figure: Figure, layers: Sequence[BoxLayer]) -> None:
    looks = {layer.name: layer for layer in layers}
    lines = []
    for name, one in looks.items():
        style: dict[str, Any] = {"color": one.color, "linestyle": one.dash, "linewidth": one.width + 0.5}
        lines.append(Line2D([], [], label=name, **style))
    options: dict[str, Any] = {"ncol": max(len(lines), 1), "columnspacing": 1.6, "handlelength": 2.2, "handletextpad": 0.6}
    figure.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, 0.05 / figure.get_figheight()), **options)
