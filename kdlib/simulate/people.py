"""Makes pedestrians, bicycles and cyclists of several builds, in every phase of a step: facing +x,
feet on z = 0.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from kdlib.simulate.materials import CLOTH, METAL, PAINT, SKIN, TYRE
from kdlib.simulate.mesh import SIDES, Mesh, Triple, block, hexahedron, limb, merge, ring, rod

PHASES = 8  # steps of a gait or a pedal turn that have a mesh of their own
BUILDS = 6  # different bodies; sizes and clothes vary on top of them


def _swing(start: Triple, angle: float, length: float) -> Triple:
    """Return the far end of a limb that hangs from a joint, turned forward by an angle."""
    return (start[0] + length * np.sin(angle), start[1], start[2] - length * np.cos(angle))


def _leg(side: int, angle: float, bend: float) -> list[Mesh]:
    hip = (0.0, side * 0.10, 0.90)
    knee = _swing(hip, angle + 0.06, 0.43)
    x, y, z = ankle = _swing(knee, angle - bend, 0.40)
    foot = block((0.25, 0.10, 0.08), (x + 0.07, y, max(z - 0.02, 0.04)), TYRE)
    return [limb(hip, knee, 0.085, CLOTH), limb(knee, ankle, 0.06, CLOTH), foot]


def _arm(side: int, angle: float, bend: float, shoulder_width: float) -> list[Mesh]:
    shoulder = (0.05, side * shoulder_width / 2, 1.40)
    elbow = _swing(shoulder, angle, 0.29)
    return [
        limb(shoulder, elbow, 0.05, CLOTH),
        limb(elbow, _swing(elbow, angle + bend, 0.30), 0.045, SKIN),
    ]


@cache
def pedestrian_mesh(build: int, phase: int, walking: bool) -> Mesh:
    """Return a person of 1.75 m: wider than deep, leaning forward, elbows bent and feet pointing to
    the front.

    The build (0..BUILDS-1) is the width of the shoulders, how far the elbows are bent, a rucksack
    or none; arms swing against the legs by the phase (0..PHASES-1). Someone standing keeps the legs
    together and has the forearms raised (a telephone, a bag).
    """
    rng = np.random.default_rng([77, build])
    shoulders, elbow = 0.57 + 0.05 * rng.random(), 0.8 + 0.4 * rng.random()
    stride = 0.13 * np.sin(2 * np.pi * phase / PHASES) if walking else 0.02
    lean = 0.05
    parts = [
        hexahedron(
            (-0.10, 0.11, 0.17, 0.84),
            (lean - 0.11, lean + 0.12, shoulders / 2 - 0.02, 1.44, 1.46),
            CLOTH,
        ),
        limb((lean + 0.01, 0, 1.42), (lean + 0.04, 0, 1.53), 0.06, SKIN),
        rod((lean + 0.05, 0, 1.50), (lean + 0.06, 0, 1.75), 0.095, SKIN, sides=8),
        block((0.06, 0.06, 0.08), (lean + 0.16, 0.0, 1.60), SKIN),
    ]
    for side in SIDES:
        swing = side * stride
        parts += _leg(side, swing, bend=0.10 + (0.15 if swing < -0.05 else 0.0))
        parts += _arm(side, -swing, elbow if walking else elbow + 0.2, shoulders)
    if build % 3 == 0:
        parts.append(block((0.13, 0.30, 0.42), (lean - 0.17, 0.0, 1.22), CLOTH))
    return merge(parts)


def _wheel(x: float) -> list[Mesh]:
    return [
        ring((x, 0.0, 0.34), 0.34, 0.07, 0.06, TYRE),
        rod((x, -0.05, 0.34), (x, 0.05, 0.34), 0.05, METAL, sides=4),
    ]


@cache
def bicycle() -> Mesh:
    """Return a bicycle without rider: two wheels, a frame, the handlebar over the front wheel."""
    rear, crank, seat, head, front = (
        (-0.53, 0, 0.34),
        (-0.06, 0, 0.30),
        (-0.20, 0, 0.92),
        (0.36, 0, 0.88),
        (0.54, 0, 0.34),
    )
    tubes = [
        (rear, crank),
        (rear, seat),
        (crank, seat),
        (crank, head),
        (seat, head),
        (head, front),
        (head, (0.36, 0, 1.04)),
    ]
    bar = limb((0.38, -0.29, 1.04), (0.38, 0.29, 1.04), 0.025, METAL, sides=3)
    saddle = block((0.25, 0.14, 0.06), (-0.22, 0.0, 0.95), TYRE)
    return merge(
        [
            *_wheel(-0.53),
            *_wheel(0.54),
            *(limb(a, b, 0.025, METAL, sides=3) for a, b in tubes),
            bar,
            saddle,
        ]
    )


@cache
def cyclist_mesh(build: int, phase: int) -> Mesh:
    """Return a bicycle with a rider who leans forward, hands on the handlebar, feet on turning
    pedals.

    The build (0..BUILDS-1) is how far the rider leans, a basket or none; the phase (0..PHASES-1) is
    that of the pedals.
    """
    rng = np.random.default_rng([78, build])
    lean = 0.16 + 0.18 * rng.random()
    hip, neck = np.array([-0.22, 0.0, 0.98]), np.array([-0.22 + lean, 0.0, 1.50 - 0.3 * lean])
    parts = [
        bicycle(),
        *(
            rod(hip + [0, side * 0.06, 0], neck + [0, side * 0.13, 0], 0.10, CLOTH, end_radius=0.11)
            for side in SIDES
        ),
        rod(neck, neck + [0.09, 0, 0.10], 0.06, SKIN),
        rod(neck + [0.08, 0, 0.07], neck + [0.11, 0, 0.33], 0.11, PAINT, sides=8),
    ]
    for side in SIDES:
        turn = 2 * np.pi * phase / PHASES + (np.pi if side > 0 else 0.0)
        pedal = np.array([-0.06 + 0.17 * np.cos(turn), side * 0.13, 0.30 - 0.17 * np.sin(turn)])
        knee = (hip + pedal) / 2 + [0.22, side * 0.07, 0.12]
        shoulder, hand = neck + [0, side * 0.21, -0.03], np.array([0.37, side * 0.25, 1.05])
        elbow = (shoulder + hand) / 2 + [-0.03, side * 0.04, -0.07]
        parts += [
            limb(hip + [0, side * 0.09, 0], knee, 0.08, CLOTH),
            limb(knee, pedal, 0.055, CLOTH),
            limb(shoulder, elbow, 0.05, CLOTH),
            limb(elbow, hand, 0.04, SKIN),
            block((0.25, 0.09, 0.07), pedal + [0.05, 0, 0], TYRE),
        ]
    if build % 3 == 1:
        parts.append(block((0.30, 0.36, 0.25), (0.58, 0.0, 0.92), METAL))
    return merge(parts)
