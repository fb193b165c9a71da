"""Paths are smooth and as long as they say; the overlap test agrees with shapely."""

from __future__ import annotations

import numpy as np
import pytest

from kdlib.simulate.tracks import Occupancy, curve, distance, follow, line, overlaps, standing


def test_overlaps_agrees_with_shapely():
    shapely = pytest.importorskip("shapely")
    from shapely import affinity

    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        a, b = (
            np.array([*rng.uniform(-2, 2, 2), rng.uniform(-4, 4), *rng.uniform(0.2, 1.5, 2)])
            for _ in range(2)
        )
        shapes = []
        for x, y, heading, length, width in (a, b):
            turned = affinity.rotate(
                shapely.box(-length, -width, length, width), heading, (0, 0), use_radians=True
            )
            shapes.append(affinity.translate(turned, x, y))
        assert overlaps(a[None], b[None, None]) == shapes[0].intersects(shapes[1])
        hits += shapes[0].intersects(shapes[1])
    assert 100 < hits < 350


def test_a_turn_is_smooth_and_ends_at_its_angle():
    path = curve((1.0, 2.0), 0.3, 5.0, 8.0, -np.pi / 2)
    assert path.heading[-1] == pytest.approx(0.3 - np.pi / 2)
    s = np.linspace(-2, 25, 4000)
    xy, heading = path.at(s)
    steps = np.diff(xy, axis=0)
    np.testing.assert_allclose(np.hypot(*steps.T), np.diff(s), rtol=0.01)
    along = np.arctan2(steps[:, 1], steps[:, 0])
    assert np.abs(along - heading[1:]).max() < 0.06


def test_distance_brakes_to_a_stop():
    times = np.linspace(0, 10, 101)
    travelled, speed = distance(times, 4.0, -1.0)
    assert travelled[-1] == pytest.approx(8.0)
    assert speed[-1] == 0.0
    assert (np.diff(travelled) >= 0).all()
    np.testing.assert_allclose(distance(times, 2.0, 0.5)[0], 2 * times + 0.25 * times**2)


def test_occupancy_refuses_a_crossing_at_the_same_time_only():
    times = np.arange(20) * 0.1
    occupancy = Occupancy(20)
    assert occupancy.claim(follow(line((-10, 0), 0.0), *distance(times, 10.0)), 4, 2)
    assert not occupancy.claim(follow(line((0, -10), np.pi / 2), *distance(times, 10.0)), 4, 2)
    assert occupancy.claim(follow(line((0, -10), np.pi / 2), *distance(times, 2.0)), 4, 2)
    assert not occupancy.claim(standing((5.0, 0.0), 0.0), 1, 1)
    assert occupancy.claim(standing((5.0, 5.0), 0.0), 1, 1)
