"""Corner coordinates in, triangle meshes with a material and a tint per triangle out: the bricks of every shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from kdlib.types import FloatArray, IntArray

Vector = Sequence[float] | FloatArray
BoolArray = NDArray[np.bool_]


class Material(IntEnum):
    """What a triangle is made of; decides how much light comes back and how often."""

    ASPHALT = 0
    MARKING = 1
    PAVEMENT = 2
    GRASS = 3
    FACADE = 4
    GLASS = 5
    FOLIAGE = 6
    BARK = 7
    METAL = 8
    PAINT = 9
    TYRE = 10
    SKIN = 11
    CLOTH = 12
    RETRO = 13


@dataclass(frozen=True)
class Mesh:
    """A triangle soup in metres; ``tint`` scales the reflectivity of the material."""

    vertices: FloatArray  # (V, 3)
    triangles: IntArray  # (T, 3)
    material: IntArray  # (T,) of Material
    tint: FloatArray  # (T,)

    def moved(self, xy: Vector = (0.0, 0.0), z: float = 0.0, heading: float = 0.0) -> Mesh:
        """Return the mesh turned about z, then shifted."""
        cos, sin = np.cos(heading), np.sin(heading)
        turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        return replace(self, vertices=self.vertices @ turn + np.array([xy[0], xy[1], z]))

    def scaled(self, factors: Vector) -> Mesh:
        """Return the mesh stretched along its axes."""
        return replace(self, vertices=self.vertices * np.asarray(factors))

    def tinted(self, tint: float, material: Material) -> Mesh:
        """Return the mesh with the tint of one material replaced."""
        return replace(self, tint=np.where(self.material == material, tint, self.tint))

    @property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """The lowest and the highest corner, each (3,)."""
        return self.vertices.min(0), self.vertices.max(0)


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """Return one mesh that holds all triangles of several, in their order."""
    shifts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.triangles + shift for mesh, shift in zip(meshes, shifts)]),
        np.concatenate([mesh.material for mesh in meshes]),
        np.concatenate([mesh.tint for mesh in meshes]),
    )


def _mesh(vertices: FloatArray, triangles: IntArray, material: Material, tint: float = 1.0) -> Mesh:
    count = len(triangles)
    return Mesh(vertices, triangles, np.full(count, int(material)), np.full(count, tint))


# Corners 0-3 go round the bottom (rear right, front right, front left, rear left), 4-7 round the top.
_HEXAHEDRON = np.array(
    [
        [0, 1, 2],
        [0, 2, 3],
        [4, 5, 6],
        [4, 6, 7],
        [0, 1, 5],
        [0, 5, 4],
        [3, 2, 6],
        [3, 6, 7],
        [1, 2, 6],
        [1, 6, 5],
        [0, 3, 7],
        [0, 7, 4],
    ]
)
_GLASS_SIDES = slice(4, 12)


def hexahedron(bottom: Vector, top: Vector, material: Material, sides: Material | None = None) -> Mesh:
    """Return a block between two level rectangles.

    Args:
        bottom: x rear, x front, half width, z rear, z front of the lower rectangle.
        top: The same five numbers of the upper rectangle.
        material: Of the whole block.
        sides: Of its four walls where they differ, as in a car's cabin.
    """
    corners = [
        corner
        for rear, front, half, z_rear, z_front in (bottom, top)
        for corner in ((rear, -half, z_rear), (front, -half, z_front), (front, half, z_front), (rear, half, z_rear))
    ]
    mesh = _mesh(np.array(corners, float), _HEXAHEDRON, material)
    if sides is not None:
        mesh.material[_GLASS_SIDES] = int(sides)
    return mesh


def block(size: Vector, center: Vector, material: Material, sides: Material | None = None) -> Mesh:
    """Return an upright box of a size around a centre."""
    (length, width, height), (x, y, z) = size, center
    low = (x - length / 2, x + length / 2, width / 2, z - height / 2, z - height / 2)
    high = (x - length / 2, x + length / 2, width / 2, z + height / 2, z + height / 2)
    mesh = hexahedron(low, high, material, sides)
    return mesh.moved((0.0, y))


def rod(
    start: Vector,
    end: Vector,
    radius: float,
    material: Material,
    sides: int = 6,
    end_radius: float | None = None,
    closed: bool = True,
) -> Mesh:
    """Return a cylinder or a cone between two points, with lids or without."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    axis = (end - start) / max(float(np.linalg.norm(end - start)), 1e-9)
    helper = np.array([1.0, 0.0, 0.0]) if abs(axis[0]) < 0.8 else np.array([0.0, 1.0, 0.0])
    u = np.array(
        [
            axis[1] * helper[2] - axis[2] * helper[1],
            axis[2] * helper[0] - axis[0] * helper[2],
            axis[0] * helper[1] - axis[1] * helper[0],
        ]
    )
    u /= np.sqrt(u @ u)
    v = np.array([axis[1] * u[2] - axis[2] * u[1], axis[2] * u[0] - axis[0] * u[2], axis[0] * u[1] - axis[1] * u[0]])
    angle = np.arange(sides) * (2 * np.pi / sides)
    ring = np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * v
    far = radius if end_radius is None else end_radius
    vertices = np.concatenate([start + radius * ring, end + far * ring, start[None], end[None]])
    here, there = np.arange(sides), (np.arange(sides) + 1) % sides
    low, high = np.full(sides, 2 * sides), np.full(sides, 2 * sides + 1)
    faces = [(here, there, there + sides), (here, there + sides, here + sides)]
    if closed:
        faces += [(here, there, low), (here + sides, there + sides, high)]
    return _mesh(vertices, np.concatenate([np.stack(corner, 1) for corner in faces]), material)


