"""Fills streets with road users on free tracks: who drives, parks, cycles, walks and stands
where.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kdlib.simulate.actors import Actor, Figure, cyclist, pedestrian, random_id, vehicle
from kdlib.simulate.layout import Street, StreetPlan
from kdlib.simulate.mesh import SIDES, Mesh, Pair, Rng, ground_needed
from kdlib.simulate.tracks import Course, Occupancy, Track, distance, follow, line, standing
from kdlib.types import FloatArray

# How many there are per 100 m of street, both sides.
_DRIVING, _YARD, _CYCLISTS, _WALKERS, _STANDING, _GROUPS, _CROSSING = (
    7.0,
    4.0,
    12.0,
    13.0,
    4.0,
    2.0,
    3.0,
)
_PARKED = 0.45  # share of the parking places that is taken


class Site:
    """Places things one by one where nothing else is; holds the growing lists while a scene is
    built.
    """

    def __init__(self, rng: Rng, plan: StreetPlan, times: FloatArray) -> None:
        self.rng, self.plan, self.times, self.occupancy = rng, plan, times, Occupancy(len(times))
        self.actors: list[Actor] = []
        self.meshes: list[Mesh] = []

    def add(self, figure: Figure, track: Track, margin: float = 0.15) -> None:
        """Add a road user if its track is free."""
        if self.occupancy.claim(track, *ground_needed(figure.shapes), margin):
            name = random_id(self.rng)
            self.actors.append(
                Actor(figure, name, track, self.plan.height(track.xy), self.rng.random())
            )

    def put(self, mesh: Mesh, xy: Pair, heading: float, foot: float = 0.0) -> bool:
        """Add what only stands if the ground under it, or under its square foot, is free, and tell
        so.
        """
        ground = (foot, foot, (0.0, 0.0)) if foot else ground_needed([mesh])
        track = standing(xy, heading)
        free = self.occupancy.claim(track, *ground, 0.05)
        if free:
            self.meshes.append(mesh.moved(xy, self.plan.height(track.xy)[0], heading))
        return free

    def side(self) -> int:
        """Return 1 (left) or -1 (right)."""
        return 1 if self.rng.random() < 0.5 else -1

    def along(
        self, street: Street, u: float, v: float, forward: bool, wiggle: float = 0.0
    ) -> Course:
        """Return the straight course from a place along a street."""
        return line(street.place(u, v), street.toward(forward) + self.rng.normal(0, wiggle))

    def moving(self, course: Course, speed: float) -> Track:
        """Return a track along a course, or a standing one for speed 0."""
        if speed == 0.0:
            return standing(course.xy[0], course.heading[0])
        return follow(course, *distance(self.times, speed))


def _lane(
    site: Site,
    street: Street,
    v: float,
    speed: float,
    spacing: float,
    make: Callable[[Rng, bool], Figure],
    wiggle: float = 0.0,
) -> None:
    """Fill one lane; those left of the middle go backward."""
    rng = site.rng
    u = street.start + rng.uniform(0, spacing)
    while u < street.end:
        if speed > 0 or not street.in_gap(u, 3.5):
            course = site.along(street, u, v + rng.normal(0, 0.15), v < 0, wiggle)
            site.add(make(rng, speed > 0), site.moving(course, speed), margin=0.3)
        u += max(2.5, rng.exponential(spacing))


def _speed(rng: Rng, stop: float, low: float, high: float) -> float:
    return 0.0 if rng.random() < stop else rng.uniform(low, high)


def traffic(site: Site, street: Street) -> None:
    """Fill the lanes: one speed per lane, and sometimes a jam."""
    for number in range(street.road.lanes):
        for side in SIDES:
            spacing = 100.0 / (_DRIVING / 2) * site.rng.uniform(0.6, 1.6)
            speed = _speed(site.rng, 0.35, 2.0, 14.0)
            _lane(site, street, side * street.road.lane_center(number), speed, spacing, vehicle)


def cyclists(site: Site, street: Street) -> None:
    """Fill the cycle lanes, or the edge of the road where there are none; a third of the riders
    waits or uses the pavement.
    """
    rng, road = site.rng, street.road
    for side in SIDES:
        spacing = 100.0 / (_CYCLISTS * 0.35)
        _lane(site, street, side * road.cycle_center, rng.uniform(2.5, 7.0), spacing, cyclist, 0.01)
    for _ in range(rng.poisson(_CYCLISTS * 0.30 * street.length / 100)):
        u, forward = street.somewhere(rng), rng.random() < 0.5
        v = -site.side() * (road.half + rng.uniform(-1.6, 0.8 * road.pavement))
        speed = _speed(rng, 0.4, 1.5, 4.0)
        site.add(
            cyclist(rng, speed > 0), site.moving(site.along(street, u, v, forward, 0.25), speed)
        )


def parked(site: Site, street: Street) -> None:
    """Fill the parking lanes, mostly in driving direction, and some yards with vehicles at any
    angle.
    """
    rng, road = site.rng, street.road
    for side in SIDES:
        share = _PARKED * rng.uniform(0.4, 1.6) if road.parking else 0.0
        u = street.start + 3.0
        while u < street.end - 3.0:
            figure = vehicle(rng, False)
            length = ground_needed(figure.shapes)[0]
            if rng.random() < share and not street.in_gap(u + length / 2, 3.0 + length / 2):
                forward = (side < 0) != (rng.random() < 0.1)
                xy = street.place(
                    u + length / 2, side * (road.parking_center + rng.normal(0, 0.08))
                )
                site.add(
                    figure, standing(xy, street.toward(forward) + rng.normal(0, 0.02)), margin=0.1
                )
            u += length + rng.uniform(0.6, 1.4)
    for _ in range(rng.poisson(_YARD * street.length / 100)):
        u, side = street.somewhere(rng), site.side()
        xy = street.place(u, side * (road.half + road.pavement + rng.uniform(0.5, 6.0)))
        heading = (
            street.angle
            + rng.choice([np.pi / 2, -np.pi / 2, rng.uniform(-np.pi, np.pi)])
            + rng.normal(0, 0.1)
        )
        if not street.in_gap(u, road.pavement):
            site.add(vehicle(rng, False), standing(xy, heading))


def pedestrians(site: Site, street: Street) -> None:
    """Fill the pavements with people who walk, stand, talk in groups and cross the road."""
    rng, road = site.rng, street.road

    def spot(inside: float = 0.3) -> Pair:
        side = site.side()
        return street.somewhere(rng), side * (road.half + rng.uniform(inside, road.pavement + 0.5))

    for _ in range(street.count(rng, _WALKERS)):
        course = site.along(street, *spot(), rng.random() < 0.5, 0.12)
        site.add(pedestrian(rng, True), site.moving(course, rng.uniform(0.6, 1.9)))
    for _ in range(street.count(rng, _STANDING)):
        site.add(
            pedestrian(rng, False), standing(street.place(*spot()), rng.uniform(-np.pi, np.pi))
        )
    for _ in range(street.count(rng, _CROSSING)):
        u, side = street.somewhere(rng), site.side()
        start = street.place(u, side * rng.uniform(-road.half, road.half + 1.0))
        course = line(start, street.angle - side * np.pi / 2 + rng.normal(0, 0.15))
        site.add(pedestrian(rng, True), site.moving(course, rng.uniform(0.8, 2.2)))
    for _ in range(street.count(rng, _GROUPS)):
        _group(site, street, *spot(0.8))


def _group(site: Site, street: Street, u: float, v: float) -> None:
    rng = site.rng
    size, walks = rng.integers(2, 5), rng.random() < 0.5
    forward, speed = rng.random() < 0.5, rng.uniform(0.6, 1.4)
    for member in range(size):
        if walks:
            course = site.along(
                street, u + rng.normal(0, 0.3), v + 0.8 * (member - size / 2), forward
            )
            track = site.moving(course, speed)
        else:
            around = 2 * np.pi * member / size + rng.normal(0, 0.2)
            xy = street.place(u + 0.65 * np.cos(around), v + 0.65 * np.sin(around))
            track = standing(xy, street.angle + around + np.pi + rng.normal(0, 0.2))
        site.add(pedestrian(rng, walks), track, margin=0.04)
