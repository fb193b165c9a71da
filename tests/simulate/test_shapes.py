"""Shapes show where they are heading, else a heading metric measures noise."""

from __future__ import annotations

import numpy as np
import pytest

from kdlib.simulate import furniture, people, vehicles
from kdlib.simulate.materials import CLOTH, GLASS, SKIN
from kdlib.simulate.mesh import merge

BUILDS = range(people.BUILDS)
PHASES = range(people.PHASES)


def top(mesh, low, high):
    x = mesh.vertices[:, 0]
    return mesh.vertices[(x >= low) & (x <= high), 2].max()


@pytest.mark.parametrize("name", [name for name in vehicles.CARS if name != "van"])
def test_a_car_has_its_bonnet_in_front_and_its_boot_behind(name):
    length, width, height = 4.6, 1.9, 1.6
    mesh = vehicles.car(vehicles.CARS[name], length, width, height)
    low, high = mesh.bounds
    np.testing.assert_allclose(high - low, (length, width, height), atol=0.01)
    np.testing.assert_allclose((high + low)[:2], 0, atol=0.03)
    assert top(mesh, 0.45 * length, length) < 0.7 * height  # the bonnet
    assert top(mesh, -0.2 * length, 0.3 * length) == pytest.approx(height)
    # Mirrored front to back it is another shape: the roof is behind the middle.
    roof = mesh.vertices[mesh.vertices[:, 2] > height - 0.01, 0]
    assert roof.mean() < 0.05 * length


@pytest.mark.parametrize("make", [vehicles.van, vehicles.truck, vehicles.bus])
def test_large_vehicles_are_not_symmetric(make):
    mesh = make(8.0, 2.3, 3.0)
    low, high = mesh.bounds
    np.testing.assert_allclose(high - low, (8.0, 2.3, 3.0), atol=0.02)
    glass = mesh.vertices[mesh.triangles[mesh.material == GLASS]].mean(axis=(0, 1))
    windscreen = top(mesh, 3.8, 4.1), top(mesh, -4.1, -3.8)
    assert glass[0] > 0.5 or windscreen[0] < windscreen[1]


@pytest.mark.parametrize("walking", [True, False])
def test_a_person_is_wider_than_deep_and_has_a_front(walking):
    for build in BUILDS:
        for phase in PHASES:
            mesh = people.pedestrian_mesh(build, phase, walking)
            low, high = mesh.bounds
            depth, width, height = high - low
            assert width > depth + 0.04
            assert low[2] == pytest.approx(0.0, abs=0.06)
            assert height == pytest.approx(1.75, abs=0.07)
            skin = mesh.vertices[mesh.triangles[mesh.material == SKIN]].mean(axis=(0, 1))
            cloth = mesh.vertices[mesh.triangles[mesh.material == CLOTH]].mean(axis=(0, 1))
            assert skin[0] > cloth[0] + 0.08  # face and hands are in front


def test_a_walk_has_a_stride():
    feet = [np.ptp(people.pedestrian_mesh(1, phase, True).vertices[:, 0]) for phase in PHASES]
    assert max(feet) > min(feet) + 0.1


def test_a_cyclist_leans_forward_over_the_handlebar():
    for build in BUILDS:
        for phase in PHASES:
            mesh = people.cyclist_mesh(build, phase)
            low, high = mesh.bounds
            assert 1.6 < high[0] - low[0] < 1.9
            assert 0.45 < high[1] - low[1] < 0.75
            head = mesh.vertices[mesh.vertices[:, 2] > 1.55, 0].mean()
            saddle = mesh.vertices[
                (mesh.vertices[:, 2] > 0.9) & (mesh.vertices[:, 2] < 1.0), 0
            ].min()
            assert head > saddle + 0.15
            assert low[2] == pytest.approx(0.0, abs=0.03)


def test_a_parked_bicycle_is_lower_than_a_rider():
    assert np.ptp(people.bicycle().vertices[:, 2]) < 1.15


def test_furniture_stands_on_the_ground():
    rng = np.random.default_rng(0)
    makers = [maker for _, maker in (*furniture.SIDEWALK, *furniture.GARDEN)]
    for make in [*makers, furniture.tree, furniture.lamp, furniture.signal, furniture.shelter]:
        for _ in range(5):
            low, high = make(rng).bounds
            assert -0.3 <= low[2] < 0.25
            assert high[2] > 0.3


def test_merge_keeps_triangles_and_materials():
    one, two = people.bicycle(), vehicles.van(5.0, 2.0, 2.2)
    both = merge([one, two])
    np.testing.assert_array_equal(
        both.vertices[both.triangles], np.concatenate([m.vertices[m.triangles] for m in (one, two)])
    )
    np.testing.assert_array_equal(both.material, np.concatenate([one.material, two.material]))


def test_shapes_are_not_changed_by_moving_or_tinting():
    mesh = people.pedestrian_mesh(0, 0, True)
    before = mesh.vertices.copy(), mesh.tint.copy()
    mesh.moved((3, 4), 1.0, 0.5)
    mesh.scaled((2, 2, 2))
    mesh.tinted(0.1, CLOTH)
    np.testing.assert_array_equal(mesh.vertices, before[0])
    np.testing.assert_array_equal(mesh.tint, before[1])
