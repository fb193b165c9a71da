"""Draws the boxes a careful person would draw into a sweep, with the columns of Waymo's
``lidar_box``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from kdlib.simulate.actors import Actor
from kdlib.simulate.ego import pose_matrix
from kdlib.simulate.lidar import Sweep, inside_zones
from kdlib.simulate.scene import PERIOD, StreetScene
from kdlib.types import WAYMO_TYPES, Bool, FloatArray

_MAX_DISTANCE = 75.0  # objects farther away get no box, metres
# a box with less than this share of the points it would have in the open is marked LEVEL_2
_HARD_SHARE = 0.12


@dataclass(frozen=True)
class BoxLabel:
    """One box in one frame."""

    id: str
    type: int
    box: FloatArray  # (7,) x, y, z, length, width, height, heading; vehicle frame
    points: int  # all lasers, both returns
    top_points: int
    # (6,) speed, then acceleration along x, y, z, world frame; None for signs
    motion: FloatArray | None
    hard: bool  # a person marked it LEVEL_2


LabelledFrame = tuple[int, Sweep, list[BoxLabel]]  # timestamp, images and boxes of one frame
Conditions = tuple[str, str, str]  # time of day, location and weather


def label_frame(scene: StreetScene, frame: int, sweep: Sweep, top_pixels: int) -> list[BoxLabel]:
    """Return the boxes of one frame, those without points included.

    From ``top_pixels``, those of the TOP image, follows how many points an object has in the open.
    """
    turn = pose_matrix(scene.world)[:2, :2]
    # so that a box looks only at its surroundings
    order = np.argsort(sweep.points[:, 0], kind="stable")
    points, top = sweep.points[order], sweep.top[order]
    density = top_pixels / (2 * np.pi * np.radians(20.0))  # rays per steradian
    labels = []
    boxes = np.array([actor.box(frame) for actor in scene.actors]).reshape(-1, 7)
    hidden = inside_zones(scene.zones, boxes)
    for actor, local in compress(zip(scene.actors, boxes), ~hidden):
        box = _to_vehicle(local, scene, sweep.pose)
        if np.hypot(box[0], box[1]) > _MAX_DISTANCE:
            continue
        radius = np.hypot(box[3], box[4]) / 2
        near = slice(*np.searchsorted(points[:, 0], [box[0] - radius, box[0] + radius]))
        inside = points_in_box(points[near], box)
        count, top_count = int(inside.sum()), int((inside & top[near]).sum())
        motion = None
        if actor.figure.type != WAYMO_TYPES["Sign"]:
            motion = np.concatenate([[*(turn @ vector), 0.0] for vector in _motion(actor, frame)])
        hard = 5 < count < _HARD_SHARE * density * _open_view(box)
        labels.append(BoxLabel(actor.id, actor.figure.type, box, count, top_count, motion, hard))
    return labels


def seen_once(frames: Sequence[Sequence[BoxLabel]]) -> list[list[BoxLabel]]:
    """Return the boxes of a segment without the objects that never had a point."""
    known = {label.id for labels in frames for label in labels if label.points > 0}
    return [[label for label in labels if label.id in known] for labels in frames]


def _motion(actor: Actor, frame: int) -> tuple[FloatArray, FloatArray]:
    """Return velocity and acceleration, (2,) each, local axes."""
    velocity, at = actor.track.velocity, actor.track.frame(frame)
    after, before = min(at + 1, len(velocity) - 1), max(at - 1, 0)
    change = (velocity[after] - velocity[before]) / (PERIOD * max(after - before, 1))
    return velocity[at], change


def _to_vehicle(box: FloatArray, scene: StreetScene, pose: FloatArray) -> FloatArray:
    yaw = scene.world[2]
    cos, sin = np.cos(yaw), np.sin(yaw)
    world = (
        np.array([cos * box[0] - sin * box[1], sin * box[0] + cos * box[1], box[2]])
        + scene.world[3:]
    )
    center = (world - pose[:3, 3]) @ pose[:3, :3]
    heading = box[6] + yaw - np.arctan2(pose[1, 0], pose[0, 0])
    return np.array([*center, *box[3:6], (heading + np.pi) % (2 * np.pi) - np.pi])


def _open_view(box: FloatArray) -> float:
    """Return the solid angle of a box seen from the laser, roughly, steradian."""
    bearing = np.arctan2(box[1], box[0]) - box[6]
    silhouette = box[5] * (abs(np.sin(bearing)) * box[3] + abs(np.cos(bearing)) * box[4])
    return silhouette / max(box[0] ** 2 + box[1] ** 2, 4.0)


def points_in_box(points: FloatArray, box: FloatArray) -> Bool:
    """Tell which points (N, 3) lie in a box (7,), borders included."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    x, y, z = (points - box[:3]).T
    return (
        (np.abs(z) <= box[5] / 2)
        & (np.abs(cos * x + sin * y) <= box[3] / 2)
        & (np.abs(cos * y - sin * x) <= box[4] / 2)
    )
