"""Draws scores over the length of the training, a line for each recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from kdlib.viz import canvas, palette
from kdlib.viz.canvas import ChartError


@dataclass(frozen=True)
class ScheduleLine:
    """One recipe at several lengths of its schedule, which its arms differ in alone."""

    name: str
    arms: tuple[str, ...]
    color: str = palette.SERIES[0]
    dashed: bool = False
    samples: tuple[int, ...] = ()
    scores: tuple[tuple[float, float, float], ...] = ()  # mean, low, high, percent


def draw_schedule(
    lines: Sequence[ScheduleLine], *, title: str = "", path: str | Path | None = None
) -> Figure:
    """Draw scores and intervals over the number of training samples, a line for each recipe;
    ChartError if one is empty.
    """
    if not lines or not all(
        line.samples and len(line.samples) == len(line.scores) for line in lines
    ):
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
            for place, (_, low, high) in zip(places, line.scores):
                ax.plot(
                    [place, place],
                    [low, high],
                    color=line.color,
                    linewidth=4,
                    alpha=0.35,
                    solid_capstyle="round",
                )
            style, face = ("dashed", "white") if line.dashed else ("solid", line.color)
            (curve,) = ax.plot(
                places, means, linestyle=style, linewidth=1.8, color=line.color, label=line.name
            )
            curve.set(marker="o", markersize=6.5, markerfacecolor=face)
        ax.set(
            xlabel="training samples",
            ylabel="LEVEL_2 mAPH",
            xticks=lengths,
            xticklabels=[f"{n:,}" for n in lengths],
        )
        ax.margins(x=0.08, y=0.1)
        return canvas.arrange(figure, title, path, ax)
