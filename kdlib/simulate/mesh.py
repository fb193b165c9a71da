"""Makes the bricks of every shape: triangle meshes with a material and a tint per triangle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from kdlib.simulate.materials import FOLIAGE
from kdlib.types import FloatArray, IntArray

Pair = tuple[float, float]
Triple = tuple[float, float, float]
Vector = Sequence[float] | FloatArray
Rng = np.random.Generator
SIDES = (-1, 1)  # right and left


@dataclass(frozen=True)
class Mesh:
    """A triangle soup in metres; ``tint`` scales the reflectivity of the material."""

    vertices: FloatArray  # (V, 3)
    triangles: IntArray  # (T, 3)
    material: IntArray  # (T,) of materials.py
    tint: FloatArray  # (T,)

    def moved(self, xy: Vector = (0.0, 0.0), z: float = 0.0, heading: float = 0.0) -> Mesh:
        """Return the mesh turned about z, then shifted."""
        cos, sin = np.cos(heading), np.sin(heading)
        turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        return replace(self, vertices=self.vertices @ turn + np.array([*xy, z]))

    def scaled(self, factors: Vector) -> Mesh:
        """Return the mesh stretched along its axes."""
        return replace(self, vertices=self.vertices * factors)

    def tinted(self, tint: float, material: int) -> Mesh:
        """Return the mesh with the tint of one material replaced."""
        return replace(self, tint=np.where(self.material == material, tint, self.tint))

    @property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """The lowest and the highest corner, each (3,)."""
        return self.vertices.min(0), self.vertices.max(0)


def ground_needed(meshes: Sequence[Mesh]) -> tuple[float, float, Pair]:
    """Return length, width and centre of the ground that something needs in any of its shapes."""
    low = np.min([mesh.bounds[0] for mesh in meshes], axis=0)
    high = np.max([mesh.bounds[1] for mesh in meshes], axis=0)
    (length, width, _), (x, y, _) = (high - low).tolist(), ((low + high) / 2).tolist()
    return length, width, (x, y)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """Return one mesh that holds all triangles of several, in their order."""
    shifts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.triangles + shift for mesh, shift in zip(meshes, shifts)]),
        np.concatenate([mesh.material for mesh in meshes]),
        np.concatenate([mesh.tint for mesh in meshes]),
    )


def _mesh(vertices: FloatArray, triangles: IntArray, material: int) -> Mesh:
    count = len(triangles)
    return Mesh(vertices, triangles, np.full(count, material), np.ones(count))


def _edges(sides: int, start: int) -> tuple[IntArray, IntArray]:
    """Return where the edges of a loop of vertices begin and end; the first vertex has this
    number.
    """
    here = np.arange(sides)
    return here + start, (here + 1) % sides + start


def _strip(sides: int, low: int, high: int) -> list[IntArray]:
    """Return two triangles on every side between two loops of vertices that begin at these
    numbers.
    """
    (a, b), (d, c) = _edges(sides, low), _edges(sides, high)
    return [np.stack([a, b, c], 1), np.stack([a, c, d], 1)]


def _fan(sides: int, loop: int, tip: int) -> IntArray:
    """Return the triangles between a loop of vertices and one more vertex."""
    return np.stack([*_edges(sides, loop), np.full(sides, tip)], 1)


# Corners 0-3 go round the bottom (rear right, front right, front left, rear left), 4-7 round the
# top.
_HEXAHEDRON = np.array(
    [list(map(int, face)) for face in ("012 023 456 467 015 054 326 367 126 165 037 074").split()]
)
_WALLS = slice(4, 12)


def hexahedron(
    bottom: Sequence[float], top: Sequence[float], material: int, sides: int | None = None
) -> Mesh:
    """Return a block between two rectangles, each of them x rear, x front, half width, z (or z
    rear, z front).

    ``sides`` is the material of the four walls where they differ, as in a car's cabin.
    """
    corners = []
    for rear, front, half, *z in (bottom, top):
        corners += [
            (rear, -half, z[0]),
            (front, -half, z[-1]),
            (front, half, z[-1]),
            (rear, half, z[0]),
        ]
    mesh = _mesh(np.array(corners, float), _HEXAHEDRON, material)
    if sides is not None:
        mesh.material[_WALLS] = sides
    return mesh


def block(size: Vector, center: Vector, material: int) -> Mesh:
    """Return an upright box of a size around a centre."""
    (length, width, height), (x, y, z) = size, center
    base = (x - length / 2, x + length / 2, width / 2)
    return hexahedron((*base, z - height / 2), (*base, z + height / 2), material).moved((0.0, y))


def _circle(sides: int) -> tuple[FloatArray, FloatArray]:
    angle = np.arange(sides) * (2 * np.pi / sides)
    return np.cos(angle), np.sin(angle)


def rod(
    start: Vector,
    end: Vector,
    radius: float,
    material: int,
    sides: int = 6,
    end_radius: float | None = None,
    closed: bool = True,
) -> Mesh:
    """Return a cylinder or a cone between two points, with lids or without."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    axis = (end - start) / max(float(np.linalg.norm(end - start)), 1e-9)
    u = np.cross(axis, (1.0, 0.0, 0.0) if abs(axis[0]) < 0.8 else (0.0, 1.0, 0.0))
    u /= np.sqrt(u @ u)
    v = np.cross(axis, u)
    cos, sin = _circle(sides)
    ring = cos[:, None] * u + sin[:, None] * v
    far = radius if end_radius is None else end_radius
    vertices = np.concatenate([start + radius * ring, end + far * ring, [start, end]])
    lids = [_fan(sides, 0, 2 * sides), _fan(sides, sides, 2 * sides + 1)] if closed else []
    return _mesh(vertices, np.concatenate(_strip(sides, 0, sides) + lids), material)


