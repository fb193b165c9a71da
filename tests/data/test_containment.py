from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import shapely
from shapely import affinity

from kdlib.data.containment import collisions, owner_of_points


def _boxes(rng, count, reach=10.0):
    size = rng.uniform(0.3, 6, (count, 3))
    return np.c_[
        rng.uniform(-reach, reach, (count, 2)),
        rng.uniform(-1, 1, count),
        size,
        rng.uniform(-7, 7, count),
    ].astype(np.float32)


def _rectangle(box):
    x, y, _, length, width, _, heading = (float(v) for v in box)
    flat = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.translate(affinity.rotate(flat, heading, origin=(0, 0), use_radians=True), x, y)


def _naive_owner(points, boxes):
    owner = np.full(len(points), -1)
    for number, point in enumerate(points.astype(np.float64)):
        for position, (x, y, z, length, width, height, heading) in enumerate(
            boxes.astype(np.float64)
        ):
            turned = (point[0] - x + 1j * (point[1] - y)) * np.exp(-1j * heading)
            if (
                abs(turned.real) <= length / 2
                and abs(turned.imag) <= width / 2
                and abs(point[2] - z) <= height / 2
            ):
                owner[number] = position
                break
    return owner


@pytest.mark.parametrize("seed", range(5))
def test_a_point_belongs_to_the_first_box_it_is_in(seed):
    rng = np.random.default_rng(seed)
    boxes = _boxes(rng, 12, 5.0)
    points = rng.uniform((-9, -9, -4), (9, 9, 4), (2000, 3)).astype(np.float32)
    owner = owner_of_points(points, boxes)
    np.testing.assert_array_equal(owner, _naive_owner(points, boxes))
    assert len(np.unique(owner)) > 8  # boxes lie in each other, points in most of them


@pytest.mark.parametrize("shift", [0.0, 75.0, -75.0])
def test_far_points_corners_and_borders(shift):
    box = np.array([[shift, shift, 0, 4, 2, 2, 0]], np.float32)
    inside = np.array([[2, 1, 1], [-2, -1, -1], [0, 0, 0]], np.float32) + np.float32(
        [shift, shift, 0]
    )
    outside = np.array(
        [[2.01, 0, 0], [0, 1.01, 0], [0, 0, 1.01], [-2.01, 0, 0], [1e6, 0, 0], [-1e6, 1e6, 0]],
        np.float32,
    )
    outside[:4] += np.float32([shift, shift, 0])
    assert owner_of_points(np.concatenate((inside, outside)), box).tolist() == [0] * 3 + [-1] * 6


@pytest.mark.parametrize("away", [20_000.0, 411_000.0, 1e7, 1e30])
def test_no_allocation_grows_with_the_coordinates(away):
    rng = np.random.default_rng(1)
    boxes, points = _boxes(rng, 12, 5.0), rng.uniform(-9, 9, (2000, 3)).astype(np.float32)
    expected = owner_of_points(points, boxes)
    far = boxes[:1] + np.float32([away, -away, 0, 0, 0, 0, 0])
    tracemalloc.start()
    owner = owner_of_points(points, np.concatenate((boxes, far)))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    np.testing.assert_array_equal(owner, expected)


def test_nothing_in_nothing():
    none = np.zeros((0, 7), np.float32)
    assert owner_of_points(np.zeros((3, 5), np.float32), none).tolist() == [-1] * 3
    assert owner_of_points(np.zeros((0, 5), np.float32), np.ones((2, 7), np.float32)).shape == (0,)
    assert collisions(none, np.ones((2, 7), np.float32)).shape == (0, 2)


def test_collisions_equal_shapely():
    rng = np.random.default_rng(0)
    a, b = _boxes(rng, 60), _boxes(rng, 60)
    area = np.array(
        [[_rectangle(one).intersection(_rectangle(other)).area for other in b] for one in a]
    )
    found = collisions(a, b)
    clear = (area == 0) | (area > 1e-9)
    assert clear.all() and 0.02 < found.mean() < 0.9
    np.testing.assert_array_equal(found, area > 0)
    np.testing.assert_array_equal(collisions(b, a), found.T)


def test_touching_is_no_collision_and_height_does_not_matter():
    one = np.array([[0, 0, 0, 4, 2, 1, 0]], np.float32)
    beside = np.array(
        [
            [4, 0, 0, 4, 2, 1, 0],
            [0, 2, 0, 4, 2, 1, 0],
            [3.99, 1.99, 50, 4, 2, 1, 0],
            [0, 0, 0, 1, 1, 1, 2],
        ],
        np.float32,
    )
    assert collisions(one, beside).tolist() == [[False, False, True, True]]
