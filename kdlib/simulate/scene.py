"""A random generator and a size in, a whole street scene out: what stands, who moves, how the measuring vehicle drives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlib.simulate import furniture, people, populate
from kdlib.simulate.actors import Actor, Rng, random_id
from kdlib.simulate.ego import CENTER_X, LENGTH, WIDTH, Ego, random_ego, random_plan
from kdlib.simulate.layout import Layout, ground, random_layout
from kdlib.simulate.mesh import Mesh, merge
from kdlib.simulate.streets import Street, streets
from kdlib.simulate.tracks import Occupancy, Track, standing
from kdlib.types import WAYMO_TYPES, FloatArray

PERIOD = 0.1
"""Seconds from frame to frame."""


@dataclass(frozen=True)
class Scene:
    """A street over some seconds; local metres, the world frame is only a shift and a turn away."""

    layout: Layout
    still: Mesh  # ground, houses, clutter and everybody who stands
    actors: tuple[Actor, ...]
    ego: Ego
    zones: tuple[FloatArray, ...]  # no-label zones, each (K, 2)
    world: FloatArray  # (6,) pose of the local frame in the world: 0, 0, yaw, x, y, z
    frames: int

    def frame_times(self) -> FloatArray:
        """Return the middle of every frame, seconds."""
        return (np.arange(self.frames) + 0.5) * PERIOD

    def mesh(self, frame: int) -> Mesh:
        """Return all triangles at a frame."""
        return merge([self.still, *(actor.mesh(frame) for actor in self.actors if actor.track.moves)])


class _Stage:
    """Places what stands where nothing else is; holds the growing lists while a scene is built."""

    def __init__(self, rng: Rng, crowd: populate.Crowd) -> None:
        self.rng, self.crowd = rng, crowd
        self.meshes: list[Mesh] = []

    def put(self, mesh: Mesh, xy: tuple[float, float], heading: float, foot: tuple[float, float] | None = None) -> bool:
        """Add a mesh if the ground under it, or under its foot, is free."""
        low, high = mesh.bounds
        offset = (0.0, 0.0) if foot else (float(low[0] + high[0]) / 2, float(low[1] + high[1]) / 2)
        length, width = foot or (float(high[0] - low[0]), float(high[1] - low[1]))
        if not self.crowd.occupancy.claim(standing(*xy, heading), length, width, offset, 0.05):
            return False
        z = float(self.crowd.layout.height(*xy))
        self.meshes.append(mesh.moved(xy, z, heading))
        return True


def _houses(stage: _Stage, street: Street) -> None:
    rng, road = stage.rng, street.road
    for side in (-1, 1):
        setback = float(rng.uniform(0.3, 7.0)) if rng.random() < 0.7 else float(rng.uniform(7.0, 14.0))
        u = street.start + float(rng.uniform(0, 6))
        while u < street.end - 4:
            length = float(rng.uniform(7.0, 20.0))
            front = road.half + road.pavement + setback + float(rng.uniform(0, 0.8))
            clear = not street.in_gap(u + length / 2, length / 2 + 3.5)
            if clear and rng.random() < 0.85 and front + 5 < street.depth:
                house = furniture.building(rng, length, float(rng.uniform(7.0, 12.0)))
                heading = street.angle if side > 0 else street.angle + np.pi
                stage.put(house, street.place(u + length / 2, side * front), heading)
            elif clear and rng.random() < 0.7:
                place = street.place(u + length / 2, side * (front - min(setback, 1.5) + 0.3))
                stage.put(furniture.fence(rng, length), place, street.angle)
            u += length + (float(rng.uniform(2.0, 8.0)) if rng.random() < 0.4 else 0.2)


def _signs(stage: _Stage, street: Street) -> None:
    rng, road = stage.rng, street.road
    for _ in range(rng.poisson(7.0 * street.length / 100)):
        u, side = float(rng.uniform(street.start, street.end)), 1 if rng.random() < 0.5 else -1
        sign = furniture.sign(rng)
        xy = street.place(u, side * (road.half + float(rng.uniform(0.3, 0.8))))
        heading = street.angle + (np.pi if side < 0 else 0.0) + float(rng.normal(0, 0.1))
        if not street.in_gap(u) and stage.put(sign.pole, xy, heading, (0.2, 0.2)):
            z = stage.crowd.layout.height(np.array([xy[0]]), np.array([xy[1]]))
            track = standing(*xy, heading)
            stage.crowd.actors.append(Actor(WAYMO_TYPES["Sign"], random_id(rng), (sign.plate,), track, z))


def _clutter(stage: _Stage, street: Street) -> None:
    rng, road, share = stage.rng, street.road, street.length / 100
    for side in (-1, 1):
        edge, facing = road.half + 0.6, street.angle + (0.0 if side < 0 else np.pi)
        step = float(rng.uniform(7, 16))
        for u in np.arange(street.start + float(rng.uniform(0, step)), street.end, step):
            if not street.in_gap(float(u), 1.0):
                maker = furniture.tree if rng.random() < 0.75 else furniture.lamp
                stage.put(maker(rng), street.place(float(u) + float(rng.normal(0, 0.5)), side * edge), facing, (0.6, 0.6))
        for _ in range(rng.poisson(11 * share)):
            near = rng.random() < 0.6
            v = edge if near else road.half + road.pavement - 0.4
            u, heading = float(rng.uniform(street.start, street.end)), facing + float(rng.choice([0, np.pi / 2]))
            stage.put(furniture.pick(rng, furniture.SIDEWALK), street.place(u, side * (v + float(rng.normal(0, 0.2)))), heading)
        for _ in range(rng.poisson(12 * share)):
            v = road.half + road.pavement + float(rng.uniform(0.6, 7.0))
            xy = street.place(float(rng.uniform(street.start, street.end)), side * v)
            stage.put(furniture.pick(rng, furniture.GARDEN), xy, street.angle + float(rng.normal(0, 0.1)))
        for _ in range(rng.poisson(3 * share)):
            xy = street.place(float(rng.uniform(street.start, street.end)), side * (edge + 0.3))
            stage.put(people.bicycle(), xy, facing + float(rng.uniform(-np.pi, np.pi)))
        if rng.random() < 0.5:
            xy = street.place(float(rng.uniform(street.start, street.end)), side * (road.half + 1.2))
            stage.put(furniture.shelter(rng), xy, facing + np.pi)
    if street.gap[0] < street.gap[1]:
        for u in street.gap:
            for side in (-1, 1):
                stage.put(
                    furniture.signal(rng),
                    street.place(u + float(np.sign(u - np.mean(street.gap))), side * edge),
                    facing,
                    (0.3, 0.3),
                )


def _zones(rng: Rng, layout: Layout) -> tuple[FloatArray, ...]:
    """Return up to two no-label zones beside the road, angular and not convex."""
    zones = []
    for _ in range(int(rng.choice([0, 1, 2], p=[0.55, 0.35, 0.10]))):
        x, side = float(rng.uniform(*layout.reach)), 1 if rng.random() < 0.5 else -1
        near, far = layout.main.half + float(rng.uniform(1, 5)), layout.main.half + float(rng.uniform(12, 25))
        width, waist = float(rng.uniform(8, 20)), float(rng.uniform(0.3, 0.7))
        middle = near + waist * (far - near)
        corners = [(0, near), (width, near), (width, middle), (waist * width, middle), (waist * width, far), (0, far)]
        zones.append(np.array([(x + a, side * b) for a, b in corners]))
    return tuple(zones)


def build_scene(rng: Rng, frames: int, reach: float) -> Scene:
    """Return a random street as far as ``reach`` metres around everywhere the ego vehicle gets to in so many frames."""
    duration = frames * PERIOD
    plan = random_plan(rng)
    travel = plan.speed * duration + 0.5 * max(plan.acceleration, 0) * duration**2
    if plan.turns:
        spread = 12.0 + travel
        layout = random_layout(rng, (-reach - spread, reach + spread), reach + spread, cross_x=0.0)
    else:
        layout = random_layout(rng, (-reach, travel + reach), reach)
    ego = random_ego(rng, plan, layout, duration)
    times = (np.arange(frames) + 0.5) * PERIOD
    occupancy = Occupancy(frames)
    track: Track = ego.track(times)
    occupancy.claim(track, LENGTH, WIDTH, (CENTER_X, 0.0), margin=0.5)
    crowd = populate.Crowd(rng, layout, times, occupancy)
    stage, density = _Stage(rng, crowd), populate.Density()
    for street in streets(layout):
        _houses(stage, street)
    for fill in (populate.traffic, populate.parked, populate.cyclists, populate.pedestrians):
        for street in streets(layout):
            fill(crowd, street, density)
    for street in streets(layout):
        _signs(stage, street)
        _clutter(stage, street)
    still = merge([ground(layout), *stage.meshes, *(actor.mesh(0) for actor in crowd.actors if not actor.track.moves)])
    world = np.array([0.0, 0.0, rng.uniform(-np.pi, np.pi), *rng.uniform(-500, 500, 2), rng.uniform(0, 40)])
    return Scene(layout, still, tuple(crowd.actors), ego, _zones(rng, layout), world, frames)
