"""Scores of arms as a forest plot, and differences of scores as a heat table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from kdlib.types import FloatArray
from kdlib.viz import canvas, palette
from kdlib.viz.canvas import ChartError

_CHANGE_MAP = LinearSegmentedColormap.from_list("change", ("#8C4A00", "#E3B57F", "#F7FAFC", "#7CC7B0", "#00765A"))


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval and the single seeds behind it."""

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
            raise ChartError(f"table of shape {shape} but {len(self.rows)} row and {len(self.columns)} column names")


def draw_arms(
    arms: Sequence[Estimate],
    *,
    label: str = "LEVEL_2 mAPH",
    reference: float | None = None,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Draw a forest plot: mean, 95 % interval and single seeds of each arm, best read from top to bottom.

    Args:
        arms: In the order of drawing, first on top.
        label: Of the horizontal axis.
        reference: A vertical line, 0 for differences.
        title: Above the chart.
        path: Also save as PNG.

    Returns:
        The figure.

    Raises:
        ChartError: If there is no arm, or a mean lies outside its interval.
    """
    if not arms:
        raise ChartError("no arm to draw")
    for arm in arms:
        if not arm.low <= arm.mean <= arm.high:
            raise ChartError(f"arm '{arm.name}': mean {arm.mean:g} lies outside its interval [{arm.low:g}, {arm.high:g}]")
    with canvas.styled():
        figure = canvas.new_figure(7.4, 0.52 * len(arms) + (1.5 if title else 1.15))
        (ax,) = canvas.grid_axes(figure, 1, 1)
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", linewidth=0.8)
        for row, arm in enumerate(arms):
            ax.plot([arm.low, arm.high], [row, row], color=arm.color, linewidth=5, alpha=0.35, solid_capstyle="round")
            ax.plot(arm.seeds, [row + 0.26] * len(arm.seeds), "|", color=arm.color, markersize=6, alpha=0.9)
            ax.plot(arm.mean, row, "o", color=arm.color, markersize=8, markeredgecolor="white", markeredgewidth=1.2)
            text = f"{arm.mean:+.2f}" if reference == 0 else f"{arm.mean:.2f}"
            interval = f"{text}  [{arm.low:.2f}, {arm.high:.2f}]"
            ax.text(1.015, row, interval, transform=ax.get_yaxis_transform(), fontsize=8.5, va="center")
        if reference is not None:
            ax.axvline(reference, color=palette.INK, linewidth=1)
        ax.set(yticks=range(len(arms)), yticklabels=[arm.name for arm in arms], ylim=(len(arms) - 0.4, -0.6), xlabel=label)
        ax.tick_params(axis="y", length=0, labelsize=9)
        ax.spines["left"].set_visible(False)
        canvas.arrange(figure, None, title)
        return canvas.finish(figure, path)


def draw_change_table(table: ScoreTable, *, label: str, title: str = "", path: str | Path | None = None) -> Figure:
    """Draw a heat table of differences with their signs: green is a gain, brown a loss, pale is none; NaN is a dash.

    Args:
        table: Names and differences of shares in [0, 1], drawn in percent.
        label: What the numbers are.
        title: Above the table.
        path: Also save as PNG.
    """
    values = 100 * np.asarray(table.values, np.float64)
    top = float(np.max(np.abs(values), where=np.isfinite(values), initial=0.0)) or 1.0
    with canvas.styled():
        figure = canvas.new_figure(1.7 + 1.15 * len(table.columns), 0.95 + 0.46 * len(table.rows) + (0.3 if title else 0))
        ax = figure.add_subplot()
        ax.imshow(np.nan_to_num(values), _CHANGE_MAP, vmin=-top, vmax=top, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            color = "white" if abs(value) > 0.68 * top else palette.INK
            shown = f"{value:+.1f}" if np.isfinite(value) else "–"
            ax.text(column, row, shown, ha="center", va="center", color=color, fontsize=9.5)
        ax.set(xticks=range(len(table.columns)), yticks=range(len(table.rows)), xticklabels=table.columns, yticklabels=table.rows)
        ax.set_xticks(np.arange(len(table.columns) - 1) + 0.5, minor=True)
        ax.set_yticks(np.arange(len(table.rows) - 1) + 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=2)
        ax.tick_params(which="both", length=0, labelsize=9)
        for spine in ax.spines.values():
            spine.set_visible(False)
        ax.set_xlabel(label, fontsize=8.5, color=palette.FAINT)
        canvas.arrange(figure, None, title)
        return canvas.finish(figure, path)
