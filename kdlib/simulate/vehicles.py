"""Kinds and sizes in, meshes of motor vehicles out: front towards +x, wheels on z = 0, centred over the origin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlib.simulate.mesh import Material, Mesh, block, hexahedron, merge, rod


@dataclass(frozen=True)
class Body:
    """Proportions of a car: fractions of its length (from the rear) and of its height."""

    share: float  # how often it is met
    length: tuple[float, float]
    width: tuple[float, float]
    height: tuple[float, float]
    cabin: tuple[float, float]  # foot of the rear and of the front window
    roof: tuple[float, float]  # rear and front end of the roof
    bonnet: float  # height of the bonnet's front edge
    boot: float  # height of the boot


CARS = {
    "saloon": Body(0.3, (4.4, 5.0), (1.78, 1.95), (1.40, 1.52), (0.12, 0.74), (0.27, 0.56), 0.50, 0.64),
    "hatchback": Body(0.24, (3.7, 4.4), (1.68, 1.85), (1.42, 1.60), (0.02, 0.76), (0.10, 0.58), 0.50, 0.60),
    "suv": Body(0.22, (4.4, 5.1), (1.85, 2.02), (1.65, 1.88), (0.01, 0.74), (0.06, 0.60), 0.55, 0.60),
    "pickup": Body(0.08, (5.2, 5.9), (1.9, 2.08), (1.75, 1.95), (0.42, 0.76), (0.44, 0.64), 0.56, 0.55),
    "van": Body(0.16, (4.8, 6.0), (1.92, 2.1), (1.95, 2.6), (0.0, 0.90), (0.01, 0.78), 0.46, 0.52),
}
TRUCK_SHARE, BUS_SHARE = 0.05, 0.02


def _wheels(length: float, width: float, radius: float, places: tuple[float, ...]) -> list[Mesh]:
    inner, outer = width / 2 - 0.22, width / 2 - 0.01
    return [
        rod((x * length, side * inner, radius), (x * length, side * outer, radius), radius, Material.TYRE, sides=10)
        for x in places
        for side in (-1, 1)
    ]


def car(body: Body, length: float, width: float, height: float) -> Mesh:
    """Return a car with bonnet, cabin and boot in a body's proportions; the bonnet is lower than the cabin, towards +x."""
    rear, half = -length / 2, width / 2
    floor, sill = 0.18, 0.42 * height
    nose, tail = body.bonnet * height, body.boot * height
    cowl = nose + 0.10 * height  # the bonnet rises towards the windscreen
    foot = [rear + f * length for f in body.cabin]
    roof = [rear + f * length for f in body.roof]
    paint, front = Material.PAINT, length / 2
    waist = min(tail, cowl)
    parts = [
        hexahedron((rear + 0.10, front - 0.12, half * 0.94, floor, floor), (rear, front - 0.02, half, sill, sill), paint),
        hexahedron((foot[1], front - 0.02, half, sill, sill), (foot[1], front - 0.08, half * 0.93, cowl, nose), paint),
        hexahedron((rear, foot[1], half, sill, sill), (rear + 0.04, foot[1], half * 0.95, tail, cowl), paint),
        hexahedron(
            (max(foot[0], rear + 0.02), foot[1], half * 0.94, waist, waist),
            (roof[0], roof[1], half * 0.76, height, height),
            paint,
            Material.GLASS,
        ),
        block((0.03, 0.52, 0.11), (rear + 0.005, 0.0, 0.6 * sill + 0.2), Material.RETRO),
        block((0.03, 0.52, 0.11), (front - 0.03, 0.0, 0.5 * sill + 0.1), Material.RETRO),
    ]
    return merge(parts + _wheels(length, width, 0.19 * height + 0.02, (-0.30, 0.31)))


