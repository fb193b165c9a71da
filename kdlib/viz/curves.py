"""Curves of training, precision over recall, and accuracy over cost."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdlib.types import FloatArray
from kdlib.viz import canvas, palette
from kdlib.viz.canvas import ChartError
from kdlib.viz.scores import Estimate, ScoreTable, draw_arms, draw_change_table

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
    keys: Sequence[str] = ("loss", "lr"),
    colors: Mapping[str, str] | None = None,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Draw training curves over the steps, a panel for each key, a line for each run; rows without the key are skipped.

    Long curves are drawn as a running mean over the faint raw line.

    Args:
        runs: Rows of ``history.jsonl`` by run name.
        keys: The keys to draw.
        colors: Colour of a run by its name; runs left out take the next free colour.
        title: Above the chart.
        path: Also save as PNG.

    Returns:
        The figure.

    Raises:
        ChartError: If no run has any of the keys.
    """
    if not any(key in row for rows in runs.values() for row in rows for key in keys):
        known = ", ".join(sorted({key for rows in runs.values() for row in rows for key in row})) or "none"
        raise ChartError(f"no history row has a value for {', '.join(keys)}; there are: {known}")
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
                points = [(row["step"], row[key]) for row in rows if row.get(key) is not None and row.get("step") is not None]
                _line(ax, np.array(points, float).reshape(-1, 2), name, shades[name])
            ax.set(title=key, xlabel="step")
            ax.margins(x=0.01)
        for ax in axes[len(keys) :]:
            ax.set_visible(False)
        canvas.arrange(figure, axes[0], title)
        return canvas.finish(figure, path)


def draw_precision_recall(curves: Sequence[PRCurve], *, title: str = "", path: str | Path | None = None) -> Figure:
    """Draw precision over recall, a panel for each class, a line for each model.

    Raises:
        ChartError: If there is no curve.
    """
    if not curves:
        raise ChartError("no precision-recall curve was given")
    names = list(dict.fromkeys(curve.class_name for curve in curves))
    with canvas.styled():
        figure = canvas.new_figure(3.5 * len(names) + 0.5, 3.7)
        axes = canvas.grid_axes(figure, 1, len(names), sharey=True)
        for ax, name in zip(axes, names):
            for curve in (curve for curve in curves if curve.class_name == name):
                label = curve.name if curve.score is None else f"{curve.name}: {100 * curve.score:.1f}"
                ax.plot(curve.recall, curve.precision, color=curve.color, linewidth=1.8, label=label)
            ax.set(title=name, xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
            ax.grid(axis="x", linewidth=0.8)
            ax.legend(loc="lower left", title="AP", alignment="left")
        axes[0].set_ylabel("precision")
        canvas.arrange(figure, None, title)
        return canvas.finish(figure, path)


def draw_accuracy_cost(
    points: Sequence[CostPoint],
    *,
    cost_label: str,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Draw accuracy over cost, a labelled dot with its interval for each model; up and left is better.

    Raises:
        ChartError: If there is no point.
    """
    if not points:
        raise ChartError("no model to draw accuracy over cost for")
    with canvas.styled():
        figure = canvas.new_figure(6.6, 4.2)
        (ax,) = canvas.grid_axes(figure, 1, 1)
        for point in points:
            if point.low is not None and point.high is not None:
                ax.plot([point.cost] * 2, [point.low, point.high], color=point.color, linewidth=2.5, alpha=0.5)
            ax.plot(point.cost, point.score, "o", color=point.color, markersize=8, markeredgecolor="white")
        ax.set(xlabel=cost_label, ylabel="LEVEL_2 mAPH")
        ax.margins(0.16, 0.16)
        _name_dots(ax, points)
        ax.text(0.012, 0.985, "↖ better", transform=ax.transAxes, fontsize=8, color=palette.FAINT, va="top")
        canvas.arrange(figure, None, title)
        return canvas.finish(figure, path)


def _line(ax: Axes, values: FloatArray, name: str, color: str) -> None:
    if not len(values):
        return
    window = max(1, len(values) // 40)
    if window > 1:
        ax.plot(values[:, 0], values[:, 1], color=color, linewidth=0.7, alpha=0.3)
    weight = np.convolve(np.ones(len(values)), np.ones(window), "same")  # fewer rows at both ends
    ax.plot(values[:, 0], np.convolve(values[:, 1], np.ones(window), "same") / weight, color=color, linewidth=1.8, label=name)


def _name_dots(ax: Axes, points: Sequence[CostPoint]) -> None:
    """Write each name beside its dot, below it where another dot is close above."""
    for point in points:
        crowded = any(0 < other.score - point.score < 1.5 for other in points)
        place: dict[str, Any] = {"xytext": (9, -4 if crowded else 5), "textcoords": "offset points"}
        place["va"] = "top" if crowded else "bottom"
        ax.annotate(point.name, (point.cost, point.score), fontsize=8.5, color=palette.INK, **place)
