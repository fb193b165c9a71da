"""Gives road users and signs a mesh and a box at every frame, from their shapes and tracks."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from kdlib.simulate.materials import CLOTH, PAINT
from kdlib.simulate.mesh import Mesh, Rng, Vector
from kdlib.simulate.people import BUILDS, PHASES, cyclist_mesh, pedestrian_mesh
from kdlib.simulate.tracks import Track
from kdlib.simulate.vehicles import random_vehicle
from kdlib.types import WAYMO_TYPES, FloatArray

# air between a shape and its box, metres, as in hand-drawn labels; range noise stays inside
_MARGIN = 0.03
# a box begins this far over the ground, so that the road below a car does not count as car
_CLEARANCE = 0.02


@dataclass(frozen=True)
class Figure:
    """A road user or sign before it has a place: rigid (one shape) or stepping through the phases
    of a gait.
    """

    type: int  # Waymo's number
    shapes: tuple[Mesh, ...]  # one, or one per phase; centred near the origin, front towards +x
    cycle: float = 1.0  # metres per gait cycle


@dataclass(frozen=True)
class Actor:
    """Something with a label."""

    figure: Figure
    id: str
    track: Track
    z: FloatArray  # (T,) ground below it
    offset: float = 0.0  # where in the cycle of its gait it starts, 0..1

    def _shape(self, frame: int) -> Mesh:
        shapes = self.figure.shapes
        if len(shapes) == 1:
            return shapes[0]
        step = self.track.travelled[self.track.frame(frame)] / self.figure.cycle + self.offset
        return shapes[int(step * len(shapes)) % len(shapes)]

    def mesh(self, frame: int) -> Mesh:
        """Return its triangles at a frame, local coordinates."""
        at = self.track.frame(frame)
        return self._shape(frame).moved(self.track.xy[at], self.z[at], self.track.heading[at])

    def box(self, frame: int) -> FloatArray:
        """Return the box around its shape at a frame: x, y, z, length, width, height, heading,
        local coordinates.
        """
        at = self.track.frame(frame)
        low, high = self._shape(frame).bounds
        low, high = low - _MARGIN, high + _MARGIN
        low[2] = max(low[2], _CLEARANCE)
        heading = self.track.heading[at]
        cos, sin = np.cos(heading), np.sin(heading)
        middle, (x, y) = (low + high) / 2, self.track.xy[at]
        center = (
            x + cos * middle[0] - sin * middle[1],
            y + sin * middle[0] + cos * middle[1],
            self.z[at] + middle[2],
        )
        return np.array([*center, *(high - low), heading])


def random_id(rng: Rng) -> str:
    """Return an object id as Waymo's: 22 characters of base64url."""
    return base64.urlsafe_b64encode(rng.bytes(17)).decode()[:22]


def vehicle(rng: Rng, moving: bool) -> Figure:
    """Return a random motor vehicle."""
    return Figure(WAYMO_TYPES["Vehicle"], (random_vehicle(rng, moving),))


def pedestrian(rng: Rng, walking: bool) -> Figure:
    """Return a random person; one of eight is a child."""
    build = rng.integers(BUILDS)
    tall = rng.uniform(0.58, 0.8) if rng.random() < 0.12 else rng.uniform(0.9, 1.1)
    size = (tall * rng.uniform(0.95, 1.05), tall * rng.uniform(0.95, 1.15), tall)
    shapes = [
        pedestrian_mesh(build, phase, walking) for phase in (range(PHASES) if walking else (0,))
    ]
    return Figure(WAYMO_TYPES["Pedestrian"], _dressed(rng, shapes, size), cycle=1.4 * tall)


def cyclist(rng: Rng, moving: bool) -> Figure:
    """Return a random cyclist; one who waits holds the pedals still."""
    build, tall = rng.integers(BUILDS), rng.uniform(0.88, 1.08)
    phases = range(PHASES) if moving else (rng.integers(PHASES),)
    shapes = [cyclist_mesh(build, phase) for phase in phases]
    return Figure(
        WAYMO_TYPES["Cyclist"],
        _dressed(rng, shapes, (tall, rng.uniform(0.95, 1.1), tall)),
        cycle=5.0,
    )


def _dressed(rng: Rng, shapes: list[Mesh], size: Vector) -> tuple[Mesh, ...]:
    cloth, paint = rng.uniform(0.3, 1.8), rng.uniform(0.4, 1.5)
    return tuple(shape.scaled(size).tinted(cloth, CLOTH).tinted(paint, PAINT) for shape in shapes)
