"""Says where something is at every frame, from its course and speed, and tests that nobody drives
through anybody.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlib.simulate.mesh import Pair
from kdlib.types import FloatArray


@dataclass(frozen=True)
class Course:
    """A line on the ground by its length; headings are continuous, not wrapped."""

    s: FloatArray  # (K,) ascending
    xy: FloatArray  # (K, 2)
    heading: FloatArray  # (K,)

    def at(self, s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return positions (n, 2) and headings (n,); beyond the ends it goes straight on."""
        inside = np.clip(s, self.s[0], self.s[-1])
        heading = np.interp(inside, self.s, self.heading)
        xy = np.stack([np.interp(inside, self.s, axis) for axis in self.xy.T], -1)
        beyond = (s - inside)[..., None] * _direction(heading)
        return xy + beyond, heading


def _direction(heading: float | FloatArray) -> FloatArray:
    """Return the unit vectors (..., 2) of headings (...)."""
    return np.stack([np.cos(heading), np.sin(heading)], -1)


def line(start: Pair, heading: float) -> Course:
    """Return a straight course."""
    end = np.array(start) + _direction(heading)
    return Course(np.array([0.0, 1.0]), np.array([start, end]), np.array([heading, heading]))


def curve(start: Pair, heading: float, ahead: float, radius: float, angle: float) -> Course:
    """Return a course that goes straight ahead for some metres, then turns by an angle (left
    positive), then straight on.
    """
    arc = np.linspace(0.0, abs(angle) * radius, 40)
    # The curvature fades in and out as a hand on a wheel does it, so that the yaw rate has no
    # jumps.
    share = arc / arc[-1]
    bend = heading + angle * (share - np.sin(2 * np.pi * share) / (2 * np.pi))
    steps = np.diff(arc)[:, None] * _direction((bend[1:] + bend[:-1]) / 2)
    corner = np.array(start) + ahead * _direction(heading)
    arcs = corner + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])
    return Course(
        np.concatenate([[0.0], ahead + arc]),
        np.concatenate([[start], arcs]),
        np.concatenate([[heading], bend]),
    )


@dataclass(frozen=True)
class Track:
    """Where something is at each of T frames, or always (T = 1)."""

    xy: FloatArray  # (T, 2)
    heading: FloatArray  # (T,)
    speed: FloatArray  # (T,) along the heading, m/s
    travelled: FloatArray  # (T,) metres since the first frame, for gaits

    @property
    def velocity(self) -> FloatArray:
        """Metres a second along x and y, (T, 2)."""
        return self.speed[:, None] * _direction(self.heading)

    @property
    def moves(self) -> bool:
        """Whether it is ever anywhere else."""
        return bool(len(self.xy) > 1 and np.ptp(self.travelled) > 1e-6)

    def frame(self, index: int) -> int:
        """Return the position of a frame in the arrays."""
        return index if len(self.xy) > 1 else 0


def standing(xy: Pair | FloatArray, heading: float) -> Track:
    """Return the track of something that stays."""
    zero = np.zeros(1)
    return Track(np.array([xy]), np.array([heading]), zero, zero)


def distance(
    times: FloatArray, speed: float, acceleration: float = 0.0
) -> tuple[FloatArray, FloatArray]:
    """Return metres travelled and speed at times; brakes to a stop and never rolls back."""
    stop = -speed / acceleration if acceleration < 0 else np.inf
    until = np.minimum(times, stop)
    return speed * until + 0.5 * acceleration * until**2, np.maximum(
        speed + acceleration * until, 0.0
    ) * (times < stop)


def follow(course: Course, travelled: FloatArray, speed: FloatArray) -> Track:
    """Return the track of something that follows a course from its beginning."""
    xy, heading = course.at(travelled)
    return Track(xy, heading, speed, travelled)


class Occupancy:
    """Collects the footprints taken so far, at every frame; the only thing here that changes, while
    a scene is filled.
    """

    def __init__(self, frames: int) -> None:
        self._taken = np.zeros((0, frames, 5))

    def claim(
        self,
        track: Track,
        length: float,
        width: float,
        offset: Pair = (0.0, 0.0),
        margin: float = 0.15,
    ) -> bool:
        """Take the footprint of a track if it is free at every frame and tell so; offset is the box
        centre in the body.
        """
        cos, sin = np.cos(track.heading), np.sin(track.heading)
        centers = track.xy + np.stack(
            [cos * offset[0] - sin * offset[1], sin * offset[0] + cos * offset[1]], -1
        )
        half = np.broadcast_to([length / 2 + margin, width / 2 + margin], (len(centers), 2))
        mine = np.broadcast_to(
            np.column_stack([centers, track.heading, half]), self._taken.shape[1:]
        )
        free = not overlaps(mine, self._taken)
        if free:
            self._taken = np.concatenate([self._taken, mine[None]])
        return free


def overlaps(mine: FloatArray, others: FloatArray) -> bool:
    """Tell whether a rectangle (T, 5) = x, y, heading, half length, half width ever meets one of
    (M, T, 5).
    """
    gap = others[..., :2] - mine[:, :2]
    radius = np.hypot(mine[:, 3], mine[:, 4]) + np.hypot(others[..., 3], others[..., 4])
    which, when = np.nonzero((gap**2).sum(-1) < radius**2)
    if not len(which):
        return False
    a, b = mine[when].T, others[which, when].T
    x, y = gap[which, when].T
    apart = np.zeros(len(when), bool)
    turn = np.abs(np.cos(b[2] - a[2])), np.abs(np.sin(b[2] - a[2]))
    for (_, _, heading, length, width), other in ((a, b), (b, a)):
        cos, sin = np.cos(heading), np.sin(heading)
        apart |= np.abs(x * cos + y * sin) > length + other[3] * turn[0] + other[4] * turn[1]
        apart |= np.abs(y * cos - x * sin) > width + other[3] * turn[1] + other[4] * turn[0]
    return bool((~apart).any())
