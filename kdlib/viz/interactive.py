"""Scenes to turn and zoom: points and box layers of one frame in, a plotly figure or one self-contained HTML file out."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdlib.types import FloatArray
from kdlib.viz import canvas, palette
from kdlib.viz.layers import BoxLayer, LayerError, count_inside, drawable_points, height_limits, wireframe
from kdlib.viz.perspective import Camera

CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:; font-src data:"
)
"""What a saved page may load: nothing that is not in it. plotly compiles its shaders' glue, hence unsafe-eval."""


def scene_figure(
    points: FloatArray,
    layers: Sequence[BoxLayer],
    point_budget: int = 60_000,
    *,
    title: str = "",
    height: int = 620,
    seed: int = 0,
) -> Any:
    """Return a plotly figure: points coloured by height, one trace for each layer, click the legend to switch a layer.

    The axes keep their proportions (``aspectmode='data'``). Hovering over a box shows its class, score and number of points.

    Args:
        points: (N, >=3) x, y, z in metres.
        layers: Boxes; each layer is one line trace with gaps.
        point_budget: More points than this are thinned at random (same seed, same points), so that browsers stay quick.
        title: Above the scene.
        height: Pixels.
        seed: Of the thinning.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        LayerError: If the points have a wrong shape or the budget is below 1.
    """
    import plotly.graph_objects as go

    points = drawable_points(points)
    if point_budget < 1:
        raise LayerError(f"point_budget={point_budget} must be at least 1")
    shown = points
    if len(points) > point_budget:
        shown = points[np.sort(np.random.default_rng(seed).choice(len(points), point_budget, replace=False))]
    figure = go.Figure(go.Scatter3d(**_cloud(shown, len(points))))
    for layer in layers:
        figure.add_trace(go.Scatter3d(**_boxes(layer, count_inside(points, layer.boxes))))
    reach = float(np.clip(np.percentile(np.hypot(points[:, 0], points[:, 1]), 90), 15, 40)) if len(points) else 20.0
    figure.update_layout(**_layout(title, height, _bounds(points, layers), reach))
    return figure


def figure_html(figure: Any) -> str:
    """Return the ``<div>`` of a figure, without plotly.js (see :func:`plotly_script`)."""
    import plotly.io

    config = {"displaylogo": False, "responsive": True}
    return str(plotly.io.to_html(figure, include_plotlyjs=False, full_html=False, config=config))


def plotly_script() -> str:
    """Return plotly.js as one inline ``<script>``; a page needs it once."""
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def save_html(figures: Any, path: str | Path, *, title: str = "kdlib scenes") -> Path:
    """Write one HTML file that needs no network: plotly.js once, then every figure.

    Args:
        figures: A figure, a sequence of figures, or a mapping from heading to figure.
        path: The file to write.
        title: Of the page.

    Returns:
        The path.
    """
    if isinstance(figures, Mapping):
        named = dict(figures)
    elif isinstance(figures, Sequence):
        named = {f"scene {number}" if len(figures) > 1 else "": figure for number, figure in enumerate(figures, 1)}
    else:
        named = {"": figures}
    parts = [(f"<h2>{html.escape(str(name))}</h2>" if name else "") + figure_html(figure) for name, figure in named.items()]
    style = f"body{{margin:0;background:{palette.NIGHT};color:{palette.NIGHT_INK};font:15px/1.5 system-ui,sans-serif}}"
    style += "h1,h2{margin:.8em 1.2rem .4em}"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
        f"<title>{html.escape(title)}</title><style>{style}</style>{plotly_script()}</head>"
        f"<body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>"
    )
    return canvas.write_bytes(path, page.encode())


def _cloud(points: FloatArray, total: int) -> dict[str, Any]:
    low, high = height_limits(points)
    ramp = [[index / (len(palette.NIGHT_RAMP) - 1), color] for index, color in enumerate(palette.NIGHT_RAMP)]
    kept = f"{len(points):,} points" if len(points) == total else f"{len(points):,} of {total:,} points"
    return {
        **_coordinates(points[:, :3]),
        "mode": "markers",
        "name": kept,
        "hoverinfo": "skip",
        "marker": {"size": 1.2, "color": _short(points[:, 2]), "colorscale": ramp, "cmin": low, "cmax": high},
    }


