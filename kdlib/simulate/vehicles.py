"""Makes motor vehicles: front towards +x, wheels on z = 0, centred over the origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kdlib.simulate.materials import GLASS, METAL, PAINT, RETRO, TYRE
from kdlib.simulate.mesh import SIDES, Mesh, Pair, Rng, block, hexahedron, merge, rod


@dataclass(frozen=True)
class Body:
    """Proportions of a car: fractions of its length (from the rear) and of its height."""

    share: float  # how often it is met
    length: Pair
    width: Pair
    height: Pair
    cabin: Pair  # foot of the rear and of the front window
    roof: Pair  # rear and front end of the roof
    bonnet: float  # height of the bonnet's front edge
    boot: float  # height of the boot


CARS = {
    "saloon": Body(
        0.3, (4.4, 5.0), (1.78, 1.95), (1.40, 1.52), (0.12, 0.74), (0.27, 0.56), 0.50, 0.64
    ),
    "hatchback": Body(
        0.24, (3.7, 4.4), (1.68, 1.85), (1.42, 1.60), (0.02, 0.76), (0.10, 0.58), 0.50, 0.60
    ),
    "suv": Body(
        0.22, (4.4, 5.1), (1.85, 2.02), (1.65, 1.88), (0.01, 0.74), (0.06, 0.60), 0.55, 0.60
    ),
    "pickup": Body(
        0.08, (5.2, 5.9), (1.9, 2.08), (1.75, 1.95), (0.42, 0.76), (0.44, 0.64), 0.56, 0.55
    ),
    "van": Body(0.16, (4.8, 6.0), (1.92, 2.1), (1.95, 2.6), (0.0, 0.90), (0.01, 0.78), 0.46, 0.52),
}
_TRUCKS, _BUSES = 0.05, 0.02  # their shares of all


def _finished(
    parts: list[Mesh], length: float, width: float, radius: float, axles: Sequence[float]
) -> Mesh:
    """Return the parts on wheels."""
    for x in axles:
        for side in SIDES:
            inner, outer = (
                (x * length, side * (width / 2 - inset), radius) for inset in (0.22, 0.01)
            )
            parts.append(rod(inner, outer, radius, TYRE, sides=10))
    return merge(parts)


def _stack(*levels: Sequence[float]) -> list[Mesh]:
    """Return painted blocks between level rectangles, one upon the other; the walls of the second
    are of glass.
    """
    return [
        hexahedron(*pair, PAINT, GLASS if number == 1 else None)
        for number, pair in enumerate(pairwise(levels))
    ]


def _plate(*center: float) -> Mesh:
    return block((0.03, 0.52, 0.11), center, RETRO)


def car(body: Body, length: float, width: float, height: float) -> Mesh:
    """Return a car with bonnet, cabin and boot in a body's proportions; the bonnet is lower than
    the cabin, towards +x.
    """
    rear, front, half = -length / 2, length / 2, width / 2
    floor, sill = 0.18, 0.42 * height
    nose, tail = body.bonnet * height, body.boot * height
    cowl = nose + 0.10 * height  # the bonnet rises towards the windscreen
    (back, screen), roof = (
        (rear + f * length for f in body.cabin),
        [rear + f * length for f in body.roof],
    )
    waist = min(tail, cowl)
    parts = [
        hexahedron(
            (rear + 0.10, front - 0.12, half * 0.94, floor), (rear, front - 0.02, half, sill), PAINT
        ),
        hexahedron(
            (screen, front - 0.02, half, sill),
            (screen, front - 0.08, half * 0.93, cowl, nose),
            PAINT,
        ),
        hexahedron(
            (rear, screen, half, sill), (rear + 0.04, screen, half * 0.95, tail, cowl), PAINT
        ),
        hexahedron(
            (max(back, rear + 0.02), screen, half * 0.94, waist),
            (*roof, half * 0.76, height),
            PAINT,
            GLASS,
        ),
        _plate(rear + 0.005, 0.0, 0.6 * sill + 0.2),
        _plate(front - 0.03, 0.0, 0.5 * sill + 0.1),
    ]
    return _finished(parts, length, width, 0.19 * height + 0.02, (-0.30, 0.31))


def van(length: float, width: float, height: float) -> Mesh:
    """Return a delivery van: closed cargo walls, a slanted windscreen and a short bonnet."""
    rear, front, half = -length / 2, length / 2, width / 2
    belt, cab, bonnet = 0.46 * height, front - 0.30 * length, front - 0.6
    parts = [
        hexahedron(
            (rear, front - 0.05, half * 0.97, 0.2), (rear, front, half, belt, 0.42 * height), PAINT
        ),
        hexahedron((rear, cab, half, belt), (rear + 0.06, cab, half * 0.88, height), PAINT),
        hexahedron(
            (cab, front - 0.55, half * 0.98, belt),
            (cab, front - 0.24 * length, half * 0.86, height, 0.97 * height),
            PAINT,
            GLASS,
        ),
        hexahedron(
            (bonnet, front, half, 0.4),
            (bonnet, front - 0.1, half * 0.95, 0.52 * height, 0.42 * height),
            PAINT,
        ),
        _plate(rear + 0.005, 0.3, 0.7),
    ]
    return _finished(parts, length, width, 0.34, (-0.30, 0.33))


def truck(length: float, width: float, height: float) -> Mesh:
    """Return a lorry: a cab, a gap and a cargo box that is higher than the cab."""
    rear, front, half = -length / 2, length / 2, width / 2
    cab, roof = front - 1.9, 0.82 * height
    cargo, middle = length - 1.9 - 0.35, 0.55 * roof
    parts = [
        block((cargo, width, height - 1.0), (rear + cargo / 2, 0.0, (height + 1.0) / 2), PAINT),
        block((length - 0.3, 0.9, 0.25), (-0.1, 0.0, 0.85), METAL),
        *_stack(
            (cab, front, half * 0.95, 0.45),
            (cab, front - 0.03, half * 0.95, middle),
            (cab, front - 0.35, half * 0.9, roof),
        ),
        block((0.04, 1.8, 0.12), (rear + 0.02, 0.0, 1.1), RETRO),
    ]
    return _finished(parts, length, width, 0.48, (-0.33, -0.18, 0.36))


def bus(length: float, width: float, height: float) -> Mesh:
    """Return a city bus: painted below, a band of windows, a front that leans back."""
    rear, front, half = -length / 2, length / 2, width / 2
    belt, eaves = 0.42 * height, 0.85 * height
    parts = _stack(
        (rear, front, half, 0.3),
        (rear, front, half, belt),
        (rear + 0.1, front - 0.45, half * 0.97, eaves),
        (rear + 0.3, front - 0.6, half * 0.9, height),
    )
    return _finished(parts, length, width, 0.48, (-0.28, 0.30))


def random_vehicle(rng: Rng, moving: bool) -> Mesh:
    """Return a vehicle of a random kind, size and paint; buses only drive."""
    draw = rng.random()
    if draw < _TRUCKS:
        mesh = truck(rng.uniform(6.5, 9.5), rng.uniform(2.3, 2.5), rng.uniform(2.9, 3.6))
    elif moving and draw < _TRUCKS + _BUSES:
        mesh = bus(rng.uniform(9.5, 12.0), 2.5, rng.uniform(2.9, 3.2))
    else:
        name = rng.choice(list(CARS), p=[body.share for body in CARS.values()])
        body = CARS[name]
        size = rng.uniform(*body.length), rng.uniform(*body.width), rng.uniform(*body.height)
        mesh = van(*size) if name == "van" else car(body, *size)
    return mesh.tinted(rng.choice([0.25, 0.5, 1.0, 1.6]) * rng.uniform(0.8, 1.2), PAINT)
