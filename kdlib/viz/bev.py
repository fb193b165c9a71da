"""Pictures from above: points, boxes and maps of one frame, one panel or several on one scale, with
one legend.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, Polygon
from PIL import Image, ImageOps

from kdlib.records import write_bytes
from kdlib.types import FloatArray
from kdlib.viz import canvas, palette
from kdlib.viz.layers import (
    BoxLayer,
    GroundMap,
    LayerError,
    Panel,
    box_counts,
    drawable_points,
    ground_corners,
    heading_ticks,
    height_limits,
)

# x_min, y_min, x_max, y_max in metres, x forward, y left
Extent = tuple[float, float, float, float]

_POINTS = LinearSegmentedColormap.from_list("points", palette.POINT_RAMP)
# No box is violet, so a map below boxes is never taken for one; its lightness alone tells the
# value.
_MAP = LinearSegmentedColormap.from_list(
    "map", ("#FFFFFF", "#E4DDF1", "#B9A7DB", "#8465B9", "#4B2E83")
)
_SIDES = {1: 6.45, 2: 4.6}  # inches of a panel where there are so many
_SMALL_SIDE = 4.1
_RING_STEPS = (5, 10, 20, 25, 50, 100)


def draw_bev(
    points: FloatArray,
    panels: Sequence[Panel],
    *,
    extent: Extent,
    title: str = "",
    note: str = "",
    letters: bool = False,
    path: str | Path | None = None,
) -> Figure:
    """Draw one frame from above: points, boxes with heading ticks, maps beneath, range circles,
    metric axes, one legend.

    Points are (N, >=3) x, y, z in metres, maybe none; the extent is x_min, y_min, x_max, y_max in
    metres, and maps cover all of it. Panels stand side by side; boxes with scores fade as the score
    falls, ``letters`` writes the first letter of the class beside each box of a panel's first
    layer. The title stands above, a note in small letters beside it; a path saves a PNG, too.

    Raises:
        LayerError: If there is no panel, or the points or the extent do not make sense.
    """
    x_min, y_min, x_max, y_max = extent
    if not (x_min < x_max and y_min < y_max):
        raise LayerError(f"extent {extent} must be x_min, y_min, x_max, y_max with min below max")
    if not panels:
        raise LayerError("a picture needs at least one panel")
    points = drawable_points(points)
    side = _SIDES.get(len(panels), _SMALL_SIDE)
    top = 0.36 + 0.24 * bool(title) + 0.2 * any(panel.note for panel in panels)
    bottom = 0.85 + 0.25 * any(panel.ground is not None for panel in panels)
    width, height = (
        side * len(panels) + 0.75,
        side * (y_max - y_min) / (x_max - x_min) + top + bottom,
    )
    with canvas.styled():
        figure = canvas.new_figure(width, height)
        axes = np.ravel(figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True))
        figure.subplots_adjust(
            0.62 / width, bottom / height, 1 - 0.1 / width, 1 - top / height, wspace=0.07
        )
        for ax, panel in zip(axes, panels):
            if panel.ground is not None:
                _ground(figure, ax, panel.ground, extent)
            _street(ax, extent)
            ax.set_title(f"{panel.title}\n" if panel.note else panel.title)
            ax.text(0, 1 + 0.08 / side, panel.note, transform=ax.transAxes, fontsize=9)
            ax.label_outer()
            # smaller where a metre is small on paper
            scale = float(np.clip(np.sqrt(side / (x_max - x_min) / 0.11), 0.45, 1.0))
            _scatter(ax, points, extent, scale)
            for index, layer in enumerate(panel.layers):
                _boxes(ax, layer, scale)
                if letters and not index:
                    _letters(ax, layer, extent)
        figure.text(0.62 / width, 1 - 0.1 / height, title, fontsize=12, fontweight="bold", va="top")
        figure.text(1 - 0.12 / width, 1 - 0.14 / height, note, fontsize=8.5, ha="right", va="top")
        handles = legend_handles(panels)
        legend = {
            "ncol": max(len(handles), 1),
            "columnspacing": 1.5,
            "handlelength": 2.0,
            "handletextpad": 0.5,
        }
        figure.legend(
            handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.05 / height), **legend
        )
        return canvas.finish(figure, path)


def legend_handles(panels: Sequence[Panel]) -> list[Line2D]:
    """Return a legend's entries: each name once, with its number of boxes."""
    looks = {layer.name: layer for panel in panels for layer in panel.layers}
    handles = []
    for (name, look), count in zip(looks.items(), box_counts(panels).values()):
        line = Line2D(
            [], [], label=f"{name} ({count})", color=look.color, linewidth=look.width + 0.5
        )
        line.set(linestyle=look.dash, alpha=_strength(look))
        handles.append(line)
    return handles


