"""Curves: history rows, precision over recall, accuracy over cost in; matplotlib figures out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kdlib.types import FloatArray
from kdlib.viz import canvas, palette
from kdlib.viz.canvas import ChartError
from kdlib.viz.scores import Estimate, ScoreTable, draw_arms, draw_change_table, draw_range_table

__all__ = [
    "CostPoint",
    "Estimate",
    "PRCurve",
    "ScoreTable",
    "draw_accuracy_cost",
    "draw_arms",
    "draw_change_table",
    "draw_history",
    "draw_precision_recall",
    "draw_range_table",
]


@dataclass(frozen=True)
class PRCurve:
    """Precision over recall of one model and class."""

    name: str
    class_name: str
    recall: FloatArray  # (n,) in [0, 1]
    precision: FloatArray  # (n,) in [0, 1]
    color: str = palette.SERIES[0]
    score: float | None = None  # average precision, for the legend


@dataclass(frozen=True)
class CostPoint:
    """Accuracy and cost of one model."""

    name: str
    cost: float
    score: float
    low: float | None = None  # interval of the score
    high: float | None = None
    color: str = palette.SERIES[0]


def draw_history(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    x: str = "step",
    keys: Sequence[str] = ("loss",),
    colors: Mapping[str, str] | None = None,
    smooth: int = 0,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Draw training curves, a panel for each key, a line for each run; rows without the key are skipped.

    Args:
        runs: Rows of ``history.jsonl`` by run name.
        x: The key on the horizontal axis.
        keys: The keys to draw; 'lr' and 'learning_rate' work like any other.
        colors: Colour of a run by its name; runs left out take the next free colour.
        smooth: Rows of a centred running mean, drawn over the faint raw line; 0 chooses by the length.
        title: Above the chart.
        path: Also save as PNG.

    Returns:
        The figure.

    Raises:
        ChartError: If no run has any of the keys.
    """
    if not any(key in row for rows in runs.values() for row in rows for key in keys):
        raise ChartError(f"no history row has a value for {', '.join(keys)}; there are: {_known(runs)}")
    taken = {(colors or {}).get(name) for name in runs}
    usable = (*palette.SERIES[1:-1], palette.SERIES[0])  # without yellow, which is illegible on white
    free = itertools.cycle([color for color in usable if color not in taken] or usable)
    shades = {name: (colors or {}).get(name) or next(free) for name in runs}
    columns = min(len(keys), 3)
    rows_needed = -(-len(keys) // columns)
    with canvas.styled():
        figure = canvas.new_figure(4.2 * columns + 0.4, 2.9 * rows_needed + 0.75)
        axes = canvas.grid_axes(figure, rows_needed, columns)
        for ax, key in zip(axes, keys):
            for name, rows in runs.items():
                kept = [(float(row[x]), float(row[key])) for row in rows if row.get(key) is not None and row.get(x) is not None]
                _line(ax, np.array(kept).reshape(-1, 2), name, shades[name], smooth)
            ax.set(title=key, xlabel=x)
            ax.margins(x=0.01)
        for ax in axes[len(keys) :]:
            ax.set_visible(False)
        canvas.fit(figure, axes[0], title)
        return canvas.finish(figure, path)


def draw_precision_recall(
    curves: Sequence[PRCurve], *, class_names: Sequence[str] = (), title: str = "", path: str | Path | None = None
) -> Figure:
    """Draw precision over recall, a panel for each class, a line for each model.

    Raises:
        ChartError: If there is no curve.
    """
    if not curves:
        raise ChartError("no precision-recall curve was given")
    names = list(class_names) or list(dict.fromkeys(curve.class_name for curve in curves))
    with canvas.styled():
        figure = canvas.new_figure(3.5 * len(names) + 0.5, 3.7)
        axes = canvas.grid_axes(figure, 1, len(names), sharey=True)
        for ax, name in zip(axes, names):
            for curve in (curve for curve in curves if curve.class_name == name):
                label = curve.name if curve.score is None else f"{curve.name}: {100 * curve.score:.1f}"
                ax.plot(curve.recall, curve.precision, color=curve.color, linewidth=1.8, label=label)
            ax.set(title=name, xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
            ax.grid(axis="x", linewidth=0.8)
            if ax.get_legend_handles_labels()[0]:
                scored = any(curve.score is not None for curve in curves)
                ax.legend(loc="lower left", title="AP" if scored else None, alignment="left")
        axes[0].set_ylabel("precision")
        canvas.fit(figure, None, title)
        return canvas.finish(figure, path)


def draw_accuracy_cost(
    points: Sequence[CostPoint],
    *,
    cost_label: str = "latency [ms]",
    score_label: str = "LEVEL_2 mAPH",
    log: bool = False,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Draw accuracy over cost, a labelled dot with its interval for each model; up and left is better.

    Raises:
        ChartError: If there is no point, or a cost is not above 0 on a logarithmic axis.
    """
    if not points:
        raise ChartError("no model to draw accuracy over cost for")
    if log and min(point.cost for point in points) <= 0:
        raise ChartError("a logarithmic cost axis needs costs above 0")
    with canvas.styled():
        figure = canvas.new_figure(6.6, 4.2)
        (ax,) = canvas.grid_axes(figure, 1, 1)
        for point in points:
            if point.low is not None and point.high is not None:
                ax.plot([point.cost] * 2, [point.low, point.high], color=point.color, linewidth=2.5, alpha=0.5)
            ax.plot(point.cost, point.score, "o", color=point.color, markersize=8, markeredgecolor="white")
        ax.set(xlabel=cost_label, ylabel=score_label)
        if log:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(0.16, 0.16)
        _name_dots(ax, points)
        ax.text(0.012, 0.985, "↖ better", transform=ax.transAxes, fontsize=8, color=palette.FAINT, va="top")
        canvas.fit(figure, None, title)
        return canvas.finish(figure, path)


def _line(ax: Axes, values: FloatArray, name: str, color: str, smooth: int) -> None:
    if not len(values):
        return
    window = smooth or max(1, len(values) // 40)
    if window == 1:
        ax.plot(values[:, 0], values[:, 1], color=color, linewidth=1.7, label=name)
        return
    ax.plot(values[:, 0], values[:, 1], color=color, linewidth=0.7, alpha=0.3)
    weight = np.convolve(np.ones(len(values)), np.ones(window), "same")  # fewer rows at both ends
    ax.plot(values[:, 0], np.convolve(values[:, 1], np.ones(window), "same") / weight, color=color, linewidth=1.8, label=name)


def _name_dots(ax: Axes, points: Sequence[CostPoint]) -> None:
    """Write each name beside its dot, on the side away from its nearest neighbour above or below."""
    for point in points:
        near = [other for other in points if other is not point and abs(other.score - point.score) < 1.5]
        crowded = any(other.score > point.score for other in near)
        place: dict[str, Any] = {
            "xytext": (9, -4 if crowded else 5),
            "textcoords": "offset points",
            "va": "top" if crowded else "bottom",
        }
        ax.annotate(point.name, (point.cost, point.score), fontsize=8.5, color=palette.INK, **place)


def _known(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    return ", ".join(sorted({key for rows in runs.values() for row in rows for key in row})) or "none"
