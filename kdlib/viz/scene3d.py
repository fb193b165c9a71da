"""3D pictures of points and boxes: a PNG or a window by open3d, in a process of its own, or by
matplotlib where that fails.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdlib.records import write_bytes
from kdlib.types import FloatArray
from kdlib.viz import canvas, palette
from kdlib.viz.bev import legend_handles
from kdlib.viz.layers import BoxLayer, Panel, drawable_points, height_limits, wireframe
from kdlib.viz.perspective import Camera, Lines, paint

WORKER = (sys.executable, "-m", "kdlib.viz.open3d_worker")
NO_DISPLAY = "No display (DISPLAY and WAYLAND_DISPLAY are unset)"


@dataclass(frozen=True)
class RenderInfo:
    """How a picture came to be."""

    backend: str  # "open3d", "matplotlib", or "none" where no window can be opened
    note: str  # empty where all went as wished, else one sentence
    path: Path | None = None

    def show(self) -> Any:
        """Return the picture for a notebook to show; without a picture the note."""
        from IPython.display import Image

        return Image(filename=str(self.path)) if self.path else self.note


@dataclass(frozen=True)
class View:
    """A scene and where to look at it from."""

    points: FloatArray  # (N, >=3) x, y, z in metres, coloured by height
    # drawn as thick wireframes with an arrow on the ground that shows the heading
    layers: Sequence[BoxLayer]
    camera: Camera


def render_scene(
    points: FloatArray,
    layers: Sequence[BoxLayer],
    path: str | Path,
    *,
    size: tuple[int, int] = (1600, 900),
    camera: Camera | None = None,
    caption: str = "",
    timeout: float = 90.0,
    worker: Sequence[str] = WORKER,
) -> RenderInfo:
    """Render points (N, >=3) and boxes in perspective into a PNG with a legend, without a display.

    open3d renders in a child process; when that is missing, crashes or hangs, the same scene is
    projected by matplotlib, and both the returned note and the picture's caption say so. The camera
    looks over the vehicle's shoulder by default.

    Raises:
        LayerError: If the points have a wrong shape.
    """
    view = View(points, layers, camera or Camera())
    images, info = render_views([view], size=size, timeout=timeout, worker=worker)
    write_bytes(Path(path), _compose(images[0], layers, caption, info.note))
    return replace(info, path=Path(path))


def render_views(
    views: Sequence[View],
    *,
    size: tuple[int, int],
    timeout: float = 300.0,
    worker: Sequence[str] = WORKER,
) -> tuple[list[NDArray[np.uint8]], RenderInfo]:
    """Return pictures (height, width, 3) without legends, of one child process; matplotlib paints
    all if it fails on one.

    Raises:
        LayerError: If the points of a view have a wrong shape.
    """
    views = [replace(view, points=drawable_points(view.points)) for view in views]
    images: list[NDArray[np.uint8]] = []
    with tempfile.TemporaryDirectory(prefix="kdlib-scene-") as name:
        for number, view in enumerate(views):
            _hand_over(Path(name, f"{number:05d}"), view, size)
        trouble = _run_worker([*worker, name], timeout)
        for folder in sorted(Path(name).iterdir()):
            if not trouble:
                image, trouble = _read(folder / "picture.png", size)
                images.append(image)
    if not trouble:
        return images, RenderInfo("open3d", "")
    painted = [
        paint(view.points, height_colors(view.points), _scene_lines(view), view.camera, size)
        for view in views
    ]
    return painted, RenderInfo(
        "matplotlib", (f"Drawn by matplotlib because open3d could not render here: {trouble}.")
    )


def open_window(
    points: FloatArray,
    layers: Sequence[BoxLayer],
    *,
    title: str = "kdlib",
    camera: Camera | None = None,
    worker: Sequence[str] = WORKER,
) -> RenderInfo:
    """Show the scene in an open3d window and return when it is closed; without a display, say so
    and return at once.

    Raises:
        LayerError: If the points have a wrong shape.
    """
    view = View(drawable_points(points), layers, camera or Camera())
    if not has_display():
        return RenderInfo(
            "none", (f"{NO_DISPLAY}: use render_scene for a PNG or scene_figure for HTML.")
        )
    with tempfile.TemporaryDirectory(prefix="kdlib-scene-") as name:
        _hand_over(Path(name), view, (1600, 900), title)
        trouble = _run_worker([*worker, name, "--window"], None)
    return (
        RenderInfo("none", f"The open3d window failed: {trouble}.")
        if trouble
        else RenderInfo("open3d", "")
    )


def has_display() -> bool:
    """Return whether a window can be opened; only Linux can tell beforehand."""
    return not sys.platform.startswith("linux") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def height_colors(points: FloatArray) -> NDArray[np.float64]:
    """Return a colour (N, 3) for each point by its height, dark below and pale above."""
    ramp = np.array([palette.rgb(color) for color in palette.NIGHT_RAMP])
    low, high = height_limits(points)
    place = np.clip((points[:, 2].astype(np.float64) - low) / (high - low), 0, 1) * (len(ramp) - 1)
    return np.stack([np.interp(place, range(len(ramp)), channel) for channel in ramp.T], axis=1)


def lifted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a rendered picture, whose background is black, on the colour of the night."""
    return np.maximum(
        image, np.array([round(255 * share) for share in palette.rgb(palette.NIGHT)], np.uint8)
    )


