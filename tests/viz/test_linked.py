"""What the two linked 3D views are given: points and boxes as 16-bit centimetres, in a page without network."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np

from kdlib.viz import linked
from kdlib.viz.layers import layer, wireframe
from kdlib.viz.pair import Panel

BOX = np.array([[8.0, 3.5, 0.8, 4.5, 2.0, 1.6, 0.4]])


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<i2").reshape(-1, 3) / 100


def test_scene_holds_points_and_edges_to_the_centimetre(cloud) -> None:
    panels = (Panel("teacher", (layer("truth", BOX, np.array([1])),), "1 found"), Panel("student", ()))
    scene = json.loads(linked.scene_data(cloud, panels, reach=20.0))
    np.testing.assert_allclose(unpacked(scene["points"]), cloud[:, :3], atol=0.0051)
    first, second = scene["panels"]
    assert (first["title"], second["title"], second["layers"]) == ("teacher: 1 found", "student", [])
    vertices, edges = wireframe(BOX)
    np.testing.assert_allclose(unpacked(first["layers"][0]["lines"]), vertices[:, edges].reshape(-1, 3), atol=0.0051)


def test_points_are_thinned_the_same_way_each_time(cloud) -> None:
    one, other = (json.loads(linked.scene_data(cloud, (), reach=20.0, budget=500))["points"] for _ in range(2))
    assert one == other and len(unpacked(one)) == 500


def test_names_cannot_leave_the_page(cloud, tmp_path: Path) -> None:
    wicked = "</script><script>alert(1)</script>"
    data = linked.scene_data(cloud[:10], (Panel(wicked, ()),), reach=20.0)
    assert "<" not in data and json.loads(data)["panels"][0]["title"] == wicked
    text = linked.save_viewer(data, tmp_path / "pair.html", title=wicked).read_text()
    assert wicked not in text and "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")
    assert wicked not in linked.live_data(data, "a", 1) and wicked not in linked.live_frame(wicked)
