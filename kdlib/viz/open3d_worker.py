"""Renders scenes with open3d, or shows one in a window, as a process of its own.

``python -m kdlib.viz.open3d_worker FOLDER`` renders FOLDER/scene.npz (with FOLDER/scene.json) to
FOLDER/picture.png, or so each of FOLDER's folders where it has no scene itself; ``--window`` shows
a scene instead. A crash of the graphics driver kills this process and nobody else.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def _geometry(o3d: Any, arrays: Any, layers: list[dict[str, Any]]) -> list[Any]:
    """Return the coloured point cloud, then a line set for each layer."""
    vectors = o3d.utility.Vector3dVector
    cloud = o3d.geometry.PointCloud(vectors(arrays["points"]))
    cloud.colors = vectors(arrays["colors"])
    shapes = [cloud]
    for index, layer in enumerate(layers):
        ends = arrays[f"lines_{index}"]
        pairs = o3d.utility.Vector2iVector(np.arange(2 * len(ends)).reshape(-1, 2))
        lines = o3d.geometry.LineSet(vectors(ends.reshape(-1, 3)), pairs)
        shapes.append(lines.paint_uniform_color(layer["rgb"]))
    return shapes


def _renderer(o3d: Any, size: list[int]) -> Any:
    # Twice the wanted size, halved afterwards: the cheapest smoothing that works on every driver.
    width, height = (2 * int(side) for side in size)
    renderer = o3d.visualization.rendering.OffscreenRenderer(width, height)
    # Black, whatever is asked: without post-processing the background is ignored. The caller lifts
    # it to the wanted colour.
    renderer.scene.set_background(np.array([0.0, 0.0, 0.0, 1.0]))
    renderer.scene.view.set_post_processing(False)  # colours as given, no tone mapping
    return renderer


def _render(o3d: Any, renderer: Any, arrays: Any, scene: dict[str, Any], path: Path) -> None:
    renderer.scene.clear_geometry()
    for index, shape in enumerate(_geometry(o3d, arrays, scene["layers"])):
        material = o3d.visualization.rendering.MaterialRecord()
        material.shader = "unlitLine" if index else "defaultUnlit"
        material.point_size = 2 * scene["point_size"]
        if index:
            material.line_width = 2 * scene["layers"][index - 1]["width"]
        if not shape.is_empty():
            renderer.scene.add_geometry(f"shape_{index}", shape, material)
    camera = scene["camera"]
    renderer.setup_camera(camera["field_of_view"], camera["target"], camera["eye"], camera["up"])
    o3d.io.write_image(str(path), renderer.render_to_image(), 1)


def _show(o3d: Any, arrays: Any, scene: dict[str, Any]) -> None:
    viewer = o3d.visualization.Visualizer()
    width, height = scene["size"]
    if not viewer.create_window(scene["title"], int(width), int(height)):
        raise RuntimeError("open3d could not open a window")
    for shape in _geometry(o3d, arrays, scene["layers"]):
        if not shape.is_empty():
            viewer.add_geometry(shape)
    options = viewer.get_render_option()
    options.background_color = np.array(scene["background"])
    options.point_size = scene["point_size"]
    options.line_width = 3.0
    control, camera = viewer.get_view_control(), scene["camera"]
    control.set_lookat(camera["target"])
    control.set_front(np.subtract(camera["eye"], camera["target"]))
    control.set_up(camera["up"])
    control.set_zoom(0.25)
    viewer.run()
    viewer.destroy_window()


def _main(arguments: list[str]) -> None:
    """Render or show the scene in a folder, or render those in its folders: all of one size."""
    folder, window = Path(arguments[0]), "--window" in arguments[1:]
    if not window:
        # must be there before the import; no display is needed then
        os.environ["EGL_PLATFORM"] = "surfaceless"
    import open3d as o3d

    renderer = None
    for place in (
        [folder]
        if (folder / "scene.json").is_file()
        else sorted(path.parent for path in folder.glob("*/scene.json"))
    ):
        scene = json.loads((place / "scene.json").read_text())
        with np.load(place / "scene.npz") as arrays:
            if window:
                _show(o3d, arrays, scene)
                continue
            renderer = renderer or _renderer(o3d, scene["size"])
            _render(o3d, renderer, arrays, scene, place / "picture.png")


if __name__ == "__main__":
    _main(sys.argv[1:])