limb = partial(rod, sides=5, closed=False)
"""Returns a cylinder without lids, for parts that end inside others."""


def ring(center: Vector, radius: float, depth: float, width: float, material: int) -> Mesh:
    """Return a wheel without spokes: a band of some width in the x-z plane with a rim on either
    side.
    """
    sides = 10
    cos, sin = _circle(sides)
    circle = np.stack([cos, np.zeros(sides), sin], 1)
    side = (0.0, width / 2, 0.0)
    loops = (radius * circle - side, radius * circle + side, (radius - depth) * circle)
    faces = [
        face for a, b in ((0, 1), (0, 2), (1, 2)) for face in _strip(sides, a * sides, b * sides)
    ]
    return _mesh(np.concatenate(loops) + center, np.concatenate(faces), material)


def blob(center: Vector, radii: Vector, rng: Rng, rough: float) -> Mesh:
    """Return a bumpy ellipsoid of leaves: tree crowns, bushes."""
    rows, columns = 6, 9
    polar = np.linspace(0, np.pi, rows + 1)[1:-1, None]
    across = (np.sin(polar) * axis for axis in _circle(columns))
    grid = np.stack(np.broadcast_arrays(*across, np.cos(polar)), -1).reshape(-1, 3)
    sphere = np.concatenate([grid, [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]])
    sphere = sphere * (1 + rng.uniform(-rough, rough, (len(sphere), 1)))
    last = (rows - 2) * columns
    faces = [
        face for loop in range(0, last, columns) for face in _strip(columns, loop, loop + columns)
    ]
    faces += [_fan(columns, 0, len(grid)), _fan(columns, last, len(grid) + 1)]
    return _mesh(sphere * radii + center, np.concatenate(faces), FOLIAGE)


def slab(low: Vector, high: Vector, z: float, material: int, thickness: float = 0.0) -> Mesh:
    """Return a level rectangle from corner to corner at a height, with side walls down if it has a
    thickness.
    """
    (x0, y0), (x1, y1) = low, high
    vertices = np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], float)
    faces = [np.array([[0, 1, 2], [0, 2, 3]])]
    if thickness:
        faces += _strip(4, 0, 4)
        vertices = np.concatenate([vertices, vertices - (0.0, 0.0, thickness)])
    return _mesh(vertices, np.concatenate(faces), material)
