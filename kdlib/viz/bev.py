"""Bird's-eye views: points, box layers or heat maps of one frame in, a matplotlib figure (and a PNG at ``path``) out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, Polygon
from numpy.typing import NDArray

from kdlib.types import FloatArray
from kdlib.viz import canvas, palette
from kdlib.viz.layers import BoxLayer, LayerError, drawable_points, footprint, heading_ticks, height_limits, select

Extent = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max in metres, x forward, y left

_POINTS = LinearSegmentedColormap.from_list("points", palette.POINT_RAMP)
_HEAT = LinearSegmentedColormap.from_list("heat", ("#FFFFFF", "#CFE3EE", "#56B4E9", "#0072B2", "#062B4A"))
_RING_STEPS = (5, 10, 20, 25, 50, 100)


def draw_bev(
    points: FloatArray,
    layers: Sequence[BoxLayer],
    *,
    extent: Extent,
    title: str = "",
    letters: bool = False,
    color_by: str = "height",
    ax: Axes | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw one frame from above: points, boxes with heading ticks, range circles, metric axes, legend.

    Args:
        points: (N, >=3) x, y, z[, intensity]; may be empty.
        layers: Drawn in this order, so ground truth comes first; boxes with scores fade as the score falls.
        extent: x_min, y_min, x_max, y_max in metres.
        title: Above the picture.
        letters: Write the first letter of the class beside each box of the first layer.
        color_by: 'height' or 'intensity' (needs a fourth column).
        ax: Draw into these axes instead of a new figure.
        path: Also save as PNG.

    Returns:
        The figure.

    Raises:
        LayerError: If the points, the extent or ``color_by`` do not make sense.
    """
    x_min, y_min, x_max, y_max = _checked(extent)
    own = ax is None
    with canvas.styled():
        if ax is None:
            height = 6.45 * (y_max - y_min) / (x_max - x_min) + 1.1
            figure: Figure = canvas.new_figure(7.2, height)
            ax = figure.add_subplot()
            figure.subplots_adjust(left=0.085, right=0.985, bottom=0.85 / height, top=1 - 0.35 / height)
        else:
            figure = cast(Figure, ax.figure)
        _axes(ax, extent, title)
        _scatter(ax, drawable_points(points), extent, color_by)
        for index, layer in enumerate(layers):
            _boxes(ax, layer, extent, letters and index == 0)
        if own and layers:
            _legend(figure, layers, extent)
        return canvas.finish(figure, path)


def draw_comparison(
    points: FloatArray,
    panels: Mapping[str, Sequence[BoxLayer]],
    *,
    extent: Extent,
    title: str = "",
    letters: bool = False,
    path: str | Path | None = None,
) -> Figure:
    """Draw one frame side by side, a panel for each entry (title -> layers), with one legend for all.

    Raises:
        LayerError: If there is no panel, or the points or the extent do not make sense.
    """
    if not panels:
        raise LayerError("a comparison needs at least one panel")
    x_min, y_min, x_max, y_max = _checked(extent)
    side = 4.1
    with canvas.styled():
        height = side * (y_max - y_min) / (x_max - x_min) + (1.5 if title else 1.25)
        figure = canvas.new_figure(side * len(panels) + 0.6, height)
        axes = list(np.ravel(figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)))
        top = 1 - (0.6 if title else 0.36) / height
        figure.subplots_adjust(left=0.62 / figure.get_figwidth(), right=0.99, bottom=0.85 / height, top=top, wspace=0.06)
        shown: dict[str, BoxLayer] = {}
        for index, (ax, (name, layers)) in enumerate(zip(axes, panels.items())):
            draw_bev(points, layers, extent=extent, title=name, letters=letters, ax=ax)
            if index:
                ax.set_ylabel("")
                ax.tick_params(labelleft=False)
            shown.update({layer.name: layer for layer in layers})
        if title:
            left = axes[0].get_position().x0
            figure.text(left, 1 - 0.12 / height, title, fontsize=12, fontweight="bold", va="top")
        _legend(figure, list(shown.values()), extent)
        return canvas.finish(figure, path)