def _boxes(layer: BoxLayer, inside: NDArray[Any]) -> dict[str, Any]:
    vertices, edges = wireframe(layer.boxes)
    gap = np.full((len(layer), len(edges), 1, 3), np.nan)
    path = np.concatenate((vertices[:, edges], gap), axis=2).reshape(-1, 3)
    texts = []
    for index in range(len(layer)):
        score = "" if layer.scores is None else f"<br>score {layer.scores[index]:.2f}"
        size = " x ".join(f"{side:.1f}" for side in layer.boxes[index, 3:6])
        text = f"<b>{html.escape(layer.class_of(index))}</b>{score}<br>{int(inside[index])} points<br>{size} m"
        texts.extend([text] * (3 * len(edges)))
    width = 5 if layer.width > 2.5 else 3
    return {
        **_coordinates(path),
        "mode": "lines",
        "name": f"{html.escape(layer.name)} ({len(layer)})",
        "line": {"color": palette.on_dark(layer.color), "width": width},
        "text": texts,
        "hovertemplate": "%{text}<extra>" + html.escape(layer.name) + "</extra>",
    }


def _coordinates(xyz: FloatArray) -> dict[str, list[float | None]]:
    """Return x, y, z as lists in centimetre steps, None where a line breaks; short numbers keep the page small."""
    return {axis: [None if value != value else value for value in _short(xyz[:, column])] for column, axis in enumerate("xyz")}


def _short(values: FloatArray) -> list[float]:
    return [round(value, 2) for value in np.asarray(values, np.float64).tolist()]


def _layout(title: str, height: int, bounds: FloatArray, reach: float) -> dict[str, Any]:
    axis = {
        "showbackground": False,
        "zeroline": False,
        "showspikes": False,
        "gridcolor": palette.NIGHT_FAINT,
        "color": palette.FAINT,
    }
    axes: dict[str, Any] = {f"{key}axis": {**axis, "range": list(limits)} for key, limits in zip("xyz", bounds.T.tolist())}
    axes["xaxis"]["title"], axes["yaxis"]["title"] = {"text": "x, forward [m]"}, {"text": "y, left [m]"}
    axes["zaxis"]["visible"] = False
    cameras = {
        "behind": Camera.behind(reach),
        "above": Camera((0, 0, 2.6 * reach), (0, 0, 0), up=(1, 0, 0)),
        "left": Camera((0.1 * reach, 1.3 * reach, 0.5 * reach), (0.1 * reach, 0, 0)),
    }
    views = {name: _view(camera, bounds) for name, camera in cameras.items()}
    buttons = [{"label": name, "method": "relayout", "args": [{"scene.camera": view}]} for name, view in views.items()]
    menu = {"type": "buttons", "direction": "right", "showactive": False}
    place = {"x": 0.99, "xanchor": "right", "y": 0.02, "yanchor": "bottom"}
    style = {"bgcolor": palette.NIGHT, "bordercolor": palette.NIGHT_FAINT, "font": {"size": 11, "color": palette.NIGHT_INK}}
    return {
        "template": "plotly_dark",
        "paper_bgcolor": palette.NIGHT,
        "height": height,
        "margin": {"l": 0, "r": 0, "t": 44 if title else 0, "b": 0},
        "title": {"text": html.escape(title), "x": 0.012, "y": 0.97, "font": {"size": 15}},
        "legend": {"x": 0.01, "y": 0.98, "bgcolor": "rgba(13,17,23,0.7)", "itemsizing": "constant"},
        "scene": {"aspectmode": "data", "camera": views["behind"], "bgcolor": palette.NIGHT, **axes},
        "updatemenus": [{**menu, **place, **style, "buttons": buttons}],
        "uirevision": "keep",  # the view survives switching layers
    }


def _bounds(points: FloatArray, layers: Sequence[BoxLayer]) -> FloatArray:
    """Return the lowest and highest corner (2, 3) of all that is shown, a little wider, never flat."""
    shown = [points[:, :3], *(wireframe(layer.boxes)[0].reshape(-1, 3) for layer in layers), np.zeros((1, 3))]
    everything = np.concatenate([np.asarray(part, np.float64) for part in shown])
    return np.stack((everything.min(axis=0) - 0.5, everything.max(axis=0) + 0.5))


def _view(camera: Camera, bounds: FloatArray) -> dict[str, Any]:
    """Return plotly's camera: with aspectmode 'data' its unit is the cube root of the scene's volume, its origin the middle."""
    middle, unit = bounds.mean(axis=0), float(np.cbrt(np.prod(bounds[1] - bounds[0])))
    eye, centre = (dict(zip("xyz", ((np.asarray(place) - middle) / unit).tolist())) for place in (camera.eye, camera.target))
    return {"eye": eye, "center": centre, "up": dict(zip("xyz", camera.up))}
