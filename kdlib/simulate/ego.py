"""Drives the measuring vehicle: what it is going to do in a street, and its pose at any time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kdlib.simulate.layout import StreetPlan
from kdlib.simulate.mesh import Rng, Triple
from kdlib.simulate.tracks import Course, Track, curve, distance, follow, line
from kdlib.types import Float64, FloatArray

EGO_FOOTPRINT = 4.9, 2.0, (1.45, 0.0)
"""Length, width and centre of the measuring vehicle; its origin lies on the ground below the rear
axle.
"""


@dataclass(frozen=True)
class Manoeuvre:
    """What the measuring vehicle is going to do, drawn before the street is."""

    turn: int  # 1 left, -1 right, 0 none
    speed: float
    acceleration: float


@dataclass(frozen=True)
class Ego:
    """A vehicle on a course, with a slight sway of the body; local metres, seconds since the first
    frame began.
    """

    course: Course
    manoeuvre: Manoeuvre
    sway: Triple  # radians of roll, radians of pitch, phase

    def track(self, times: FloatArray) -> Track:
        """Return where the rear axle is."""
        return follow(
            self.course, *distance(times, self.manoeuvre.speed, self.manoeuvre.acceleration)
        )

    def pose(self, times: FloatArray) -> FloatArray:
        """Return roll, pitch, yaw, x, y, z of local_from_vehicle at times, (n, 6); the order of
        Waymo's pixel poses.
        """
        track = self.track(times)
        roll = self.sway[0] * np.sin(2 * np.pi * 0.9 * times + self.sway[2])
        pitch = self.sway[1] * np.sin(2 * np.pi * 1.3 * times + 2 * self.sway[2])
        return np.stack([roll, pitch, track.heading, *track.xy.T, np.zeros_like(times)], -1)


def rotation(angles: FloatArray) -> FloatArray:
    """Return Rz(yaw) Ry(pitch) Rx(roll) of (..., 3) = roll, pitch, yaw as (..., 3, 3), float64;
    spec section 4, step 5.
    """
    axes = np.moveaxis(np.asarray(angles, np.float64), -1, 0)
    (cr, sr), (cp, sp), (cy, sy) = ((np.cos(angle), np.sin(angle)) for angle in axes)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def pose_matrix(pose: FloatArray) -> Float64:
    """Return the 4 x 4 transform of one pose (6,)."""
    result = np.eye(4)
    result[:3, :3] = rotation(pose[:3])
    result[:3, 3] = pose[3:]
    return result


def random_manoeuvre(rng: Rng) -> Manoeuvre:
    """Return a manoeuvre: a quarter stands, a fifth turns, the others drive with or without a
    change of speed.
    """
    draw = rng.random()
    if draw < 0.25:
        return Manoeuvre(0, 0.0, 0.0)
    if draw < 0.45:
        return Manoeuvre(1 if rng.random() < 0.5 else -1, rng.uniform(3.0, 6.0), 0.0)
    acceleration = rng.uniform(-1.5, 1.5) if rng.random() < 0.5 else 0.0
    return Manoeuvre(0, rng.uniform(3.0, 13.0), acceleration)


def random_ego(rng: Rng, plan: StreetPlan, manoeuvre: Manoeuvre, duration: float) -> Ego:
    """Return the measuring vehicle on its lane, starting at x = 0, or so that a turn leads into the
    crossing street's lane.
    """
    lane = int(rng.integers(plan.main.lanes))
    course = line((0.0, -plan.main.lane_center(lane) + rng.uniform(-0.25, 0.25)), 0.0)
    if manoeuvre.turn and plan.cross:
        left = manoeuvre.turn > 0
        inner, goal = [0 if left else road.lanes - 1 for road in (plan.main, plan.cross)]
        ahead = manoeuvre.speed * duration * rng.uniform(0.0, 0.6)
        start, radius = (0.0, -plan.main.lane_center(inner)), 12.0 if left else 8.0
        course = curve(start, 0.0, ahead, radius, manoeuvre.turn * np.pi / 2)
        shift = plan.cross_x + manoeuvre.turn * plan.cross.lane_center(goal) - course.xy[-1, 0]
        course = replace(course, xy=course.xy + np.array([shift, 0.0]))
    sway = (rng.uniform(0, 0.002), rng.uniform(0, 0.002), rng.uniform(0, 6.28))
    return Ego(course, manoeuvre, sway)