def draw_heatmap(
    heatmap: FloatArray,
    extent: Extent,
    class_names: Sequence[str] = (),
    *,
    layers: Sequence[BoxLayer] = (),
    points: FloatArray | None = None,
    vmax: float | None = 1.0,
    title: str = "",
    label: str = "centre probability",
    path: str | Path | None = None,
) -> Figure:
    """Draw a BEV map from above, a panel for each class, boxes of the panel's class over it.

    Args:
        heatmap: (C, H, W) or (H, W), row 0 at y_min, column 0 at x_min, as the heads give it after the sigmoid.
        extent: x_min, y_min, x_max, y_max in metres that the map covers.
        class_names: C names; numbers where there are none.
        layers: Boxes to outline.
        points: (N, >=3) points to show faintly above the map.
        vmax: Value of the darkest colour; None takes the map's maximum.
        title: Above the picture.
        label: What the colour means.
        path: Also save as PNG.

    Returns:
        The figure.

    Raises:
        LayerError: If the shape, the names or the extent do not make sense.
    """
    maps, names = _maps(heatmap, class_names)
    if names == [""]:
        names, title = [title], ""
    x_min, y_min, x_max, y_max = _checked(extent)
    low, top = min(0.0, float(np.nanmin(maps))), float(np.nanmax(maps)) if vmax is None else vmax
    with canvas.styled():
        height = 3.9 * (y_max - y_min) / (x_max - x_min) + (1.25 if title else 0.95)
        figure = canvas.new_figure(3.9 * len(maps) + 1.3, height)
        axes = list(np.ravel(figure.subplots(1, len(maps), squeeze=False)))
        right = 1 - 0.75 / figure.get_figwidth()
        upper = 1 - (0.6 if title else 0.36) / height
        figure.subplots_adjust(left=0.6 / figure.get_figwidth(), right=right, bottom=0.5 / height, top=upper, wspace=0.08)
        for index, (ax, name, values) in enumerate(zip(axes, names, maps)):
            _axes(ax, extent, name)
            place = (x_min, x_max, y_min, y_max)
            image = ax.imshow(values, _HEAT, vmin=low, vmax=top or 1.0, origin="lower", extent=place, interpolation="nearest")
            if points is not None:
                _scatter(ax, drawable_points(points), extent, "height", alpha=0.25)
            for layer in layers:
                _boxes(ax, select(layer, class_name=name) if name in layer.class_names else layer, extent, False)
            if index:
                ax.set_ylabel("")
                ax.tick_params(labelleft=False)
        bar = figure.colorbar(image, ax=axes, cax=_bar_axes(figure, axes[-1]))
        bar.set_label(label)
        bar.outline.set_visible(False)
        if title:
            figure.text(axes[0].get_position().x0, 1 - 0.12 / height, title, fontsize=12, fontweight="bold", va="top")
        return canvas.finish(figure, path)


def legend_handles(layers: Sequence[BoxLayer], *, extent: Extent | None = None, dark: bool = False) -> list[Line2D]:
    """Return legend entries with the number of boxes of each layer, of those centred in ``extent`` where one is given."""
    low, high = (-np.inf, np.inf) if extent is None else (extent[:2], extent[2:])
    handles = []
    for layer in layers:
        count = int(((layer.boxes[:, :2] >= low) & (layer.boxes[:, :2] <= high)).all(axis=1).sum())
        color = palette.on_dark(layer.color) if dark else layer.color
        look: dict[str, Any] = {"color": color, "linestyle": layer.dash, "linewidth": layer.width + 0.5}
        strength = 1.0 if dark else _strength(layer)
        handles.append(Line2D([], [], label=f"{layer.name} ({count})", alpha=strength, **look))
    return handles


def _maps(heatmap: FloatArray, class_names: Sequence[str]) -> tuple[FloatArray, list[str]]:
    maps = np.asarray(heatmap)
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or not maps.size:
        raise LayerError(f"heat map of shape {maps.shape}, expected (C, H, W) or (H, W)")
    names = list(class_names) or ([""] if len(maps) == 1 else [f"channel {index}" for index in range(len(maps))])
    if len(names) != len(maps):
        raise LayerError(f"{len(maps)} heat maps but {len(names)} class names")
    return maps, names


def _legend(figure: Figure, layers: Sequence[BoxLayer], extent: Extent) -> None:
    handles = legend_handles(layers, extent=extent)
    options: dict[str, Any] = {"ncol": max(len(handles), 1), "columnspacing": 1.3, "handlelength": 1.7, "handletextpad": 0.5}
    figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.05 / figure.get_figheight()), **options)


def _checked(extent: Extent) -> Extent:
    x_min, y_min, x_max, y_max = (float(value) for value in extent)
    if not (x_min < x_max and y_min < y_max):
        raise LayerError(f"extent {tuple(extent)} must be x_min, y_min, x_max, y_max with min below max")
    return x_min, y_min, x_max, y_max


