"""Charts: curves of training, precision over recall, accuracy over cost, scores of arms and tables
of differences.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from kdlib.types import FloatArray
from kdlib.viz import canvas, palette
from kdlib.viz.canvas import ChartError

_CHANGE_MAP = LinearSegmentedColormap.from_list(
    "change", ("#8C4A00", "#E3B57F", "#F7FAFC", "#7CC7B0", "#00765A")
)


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


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval and the single seeds behind it; NaN limits are no interval."""

    name: str
    mean: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()
    color: str = palette.SERIES[0]


@dataclass(frozen=True)
class ScoreTable:
    """Values with a name for each row and column."""

    values: FloatArray  # (R, C); NaN where there is nothing to score
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the names fit the values."""
        shape = np.shape(self.values)
        if shape != (len(self.rows), len(self.columns)) or 0 in shape:
            raise ChartError(
                f"table of shape {shape} but {len(self.rows)} row and "
                f"{len(self.columns)} column names"
            )


def draw_history(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    keys: Sequence[str] = ("loss", "lr"),
    colors: Mapping[str, str] | None = None,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Draw training curves over the steps, a panel for each key, a line for each run; rows without
    the key are skipped.

    Long curves are drawn as a running mean over the faint raw line. ``runs`` are rows of
    ``history.jsonl`` by name; those without a colour of their own take the next free one.

    Raises:
        ChartError: If no run has any of the keys.
    """
    known = {key for rows in runs.values() for row in rows for key in row}
    if known.isdisjoint(keys):
        raise ChartError(
            f"no history row has a value for {', '.join(keys)}; there are: "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    shades = {name: color for name, color in (colors or {}).items() if name in runs}
    # without yellow, which is illegible on white
    usable = (*palette.SERIES[1:-1], palette.SERIES[0])
    free = itertools.cycle([color for color in usable if color not in shades.values()] or usable)
    shades |= {name: next(free) for name in runs if name not in shades}
    with canvas.styled():
        figure = canvas.new_figure(4.2 * len(keys) + 0.4, 2.9 + 0.75)
        axes = canvas.grid_axes(figure, 1, len(keys))
        for ax, key in zip(axes, keys):
            for name, rows in runs.items():
                points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
                if points:
                    (steps, values), color, window = (
                        np.array(points, float).T,
                        shades[name],
                        np.ones(max(1, len(points) // 40)),
                    )
                    if len(window) > 1:
                        ax.plot(steps, values, color=color, linewidth=0.7, alpha=0.3)
                    # fewer rows at both ends
                    weight = np.convolve(np.ones(len(points)), window, "same")
                    mean = np.convolve(values, window, "same") / weight
                    ax.plot(steps, mean, color=color, linewidth=1.8, label=name)
            ax.set(title=key, xlabel="step")
            ax.margins(x=0.01)
        return canvas.arrange(figure, title, path, axes[0])


def draw_precision_recall(
    curves: Sequence[PRCurve], *, title: str = "", path: str | Path | None = None
) -> Figure:
    """Draw precision over recall, a panel for each class, a line for each model.

    Raises:
        ChartError: If there is no curve.
    """
    if not curves:
        raise ChartError("no precision-recall curve was given")
    names = list(dict.fromkeys(curve.class_name for curve in curves))
    models = len({curve.name for curve in curves})
    with canvas.styled():
        figure = canvas.new_figure(3.5 * len(names) + 0.5, 3.8 + 0.2 * models)
        axes = canvas.grid_axes(figure, 1, len(names), sharey=True)
        for ax, name in zip(axes, names):
            for curve in (curve for curve in curves if curve.class_name == name):
                label = (
                    curve.name
                    if curve.score is None
                    else (f"{curve.name}: {100 * curve.score:.1f}")
                )
                ax.plot(
                    curve.recall, curve.precision, color=curve.color, linewidth=1.8, label=label
                )
            ax.set(title=name, xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
            ax.grid(axis="x", linewidth=0.8)
            # below the axes: within them curves run everywhere
            place: Any = {
                "loc": "upper left",
                "bbox_to_anchor": (-0.02, -0.16),
                "borderaxespad": 0.0,
            }
            ax.legend(title="AP", alignment="left", **place)
        axes[0].set_ylabel("precision")
        return canvas.arrange(figure, title, path)


def draw_accuracy_cost(
    points: Sequence[CostPoint], *, cost_label: str, title: str = "", path: str | Path | None = None
) -> Figure:
    """Draw accuracy over cost, a labelled dot with its interval for each model; up and left is
    better.

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
                ax.plot(
                    [point.cost] * 2,
                    [point.low, point.high],
                    color=point.color,
                    linewidth=2.5,
                    alpha=0.5,
                )
            ax.plot(
                point.cost,
                point.score,
                "o",
                color=point.color,
                markersize=8,
                markeredgecolor="white",
            )
        ax.set(xlabel=cost_label, ylabel="LEVEL_2 mAPH")
        ax.margins(0.16, 0.16)
        low, high = ax.get_ylim()
        heights = _apart([point.score for point in points], 0.055 * (high - low))
        for point, height in zip(points, heights):
            label = ax.annotate(
                f"{point.name}: {point.score:.1f}",
                (point.cost, height),
                (9, 0),
                textcoords="offset points",
                va="center",
            )
            label.set(fontsize=8.5, color=point.color)
        ax.text(
            0.012,
            0.985,
            "↖ better",
            transform=ax.transAxes,
            fontsize=8,
            color=palette.FAINT,
            va="top",
        )
        return canvas.arrange(figure, title, path)


def _apart(heights: Sequence[float], least: float) -> list[float]:
    """Return heights of names in the order given, moved up or down until neighbours are ``least``
    apart.
    """
    order = np.argsort(heights)
    placed = np.asarray(heights, float)[order]
    for _ in range(len(placed)):
        for lower in range(len(placed) - 1):
            lack = least - (placed[lower + 1] - placed[lower])
            if lack > 0:
                placed[lower : lower + 2] += (-lack / 2, lack / 2)
    result = np.empty(len(placed))
    result[order] = placed
    return result.tolist()


def draw_arms(
    arms: Sequence[Estimate],
    *,
    label: str = "LEVEL_2 mAPH",
    reference: float | None = None,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Draw a forest plot: mean, 95 % interval and single seeds of each arm, from top to bottom.

    ``label`` is that of the horizontal axis, ``reference`` a vertical line, 0 for differences.

    Raises:
        ChartError: If there is no arm, or an interval ends below its beginning.
    """
    if not arms:
        raise ChartError("no arm to draw")
    for arm in arms:
        # A mean may lie outside: resampling a score of few segments is not free of bias.
        if arm.low > arm.high:
            raise ChartError(f"arm '{arm.name}': [{arm.low:g}, {arm.high:g}] is no interval")
    with canvas.styled():
        figure = canvas.new_figure(7.4, 0.52 * len(arms) + (1.5 if title else 1.15))
        (ax,) = canvas.grid_axes(figure, 1, 1)
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", linewidth=0.8)
        for row, arm in enumerate(arms):
            interval: dict[str, Any] = {"linewidth": 5, "alpha": 0.35, "solid_capstyle": "round"}
            ax.plot([arm.low, arm.high], [row, row], color=arm.color, **interval)
            ax.plot(
                arm.seeds,
                [row + 0.26] * len(arm.seeds),
                "|",
                color=arm.color,
                markersize=6,
                alpha=0.9,
            )
            ax.plot(
                arm.mean,
                row,
                "o",
                color=arm.color,
                markersize=8,
                markeredgecolor="white",
                markeredgewidth=1.2,
            )
            text = f"{arm.mean:+.2f}" if reference == 0 else f"{arm.mean:.2f}"
            measured = arm.low <= arm.high
            words = f"{text}  [{arm.low:.2f}, {arm.high:.2f}]" if measured else text
            ax.text(
                1.015, row, words, transform=ax.get_yaxis_transform(), fontsize=8.5, va="center"
            )
        if reference is not None:
            ax.axvline(reference, color=palette.INK, linewidth=1)
        ax.set(
            yticks=range(len(arms)),
            yticklabels=[arm.name for arm in arms],
            ylim=(len(arms) - 0.4, -0.6),
            xlabel=label,
        )
        ax.tick_params(axis="y", length=0, labelsize=9)
        ax.spines["left"].set_visible(False)
        return canvas.arrange(figure, title, path)


def draw_change_table(
    table: ScoreTable, *, label: str, title: str = "", path: str | Path | None = None
) -> Figure:
    """Draw a heat table of differences of shares in [0, 1], in percent with their signs, ``label``
    saying what they are.

    Green is a gain, brown a loss, pale is none; NaN is a dash.
    """
    values = 100 * np.asarray(table.values, np.float64)
    top = float(np.max(np.abs(values), where=np.isfinite(values), initial=0.0)) or 1.0
    with canvas.styled():
        # the words must fit as well
        width = max(1.7 + 1.15 * len(table.columns), 0.11 * max(len(title), len(label)))
        figure = canvas.new_figure(width, 0.95 + 0.46 * len(table.rows) + (0.3 if title else 0))
        ax = figure.add_subplot()
        ax.imshow(np.nan_to_num(values), _CHANGE_MAP, vmin=-top, vmax=top, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            color = "white" if abs(value) > 0.68 * top else palette.INK
            shown = f"{value:+.1f}" if np.isfinite(value) else "–"
            ax.text(column, row, shown, ha="center", va="center", color=color, fontsize=9.5)
        ax.set(
            xticks=range(len(table.columns)),
            yticks=range(len(table.rows)),
            xticklabels=table.columns,
            yticklabels=table.rows,
        )
        ax.set_xticks(np.arange(len(table.columns) - 1) + 0.5, minor=True)
        ax.set_yticks(np.arange(len(table.rows) - 1) + 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=2)
        ax.tick_params(which="both", length=0, labelsize=9)
        ax.spines[:].set_visible(False)
        ax.set_xlabel(label, fontsize=8.5, color=palette.FAINT)
        return canvas.arrange(figure, title, path)
