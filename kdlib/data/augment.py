"""Draws the published world augmentations and applies them to copies of points and boxes (spec
2.4); range masks (2.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from kdlib.config import AugmentConfig
from kdlib.types import Bool, Float32, FloatArray


@dataclass(frozen=True)
class Augmentation:
    """One draw: flips, then rotation, then scaling, then headings wrapped."""

    flip_x: bool = False  # y -> -y
    flip_y: bool = False  # x -> -x
    angle: float = 0.0  # radians, counter-clockwise
    scale: float = 1.0


def draw(config: AugmentConfig, rng: np.random.Generator) -> Augmentation:
    """Draw the parameters; always four numbers, so that switching one augmentation off leaves the
    others' draws alone.
    """
    first, second, angle, scale = rng.random(4).tolist()
    low, high = config.scaling
    flips = (config.flip_x and first < 0.5, config.flip_y and second < 0.5)
    return Augmentation(
        *flips, angle=config.rotation * (2 * angle - 1), scale=low + (high - low) * scale
    )


def augment_points(points: Float32, drawn: Augmentation) -> Float32:
    """Return points (N, >=3) in the augmented world; features after z are copied."""
    moved = points.copy()
    _move_xy(moved, drawn)
    moved[:, 2] *= np.float32(drawn.scale)
    return moved


def augment_boxes(boxes: Float32, drawn: Augmentation) -> Float32:
    """Return boxes (M, 7) in the augmented world, headings in [-pi, pi)."""
    moved = boxes.copy()
    _move_xy(moved, drawn)
    moved[:, 2:6] *= np.float32(drawn.scale)
    heading = boxes[:, 6].astype(np.float64)
    if drawn.flip_x:
        heading = -heading
    if drawn.flip_y:
        heading = -(heading + math.pi)
    moved[:, 6] = wrap_heading(heading + drawn.angle)
    return moved


def wrap_heading(heading: FloatArray) -> Float32:
    """Return angles in [-pi, pi): v - floor(v / 2 pi + 0.5) 2 pi (spec 1.1), also after rounding to
    float32.
    """
    turn = 2 * math.pi
    wrapped = heading - np.floor(heading / turn + 0.5) * turn
    # float32(-pi) is below -pi and float32(pi) above pi: both leave the half-open interval
    inside = np.nextafter(np.float32(math.pi), np.float32(0))
    return np.clip(wrapped.astype(np.float32), -inside, inside)


def _move_xy(rows: Float32, drawn: Augmentation) -> None:
    """Flip, rotate and scale the first two columns of a fresh copy."""
    x, y = rows[:, 0].copy(), rows[:, 1].copy()
    if drawn.flip_x:
        y = -y
    if drawn.flip_y:
        x = -x
    cos, sin = (
        np.float32(math.cos(drawn.angle) * drawn.scale),
        np.float32(math.sin(drawn.angle) * drawn.scale),
    )
    rows[:, 0] = x * cos - y * sin
    rows[:, 1] = x * sin + y * cos


def points_in_range(points: Float32, point_range: tuple[float, ...]) -> Bool:
    """Return which points (N, >=2) lie inside in x and y, limits included; z is left to the
    voxeliser (spec 2.5).
    """
    low, high = np.array(point_range, np.float32).reshape(2, 3)[:, :2]
    return np.all((points[:, :2] >= low) & (points[:, :2] <= high), axis=1)


def boxes_in_range(boxes: Float32, point_range: tuple[float, ...]) -> Bool:
    """Return which boxes (M, 7) have at least one of their eight corners inside the range, limits
    included (spec 2.5).
    """
    half = boxes[:, None, 3:6] * np.array(list(product((-0.5, 0.5), repeat=3)), np.float32)
    cos, sin = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])
    x, y, z = np.moveaxis(half, -1, 0)
    corners = np.stack((x * cos - y * sin, x * sin + y * cos, z), axis=-1) + boxes[:, None, :3]
    low, high = np.array(point_range, np.float32).reshape(2, 3)
    return np.any(np.all((corners >= low) & (corners <= high), axis=2), axis=1)
