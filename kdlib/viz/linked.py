"""Two models on one frame in space: points and judged boxes in, a page whose two views turn together out; needs no WebGL."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdlib.types import FloatArray
from kdlib.viz import canvas, palette
from kdlib.viz.layers import BoxLayer, drawable_points, height_limits, wireframe
from kdlib.viz.linked_script import SCRIPT, STYLE
from kdlib.viz.pair import Panel

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
_CENTIMETRES = 100.0  # coordinates travel as 16-bit centimetres: 327 m of range in a third of the bytes


def scene_data(points: FloatArray, panels: Sequence[Panel], *, reach: float, budget: int = 40_000, seed: int = 0) -> str:
    """Return what the viewer draws, as JSON that may stand inside a page.

    Args:
        points: (N, >=3) x, y, z in metres, below 327 m; more than ``budget`` are thinned at random, the same ones every time.
        panels: One view each; maps are left out.
        reach: Metres from the vehicle to the border of what matters; places the camera.
        budget: Most points drawn.
        seed: Of the thinning.

    Raises:
        LayerError: If the points have a wrong shape.
    """
    points = drawable_points(points)
    low, high = height_limits(points)
    if len(points) > budget:
        points = points[np.sort(np.random.default_rng(seed).choice(len(points), budget, replace=False))]
    scene = {
        "reach": reach,
        "points": _packed(points[:, :3]),
        "heights": [low, high],
        "ramp": [[round(255 * part) for part in palette.rgb(color)] for color in palette.NIGHT_RAMP],
        "panels": [{"title": _caption(panel), "layers": [_lines(layer) for layer in panel.layers]} for panel in panels],
    }
    return json.dumps(scene, separators=(",", ":")).replace("<", "\\u003c")


def viewer(data: str, name: str = "kdlib-scene") -> str:
    """Return markup and script of one viewer, for a page of one's own; ``name`` is unique on the page."""
    name = html.escape(name, quote=True)
    return (
        f'<style>{STYLE}</style><div class="kdlib-linked" id="{name}"></div>'
        f'<script type="application/json" id="{name}-data">{data}</script>'
        f'<script>{SCRIPT}\nkdlibLinked(document.getElementById("{name}"), '
        f'JSON.parse(document.getElementById("{name}-data").textContent), null);</script>'
    )


def save_viewer(data: str, path: str | Path, *, title: str = "kdlib") -> Path:
    """Write the viewer as one HTML file that needs no network."""
    return canvas.write_bytes(path, _page(viewer(data), title).encode())


def live_frame(channel: str, height: int = 470) -> str:
    """Return an ``<iframe>`` whose viewer shows what the surrounding page holds in the element :func:`live_data` made.

    The frame looks for new data by itself, so the camera stays where the reader turned it while frames and layers change.
    """
    body = (
        f'<style>{STYLE}</style><div class="kdlib-linked" id="kdlib-scene"></div>'
        f'<script>{SCRIPT}\nkdlibLinked(document.getElementById("kdlib-scene"), null, {json.dumps(channel)});</script>'
    )
    page = html.escape(_page(body, "3D"), quote=True)
    return f'<iframe title="3D view" srcdoc="{page}" style="width:100%;height:{height}px;border:0;display:block"></iframe>'


def live_data(data: str, channel: str, version: int) -> str:
    """Return the hidden element that feeds the viewer of a channel; another version number means other data."""
    name = html.escape(channel, quote=True)
    return f'<script type="application/json" class="{name}" data-version="{version}">{data}</script>'


def _page(body: str, title: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{html.escape(title)}</title>'
        f"<style>html,body{{margin:0;height:100%;background:{palette.NIGHT}}}</style></head><body>{body}</body></html>"
    )


def _caption(panel: Panel) -> str:
    return ": ".join(part for part in (panel.title, panel.note) if part)


def _lines(layer: BoxLayer) -> dict[str, Any]:
    vertices, edges = wireframe(layer.boxes)
    return {
        "name": layer.name,
        "color": palette.on_dark(layer.color),
        "width": 3.2 if layer.width > 2.5 else 1.8,
        "dash": {"dashed": [7, 4], "dotted": [2, 3]}.get(layer.dash, []),
        "lines": _packed(vertices[:, edges].reshape(-1, 3)),
    }


def _packed(xyz: FloatArray) -> str:
    """Return x, y, z as little-endian 16-bit centimetres in base64."""
    steps = np.clip(np.round(np.asarray(xyz, np.float64) * _CENTIMETRES), -32768, 32767).astype("<i2")
    return base64.b64encode(steps.tobytes()).decode()