def _scene_lines(view: View) -> list[Lines]:
    """Range rings on the ground, then a set of lines for each layer."""
    points = view.points if len(view.points) else np.array([[20.0, 0.0, 0.0]])
    floor, reach = (
        float(np.percentile(points[:, 2], 5)),
        float(np.percentile(np.hypot(points[:, 0], points[:, 1]), 99)),
    )
    turn = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack((np.cos(turn), np.sin(turn), np.zeros_like(turn)), axis=1)
    arcs = np.stack((circle[:-1], circle[1:]), axis=1)
    rings = [
        radius * arcs + [0, 0, floor] for radius in range(10, 80, 10) if radius <= max(reach, 10)
    ]
    lines = [Lines(np.concatenate(rings), palette.NIGHT_FAINT, 1.2)]
    for layer in view.layers:
        vertices, edges = wireframe(layer.boxes)
        lines.append(
            Lines(
                vertices[:, edges].reshape(-1, 2, 3),
                palette.on_dark(layer.color),
                1.8 + 0.45 * layer.width,
            )
        )
    return lines


def _hand_over(folder: Path, view: View, size: tuple[int, int], title: str = "") -> None:
    """Write what the worker needs into a folder."""
    folder.mkdir(exist_ok=True)
    lines = _scene_lines(view)
    arrays: dict[str, Any] = {f"lines_{index}": line.segments for index, line in enumerate(lines)}
    arrays.update(points=view.points[:, :3].astype(float), colors=height_colors(view.points))
    np.savez(folder / "scene.npz", **arrays)
    scene = {
        "size": size,
        "title": title,
        "background": palette.rgb(palette.NIGHT),
        # less than a pixel and a half is lost in small pictures
        "point_size": max(size[1] / 500, 1.25),
        "camera": asdict(view.camera),
        "layers": [
            {"rgb": palette.rgb(line.color), "width": line.width * size[1] / 900} for line in lines
        ],
    }
    (folder / "scene.json").write_text(json.dumps(scene))


def _run_worker(command: Sequence[str], timeout: float | None) -> str:
    """Run the renderer; return what went wrong, or an empty text."""
    home = str(Path(__file__).resolve().parents[2])  # found from any working directory
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), home))),
    }
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the renderer did not finish within {timeout:g} s"
    except OSError as error:
        return f"the renderer could not be started ({error.strerror})"
    if done.returncode < 0:
        return f"the renderer was killed by {signal.Signals(-done.returncode).name}"
    if done.returncode:
        return [f"exit code {done.returncode}", *done.stderr.strip().splitlines()][-1][:160].rstrip(
            "."
        )
    return ""


def _read(path: Path, size: tuple[int, int]) -> tuple[NDArray[np.uint8], str]:
    """Return the rendered picture at its final size, and why it is none."""
    from PIL import Image

    if not path.is_file():
        return np.zeros((0, 0, 3), np.uint8), "the renderer ended without a picture"
    with Image.open(path) as picture:
        image = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    return image, "" if float(image.std()) >= 1.0 else "the renderer's picture was blank"


def _compose(
    image: NDArray[np.uint8], layers: Sequence[BoxLayer], caption: str, note: str
) -> bytes:
    """Put legend, caption and note over the picture."""
    height, width = image.shape[:2]
    with canvas.styled():
        figure = canvas.new_figure(width / canvas.DPI, height / canvas.DPI, facecolor=palette.NIGHT)
        figure.figimage(lifted(image), resize=False)
        scale = height / 900
        if layers:
            handles = legend_handles([Panel("", layers)])
            for handle in handles:  # as in the scene: brighter, without dashes
                handle.set(
                    color=palette.on_dark(str(handle.get_color())),
                    linestyle="solid",
                    linewidth=2.5 * scale,
                    alpha=1.0,
                )
            look = {
                "fontsize": 10 * scale,
                "borderpad": 0.8,
                "labelcolor": palette.NIGHT_INK,
                "frameon": True,
            }
            box = figure.legend(
                handles=handles, loc="upper left", bbox_to_anchor=(0.012, 0.985), **look
            )
            box.get_frame().set(
                alpha=0.75, facecolor=palette.NIGHT, edgecolor=palette.NIGHT_FAINT, linewidth=0.8
            )
        if text := "\n".join(line for line in (caption, note) if line):
            band = {"facecolor": palette.NIGHT, "edgecolor": "none", "alpha": 0.75, "pad": 3}
            words = figure.text(
                0.016, 0.022, text, color=palette.NIGHT_INK, fontsize=8.5 * scale, bbox=band
            )
            words.set(va="bottom", linespacing=1.5)
        return canvas.to_png(figure)