def limb(start: Vector, end: Vector, radius: float, material: Material, sides: int = 5) -> Mesh:
    """Return a cylinder without lids, for parts that end inside others."""
    return rod(start, end, radius, material, sides, closed=False)


def ring(center: Vector, radius: float, depth: float, width: float, material: Material, sides: int = 10) -> Mesh:
    """Return a wheel without spokes: a band of some width in the x-z plane with a rim on either side."""
    angle = np.arange(sides) * (2 * np.pi / sides)
    circle = np.stack([np.cos(angle), np.zeros(sides), np.sin(angle)], 1)
    side = np.array([0.0, width / 2, 0.0])
    loops = (radius * circle - side, radius * circle + side, (radius - depth) * circle)
    here, there = np.arange(sides), (np.arange(sides) + 1) % sides
    pairs = ((0, 1), (0, 2), (1, 2))
    quads = [
        triangle
        for a, b in pairs
        for triangle in (
            np.stack([here + a * sides, there + a * sides, there + b * sides], 1),
            np.stack([here + a * sides, there + b * sides, here + b * sides], 1),
        )
    ]
    return _mesh(np.concatenate(loops) + np.asarray(center), np.concatenate(quads), material)


def blob(center: Vector, radii: Vector, material: Material, rng: np.random.Generator, rough: float = 0.15) -> Mesh:
    """Return a bumpy ellipsoid: tree crowns, bushes."""
    rows, columns = 6, 9
    polar = np.linspace(0, np.pi, rows + 1)[1:-1]
    around = np.arange(columns) * (2 * np.pi / columns)
    grid = np.stack(
        [
            np.outer(np.sin(polar), np.cos(around)),
            np.outer(np.sin(polar), np.sin(around)),
            np.outer(np.cos(polar), np.ones(columns)),
        ],
        -1,
    ).reshape(-1, 3)
    sphere = np.concatenate([grid, [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]])
    sphere = sphere * (1 + rng.uniform(-rough, rough, (len(sphere), 1)))
    here, there = np.arange(columns), (np.arange(columns) + 1) % columns
    faces = []
    for row in range(rows - 2):
        a, b = row * columns, (row + 1) * columns
        faces += [np.stack([here + a, there + a, there + b], 1), np.stack([here + a, there + b, here + b], 1)]
    last = (rows - 2) * columns
    north, south = np.full(columns, len(grid)), np.full(columns, len(grid) + 1)
    faces += [np.stack([here, there, north], 1), np.stack([here + last, there + last, south], 1)]
    return _mesh(np.asarray(center) + sphere * np.asarray(radii), np.concatenate(faces), material)


def slab(low: Vector, high: Vector, z: float, material: Material, thickness: float = 0.0) -> Mesh:
    """Return a level rectangle from corner to corner at a height, with side walls down if it has a thickness."""
    (x0, y0), (x1, y1) = low, high
    top = np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], float)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    if thickness == 0.0:
        return _mesh(top, faces, material)
    walls = np.array([(i, (i + 1) % 4, 4 + (i + 1) % 4, 4 + i) for i in range(4)])
    faces = np.concatenate([faces, walls[:, [0, 1, 2]], walls[:, [0, 2, 3]]])
    return _mesh(np.concatenate([top, top - np.array([0.0, 0.0, thickness])]), faces, material)
