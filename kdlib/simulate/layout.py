"""Draws the ground plan of a street with or without a crossing: lanes, kerbs, blocks of houses; and
its ground as a mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from kdlib.simulate.materials import ASPHALT, GRASS, MARKING, PAVEMENT
from kdlib.simulate.mesh import Mesh, Pair, Rng, merge, slab
from kdlib.types import FloatArray

KERB = 0.14  # height of the pavement over the road, metres


@dataclass(frozen=True)
class Road:
    """The cross-section of a road, one side; traffic keeps to the right."""

    lanes: int
    lane: float  # width of a lane
    cycle: float  # width of the cycle lane, 0 without
    parking: float  # width of the parking lane, 0 without
    pavement: float  # width of the pavement

    @property
    def half(self) -> float:
        """From the middle to the kerb."""
        return self.lanes * self.lane + self.cycle + self.parking

    def lane_center(self, number: int) -> float:
        """Distance of a lane's middle from the middle of the road."""
        return (number + 0.5) * self.lane

    @property
    def cycle_center(self) -> float:
        """Distance of the cyclists' line from the middle of the road."""
        return self.lanes * self.lane + (self.cycle / 2 if self.cycle else -0.45)

    @property
    def parking_center(self) -> float:
        """Distance of the parked cars' middle from the middle of the road."""
        return self.half - self.parking / 2


