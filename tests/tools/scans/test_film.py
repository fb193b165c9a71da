from __future__ import annotations

import io
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from kdlib.tools.scans.film import FilmError, Shot, camera_path, film
from kdlib.viz import palette, scene3d
from kdlib.viz.layers import layer

PANEL = (160, 120)
DEAD = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
# Does the worker's part without open3d: a picture of one grey for each folder, lighter from one to
# the next.
PLAIN = """
import pathlib, sys
from PIL import Image
for number, scene in enumerate(sorted(pathlib.Path(sys.argv[1]).glob('*/scene.json'))):
    image = Image.effect_noise((320, 240), 20 + number)
    image.convert('RGB').save(scene.with_name('picture.png'))
"""


def near(image: np.ndarray, color: str) -> int:
    return int(
        (
            np.abs(image.astype(int) - np.rint(255 * np.array(palette.rgb(color)))).max(axis=-1) < 6
        ).sum()
    )


@pytest.fixture
def shots() -> list[Shot]:
    rng = np.random.default_rng(3)
    cloud = np.column_stack((rng.uniform(-20, 20, (3000, 2)), rng.normal(0, 0.03, 3000))).astype(
        np.float32
    )
    box = np.array([[6.0, 1.0, 0.8, 4.5, 2.0, 1.6, 0.3]])
    found = []
    for number in range(2):
        moved = box + np.array([number, 0, 0, 0, 0, 0, 0])
        truth = layer("truth", moved, np.array([1]))
        left, right = (
            layer(role, moved + shift, np.array([1]))
            for role, shift in (("teacher", 0.2), ("student", 0.5))
        )
        found.append(Shot(cloud, (truth, left), (truth, right), f"sweep {number}"))
    return found


def test_a_film_of_both_panels_although_the_renderer_dies(shots: list[Shot]) -> None:
    made = film(
        shots,
        ("teacher", "student"),
        footer="simulated",
        reach=15.0,
        images=4,
        panel=(400, 300),
        worker=DEAD,
    )
    assert made.info.backend == "matplotlib" and "SIGSEGV" in made.info.note
    movie = Image.open(io.BytesIO(made.gif))
    assert (movie.n_frames, movie.info["duration"], movie.info["loop"]) == (4, 100, 0)
    pictures = []
    for number in range(4):
        movie.seek(number)
        pictures.append(np.asarray(movie.convert("RGB")))
    half, band = 400, slice(26, -26)
    for picture in pictures:
        left, right = picture[band, :half], picture[band, half + 2 :]
        for side, own, other in ((left, "teacher", "student"), (right, "student", "teacher")):
            assert (
                near(side, palette.role("truth").dark) > 5
                and near(side, palette.role(own).dark) > 5
            )
            assert not near(side, palette.role(other).dark)
    assert all((first != second).any() for first, second in pairwise(pictures)), "the camera moves"


def test_one_process_renders_all_and_the_limit_holds(shots: list[Shot]) -> None:
    worker = (sys.executable, "-c", PLAIN)
    options = {"footer": "simulated", "reach": 15.0, "images": 6, "panel": PANEL, "worker": worker}
    whole = film(shots, ("teacher", "student"), **options)
    assert whole.info == scene3d.RenderInfo("open3d", "") and whole.size == (
        2 * PANEL[0] + 2,
        PANEL[1] + 52,
    )
    small = film(shots, ("teacher", "student"), limit=len(whole.gif) - 1, **options)
    assert len(small.gif) < len(whole.gif) and small.size[0] < whole.size[0]
    with pytest.raises(FilmError, match="do not fit into 10 bytes"):
        film(shots, ("teacher", "student"), limit=10, **options)


def test_a_missing_picture_means_all_are_painted(shots: list[Shot]) -> None:
    views = [
        scene3d.View(shot.points, shot.left, camera)
        for shot, camera in zip(shots, camera_path(2, 10.0))
    ]
    code = PLAIN + "scene.with_name('picture.png').unlink()"
    images, info = scene3d.render_views(views, size=PANEL, worker=(sys.executable, "-c", code))
    assert (
        len(images) == 2 and info.backend == "matplotlib" and "ended without a picture" in info.note
    )


def test_open3d_renders_several_scenes_or_says_why_not(shots: list[Shot]) -> None:
    views = [
        scene3d.View(shots[0].points, layers, camera_path(1, 12.0)[0])
        for layers in (shots[0].left, shots[0].right, ())
    ]
    images, info = scene3d.render_views(views, size=PANEL)
    assert [image.shape for image in images] == [(PANEL[1], PANEL[0], 3)] * 3 and (
        info.note or info.backend == "open3d"
    )
    assert (images[0] != images[1]).any() and (images[1] != images[2]).any(), (
        "no scene is left in the next one"
    )


def test_the_camera_moves_smoothly_and_looks_at_the_vehicle() -> None:
    eyes = np.array([camera.eye for camera in camera_path(50, 15.0)])
    steps = np.linalg.norm(np.diff(eyes, axis=0), axis=1)
    assert steps.max() < 2.0 and (eyes[:, 2] > 5).all() and np.linalg.norm(eyes[0] - eyes[-1]) > 10


def test_more_sweeps_than_pictures(shots: list[Shot]) -> None:
    for few, images in ((shots, 1), ([], 3)):
        with pytest.raises(FilmError, match="cannot show"):
            film(few, ("a", "b"), footer="", reach=10.0, images=images)
