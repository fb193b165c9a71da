"""A street and a random generator in, the pose of the measuring vehicle at any time out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlib.simulate.layout import Layout
from kdlib.simulate.tracks import Path, Track, distance, follow, line, turn
from kdlib.types import FloatArray

LENGTH, WIDTH, CENTER_X = 4.9, 2.0, 1.45
"""Footprint of the measuring vehicle; its origin lies on the ground below the rear axle."""


@dataclass(frozen=True)
class Ego:
    """A vehicle on a path, with a slight sway of the body; local metres, seconds since the first frame began."""

    path: Path
    start: float
    speed: float
    acceleration: float
    sway: tuple[float, float, float]  # radians of roll, radians of pitch, phase

    def track(self, times: FloatArray) -> Track:
        """Return where the rear axle is."""
        return follow(self.path, self.start, *distance(times, self.speed, self.acceleration))

    def pose(self, times: FloatArray) -> FloatArray:
        """Return roll, pitch, yaw, x, y, z of local_from_vehicle at times, (n, 6); the order of Waymo's pixel poses."""
        track = self.track(times)
        roll = self.sway[0] * np.sin(2 * np.pi * 0.9 * times + self.sway[2])
        pitch = self.sway[1] * np.sin(2 * np.pi * 1.3 * times + 2 * self.sway[2])
        zero = np.zeros_like(times)
        return np.stack([roll, pitch, track.heading, track.xy[:, 0], track.xy[:, 1], zero], -1)


def rotation(angles: FloatArray) -> FloatArray:
    """Return Rz(yaw) Ry(pitch) Rx(roll) of (..., 3) = roll, pitch, yaw as (..., 3, 3), float64; spec section 4, step 5."""
    roll, pitch, yaw = np.moveaxis(np.asarray(angles, np.float64), -1, 0)
    cr, sr, cp, sp, cy, sy = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def matrix(pose: FloatArray) -> FloatArray:
    """Return the 4 x 4 transform of one pose (6,)."""
    result = np.eye(4)
    result[:3, :3] = rotation(pose[:3])
    result[:3, 3] = pose[3:]
    return result


@dataclass(frozen=True)
class Plan:
    """What the ego vehicle is going to do, drawn before the street is."""

    manoeuvre: str  # "stand", "drive", "left", "right"
    speed: float
    acceleration: float

    @property
    def turns(self) -> bool:
        """Whether it needs a crossing."""
        return self.manoeuvre in ("left", "right")


def random_plan(rng: np.random.Generator) -> Plan:
    """Return a manoeuvre: a quarter stands, a fifth turns, the others drive with or without a change of speed."""
    draw = rng.random()
    if draw < 0.25:
        return Plan("stand", 0.0, 0.0)
    if draw < 0.45:
        return Plan("left" if rng.random() < 0.5 else "right", float(rng.uniform(3.0, 6.0)), 0.0)
    acceleration = float(rng.uniform(-1.5, 1.5)) if rng.random() < 0.5 else 0.0
    return Plan("drive", float(rng.uniform(3.0, 13.0)), acceleration)


def random_ego(rng: np.random.Generator, plan: Plan, layout: Layout, duration: float) -> Ego:
    """Return the ego vehicle on its lane, starting at x = 0, or so that a turn leads into the crossing street's lane."""
    road = layout.main
    lane = int(rng.integers(road.lanes))
    path, start = line((0.0, -road.lane_center(lane) + float(rng.uniform(-0.25, 0.25))), 0.0), 0.0
    if plan.turns and layout.cross is not None:
        left = plan.manoeuvre == "left"
        lane = 0 if left else road.lanes - 1
        ahead = plan.speed * duration * float(rng.uniform(0.0, 0.6))
        path = turn((0.0, -road.lane_center(lane)), 0.0, ahead, 12.0 if left else 8.0, np.pi / 2 if left else -np.pi / 2)
        goal = layout.cross_x + (1 if left else -1) * layout.cross.lane_center(0 if left else layout.cross.lanes - 1)
        shift = np.array([goal - path.xy[-1, 0], 0.0])
        path = Path(path.s, path.xy + shift, path.heading)
    sway = (float(rng.uniform(0, 0.002)), float(rng.uniform(0, 0.002)), float(rng.uniform(0, 6.28)))
    return Ego(path, start, plan.speed, plan.acceleration, sway)