@dataclass(frozen=True)
class Street:
    """One road of the plan as a straight line: u along, v to the left; the crossing with the other
    one is a gap in it.
    """

    road: Road
    x: float  # of u = 0 in the plan, where y = 0
    angle: float  # of u in the plan
    start: float
    end: float
    gap: Pair  # u from, u to; empty where from > to
    depth: float  # |v| up to which there is anything

    @property
    def length(self) -> float:
        """How long it is without the crossing."""
        return self.end - self.start - max(self.gap[1] - self.gap[0], 0.0)

    def place(self, u: float, v: float) -> Pair:
        """Return the plan's x, y of a place."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return self.x + cos * u - sin * v, sin * u + cos * v

    def toward(self, forward: bool) -> float:
        """Return the heading along it, or against it."""
        return self.angle + (0.0 if forward else np.pi)

    def count(self, rng: Rng, density: float) -> int:
        """Return a random number of things of which there are so many per 100 m, both sides."""
        return rng.poisson(density * (self.length / 100))

    def somewhere(self, rng: Rng) -> float:
        """Return the u of any place, the crossing included."""
        return rng.uniform(self.start, self.end)

    def in_gap(self, u: float, margin: float = 0.0) -> bool:
        """Tell whether a place along it lies in the crossing."""
        return self.gap[0] - margin < u < self.gap[1] + margin


@dataclass(frozen=True)
class StreetPlan:
    """A street along x, with or without a crossing street along y at ``cross_x``; local metres,
    road surface at z = 0.
    """

    main: Road
    cross: Road | None
    cross_x: float
    reach: Pair  # x from, x to
    depth: float  # |y| up to which there is anything

    @property
    def gap(self) -> Pair:
        """From where to where the crossing street cuts the main one; empty where from > to."""
        return (
            (self.cross_x - self.cross.half, self.cross_x + self.cross.half)
            if self.cross
            else (1.0, -1.0)
        )

    @property
    def blocks(self) -> list[tuple[Pair, Pair]]:
        """The raised rectangles of pavement with yards and houses in them: lowest and highest x,
        y.
        """
        (start, end), (low, high), half, depth = self.reach, self.gap, self.main.half, self.depth
        edges = [(start, low), (high, end)] if self.cross else [(start, end)]
        return [((a, half), (b, depth)) for a, b in edges] + [
            ((a, -depth), (b, -half)) for a, b in edges
        ]

    @property
    def streets(self) -> tuple[Street, ...]:
        """The main street and, where there is one, the crossing street."""
        main = Street(self.main, 0.0, 0.0, *self.reach, self.gap, self.depth)
        if self.cross is None:
            return (main,)
        half, width = (
            self.main.half,
            min(self.cross_x - self.reach[0], self.reach[1] - self.cross_x),
        )
        return main, Street(
            self.cross, self.cross_x, np.pi / 2, -self.depth, self.depth, (-half, half), width
        )

    def height(self, xy: FloatArray) -> FloatArray:
        """Return the height (N,) of the ground at points (N, 2)."""
        raised = np.zeros(len(xy), bool)
        for low, high in self.blocks:
            raised |= ((xy > low) & (xy < high)).all(axis=1)
        return np.where(raised, KERB, 0.0)


def _random_road(rng: Rng) -> Road:
    return Road(
        lanes=1 if rng.random() < 0.75 else 2,
        lane=rng.uniform(3.0, 3.5),
        cycle=rng.uniform(1.5, 1.9) if rng.random() < 0.7 else 0.0,
        parking=rng.uniform(2.3, 2.6) if rng.random() < 0.85 else 0.0,
        pavement=rng.uniform(2.8, 4.5),
    )


def random_plan(rng: Rng, reach: Pair, depth: float, cross_x: float | None = None) -> StreetPlan:
    """Return a street with a crossing at ``cross_x``; without it, one in three of five cases in the
    street's middle half.
    """
    main, cross, quarter = _random_road(rng), None, 0.25 * (reach[1] - reach[0])
    if cross_x is not None or rng.random() < 0.6:
        cross = _random_road(rng)
        cross_x = (
            rng.uniform(reach[0] + quarter, reach[1] - quarter) if cross_x is None else cross_x
        )
    return StreetPlan(main, cross, cross_x or 0.0, reach, depth)


def _dashes(street: Street, line: float, skip: Pair) -> list[Mesh]:
    marks = []
    for place in np.arange(street.start, street.end, 6.0):
        if not (skip[0] < place + 1.5 and place < skip[1]):
            corners = (place, line - 0.07), (place + 3.0, line + 0.07)
            low, high = (corner[::-1] for corner in corners) if street.angle else corners
            marks.append(slab(low, high, 0.004, MARKING))
    return marks


def _tiles(low: Pair, high: Pair, z: float, material: int, thickness: float = 0.0) -> list[Mesh]:
    # Small tiles: long thin triangles make a slow bounding volume hierarchy.
    xs = np.linspace(low[0], high[0], max(1, int((high[0] - low[0]) / 25)) + 1)
    return [slab((a, low[1]), (b, high[1]), z, material, thickness) for a, b in pairwise(xs)]


def ground(plan: StreetPlan) -> Mesh:
    """Return roads with markings, kerbs, pavements and the grass behind them."""
    (start, end), depth, main, cross = plan.reach, plan.depth, plan.main, plan.cross
    parts = _tiles((start, -depth), (end, depth), 0.0, ASPHALT)
    side = cross.pavement if cross else 0.0
    for low, high in plan.blocks:
        parts += _tiles(low, high, KERB, PAVEMENT, KERB)
        x0, x1 = (
            low[0] + (side if low[0] > start else 0.0),
            high[0] - (side if high[0] < end else 0.0),
        )
        y0, y1 = (
            low[1] + (main.pavement if low[1] > 0 else 0.0),
            high[1] - (main.pavement if high[1] < 0 else 0.0),
        )
        if x1 - x0 > 2 and y1 - y0 > 2:
            parts += _tiles((x0, y0), (x1, y1), KERB + 0.005, GRASS)
    for street in plan.streets:
        skip = street.gap if cross else (end, end)
        for number in range(1 - street.road.lanes, street.road.lanes):
            parts += _dashes(street, street.x + number * street.road.lane, skip)
    if cross:
        for x in (plan.gap[0] - 3.2, plan.gap[1] + 0.4):  # zebra crossings
            for y in np.arange(-main.half + 0.3, main.half - 0.5, 1.0):
                parts.append(slab((x, y), (x + 2.8, y + 0.5), 0.004, MARKING))
    return merge(parts)