def contact_sheet(figures: Sequence[Figure], path: str | Path) -> Image.Image:
    """Return figures as one picture, two a row, each a little smaller: side by side they would not
    fit a page anyway.
    """
    images = [
        ImageOps.scale(Image.fromarray(canvas.to_pixels(figure)), 0.64, Image.Resampling.LANCZOS)
        for figure in figures
    ]
    wide, high = np.max([image.size for image in images], axis=0).tolist()
    sheet = Image.new("RGB", (wide * min(2, len(images)), high * -(-len(images) // 2)), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (wide * (number % 2), high * (number // 2)))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_bytes(Path(path), buffer.getvalue())
    return sheet


def _ground(figure: Figure, ax: Axes, ground: GroundMap, extent: Extent) -> None:
    """Draw a map, and what its colours mean below the axes."""
    image = ax.imshow(
        ground.values, _MAP, vmin=0, vmax=1, interpolation="nearest", origin="lower", zorder=0.5
    )
    image.set_extent((extent[0], extent[2], extent[1], extent[3]))
    high, wide, right = figure.get_figheight(), figure.get_figwidth(), ax.get_position().x1
    bar = figure.add_axes((right - 0.95 / wide, 0.47 / high, 0.9 / wide, 0.09 / high))
    bar.imshow(np.linspace(0, 1, 64)[None], _MAP, aspect="auto")
    bar.set(xticks=(), yticks=())
    bar.spines[:].set_visible(True)
    bar.spines[:].set_linewidth(0.5)
    place = right - 1.03 / wide, 0.515 / high
    figure.text(*place, f"{ground.name}, none to most", fontsize=8, ha="right", va="center")


def _street(ax: Axes, extent: Extent) -> None:
    """Draw metric axes, range circles and the vehicle that carries the sensor."""
    x_min, y_min, x_max, y_max = extent
    ax.set(
        xlim=(x_min, x_max),
        ylim=(y_min, y_max),
        xlabel="x, forward [m]",
        ylabel="y, left [m]",
        aspect="equal",
    )
    ax.tick_params(length=3)
    ax.spines[["top", "right"]].set_visible(True)
    reach = float(np.hypot(*np.abs(extent).reshape(2, 2).max(axis=0)))
    step = next((value for value in _RING_STEPS if reach / value <= 6), 100)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6}
    for radius in np.arange(step, reach, step):
        ax.add_patch(
            Circle(
                (0, 0),
                radius,
                fill=False,
                edgecolor="#C5CED8",
                linewidth=0.6,
                linestyle=(0, (4, 3)),
                zorder=0.8,
            )
        )
        x = y = radius * np.sqrt(0.5)
        if x < x_max and y < y_max:
            words = ax.text(
                x, y, f"{radius:g} m", fontsize=6, color=palette.FAINT, bbox=box, zorder=1.5
            )
            words.set(ha="center", va="center")
    ax.add_patch(
        FancyBboxPatch(
            (-1.2, -0.95),
            4.4,
            1.9,
            boxstyle="round,pad=0,rounding_size=0.6",
            color="#CBD5DF",
            zorder=2.5,
        )
    )
    ax.add_patch(Polygon([(2.8, 0), (1.4, 0.65), (1.4, -0.65)], color="#52606D", zorder=2.6))


def _scatter(ax: Axes, points: FloatArray, extent: Extent, scale: float) -> None:
    inside = ((points[:, :2] >= extent[:2]) & (points[:, :2] <= extent[2:])).all(axis=1)
    points = points[inside]
    # what stands high hides the ground, as seen from above
    points = points[np.argsort(points[:, 2], kind="stable")]
    low, high = height_limits(points)
    size = float(np.clip(6e4 / max(len(points), 1), 0.25, 2.5)) * scale
    x, y, z = points[:, :3].T
    dots = ax.scatter(x, y, size, z, cmap=_POINTS, vmin=low, vmax=high, linewidths=0, zorder=2)
    dots.set_rasterized(True)


def _boxes(ax: Axes, layer: BoxLayer, scale: float) -> None:
    strength = np.ones(len(layer))
    if layer.scores is not None:
        # full from a score of 0.6 on
        strength = np.clip(0.35 + 1.1 * np.asarray(layer.scores, float), 0.35, 1.0)
    edges = [to_rgba(layer.color, share * _strength(layer)) for share in strength]
    corners = ground_corners(layer.boxes)
    outlines, width = corners[:, [0, 1, 2, 3, 0]], layer.width * scale
    faces = [to_rgba(layer.color, share * 0.1) for share in strength]
    ax.add_collection(
        PolyCollection(list(corners), facecolors=faces, edgecolors="none", zorder=2.9)
    )

    def add(lines: FloatArray, colors: Any, dash: str = "solid") -> None:
        ax.add_collection(
            LineCollection(list(lines), linewidths=width, colors=colors, linestyles=dash, zorder=3)
        )

    if layer.dash != "solid":  # a pale line below, or the outline would dissolve among the points
        add(outlines, "white")
    add(outlines, edges, layer.dash)
    add(heading_ticks(layer.boxes), edges)


def _letters(ax: Axes, layer: BoxLayer, extent: Extent) -> None:
    tops = ground_corners(layer.boxes)[..., 1].max(axis=1) + 0.3
    for index, (x, top) in enumerate(zip(layer.boxes[:, 0], tops)):
        if extent[0] < x < extent[2] and extent[1] < top < extent[3] - 1:
            letter = ax.text(
                x, top, layer.class_of(index)[0], fontsize=6.5, color=layer.color, zorder=4
            )
            letter.set(fontweight="bold", ha="center")


def _strength(layer: BoxLayer) -> float:
    # a broad band is pale, so that thin lines on it stand out
    return 0.62 if layer.width > 2.5 else 1.0
