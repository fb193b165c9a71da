"""Makes everything that stands in a street and is no road user: at its place's origin, on z = 0, of
random size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kdlib.simulate.materials import BARK, FACADE, FOLIAGE, GLASS, METAL, PAINT, RETRO
from kdlib.simulate.mesh import Mesh, Pair, Rng, blob, block, hexahedron, merge, rod

Maker = Callable[[Rng], Mesh]


def _pole(
    height: float,
    radius: float,
    material: int,
    x: float = 0.0,
    sides: int = 6,
    end_radius: float | None = None,
) -> Mesh:
    return rod((x, 0, 0), (x, 0, height), radius, material, sides, end_radius)


def tree(rng: Rng) -> Mesh:
    """Return a street tree: a trunk the width of a thin person and a crown above head height."""
    trunk, crown = rng.uniform(0.09, 0.24), rng.uniform(1.2, 2.2)
    height = rng.uniform(2.2, 3.2)
    parts = [
        rod(
            (0, 0, 0),
            (rng.uniform(-0.1, 0.1), 0, height + 0.6),
            trunk,
            BARK,
            end_radius=0.7 * trunk,
        )
    ]
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(-0.5, 0.5, 2) * crown
        radii = crown * rng.uniform(0.6, 1.0, 3)
        parts.append(blob((x, y, height + radii[2]), radii, rng, 0.25))
    return merge(parts)


def lamp(rng: Rng) -> Mesh:
    """Return a lamp post with an arm over the road (+y)."""
    height, radius = rng.uniform(5.0, 8.0), rng.uniform(0.07, 0.13)
    foot, pole = _pole(0.9, radius + 0.05, METAL), _pole(height, radius, METAL)
    return merge([foot, pole, rod((0, 0, height), (0, 1.6, height + 0.2), 0.05, METAL, sides=4)])


def signal(rng: Rng) -> Mesh:
    """Return a traffic light on a pole."""
    height = rng.uniform(2.6, 3.4)
    return merge([_pole(height, 0.07, METAL), block((0.3, 0.3, 0.9), (0, 0, height - 0.3), METAL)])


def sign(rng: Rng) -> tuple[Mesh, Mesh]:
    """Return a traffic sign, the pole, which is clutter, and the plate, which is the labelled
    object and faces +x.
    """
    bottom, width, height = rng.uniform(2.0, 2.4), rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.9)
    pole = _pole(bottom + height, 0.035, METAL, x=-0.06)
    return pole, block((0.04, width, height), (0, 0, bottom + height / 2), RETRO)


def shelter(rng: Rng) -> Mesh:
    """Return a bus shelter that opens to +y."""
    length = rng.uniform(2.8, 4.2)
    parts = [
        block((length, 0.06, 2.1), (0, -0.6, 1.15), GLASS),
        block((0.06, 1.1, 2.1), (-length / 2, 0, 1.15), GLASS),
        block((length + 0.2, 1.4, 0.1), (0, 0, 2.35), METAL),
        block((length * 0.6, 0.4, 0.08), (0, -0.35, 0.5), METAL),
        rod((length / 2, 0.5, 0), (length / 2, 0.5, 2.3), 0.04, METAL),
    ]
    return merge(parts)


def building(rng: Rng, length: float, depth: float) -> Mesh:
    """Return a house whose front lies on y = 0 and faces -y: windows, a door, a plinth, sometimes
    an oriel.
    """
    height = rng.uniform(3.5, 14.0)
    parts = [
        block((length, depth, height), (0, depth / 2, height / 2), FACADE),
        block((length, 0.12, 0.5), (0, -0.06, 0.25), FACADE),
        block((1.0, 0.06, 2.1), (rng.uniform(-0.4, 0.4) * length, -0.03, 1.05), BARK),
    ]
    count = max(1, int(length / 3.2))
    for storey in range(min(int(height // 3.2), 3)):
        for place in range(count):
            x = (place + 0.5) / count * length - length / 2
            parts.append(block((1.3, 0.04, 1.4), (x, 0.0, 3.0 * storey + 1.9), GLASS))
    if rng.random() < 0.3 and length > 6:
        parts.append(
            block(
                (2.4, 0.9, 2.6),
                (rng.uniform(-0.25, 0.25) * length, -0.45, height / 2 + 1.5),
                FACADE,
            )
        )
    return merge(parts).tinted(rng.uniform(0.6, 1.4), FACADE)


def fence(rng: Rng, length: float) -> Mesh:
    """Return a garden wall, or a picket fence with gaps, along x."""
    height = rng.uniform(0.7, 1.9)
    if rng.random() < 0.5:
        return block((length, 0.25, height), (0, 0, height / 2), FACADE)
    rail = block((length, 0.05, 0.08), (0, 0, 0.8 * height), BARK)
    places = np.arange(-length / 2, length / 2, 0.35)
    return merge([rail, *(block((0.12, 0.04, height), (x, 0, height / 2), BARK) for x in places)])


def _bush(rng: Rng) -> Mesh:
    radii = rng.uniform(0.25, 0.8), rng.uniform(0.25, 0.8), rng.uniform(0.35, 0.95)
    return blob((0, 0, 0.85 * radii[2]), radii, rng, 0.3)


def _hydrant(rng: Rng) -> Mesh:
    height = rng.uniform(0.6, 0.85)
    body = _pole(height, 0.13, PAINT, sides=8, end_radius=0.09)
    return merge([body, rod((0, -0.2, 0.6 * height), (0, 0.2, 0.6 * height), 0.06, PAINT)])


def _planter(rng: Rng) -> Mesh:
    length, width, height = rng.uniform(0.5, 1.6), rng.uniform(0.5, 0.8), rng.uniform(0.4, 0.6)
    plant = blob(
        (0, 0, height + 0.25), (length / 2.2, width / 2.2, rng.uniform(0.3, 0.6)), rng, 0.3
    )
    return merge([block((length, width, height), (0, 0, height / 2), FACADE), plant])


def _skip(rng: Rng) -> Mesh:
    length, half, height = rng.uniform(2.4, 4.4), rng.uniform(0.7, 0.95), rng.uniform(1.1, 1.9)
    bottom = (-0.42 * length, 0.42 * length, 0.9 * half, 0)
    return hexahedron(bottom, (-length / 2, length / 2, half, height), METAL)


def _board(rng: Rng) -> Mesh:
    height = rng.uniform(0.9, 1.2)
    return hexahedron((-0.28, 0.28, 0.32, 0), (-0.03, 0.03, 0.32, height), FACADE)


def _box(length: Pair, width: Pair, height: Pair, material: int) -> Maker:
    def make(rng: Rng) -> Mesh:
        size = [rng.uniform(*limits) for limits in (length, width, height)]
        return block(size, (0, 0, size[2] / 2), material)

    return make


def _post(height: Pair, radius: Pair, material: int, sides: int) -> Maker:
    return lambda rng: _pole(rng.uniform(*height), rng.uniform(*radius), material, sides=sides)


_CABINET = _box((0.35, 0.5), (0.8, 1.6), (1.0, 1.5), METAL)
SIDEWALK = (
    (0.20, lamp),
    (0.18, _post((0.7, 1.1), (0.06, 0.14), METAL, 8)),  # bollards
    (0.10, _hydrant),
    # letterboxes, bins, ticket machines: as high as a person
    (0.16, _box((0.35, 0.6), (0.4, 0.7), (0.9, 1.7), PAINT)),
    (0.10, _CABINET),
    (0.06, _post((2.4, 3.2), (0.35, 0.6), FACADE, 10)),  # advertising columns
    (0.10, _planter),
    (0.10, _board),
)
"""What stands on a pavement, with how often."""

GARDEN = (
    (0.50, _bush),  # between the size of a dog and that of a standing person
    (0.20, _box((2.0, 6.0), (0.5, 1.0), (0.8, 1.8), FOLIAGE)),  # hedges, long as a car
    (0.10, _skip),  # the size of a car without its shape
    (0.12, tree),
    (0.08, _CABINET),
)
"""What stands between the pavement and the houses."""


def pick(rng: Rng, kinds: Sequence[tuple[float, Maker]]) -> Mesh:
    """Return one random thing of a list of (share, maker)."""
    shares = np.array([share for share, _ in kinds])
    return kinds[rng.choice(len(kinds), p=shares / shares.sum())][1](rng)
