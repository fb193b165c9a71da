"""Sizes and a random generator in, meshes of everything that stands in a street and is no road user out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kdlib.simulate.mesh import Material, Mesh, blob, block, hexahedron, merge, rod

Rng = np.random.Generator


@dataclass(frozen=True)
class Sign:
    """A traffic sign: the pole is clutter, the plate is the labelled object."""

    pole: Mesh
    plate: Mesh


def tree(rng: Rng) -> Mesh:
    """Return a street tree: a trunk the width of a thin person and a crown above head height."""
    trunk, crown = rng.uniform(0.09, 0.24), rng.uniform(1.2, 2.2)
    height = rng.uniform(2.2, 3.2)
    parts = [rod((0, 0, 0), (rng.uniform(-0.1, 0.1), 0, height + 0.6), trunk, Material.BARK, end_radius=0.7 * trunk)]
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.uniform(-0.5, 0.5, 2) * crown
        radii = crown * rng.uniform(0.6, 1.0, 3)
        parts.append(blob((x, y, height + radii[2]), radii, Material.FOLIAGE, rng, 0.25))
    return merge(parts)


def bush(rng: Rng) -> Mesh:
    """Return a bush between the size of a dog and that of a standing person."""
    radii = np.array([rng.uniform(0.25, 0.8), rng.uniform(0.25, 0.8), rng.uniform(0.35, 0.95)])
    return blob((0, 0, 0.85 * radii[2]), radii, Material.FOLIAGE, rng, 0.3)


def hedge(rng: Rng) -> Mesh:
    """Return a clipped hedge, long as a car."""
    size = (rng.uniform(2.0, 6.0), rng.uniform(0.5, 1.0), rng.uniform(0.8, 1.8))
    return block(size, (0, 0, size[2] / 2), Material.FOLIAGE)


def lamp(rng: Rng) -> Mesh:
    """Return a lamp post with an arm over the road (+y)."""
    height, radius = rng.uniform(5.0, 8.0), rng.uniform(0.07, 0.13)
    return merge(
        [
            rod((0, 0, 0), (0, 0, 0.9), radius + 0.05, Material.METAL),
            rod((0, 0, 0), (0, 0, height), radius, Material.METAL),
            rod((0, 0, height), (0, 1.6, height + 0.2), 0.05, Material.METAL, sides=4),
        ]
    )


def signal(rng: Rng) -> Mesh:
    """Return a traffic light on a pole."""
    height = rng.uniform(2.6, 3.4)
    return merge(
        [rod((0, 0, 0), (0, 0, height), 0.07, Material.METAL), block((0.3, 0.3, 0.9), (0, 0, height - 0.3), Material.METAL)]
    )


def sign(rng: Rng) -> Sign:
    """Return a traffic sign; its plate faces +x."""
    bottom, width, height = rng.uniform(2.0, 2.4), rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.9)
    pole = rod((-0.06, 0, 0), (-0.06, 0, bottom + height), 0.035, Material.METAL)
    return Sign(pole, block((0.04, width, height), (0, 0, bottom + height / 2), Material.RETRO))


def bollard(rng: Rng) -> Mesh:
    """Return a bollard."""
    return rod((0, 0, 0), (0, 0, rng.uniform(0.7, 1.1)), rng.uniform(0.06, 0.14), Material.METAL, sides=8)


def hydrant(rng: Rng) -> Mesh:
    """Return a fire hydrant."""
    height = rng.uniform(0.6, 0.85)
    arms = rod((0, -0.2, 0.6 * height), (0, 0.2, 0.6 * height), 0.06, Material.PAINT)
    return merge([rod((0, 0, 0), (0, 0, height), 0.13, Material.PAINT, sides=8, end_radius=0.09), arms])


def letterbox(rng: Rng) -> Mesh:
    """Return a letterbox, bin or ticket machine: a box as high as a person and as wide."""
    size = (rng.uniform(0.35, 0.6), rng.uniform(0.4, 0.7), rng.uniform(0.9, 1.7))
    return block(size, (0, 0, size[2] / 2), Material.PAINT)


def cabinet(rng: Rng) -> Mesh:
    """Return a switch cabinet."""
    size = (rng.uniform(0.35, 0.5), rng.uniform(0.8, 1.6), rng.uniform(1.0, 1.5))
    return block(size, (0, 0, size[2] / 2), Material.METAL)


def column(rng: Rng) -> Mesh:
    """Return an advertising column."""
    height = rng.uniform(2.4, 3.2)
    return rod((0, 0, 0), (0, 0, height), rng.uniform(0.35, 0.6), Material.FACADE, sides=10)


def skip(rng: Rng) -> Mesh:
    """Return a rubbish skip or a site container: a box the size of a car without its shape."""
    length, half, height = rng.uniform(2.4, 4.4), rng.uniform(0.7, 0.95), rng.uniform(1.1, 1.9)
    return hexahedron(
        (-0.42 * length, 0.42 * length, 0.9 * half, 0, 0), (-length / 2, length / 2, half, height, height), Material.METAL
    )


def planter(rng: Rng) -> Mesh:
    """Return a concrete tub with a plant in it."""
    size = (rng.uniform(0.5, 1.6), rng.uniform(0.5, 0.8), rng.uniform(0.4, 0.6))
    plant = blob((0, 0, size[2] + 0.25), (size[0] / 2.2, size[1] / 2.2, rng.uniform(0.3, 0.6)), Material.FOLIAGE, rng, 0.3)
    return merge([block(size, (0, 0, size[2] / 2), Material.FACADE), plant])


def shelter(rng: Rng) -> Mesh:
    """Return a bus shelter that opens to +y."""
    length = rng.uniform(2.8, 4.2)
    return merge(
        [
            block((length, 0.06, 2.1), (0, -0.6, 1.15), Material.GLASS),
            block((0.06, 1.1, 2.1), (-length / 2, 0, 1.15), Material.GLASS),
            block((length + 0.2, 1.4, 0.1), (0, 0, 2.35), Material.METAL),
            block((length * 0.6, 0.4, 0.08), (0, -0.35, 0.5), Material.METAL),
            rod((length / 2, 0.5, 0), (length / 2, 0.5, 2.3), 0.04, Material.METAL),
        ]
    )


def board(rng: Rng) -> Mesh:
    """Return a folding board in front of a shop."""
    height = rng.uniform(0.9, 1.2)
    return hexahedron((-0.28, 0.28, 0.32, 0, 0), (-0.03, 0.03, 0.32, height, height), Material.FACADE)


def building(rng: Rng, length: float, depth: float) -> Mesh:
    """Return a house whose front lies on y = 0 and faces -y: windows, a door, a plinth, sometimes an oriel."""
    height = rng.uniform(3.5, 14.0)
    parts = [
        block((length, depth, height), (0, depth / 2, height / 2), Material.FACADE),
        block((length, 0.12, 0.5), (0, -0.06, 0.25), Material.FACADE),
        block((1.0, 0.06, 2.1), (rng.uniform(-0.4, 0.4) * length, -0.03, 1.05), Material.BARK),
    ]
    count = max(1, int(length / 3.2))
    for storey in range(min(int(height // 3.2), 3)):
        for place in range(count):
            x = (place + 0.5) / count * length - length / 2
            parts.append(block((1.3, 0.04, 1.4), (x, 0.0, 3.0 * storey + 1.9), Material.GLASS))
    if rng.random() < 0.3 and length > 6:
        parts.append(block((2.4, 0.9, 2.6), (rng.uniform(-0.25, 0.25) * length, -0.45, height / 2 + 1.5), Material.FACADE))
    return merge(parts).tinted(float(rng.uniform(0.6, 1.4)), Material.FACADE)


def fence(rng: Rng, length: float) -> Mesh:
    """Return a garden wall, or a picket fence with gaps, along x."""
    height = rng.uniform(0.7, 1.9)
    if rng.random() < 0.5:
        return block((length, 0.25, height), (0, 0, height / 2), Material.FACADE)
    places = np.arange(-length / 2, length / 2, 0.35)
    rail = block((length, 0.05, 0.08), (0, 0, 0.8 * height), Material.BARK)
    return merge([rail, *(block((0.12, 0.04, height), (float(x), 0, height / 2), Material.BARK) for x in places)])


SIDEWALK: tuple[tuple[float, Callable[[Rng], Mesh]], ...] = (
    (0.20, lamp),
    (0.18, bollard),
    (0.10, hydrant),
    (0.16, letterbox),
    (0.10, cabinet),
    (0.06, column),
    (0.10, planter),
    (0.10, board),
)
"""What stands on a pavement, with how often."""

GARDEN: tuple[tuple[float, Callable[[Rng], Mesh]], ...] = (
    (0.50, bush),
    (0.20, hedge),
    (0.10, skip),
    (0.12, tree),
    (0.08, cabinet),
)
"""What stands between the pavement and the houses."""


def pick(rng: Rng, kinds: tuple[tuple[float, Callable[[Rng], Mesh]], ...]) -> Mesh:
    """Return one random thing of a list of (share, maker)."""
    shares = np.array([share for share, _ in kinds])
    return kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))][1](rng)