def van(length: float, width: float, height: float) -> Mesh:
    """Return a delivery van: closed cargo walls, a slanted windscreen and a short bonnet."""
    rear, front, half = -length / 2, length / 2, width / 2
    belt, cab = 0.46 * height, front - 0.30 * length
    parts = [
        hexahedron((rear, front - 0.05, half * 0.97, 0.2, 0.2), (rear, front, half, belt, 0.42 * height), Material.PAINT),
        hexahedron((rear, cab, half, belt, belt), (rear + 0.06, cab, half * 0.88, height, height), Material.PAINT),
        hexahedron(
            (cab, front - 0.55, half * 0.98, belt, belt),
            (cab, front - 0.24 * length, half * 0.86, height, 0.97 * height),
            Material.PAINT,
            Material.GLASS,
        ),
        hexahedron(
            (front - 0.6, front, half, 0.4, 0.4),
            (front - 0.6, front - 0.1, half * 0.95, 0.52 * height, 0.42 * height),
            Material.PAINT,
        ),
        block((0.03, 0.52, 0.11), (rear + 0.005, 0.3, 0.7), Material.RETRO),
    ]
    return merge(parts + _wheels(length, width, 0.34, (-0.30, 0.33)))


def truck(length: float, width: float, height: float) -> Mesh:
    """Return a lorry: a cab, a gap and a cargo box that is higher than the cab."""
    rear, front, half = -length / 2, length / 2, width / 2
    cab = 1.9
    roof = 0.82 * height
    parts = [
        block(
            (length - cab - 0.35, width, height - 1.0),
            (rear + (length - cab - 0.35) / 2, 0.0, (height + 1.0) / 2),
            Material.PAINT,
        ),
        block((length - 0.3, 0.9, 0.25), (-0.1, 0.0, 0.85), Material.METAL),
        hexahedron(
            (front - cab, front, half * 0.95, 0.45, 0.45),
            (front - cab, front - 0.03, half * 0.95, 0.55 * roof, 0.55 * roof),
            Material.PAINT,
        ),
        hexahedron(
            (front - cab, front - 0.03, half * 0.95, 0.55 * roof, 0.55 * roof),
            (front - cab, front - 0.35, half * 0.9, roof, roof),
            Material.PAINT,
            Material.GLASS,
        ),
        block((0.04, 1.8, 0.12), (rear + 0.02, 0.0, 1.1), Material.RETRO),
    ]
    return merge(parts + _wheels(length, width, 0.48, (-0.33, -0.18, 0.36)))


def bus(length: float, width: float, height: float) -> Mesh:
    """Return a city bus: painted below, a band of windows, a front that leans back."""
    rear, front, half = -length / 2, length / 2, width / 2
    belt = 0.42 * height
    parts = [
        hexahedron((rear, front, half, 0.3, 0.3), (rear, front, half, belt, belt), Material.PAINT),
        hexahedron(
            (rear, front, half, belt, belt),
            (rear + 0.1, front - 0.45, half * 0.97, 0.85 * height, 0.85 * height),
            Material.PAINT,
            Material.GLASS,
        ),
        hexahedron(
            (rear + 0.1, front - 0.45, half * 0.97, 0.85 * height, 0.85 * height),
            (rear + 0.3, front - 0.6, half * 0.9, height, height),
            Material.PAINT,
        ),
    ]
    return merge(parts + _wheels(length, width, 0.48, (-0.28, 0.30)))


def _between(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return float(rng.uniform(*limits))


def random_vehicle(rng: np.random.Generator, moving: bool) -> Mesh:
    """Return a vehicle of a random kind, size and paint; buses only drive."""
    draw = rng.random()
    if draw < TRUCK_SHARE:
        mesh = truck(_between(rng, (6.5, 9.5)), _between(rng, (2.3, 2.5)), _between(rng, (2.9, 3.6)))
    elif moving and draw < TRUCK_SHARE + BUS_SHARE:
        mesh = bus(_between(rng, (9.5, 12.0)), 2.5, _between(rng, (2.9, 3.2)))
    else:
        names = list(CARS)
        name = names[rng.choice(len(names), p=np.array([CARS[n].share for n in names]))]
        body = CARS[name]
        size = (_between(rng, body.length), _between(rng, body.width), _between(rng, body.height))
        mesh = van(*size) if name == "van" else car(body, *size)
    return mesh.tinted(float(rng.choice([0.25, 0.5, 1.0, 1.6]) * rng.uniform(0.8, 1.2)), Material.PAINT)
