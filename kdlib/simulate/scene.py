"""Builds a random street scene: what stands, who moves, how the measuring vehicle drives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlib.simulate import furniture, populate
from kdlib.simulate.actors import Actor, Figure, random_id
from kdlib.simulate.ego import EGO_FOOTPRINT, Ego, random_ego, random_manoeuvre
from kdlib.simulate.layout import Street, StreetPlan, ground, random_plan
from kdlib.simulate.mesh import SIDES, Mesh, Pair, Rng, merge
from kdlib.simulate.people import bicycle
from kdlib.simulate.populate import Site
from kdlib.simulate.tracks import standing
from kdlib.types import WAYMO_TYPES, FloatArray

PERIOD = 0.1  # seconds from frame to frame


@dataclass(frozen=True)
class StreetScene:
    """A street over some seconds; local metres, the world frame is only a shift and a turn away."""

    plan: StreetPlan
    still: Mesh  # ground, houses, clutter and everybody who stands
    actors: tuple[Actor, ...]
    ego: Ego
    zones: tuple[FloatArray, ...]  # no-label zones, each (K, 2)
    world: FloatArray  # (6,) pose of the local frame in the world: 0, 0, yaw, x, y, z

    def mesh(self, frame: int) -> Mesh:
        """Return all triangles at a frame."""
        return merge(
            [self.still, *(actor.mesh(frame) for actor in self.actors if actor.track.moves)]
        )


def _houses(site: Site, street: Street) -> None:
    rng, road = site.rng, street.road
    for side in SIDES:
        setback = rng.uniform(0.3, 7.0) if rng.random() < 0.7 else rng.uniform(7.0, 14.0)
        u = street.start + rng.uniform(0, 6)
        while u < street.end - 4:
            length = rng.uniform(7.0, 20.0)
            middle, front = (
                u + length / 2,
                road.half + road.pavement + setback + rng.uniform(0, 0.8),
            )
            clear = not street.in_gap(middle, length / 2 + 3.5)
            if clear and rng.random() < 0.85 and front + 5 < street.depth:
                house = furniture.building(rng, length, rng.uniform(7.0, 12.0))
                site.put(house, street.place(middle, side * front), street.toward(side > 0))
            elif clear and rng.random() < 0.7:
                place = street.place(middle, side * (front - min(setback, 1.5) + 0.3))
                site.put(furniture.fence(rng, length), place, street.angle)
            u += length + (rng.uniform(2.0, 8.0) if rng.random() < 0.4 else 0.2)


def _signs(site: Site, street: Street) -> None:
    rng, road = site.rng, street.road
    for _ in range(rng.poisson(7 * street.length / 100)):
        u, side = street.somewhere(rng), site.side()
        pole, plate = furniture.sign(rng)
        xy = street.place(u, side * (road.half + rng.uniform(0.3, 0.8)))
        heading = street.toward(side > 0) + rng.normal(0, 0.1)
        if not street.in_gap(u) and site.put(pole, xy, heading, foot=0.2):
            track = standing(xy, heading)
            figure = Figure(WAYMO_TYPES["Sign"], (plate,))
            site.actors.append(Actor(figure, random_id(rng), track, site.plan.height(track.xy)))


def _clutter(site: Site, street: Street) -> None:
    rng, road = site.rng, street.road
    edge, houses = road.half + 0.6, road.half + road.pavement
    for side in SIDES:
        facing = street.toward(side < 0)

        def anywhere(v: float, side: int = side) -> Pair:
            return street.place(street.somewhere(rng), side * v)

        step = rng.uniform(7, 16)
        for u in np.arange(street.start + rng.uniform(0, step), street.end, step):
            if not street.in_gap(u, 1.0):
                thing = (furniture.tree if rng.random() < 0.75 else furniture.lamp)(rng)
                site.put(thing, street.place(u + rng.normal(0, 0.5), side * edge), facing, foot=0.6)
        for _ in range(street.count(rng, 11)):
            v = edge if rng.random() < 0.6 else houses - 0.4
            u, heading = street.somewhere(rng), facing + rng.choice([0, np.pi / 2])
            thing = furniture.pick(rng, furniture.SIDEWALK)
            site.put(thing, street.place(u, side * (v + rng.normal(0, 0.2))), heading)
        for _ in range(street.count(rng, 12)):
            xy = anywhere(houses + rng.uniform(0.6, 7.0))
            site.put(furniture.pick(rng, furniture.GARDEN), xy, street.angle + rng.normal(0, 0.1))
        for _ in range(street.count(rng, 3)):
            site.put(bicycle(), anywhere(edge + 0.3), facing + rng.uniform(-np.pi, np.pi))
        if rng.random() < 0.5:
            xy = anywhere(road.half + 1.2)
            site.put(furniture.shelter(rng), xy, facing + np.pi)
    if street.gap[0] < street.gap[1]:
        for u, outside in zip(street.gap, (-1, 1)):
            for side in SIDES:
                site.put(
                    furniture.signal(rng), street.place(u + outside, side * edge), facing, foot=0.3
                )


def _zones(site: Site) -> tuple[FloatArray, ...]:
    """Return up to two no-label zones beside the road, angular and not convex."""
    rng, plan = site.rng, site.plan
    zones = []
    for _ in range(rng.choice([0, 1, 2], p=[0.55, 0.35, 0.10])):
        x, side = rng.uniform(*plan.reach), site.side()
        near, far = plan.main.half + rng.uniform(1, 5), plan.main.half + rng.uniform(12, 25)
        width, waist = rng.uniform(8, 20), rng.uniform(0.3, 0.7)
        middle, inner = near + waist * (far - near), waist * width
        corners = [
            (0, near),
            (width, near),
            (width, middle),
            (inner, middle),
            (inner, far),
            (0, far),
        ]
        zones.append(np.array([(x + a, side * b) for a, b in corners]))
    return tuple(zones)


def build_scene(rng: Rng, frames: int, reach: float) -> StreetScene:
    """Return a random street as far as ``reach`` metres around everywhere the measuring vehicle
    gets to in so many frames.
    """
    duration = frames * PERIOD
    manoeuvre = random_manoeuvre(rng)
    travel = manoeuvre.speed * duration + 0.5 * max(manoeuvre.acceleration, 0) * duration**2
    if manoeuvre.turn:
        spread = 12.0 + travel
        plan = random_plan(rng, (-reach - spread, reach + spread), reach + spread, cross_x=0.0)
    else:
        plan = random_plan(rng, (-reach, travel + reach), reach)
    ego = random_ego(rng, plan, manoeuvre, duration)
    times = (np.arange(frames) + 0.5) * PERIOD
    site = Site(rng, plan, times)
    site.occupancy.claim(ego.track(times), *EGO_FOOTPRINT, margin=0.5)
    for fill in (
        _houses,
        populate.traffic,
        populate.parked,
        populate.cyclists,
        populate.pedestrians,
    ):
        for street in plan.streets:
            fill(site, street)
    for street in plan.streets:
        _signs(site, street)
        _clutter(site, street)
    still = merge(
        [
            ground(plan),
            *site.meshes,
            *(actor.mesh(0) for actor in site.actors if not actor.track.moves),
        ]
    )
    world = np.array(
        [0.0, 0.0, rng.uniform(-np.pi, np.pi), *rng.uniform(-500, 500, 2), rng.uniform(0, 40)]
    )
    return StreetScene(plan, still, tuple(site.actors), ego, _zones(site), world)