def _axes(ax: Axes, extent: Extent, title: str) -> None:
    x_min, y_min, x_max, y_max = extent
    ax.set(xlim=(x_min, x_max), ylim=(y_min, y_max), xlabel="x, forward [m]", ylabel="y, left [m]", title=title)
    ax.set_aspect("equal")
    ax.tick_params(length=3)
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)
    reach = float(np.hypot(max(abs(x_min), abs(x_max)), max(abs(y_min), abs(y_max))))
    step = next((value for value in _RING_STEPS if reach / value <= 6), 100)
    for radius in np.arange(step, reach, step):
        ax.add_patch(Circle((0, 0), radius, fill=False, edgecolor="#C5CED8", linewidth=0.6, linestyle=(0, (4, 3)), zorder=0.8))
        for angle in np.radians((45, 225)):
            x, y = radius * np.cos(angle), radius * np.sin(angle)
            if x_min < x < x_max and y_min < y < y_max:
                box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6}
                style: dict[str, Any] = {"fontsize": 6, "color": palette.FAINT, "ha": "center", "va": "center", "bbox": box}
                ax.text(x, y, f"{radius:g} m", zorder=1.5, clip_on=True, **style)
                break
    ax.add_patch(FancyBboxPatch((-1.2, -0.95), 4.4, 1.9, boxstyle="round,pad=0,rounding_size=0.6", color="#CBD5DF", zorder=2.5))
    ax.add_patch(Polygon([(2.8, 0), (1.4, 0.65), (1.4, -0.65)], color="#52606D", zorder=2.6))


def _scatter(ax: Axes, points: FloatArray, extent: Extent, color_by: str, alpha: float = 1.0) -> None:
    if color_by not in ("height", "intensity"):
        raise LayerError(f"color_by='{color_by}' is neither 'height' nor 'intensity'")
    if color_by == "intensity" and points.shape[1] < 4:
        raise LayerError(f"color_by='intensity' needs a fourth column, the points have {points.shape[1]}")
    x_min, y_min, x_max, y_max = extent
    inside = (points[:, 0] >= x_min) & (points[:, 0] <= x_max) & (points[:, 1] >= y_min) & (points[:, 1] <= y_max)
    points = points[inside]
    if not len(points):
        return
    points = points[np.argsort(points[:, 2], kind="stable")]  # what stands high hides the ground, as seen from above
    low, high = height_limits(points)
    values = points[:, 2]
    if color_by == "intensity":
        values = np.tanh(points[:, 3] / max(float(np.percentile(points[:, 3], 90)), 1e-6))
        low, high = 0.0, 1.0
    size = float(np.clip(6e4 / len(points), 0.25, 2.5)) * _scale(ax, extent)
    dots: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": True, "zorder": 2, "alpha": alpha}
    ax.scatter(points[:, 0], points[:, 1], c=values, cmap=_POINTS, vmin=low, vmax=high, **dots)


def _boxes(ax: Axes, layer: BoxLayer, extent: Extent, letters: bool) -> None:
    if not len(layer):
        return
    strength = np.ones(len(layer))
    if layer.scores is not None:
        strength = np.clip(0.35 + 1.1 * np.asarray(layer.scores, float), 0.35, 1.0)  # full from a score of 0.6 on
    edges = _shades(layer.color, strength * _strength(layer))
    corners = footprint(layer.boxes)
    outlines = list(np.concatenate((corners, corners[:, :1]), axis=1))
    style: dict[str, Any] = {"linewidths": layer.width * _scale(ax, extent), "zorder": 3.0}
    ax.add_collection(
        PolyCollection(list(corners), facecolors=_shades(layer.color, strength * 0.10), edgecolors="none", zorder=2.9)
    )
    # Dashed roles get a pale line below, or their outline would dissolve among the points.
    if layer.dash != "solid":
        ax.add_collection(LineCollection(outlines, colors="white", **style))
    ax.add_collection(LineCollection(outlines, colors=edges, linestyles=layer.dash, **style))
    ax.add_collection(LineCollection(list(heading_ticks(layer.boxes)), colors=edges, **style))
    if letters:
        for index in range(len(layer)):
            x, y = float(layer.boxes[index, 0]), float(corners[index, :, 1].max()) + 0.3
            if extent[0] < x < extent[2] and extent[1] < y < extent[3] - 1:
                ax.text(x, y, layer.class_of(index)[0], fontsize=6.5, color=layer.color, fontweight="bold", ha="center", zorder=4)


def _scale(ax: Axes, extent: Extent) -> float:
    """Return by how much lines and dots shrink where a metre is small on paper."""
    inches = ax.get_position().width * cast(Figure, ax.figure).get_figwidth() / (extent[2] - extent[0])
    return float(np.clip(np.sqrt(inches / 0.11), 0.45, 1.0))


def _strength(layer: BoxLayer) -> float:
    return 0.62 if layer.width > 2.5 else 1.0  # a broad band is pale, so that thin lines on it stand out


def _shades(color: str, alphas: NDArray[np.float64]) -> list[tuple[float, float, float, float]]:
    return [to_rgba(color, float(alpha)) for alpha in alphas]


def _bar_axes(figure: Figure, beside: Axes) -> Axes:
    place = beside.get_position()
    return figure.add_axes((place.x1 + 0.12 / figure.get_figwidth(), place.y0, 0.14 / figure.get_figwidth(), place.height))
