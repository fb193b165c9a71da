from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from kdlib.viz import palette, scene3d
from kdlib.viz.layers import LayerError, layer
from kdlib.viz.perspective import Camera, Lines, paint

SIZE = (480, 270)


def child(code: str) -> tuple[str, ...]:
    """A worker that runs this code instead of open3d."""
    return (sys.executable, "-c", code)


def near(image: np.ndarray, color: str, tolerance: float = 40) -> int:
    return int((np.abs(image - 255 * np.array(palette.rgb(color))).max(axis=-1) < tolerance).sum())


def check_fallback(info: scene3d.RenderInfo, pixels, layers) -> None:
    assert info.backend == "matplotlib" and "open3d could not render here" in info.note
    image = pixels(info.path)
    assert image.shape == (SIZE[1], SIZE[0], 3)
    for one in layers:
        assert near(image, palette.on_dark(one.color)) > 20


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("raise RuntimeError('no EGL here')", "RuntimeError: no EGL here"),
        ("pass", "ended without a picture"),
        ("import time; time.sleep(60)", "did not finish within"),
    ],
)
def test_a_dying_renderer_costs_nothing_but_itself(
    cloud, layers, pixels, tmp_path, code, reason
) -> None:
    info = scene3d.render_scene(
        cloud, layers, tmp_path / "a.png", size=SIZE, worker=child(code), timeout=3
    )
    assert reason in info.note
    check_fallback(info, pixels, layers)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_missing_program_falls_back(cloud, layers, pixels, tmp_path) -> None:
    info = scene3d.render_scene(
        cloud, layers, tmp_path / "a.png", size=SIZE, worker=("/no/such/program",)
    )
    assert "could not be started" in info.note
    check_fallback(info, pixels, layers)


def test_open3d_that_cannot_be_imported_falls_back(
    cloud, layers, pixels, tmp_path, monkeypatch
) -> None:
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "open3d.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(stub))
    info = scene3d.render_scene(cloud, layers, tmp_path / "a.png", size=SIZE)
    assert "libGL.so.1" in info.note
    check_fallback(info, pixels, layers)


def test_open3d_renders_or_says_why_not(cloud, layers, pixels, tmp_path) -> None:
    info = scene3d.render_scene(cloud, layers, tmp_path / "a.png", size=SIZE, caption="frame 3")
    image = pixels(info.path)
    assert image.shape == (SIZE[1], SIZE[0], 3)
    assert (info.backend, info.note) == ("open3d", "") or (
        info.backend == "matplotlib" and info.note
    )
    for one in layers[1:]:
        assert near(image, palette.on_dark(one.color), 60) > 10
    assert info.show().data.startswith(b"\x89PNG")


def test_works_from_any_directory(cloud, layers, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        "No module named 'kdlib"
        not in scene3d.render_scene(cloud[:50], [], "a.png", size=SIZE).note
    )


def test_an_empty_scene_is_a_picture(pixels, tmp_path) -> None:
    info = scene3d.render_scene(
        np.zeros((0, 3)), [], tmp_path / "a.png", size=SIZE, worker=child("raise SystemExit(3)")
    )
    assert "exit code 3" in info.note
    pixels(info.path)
    with pytest.raises(LayerError, match="expected"):
        scene3d.render_scene(np.zeros((4, 2)), [], tmp_path / "b.png")


def test_window_without_a_display_is_one_sentence(cloud, layers, monkeypatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    info = scene3d.open_window(cloud, layers)
    if sys.platform.startswith("linux"):
        assert info.backend == "none" and "No display" in info.note
        assert info.show() == info.note


def test_window_with_a_display_hands_over_to_the_worker(cloud, layers, monkeypatch) -> None:
    monkeypatch.setenv("DISPLAY", ":7")
    seen = (
        "import sys, os; assert sys.argv[-1] == '--window' and os.path.exists(sys.argv[1] + "
        "'/scene.npz')"
    )
    assert scene3d.open_window(cloud, layers, worker=child(seen)).backend == "open3d"
    assert (
        "failed: RuntimeError: no window"
        in scene3d.open_window(cloud, layers, worker=child("raise RuntimeError('no window')")).note
    )


def test_colours_rise_with_height() -> None:
    points = np.column_stack((np.zeros((50, 2)), np.linspace(0, 5, 50)))
    colors = scene3d.height_colors(points)
    assert (np.diff(colors.sum(axis=1)) >= 0).all() and colors.min() >= 0 and colors.max() <= 1


def test_pinhole_puts_the_target_in_the_middle() -> None:
    camera = Camera(eye=(0, 0, 0), target=(10, 0, 0), field_of_view=90)
    one = np.array([[[10, -0.5, 0], [10, 0.5, 0]]], float)
    left = np.array([[[10, 4.5, 0], [10, 5.5, 0]]], float)
    lines = [Lines(one, "#FF0000", 8), Lines(left, "#00FF00", 8)]
    image = paint(np.zeros((0, 3)), np.zeros((0, 3)), lines, camera, (400, 400)).astype(float)
    rows, columns = np.nonzero(near_mask(image, (255, 0, 0)))
    assert abs(rows.mean() - 200) < 2 and abs(columns.mean() - 200) < 2
    # 5 m to the left at 10 m with 45 degrees each way: half of the half picture, on the left.
    assert abs(np.nonzero(near_mask(image, (0, 255, 0)))[1].mean() - 100) < 2


def test_lines_behind_the_lens_are_cut() -> None:
    camera = Camera(eye=(0, 0, 0), target=(10, 0, 0), field_of_view=90)
    through = Lines(
        np.array([[[-5, 0, -1], [5, 0, -1]], [[-5, 0, 0], [-6, 0, 0]]], float), "#FF0000", 8
    )
    image = paint(np.zeros((0, 3)), np.zeros((0, 3)), [through], camera, (400, 400)).astype(float)
    rows, columns = np.nonzero(near_mask(image, (255, 0, 0)))
    assert len(rows) and rows.min() > 200 and abs(columns.mean() - 200) < 3


def near_mask(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return np.abs(image - np.array(color)).max(axis=-1) < 30


def test_environment_is_untouched(cloud, tmp_path) -> None:
    before = dict(os.environ)
    scene3d.render_scene(
        cloud,
        [layer("truth", np.zeros((0, 7)), np.zeros(0, int))],
        tmp_path / "a.png",
        size=SIZE,
        worker=child("pass"),
    )
    assert dict(os.environ) == before
