"""Streets and a random generator in, road users with free tracks out: who drives, parks, cycles, walks and stands where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kdlib.simulate import actors
from kdlib.simulate.actors import Actor, Figure, Rng
from kdlib.simulate.layout import Layout
from kdlib.simulate.streets import Street
from kdlib.simulate.tracks import Occupancy, Path, Track, distance, follow, line, standing
from kdlib.types import FloatArray


@dataclass(frozen=True)
class Density:
    """How many there are per 100 m of street, both sides."""

    driving: float = 7.0
    parked: float = 0.45  # share of the parking places that is taken
    yard: float = 4.0
    cyclists: float = 12.0
    walkers: float = 13.0
    standing: float = 4.0
    groups: float = 2.0
    crossing: float = 3.0


class Crowd:
    """Places actors one by one where nothing else is; holds the growing list while a scene is filled."""

    def __init__(self, rng: Rng, layout: Layout, times: FloatArray, occupancy: Occupancy) -> None:
        self.rng, self.layout, self.times, self.occupancy = rng, layout, times, occupancy
        self.actors: list[Actor] = []

    def add(self, figure: Figure, track: Track, margin: float = 0.15) -> bool:
        """Add an actor if its track is free."""
        length, width, offset = figure.footprint
        if not self.occupancy.claim(track, length, width, offset, margin):
            return False
        z = self.layout.height(track.xy[:, 0], track.xy[:, 1])
        name, phase = actors.random_id(self.rng), float(self.rng.random())
        self.actors.append(Actor(figure.type, name, figure.shapes, track, z, figure.cycle, phase))
        return True

    def moving(self, path: Path, speed: float, start: float = 0.0, acceleration: float = 0.0) -> Track:
        """Return a track along a path, or a standing one for speed 0."""
        if speed == 0.0:
            (xy,), (heading,) = path.at(np.array([start]))
            return standing(float(xy[0]), float(xy[1]), float(heading))
        return follow(path, start, *distance(self.times, speed, acceleration))

    def along(self, street: Street, u: float, v: float, forward: bool, wiggle: float = 0.0) -> Path:
        """Return the straight path from a place along a street."""
        heading = street.angle + (0.0 if forward else np.pi) + float(self.rng.normal(0, wiggle))
        return line(street.place(u, v), heading)


def _lane(
    crowd: Crowd,
    street: Street,
    v: float,
    forward: bool,
    speed: float,
    spacing: float,
    make: Callable[[Rng, bool], Figure],
    wiggle: float,
) -> None:
    rng = crowd.rng
    u = street.start + float(rng.uniform(0, spacing))
    while u < street.end:
        if speed > 0 or not street.in_gap(u, 3.5):
            path = crowd.along(street, u, v + float(rng.normal(0, 0.15)), forward, wiggle)
            crowd.add(make(rng, speed > 0), crowd.moving(path, speed), margin=0.3)
        u += max(2.5, float(rng.exponential(spacing)))


def _speed(rng: Rng, stop: float, low: float, high: float) -> float:
    return 0.0 if rng.random() < stop else float(rng.uniform(low, high))


def traffic(crowd: Crowd, street: Street, density: Density) -> None:
    """Fill the lanes: one speed per lane, and sometimes a jam."""
    rng, road = crowd.rng, street.road
    for number in range(road.lanes):
        for forward in (True, False):
            v = road.lane_center(number) * (-1 if forward else 1)
            spacing = 100.0 / (density.driving / 2) * rng.uniform(0.6, 1.6)
            _lane(crowd, street, v, forward, _speed(rng, 0.35, 2.0, 14.0), spacing, actors.vehicle, 0.0)


def cyclists(crowd: Crowd, street: Street, density: Density) -> None:
    """Fill the cycle lanes, or the edge of the road where there are none; a third of the riders waits or uses the pavement."""
    rng, road = crowd.rng, street.road
    for forward in (True, False):
        side = -1 if forward else 1
        spacing = 100.0 / (density.cyclists * 0.35)
        _lane(crowd, street, side * road.cycle_center, forward, float(rng.uniform(2.5, 7.0)), spacing, actors.cyclist, 0.01)
    for _ in range(rng.poisson(density.cyclists * 0.30 * street.length / 100)):
        u, forward = float(rng.uniform(street.start, street.end)), bool(rng.random() < 0.5)
        v = (-1 if rng.random() < 0.5 else 1) * (road.half + float(rng.uniform(-1.6, 0.8 * road.pavement)))
        speed = _speed(rng, 0.4, 1.5, 4.0)
        crowd.add(actors.cyclist(rng, speed > 0), crowd.moving(crowd.along(street, u, v, forward, 0.25), speed))


def parked(crowd: Crowd, street: Street, density: Density) -> None:
    """Fill the parking lanes, mostly in driving direction, and some yards with vehicles at any angle."""
    rng, road = crowd.rng, street.road
    for side in (-1, 1):
        share = density.parked * rng.uniform(0.4, 1.6) if road.parking else 0.0
        u = street.start + 3.0
        while u < street.end - 3.0:
            figure = actors.vehicle(rng, False)
            length = figure.footprint[0]
            if rng.random() < share and not street.in_gap(u + length / 2, 3.0 + length / 2):
                along = (side < 0) != (rng.random() < 0.1)
                v = side * (road.parking_center + rng.normal(0, 0.08))
                xy = street.place(u + length / 2, v)
                heading = street.angle + (0.0 if along else np.pi) + rng.normal(0, 0.02)
                crowd.add(figure, standing(*xy, float(heading)), margin=0.1)
            u += length + float(rng.uniform(0.6, 1.4))
    for _ in range(rng.poisson(density.yard * street.length / 100)):
        u, side = float(rng.uniform(street.start, street.end)), 1 if rng.random() < 0.5 else -1
        xy = street.place(u, side * (road.half + road.pavement + float(rng.uniform(0.5, 6.0))))
        heading = street.angle + float(rng.choice([np.pi / 2, -np.pi / 2, rng.uniform(-np.pi, np.pi)])) + rng.normal(0, 0.1)
        if not street.in_gap(u, road.pavement):
            crowd.add(actors.vehicle(rng, False), standing(*xy, float(heading)))


def pedestrians(crowd: Crowd, street: Street, density: Density) -> None:
    """Fill the pavements with people who walk, stand, talk in groups and cross the road."""
    rng, road, share = crowd.rng, street.road, street.length / 100

    def spot(inside: float = 0.3) -> tuple[float, float]:
        side = 1 if rng.random() < 0.5 else -1
        return float(rng.uniform(street.start, street.end)), side * (road.half + float(rng.uniform(inside, road.pavement + 0.5)))

    for _ in range(rng.poisson(density.walkers * share)):
        u, v = spot()
        path = crowd.along(street, u, v, bool(rng.random() < 0.5), 0.12)
        crowd.add(actors.pedestrian(rng, True), crowd.moving(path, float(rng.uniform(0.6, 1.9))))
    for _ in range(rng.poisson(density.standing * share)):
        crowd.add(actors.pedestrian(rng, False), standing(*street.place(*spot()), float(rng.uniform(-np.pi, np.pi))))
    for _ in range(rng.poisson(density.crossing * share)):
        u, side = float(rng.uniform(street.start, street.end)), 1 if rng.random() < 0.5 else -1
        start = street.place(u, side * float(rng.uniform(-road.half, road.half + 1.0)))
        path = line(start, street.angle - side * np.pi / 2 + float(rng.normal(0, 0.15)))
        crowd.add(actors.pedestrian(rng, True), crowd.moving(path, float(rng.uniform(0.8, 2.2))))
    for _ in range(rng.poisson(density.groups * share)):
        _group(crowd, street, *spot(0.8))


def _group(crowd: Crowd, street: Street, u: float, v: float) -> None:
    rng = crowd.rng
    size, walks = int(rng.integers(2, 5)), rng.random() < 0.5
    forward, speed = bool(rng.random() < 0.5), float(rng.uniform(0.6, 1.4))
    for member in range(size):
        if walks:
            path = crowd.along(street, u + float(rng.normal(0, 0.3)), v + 0.8 * (member - size / 2), forward, 0.0)
            crowd.add(actors.pedestrian(rng, True), crowd.moving(path, speed), margin=0.04)
        else:
            around = 2 * np.pi * member / size + float(rng.normal(0, 0.2))
            xy = street.place(u + 0.65 * np.cos(around), v + 0.65 * np.sin(around))
            facing = street.angle + around + np.pi + float(rng.normal(0, 0.2))
            crowd.add(actors.pedestrian(rng, False), standing(*xy, facing), margin=0.04)
