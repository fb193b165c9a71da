"""Mounts the five lasers of the measuring vehicle: places, beams, and the ray of every range image
pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlib.simulate.ego import pose_matrix
from kdlib.simulate.mesh import Rng
from kdlib.types import Bool, Float64, FloatArray
from kdlib.waymo.lasers import TOP, Calibration
from kdlib.waymo.range_image import column_azimuths, row_inclinations

_PLACES = {  # by Waymo's number, yaw in degrees, x, y, z: one real car, spec section 3
    TOP: (147.9, 1.43, 0.0, 2.18),
    2: (-0.3, 4.07, 0.0, 0.69),
    3: (88.8, 3.25, 1.03, 0.98),
    4: (-92.2, 3.25, -1.03, 0.98),
    5: (178.4, -1.16, 0.0, 0.46),
}
_RESOLUTION = {"full": ((64, 2650), (200, 600)), "demo": ((40, 800), (40, 120))}
_SIDE_VIEW = np.radians([75.0, -40.0, 15.0])
"""What a short-range laser sees: so far to either side, from below to above; elsewhere its image
stays empty.
"""


@dataclass(frozen=True)
class Laser(Calibration):
    """One laser: the geometry of its range image; its table has as many entries as the image has
    rows.
    """

    name: int  # Waymo's enum, 1..5
    height: int
    width: int
    max_range: float

    def inclinations(self) -> FloatArray:
        """Return the inclination of each image row, the highest beam first."""
        return row_inclinations(self.table, self.lowest, self.highest, self.height)

    def directions(self) -> FloatArray:
        """Return the unit vectors of all pixels in the vehicle frame, (height, width, 3)."""
        inclination, azimuth = (
            self.inclinations()[:, None],
            column_azimuths(self.width, self.extrinsic)[None],
        )
        level = np.cos(inclination)
        rays = np.stack(
            [level * np.cos(azimuth), level * np.sin(azimuth), np.sin(inclination) + 0 * azimuth],
            -1,
        )
        return rays @ self.extrinsic[:3, :3].T

    def sees(self) -> Bool:
        """Return which pixels can have an echo at all, (height, width) bool: the car's own body
        hides the rest.
        """
        if self.name == TOP:
            return np.ones((self.height, self.width), bool)
        ahead = (
            np.abs((column_azimuths(self.width, self.extrinsic) + np.pi) % (2 * np.pi) - np.pi)
            < _SIDE_VIEW[0]
        )
        inclination = self.inclinations()
        return ((inclination > _SIDE_VIEW[1]) & (inclination < _SIDE_VIEW[2]))[:, None] & ahead


def _top_table(height: int) -> Float64:
    """Return inclinations from -17.6 to 2.4 degrees, three times as dense at the horizon as at the
    bottom.
    """
    steps = np.linspace(1.5, 0.5, height - 1)
    shares = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    return np.radians(-17.6 + 20.0 * shares)


def mount_lasers(scale: str, rng: Rng) -> tuple[Laser, ...]:
    """Return the five lasers of one car at a resolution; every car's differ by fractions of a
    degree and millimetres.
    """
    top_size, side_size = _RESOLUTION[scale]
    lasers = []
    for name, (yaw, x, y, z) in _PLACES.items():
        tilt = rng.normal(0, 0.004, 2)
        pose = np.array([*tilt, np.radians(yaw) + rng.normal(0, 0.005), x, y, z])
        pose[3:] += rng.normal(0, 0.004, 3)
        height, width = top_size if name == TOP else side_size
        table, low, high, max_range = None, -np.pi / 2, np.pi / 6, 20.0
        if name == TOP:
            table, max_range = _top_table(height) + rng.normal(0, 2e-4), 75.0
            low, high = float(table[0]) - 0.003, float(table[-1]) + 0.003
        lasers.append(Laser(pose_matrix(pose), low, high, table, name, height, width, max_range))
    return tuple(lasers)
