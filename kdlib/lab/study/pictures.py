"""Scores of arms that were trained for different lengths in, a chart of scores over samples out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kdlib.viz import canvas, palette
from kdlib.viz.canvas import ChartError


@dataclass(frozen=True)
class ScheduleLine:
    """One recipe at several lengths of its schedule."""

    name: str
    samples: tuple[int, ...]
    scores: tuple[tuple[float, float, float], ...]  # mean, low, high, percent
    color: str = palette.SERIES[0]
    dashed: bool = False


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights for labels: in the order of those wanted, as near to them as at least ``gap`` between neighbours allows."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    groups: list[list[int]] = []  # of labels that touch, each centred on where its members want to be
    for index in order:
        groups.append([index])
        while len(groups) > 1 and _span(groups[-1], heights, gap)[0] < _span(groups[-2], heights, gap)[1] + gap:
            last = groups.pop()
            groups[-1] += last
    placed = {i: _span(group, heights, gap)[0] + gap * rank for group in groups for rank, i in enumerate(group)}
    return [placed[index] for index in range(len(heights))]


def _span(group: Sequence[int], heights: Sequence[float], gap: float) -> tuple[float, float]:
    middle, half = sum(heights[index] for index in group) / len(group), gap * (len(group) - 1) / 2
    return middle - half, middle + half


def draw_schedule(lines: Sequence[ScheduleLine], *, title: str = "", path: str | Path | None = None) -> Figure:
    """Draw scores with their 95 % intervals over the number of training samples, a line for each recipe.

    Raises:
        ChartError: If there is no line, or one has no point.
    """
    if not lines or not all(line.samples and len(line.samples) == len(line.scores) for line in lines):
        raise ChartError("a schedule chart needs lines with as many scores as lengths")
    lengths = sorted({length for line in lines for length in line.samples})
    nudge = 0.012 * (lengths[-1] - lengths[0] or 1)  # intervals of one length stand side by side
    with canvas.styled():
        figure = canvas.new_figure(6.8, 4.2)
        (ax,) = canvas.grid_axes(figure, 1, 1)
        for number, line in enumerate(lines):
            shift = nudge * (number - (len(lines) - 1) / 2)
            places = [length + shift for length in line.samples]
            means = [mean for mean, _, _ in line.scores]
            style = "dashed" if line.dashed else "solid"
            for place, (_, low, high) in zip(places, line.scores):
                ax.plot([place, place], [low, high], color=line.color, linewidth=4, alpha=0.35, solid_capstyle="round")
            ax.plot(places, means, color=line.color, linewidth=1.8, linestyle=style)
            face = "white" if line.dashed else line.color
            ax.plot(places, means, "o", color=line.color, markersize=6.5, markerfacecolor=face)
        ax.set(xlabel="training samples", ylabel="LEVEL_2 mAPH", xticks=lengths, xticklabels=[f"{n:,}" for n in lengths])
        ax.margins(x=0.08, y=0.1)
        bottom, top = ax.get_ylim()
        ends = [line.scores[-1][0] for line in lines]
        for line, height in zip(lines, spread(ends, 0.05 * (top - bottom))):
            beside: dict[str, Any] = {"xytext": (14, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5}
            ax.annotate(line.name, (lengths[-1], height), **beside)
        canvas.fit(figure, None, title)
        return canvas.finish(figure, path)
