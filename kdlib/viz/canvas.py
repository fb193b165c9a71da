"""Figures that never touch pyplot, draw headlessly and show themselves in a notebook, and the style
they share.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdlib.errors import KdlibError
from kdlib.records import write_bytes
from kdlib.viz.palette import FAINT, GRID, INK

DPI = 150

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


class ChartError(KdlibError):
    """Numbers that cannot be charted."""


class StaticFigure(Figure):
    """A matplotlib figure with an Agg canvas of its own that a notebook shows as a PNG, also
    without ``%matplotlib``.
    """

    def _repr_png_(self) -> bytes:
        return to_png(self)


def new_figure(width: float, height: float, *, facecolor: str = "white") -> StaticFigure:
    """Return an empty figure, size in inches."""
    figure = StaticFigure(figsize=(width, height), dpi=DPI, facecolor=facecolor)
    FigureCanvasAgg(figure)
    return figure


def styled() -> Any:
    """Return the context in which kdlib's axes are made: fonts and lines alike everywhere, the
    user's settings untouched.
    """
    return rc_context(_STYLE)


def grid_axes(figure: Figure, rows: int, columns: int, **options: Any) -> list[Axes]:
    """Return rows x columns axes, row by row, with light horizontal grid lines."""
    axes: list[Axes] = list(np.ravel(figure.subplots(rows, columns, squeeze=False, **options)))
    for ax in axes:
        ax.grid(axis="y", linewidth=0.8)
        ax.tick_params(length=3)
    return axes


def arrange(
    figure: Figure, title: str, path: str | Path | None, legend_from: Axes | None = None
) -> Figure:
    """Fit the axes into the figure, title above, legend below; save it as PNG where a path is
    given, and return it.
    """
    height, width = figure.get_figheight(), figure.get_figwidth()
    bottom = 0.0
    if legend_from is not None:
        handles, labels = legend_from.get_legend_handles_labels()
        if handles:
            figure.legend(
                handles,
                labels,
                loc="lower center",
                ncol=min(len(handles), 5),
                bbox_to_anchor=(0.5, 0.03 / height),
            )
            bottom = 0.3 * -(-len(handles) // 5) / height
    if title:
        figure.text(0.12 / width, 1 - 0.1 / height, title, fontsize=12, fontweight="bold", va="top")
    figure.tight_layout(rect=(0, bottom, 1, 1 - (0.32 / height if title else 0)))
    return finish(figure, path)


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def to_pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return the figure as it would be printed, (H, W, 4) red, green, blue, alpha."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def finish(figure: Figure, path: str | Path | None) -> Figure:
    """Save the figure as PNG where a path is given, and return it."""
    if path is not None:
        write_bytes(Path(path), to_png(figure))
    return figure
