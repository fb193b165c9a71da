"""Scenes to turn and zoom in the browser: points and boxes of one frame, alone or as two halves
that turn together.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdlib.records import write_bytes
from kdlib.types import FloatArray
from kdlib.viz import palette
from kdlib.viz.layers import (
    BoxLayer,
    LayerError,
    Panel,
    box_counts,
    count_inside,
    drawable_points,
    height_limits,
    wireframe,
)
from kdlib.viz.perspective import Camera

CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "img-src data: blob:; font-src data:"
)
"""What a saved page may load: nothing that is not in it. plotly compiles its shaders' glue, hence
unsafe-eval.
"""

_HEIGHT = 620  # pixels
_CONFIG = {"displaylogo": False, "responsive": True}
# What is drawn of each edge, as shares of it: plotly's own dashes are as long as a box, so that
# whole edges are missing.
_DASHES = {
    "dashed": [(0.0, 0.2), (0.4, 0.6), (0.8, 1.0)],
    "dotted": [(0.0, 0.06), (0.2, 0.26), (0.4, 0.46), (0.6, 0.66), (0.8, 0.86)],
    "solid": [(0.0, 1.0)],
}
_MOST_DASHED = 100  # boxes of a layer; dashes of more would only make the page large

# What turns one scene of a plot turns the other; a change that names both cameras is a button's or
# our own.
_COUPLE = """plot => {
  const follow = change => {
    const turned = ["scene.camera", "scene2.camera"].filter(name => name in change);
    if (turned.length !== 1 || !plot.layout.scene2) return;
    const camera = change[turned[0]];
    Plotly.relayout(plot, {"scene.camera": camera, "scene2.camera": camera});
  };
  plot.on("plotly_relayouting", follow);
  plot.on("plotly_relayout", follow);
}"""

# State, not messages: whatever was sent before this script was ready is still there to be read.
_LIVE = """(channel, config, couple) => {
  const plot = document.getElementById("kdlib-scene");
  let version = null;
  setInterval(() => {
    const sent = window.parent.document.getElementsByClassName(channel)[0];
    if (!sent || sent.dataset.version === version) return;
    const next = JSON.parse(sent.textContent);
    delete next.layout.height;  // as high as the frame
    if (version) next.layout.scene.camera = next.layout.scene2.camera = plot.layout.scene.camera;
    Plotly.react(plot, next.data, next.layout, config);
    if (!version) couple(plot);
    version = plot.dataset.version = sent.dataset.version;
  }, 150);
}"""


def scene_figure(
    points: FloatArray, panels: Sequence[Panel], *, title: str = "", point_budget: int = 60_000
) -> Any:
    """Return a ``plotly.graph_objects.Figure`` of one scene, or of two side by side; click the
    legend to switch a layer in both.

    Points (N, >=3; x, y, z in metres) are coloured by height, the axes keep their proportions, and
    hovering over a box shows its class, score, number of points and size. Maps of the panels are
    left out. Of more points than the budget a random choice is drawn, the same every time, so that
    browsers stay quick.

    Raises:
        LayerError: If the points have a wrong shape or the budget is below 1.
    """
    import plotly.graph_objects as go

    points = drawable_points(points)
    if point_budget < 1:
        raise LayerError(f"point_budget={point_budget} must be at least 1")
    shown, budget = points, max(point_budget // len(panels), 1)
    if len(points) > budget:
        shown = points[np.sort(np.random.default_rng(0).choice(len(points), budget, replace=False))]
    count = (
        f"{len(shown):,} points"
        if len(shown) == len(points)
        else (f"{len(shown):,} of {len(points):,} points")
    )
    figure, counts, listed = go.Figure(), box_counts(panels), set()
    for scene, panel in zip(("scene", "scene2"), panels):
        traces = [(count, count, _cloud(shown))]
        for layer in panel.layers:
            name = f"{html.escape(layer.name)} ({counts[layer.name]})"
            traces.append((layer.name, name, _boxes(layer, count_inside(points, layer.boxes))))
        for key, name, trace in traces:
            # The browser tells traces apart by uid where one figure follows another, and makes it a
            # class name.
            place = {"scene": scene, "uid": re.sub(r"\W", "_", f"{scene} {key}")}
            figure.add_trace(
                go.Scatter3d(
                    name=name, legendgroup=name, showlegend=name not in listed, **place, **trace
                )
            )
            listed.add(name)
    figure.update_layout(**_layout(title, panels, points))
    return figure


def figure_html(figure: Any) -> str:
    """Return the ``<div>`` of a figure whose scenes turn together, without plotly.js (see
    :func:`plotly_script`).
    """
    import plotly.io

    couple = f"({_COUPLE})(document.getElementById('{{plot_id}}'))"
    return str(
        plotly.io.to_html(
            figure, include_plotlyjs=False, full_html=False, config=_CONFIG, post_script=couple
        )
    )


def plotly_script() -> str:
    """Return plotly.js as one inline ``<script>``; a page needs it once."""
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def save_html(figure: Any, path: str | Path, *, title: str) -> Path:
    """Write a figure as one HTML file that needs no network, and return its path."""
    write_bytes(Path(path), _page(figure_html(figure), title).encode())
    return Path(path)


def live_frame(channel: str, height: str) -> str:
    """Return an ``<iframe>`` of a height, in CSS's words, with the figure that the surrounding page
    holds in the element :func:`live_data` made.

    The frame looks for a new figure by itself, so the camera stays where the reader turned it while
    frames and layers change.
    """
    start = f"({_LIVE})({json.dumps(channel)}, {json.dumps(_CONFIG)}, {_COUPLE})"
    page = html.escape(
        _page(f'<div id="kdlib-scene" style="height:100vh"></div><script>{start}</script>', "3D"),
        quote=True,
    )
    return (
        f'<iframe title="3D view" srcdoc="{page}" '
        f'style="width:100%;height:{height};border:0;display:block"></iframe>'
    )


def live_data(figure: Any, channel: str, version: int) -> str:
    """Return the hidden element that feeds the frame of a channel; another version number means
    another figure.
    """
    import plotly.io

    data = plotly.io.to_json(figure, remove_uids=False).replace("<", "\\u003c")
    return (
        f'<script type="application/json" class="{html.escape(channel)}" '
        f'data-version="{version}">{data}</script>'
    )


def _page(body: str, title: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        f'content="{CONTENT_POLICY}"><title>{html.escape(title)}</title>'
        f"<style>body{{margin:0;background:{palette.NIGHT}}}</style>{plotly_script()}</head><body>{body}</body></html>"
    )


def _cloud(points: FloatArray) -> dict[str, Any]:
    low, high = height_limits(points)
    ramp = list(zip(np.linspace(0, 1, len(palette.NIGHT_RAMP)).tolist(), palette.NIGHT_RAMP))
    marker = {
        "size": 1.2,
        "color": _short(points[:, 2]),
        "colorscale": ramp,
        "cmin": low,
        "cmax": high,
    }
    return {**_coordinates(points[:, :3]), "mode": "markers", "hoverinfo": "skip", "marker": marker}


def _boxes(layer: BoxLayer, inside: NDArray[Any]) -> dict[str, Any]:
    vertices, edges = wireframe(layer.boxes)
    start, end = np.moveaxis(vertices[:, edges, None, None], 2, 0)  # (M, 15, 1, 1, 3)
    style = layer.dash if len(layer) <= _MOST_DASHED else "solid"
    dashes = start + np.array(_DASHES[style])[..., None] * (end - start)  # (M, 15, dashes, 2, 3)
    path = np.insert(dashes, 2, np.nan, axis=-2)  # a gap behind each
    texts = []
    for index, (box, count) in enumerate(zip(layer.boxes, inside)):
        score = "" if layer.scores is None else f"<br>score {layer.scores[index]:.2f}"
        size = " x ".join(f"{side:.1f}" for side in box[3:6])
        text = f"<b>{html.escape(layer.class_of(index))}</b>{score}<br>{count} points<br>{size} m"
        texts += [text] * path[index, ..., 0].size
    return {
        **_coordinates(path.reshape(-1, 3)),
        "mode": "lines",
        "line": {"color": palette.on_dark(layer.color), "width": 5 if layer.width > 2.5 else 3},
        "text": texts,
        "hovertemplate": "%{text}<extra>" + html.escape(layer.name) + "</extra>",
    }


def _coordinates(xyz: FloatArray) -> dict[str, list[float | None]]:
    """Return x, y, z as lists in centimetre steps, None where a line breaks; short numbers keep the
    page small.
    """
    return {
        axis: [None if value != value else value for value in _short(xyz[:, column])]
        for column, axis in enumerate("xyz")
    }


def _short(values: FloatArray) -> list[float]:
    return [round(value, 2) for value in np.asarray(values, np.float64).tolist()]


def _layout(title: str, panels: Sequence[Panel], points: FloatArray) -> dict[str, Any]:
    corners = [
        wireframe(layer.boxes)[0].reshape(-1, 3) for panel in panels for layer in panel.layers
    ]
    shown = np.concatenate((points[:, :3].astype(np.float64), *corners, np.zeros((1, 3))))
    # of all that is shown, a little wider, never flat
    bounds = np.stack((shown.min(axis=0) - 0.5, shown.max(axis=0) + 0.5))
    reach = (
        float(np.clip(np.percentile(np.hypot(points[:, 0], points[:, 1]), 90), 15, 40))
        if len(points)
        else 20.0
    )
    views = {name: _view(camera, bounds) for name, camera in _cameras(reach).items()}
    scene: dict[str, Any] = {
        "aspectmode": "data",
        "camera": views["behind"],
        "bgcolor": palette.NIGHT,
    }
    plain: dict[str, Any] = {"showbackground": False, "zeroline": False, "showspikes": False}
    plain |= {"gridcolor": palette.NIGHT_FAINT, "color": palette.FAINT}
    own: tuple[Any, ...] = (
        {"title": {"text": "x, forward [m]"}},
        {"title": {"text": "y, left [m]"}},
        {"visible": False},
    )
    for name, axis, limits in zip("xyz", own, bounds.T.tolist()):
        scene[f"{name}axis"] = {**plain, "range": limits, **axis}
    scenes, captions, buttons = {}, [], []
    for name, panel, left in zip(("scene", "scene2"), panels, (0.0, 0.5)):
        scenes[name] = {**scene, "domain": {"x": [left, left + 1 / len(panels)]}}
        words = ": ".join(html.escape(part) for part in (panel.title, panel.note) if part)
        place = {"x": left + 0.01, "xanchor": "left", "y": 1, "yanchor": "bottom"}
        captions.append({"text": words, "font": {"size": 13}, "showarrow": False, **place})
    for name, view in views.items():
        turned = {f"{scene}.camera": view for scene in scenes}
        buttons.append({"label": name, "method": "relayout", "args": [turned]})
    menu = {
        "type": "buttons",
        "direction": "right",
        "showactive": False,
        "buttons": buttons,
        "bgcolor": palette.NIGHT,
    }
    above = 44 * bool(title) + 24 * any(panel.title for panel in panels)
    heading = {"yanchor": "top", "font": {"size": 15}}
    look = {"bordercolor": palette.NIGHT_FAINT, "font": {"size": 11, "color": palette.NIGHT_INK}}
    return {
        "template": "plotly_dark",
        "paper_bgcolor": palette.NIGHT,
        "height": _HEIGHT,
        "margin": {"l": 0, "r": 0, "t": above, "b": 0},
        "title": {"text": html.escape(title), "x": 0.012, "y": 0.985, **heading},
        "annotations": captions,
        "legend": {"orientation": "h", "y": 0, "yanchor": "top", "itemsizing": "constant"},
        "updatemenus": [
            {**menu, **look, "x": 0.99, "xanchor": "right", "y": 0.02, "yanchor": "bottom"}
        ],
        "uirevision": "keep",  # what was switched off stays off
        **scenes,
    }


def _cameras(reach: float) -> dict[str, Camera]:
    """Return the places of the buttons, for points within some metres."""
    return {
        "behind": Camera.behind(reach),
        "above": Camera((0, 0, 2.6 * reach), (0, 0, 0), up=(1, 0, 0)),
        "left": Camera((0.1 * reach, 1.3 * reach, 0.5 * reach), (0.1 * reach, 0, 0)),
    }


def _view(camera: Camera, bounds: FloatArray) -> dict[str, Any]:
    """Return plotly's camera: with aspectmode 'data' its unit is the cube root of the scene's
    volume, its origin the middle.
    """
    middle, unit = bounds.mean(axis=0), float(np.cbrt(np.prod(bounds[1] - bounds[0])))
    eye, centre = (
        dict(zip("xyz", ((np.asarray(place) - middle) / unit).tolist()))
        for place in (camera.eye, camera.target)
    )
    return {"eye": eye, "center": centre, "up": dict(zip("xyz", camera.up))}
