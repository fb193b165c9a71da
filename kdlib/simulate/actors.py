"""A track and shapes in, the labelled road users and signs of a scene out: mesh and box at every frame."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from kdlib.simulate import people, vehicles
from kdlib.simulate.mesh import Material, Mesh
from kdlib.simulate.tracks import Track
from kdlib.types import WAYMO_TYPES, FloatArray

Rng = np.random.Generator
MARGIN = 0.03
"""Air between a shape and its box, metres, as in hand-drawn labels; range noise stays inside."""
CLEARANCE = 0.02
"""A box begins this far over the ground, so that the road below a car does not count as car."""


@dataclass(frozen=True)
class Actor:
    """Something with a label: rigid (one shape) or stepping through the phases of a gait."""

    type: int  # Waymo's number
    id: str
    shapes: tuple[Mesh, ...]  # one, or one per phase; centred near the origin, front towards +x
    track: Track
    z: FloatArray  # (T,) ground below it
    cycle: float = 1.0  # metres per gait cycle
    offset: float = 0.0  # where in the cycle it starts, 0..1

    def _shape(self, frame: int) -> Mesh:
        if len(self.shapes) == 1:
            return self.shapes[0]
        step = self.track.travelled[self.track.frame(frame)] / self.cycle + self.offset
        return self.shapes[int(step * len(self.shapes)) % len(self.shapes)]

    def mesh(self, frame: int) -> Mesh:
        """Return its triangles at a frame, local coordinates."""
        at = self.track.frame(frame)
        return self._shape(frame).moved(self.track.xy[at], float(self.z[at]), float(self.track.heading[at]))

    def box(self, frame: int) -> FloatArray:
        """Return the box around its shape at a frame: x, y, z, length, width, height, heading, local coordinates."""
        at = self.track.frame(frame)
        low, high = self._shape(frame).bounds
        low = np.array([low[0] - MARGIN, low[1] - MARGIN, max(low[2] - MARGIN, CLEARANCE)])
        high = high + MARGIN
        heading = float(self.track.heading[at])
        cos, sin = np.cos(heading), np.sin(heading)
        middle, (x, y) = (low + high) / 2, self.track.xy[at]
        center = (x + cos * middle[0] - sin * middle[1], y + sin * middle[0] + cos * middle[1], self.z[at] + middle[2])
        return np.array([*center, *(high - low), heading])


def random_id(rng: Rng) -> str:
    """Return an object id as Waymo's: 22 characters of base64url."""
    return base64.urlsafe_b64encode(rng.bytes(17)).decode()[:22]


@dataclass(frozen=True)
class Figure:
    """A road user before it has a place: its type, shapes and gait."""

    type: int
    shapes: tuple[Mesh, ...]
    cycle: float = 1.0

    @property
    def footprint(self) -> tuple[float, float, tuple[float, float]]:
        """Length, width and centre of the ground it needs in any phase."""
        low = np.min([shape.bounds[0] for shape in self.shapes], axis=0)
        high = np.max([shape.bounds[1] for shape in self.shapes], axis=0)
        middle = (low + high) / 2
        return float(high[0] - low[0]), float(high[1] - low[1]), (float(middle[0]), float(middle[1]))


def vehicle(rng: Rng, moving: bool) -> Figure:
    """Return a random motor vehicle."""
    return Figure(WAYMO_TYPES["Vehicle"], (vehicles.random_vehicle(rng, moving),))


def _dressed(rng: Rng, shapes: tuple[Mesh, ...], size: FloatArray) -> tuple[Mesh, ...]:
    cloth, paint = float(rng.uniform(0.3, 1.8)), float(rng.uniform(0.4, 1.5))
    return tuple(shape.scaled(size).tinted(cloth, Material.CLOTH).tinted(paint, Material.PAINT) for shape in shapes)


def pedestrian(rng: Rng, walking: bool) -> Figure:
    """Return a random person; one of eight is a child."""
    build = int(rng.integers(people.BUILDS))
    tall = rng.uniform(0.58, 0.8) if rng.random() < 0.12 else rng.uniform(0.9, 1.1)
    size = np.array([tall * rng.uniform(0.95, 1.05), tall * rng.uniform(0.95, 1.15), tall])
    phases = range(people.PHASES) if walking else (0,)
    shapes = tuple(people.pedestrian(build, phase, walking) for phase in phases)
    return Figure(WAYMO_TYPES["Pedestrian"], _dressed(rng, shapes, size), cycle=1.4 * tall)


def cyclist(rng: Rng, moving: bool) -> Figure:
    """Return a random cyclist; one who waits holds the pedals still."""
    build, tall = int(rng.integers(people.BUILDS)), rng.uniform(0.88, 1.08)
    phases = range(people.PHASES) if moving else (int(rng.integers(people.PHASES)),)
    shapes = tuple(people.cyclist(build, phase) for phase in phases)
    return Figure(WAYMO_TYPES["Cyclist"], _dressed(rng, shapes, np.array([tall, rng.uniform(0.95, 1.1), tall])), cycle=5.0)
