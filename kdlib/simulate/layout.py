"""A random generator and a length in, the ground plan of a street out: lanes, kerbs, blocks of houses, sidewalk lines."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from kdlib.simulate.mesh import Material, Mesh, merge, slab
from kdlib.types import FloatArray

KERB = 0.14
"""Height of the pavement over the road, metres."""


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
class Block:
    """A raised rectangle of pavement with yards and houses in it."""

    low: tuple[float, float]
    high: tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """A street along x, with or without a crossing street along y at ``cross_x``; local metres, road surface at z = 0."""

    main: Road
    cross: Road | None
    cross_x: float
    reach: tuple[float, float]  # x from, x to
    depth: float  # |y| up to which there is anything
    blocks: tuple[Block, ...]

    def height(self, x: float | FloatArray, y: float | FloatArray) -> FloatArray:
        """Return the height of the ground at points."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        raised = np.zeros(np.broadcast(x, y).shape, bool)
        for block in self.blocks:
            raised |= (x > block.low[0]) & (x < block.high[0]) & (y > block.low[1]) & (y < block.high[1])
        return np.where(raised, KERB, 0.0)

    def on_crossing(self, x: float, margin: float = 0.0) -> bool:
        """Tell whether a place along the main street lies where the other street crosses it."""
        return self.cross is not None and abs(x - self.cross_x) < self.cross.half + margin


def _random_road(rng: np.random.Generator) -> Road:
    return Road(
        lanes=1 if rng.random() < 0.75 else 2,
        lane=float(rng.uniform(3.0, 3.5)),
        cycle=float(rng.uniform(1.5, 1.9)) if rng.random() < 0.7 else 0.0,
        parking=float(rng.uniform(2.3, 2.6)) if rng.random() < 0.85 else 0.0,
        pavement=float(rng.uniform(2.8, 4.5)),
    )


def random_layout(rng: np.random.Generator, reach: tuple[float, float], depth: float, cross_x: float | None = None) -> Layout:
    """Return a street with a crossing at ``cross_x``; without it, one in three of five cases in the street's middle half."""
    main, cross, span = _random_road(rng), None, reach[1] - reach[0]
    if cross_x is not None or rng.random() < 0.6:
        cross = _random_road(rng)
        cross_x = float(rng.uniform(reach[0] + 0.25 * span, reach[1] - 0.25 * span)) if cross_x is None else cross_x
    cross_x = cross_x or 0.0
    edges = [(reach[0], reach[1])]
    if cross is not None:
        edges = [(reach[0], cross_x - cross.half), (cross_x + cross.half, reach[1])]
    blocks = [Block((a, main.half), (b, depth)) for a, b in edges] + [Block((a, -depth), (b, -main.half)) for a, b in edges]
    return Layout(main, cross, cross_x, reach, depth, tuple(blocks))


def _dashes(start: float, end: float, y: float, along_x: bool, skip: tuple[float, float]) -> list[Mesh]:
    marks = []
    for place in np.arange(start, end, 6.0):
        if skip[0] < place + 1.5 and place < skip[1]:
            continue
        low, high = (place, y - 0.07), (place + 3.0, y + 0.07)
        marks.append(slab(low if along_x else low[::-1], high if along_x else high[::-1], 0.004, Material.MARKING))
    return marks


def _zebra(layout: Layout) -> list[Mesh]:
    cross = layout.cross
    if cross is None:
        return []
    bars = []
    for x in (layout.cross_x - cross.half - 3.2, layout.cross_x + cross.half + 0.4):
        for y in np.arange(-layout.main.half + 0.3, layout.main.half - 0.5, 1.0):
            bars.append(slab((x, y), (x + 2.8, y + 0.5), 0.004, Material.MARKING))
    return bars


def _tiles(low: tuple[float, float], high: tuple[float, float], z: float, material: Material, thickness: float) -> list[Mesh]:
    # Small tiles: long thin triangles make a slow bounding volume hierarchy.
    xs = np.linspace(low[0], high[0], max(1, int((high[0] - low[0]) / 25)) + 1)
    return [slab((a, low[1]), (b, high[1]), z, material, thickness) for a, b in pairwise(xs)]


def ground(layout: Layout) -> Mesh:
    """Return roads with markings, kerbs, pavements and the grass behind them."""
    (start, end), depth = layout.reach, layout.depth
    parts = _tiles((start, -depth), (end, depth), 0.0, Material.ASPHALT, 0.0)
    for block in layout.blocks:
        parts += _tiles(block.low, block.high, KERB, Material.PAVEMENT, KERB)
        margin = layout.main.pavement
        side = layout.cross.pavement if layout.cross is not None else 0.0
        low_x = block.low[0] + (side if block.low[0] > start else 0.0)
        high_x = block.high[0] - (side if block.high[0] < end else 0.0)
        low_y = block.low[1] + (margin if block.low[1] > 0 else 0.0)
        high_y = block.high[1] - (margin if block.high[1] < 0 else 0.0)
        if high_x - low_x > 2 and high_y - low_y > 2:
            parts += _tiles((low_x, low_y), (high_x, high_y), KERB + 0.005, Material.GRASS, 0.0)
    gap = (layout.cross_x - layout.cross.half, layout.cross_x + layout.cross.half) if layout.cross is not None else (end, end)
    for number in range(1 - layout.main.lanes, layout.main.lanes):
        parts += _dashes(start, end, number * layout.main.lane, True, gap)
    if layout.cross is not None:
        inner = (-layout.main.half, layout.main.half)
        parts += [
            mark
            for number in range(1 - layout.cross.lanes, layout.cross.lanes)
            for mark in _dashes(-depth, depth, layout.cross_x + number * layout.cross.lane, False, inner)
        ]
    return merge(parts + _zebra(layout))
