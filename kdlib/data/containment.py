"""Says which box owns each point, and which boxes collide, for points (N, >=3) and boxes (M, 7), in
numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdlib.types import Bool, Float32, Float64

_CELL = 0.5  # metres
_MOST_CELLS = 2048  # along a side of the map; boxes that lie far apart get larger cells
_MARGIN = 0.01  # metres; far more than float32 loses at 80 m


def owner_of_points(points: Float32, boxes: Float32) -> NDArray[np.int32]:
    """Return the position (N,) of the first box each point lies in, borders included, -1 for none.

    A map of the cells that boxes touch rules out nearly all points before any is rotated: 170,000
    points and 100 boxes take a few milliseconds.
    """
    owner = np.full(len(points), -1, np.int32)
    if not len(boxes) or not len(points):
        return owner
    near = _near_boxes(points, boxes)
    near = near[np.argsort(points[near, 0], kind="stable")]
    x, y, z = points[near, :3].astype(np.float64).T
    reach = _reach(boxes)[:, 0]
    first = np.searchsorted(x, boxes[:, 0] - reach)
    last = np.searchsorted(x, boxes[:, 0] + reach, side="right")
    # backwards, so that the first box has the last word
    for number in range(len(boxes) - 1, -1, -1):
        close = slice(first[number], last[number])
        centre_x, centre_y, centre_z, length, width, height, heading = boxes[number].astype(
            np.float64
        )
        along, across = _turned(x[close] - centre_x, y[close] - centre_y, heading)
        inside = (
            (along <= length / 2)
            & (across <= width / 2)
            & (np.abs(z[close] - centre_z) <= height / 2)
        )
        owner[near[close][inside]] = number
    return owner


def _turned(dx: Float64, dy: Float64, heading: Float64) -> tuple[Float64, Float64]:
    """Return how far places lie along and across a heading."""
    cos, sin = np.cos(heading), np.sin(heading)
    return np.abs(dx * cos + dy * sin), np.abs(dy * cos - dx * sin)


def _reach(boxes: Float32) -> Float64:
    """Return how far (M, 2) boxes reach from their centres along x and y, and a little more."""
    length, width, _, heading = boxes[:, 3:].astype(np.float64).T
    cos, sin = np.abs(np.cos(heading)), np.abs(np.sin(heading))
    return np.stack((length * cos + width * sin, length * sin + width * cos), axis=1) / 2 + _MARGIN


def _near_boxes(points: Float32, boxes: Float32) -> NDArray[np.intp]:
    """Return which points lie in a cell of the ground that some box touches."""
    reach = _reach(boxes)
    extent = (boxes[:, :2] + reach).max(axis=0) - (boxes[:, :2] - reach).min(axis=0)
    size = max(_CELL, float(extent.max()) / _MOST_CELLS)
    reach = reach + (size - _CELL) / 50  # what float32 loses grows with the map
    low, high = boxes[:, :2] - reach, boxes[:, :2] + reach
    # so that the first and the last row and column belong to no box
    origin = low.min(axis=0) - size
    first, last = (np.floor((corner - origin) / size).astype(np.int64) for corner in (low, high))
    touched = np.zeros(last.max(axis=0) + 2, np.bool_)
    for (x0, y0), (x1, y1) in zip(first, last):
        touched[x0 : x1 + 1, y0 : y1 + 1] = True
    cell = [
        np.clip(
            (points[:, axis] - np.float32(origin[axis])) * np.float32(1 / size),
            0,
            touched.shape[axis] - 1,
        )
        for axis in (0, 1)
    ]
    flat = cell[0].astype(np.int32) * np.int32(touched.shape[1]) + cell[1].astype(np.int32)
    return np.flatnonzero(touched.ravel()[flat])


def collisions(a: Float32, b: Float32) -> Bool:
    """Return which boxes (M, 7) and (K, 7) overlap seen from above, as (M, K); touching is no
    overlap.

    Separating axes: two rectangles share no area if and only if a side of one of them has the other
    one wholly behind it. No area is computed, so none can round to a hair above zero for boxes that
    lie far apart.
    """
    first, second = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    dx, dy = np.moveaxis(second[..., :2] - first[..., :2], -1, 0)
    turn = first[..., 6] - second[..., 6]
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    overlap = np.ones(cos.shape, np.bool_)
    for box, seen in ((first, second), (second, first)):
        along, across = _turned(dx, dy, box[..., 6])
        overlap &= along < (box[..., 3] + seen[..., 3] * cos + seen[..., 4] * sin) / 2
        overlap &= across < (box[..., 4] + seen[..., 3] * sin + seen[..., 4] * cos) / 2
    return overlap
