"""What pictures and scenes show: coloured layers of boxes, panels that hold them, and the corners
of boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdlib.config import CLASS_NAMES
from kdlib.errors import KdlibError
from kdlib.types import FloatArray, IntArray
from kdlib.viz import palette

FloatPoints = NDArray[np.float64]

_RING = np.array([(0, 1), (1, 2), (2, 3), (3, 0)])
_EDGES = np.concatenate(
    (_RING, _RING + 4, [(0, 4), (1, 5), (2, 6), (3, 7), (8, 9), (9, 10), (9, 11)])
)


class LayerError(KdlibError):
    """Points or boxes that cannot be drawn."""


@dataclass(frozen=True)
class BoxLayer:
    """All boxes of one origin in one frame; ``labels`` are 1-based positions in ``class_names``."""

    name: str  # shown in the legend
    boxes: FloatArray  # (M, 7) x, y, z, dx, dy, dz, heading
    labels: IntArray  # (M,)
    scores: FloatArray | None = None  # (M,) in [0, 1]
    color: str = palette.SERIES[0]  # '#RRGGBB', as on paper
    dash: str = "solid"
    width: float = 1.4
    class_names: tuple[str, ...] = CLASS_NAMES

    def __post_init__(self) -> None:
        """Check shapes, labels and finiteness."""
        count = len(self.labels)
        if self.boxes.shape != (count, 7):
            raise LayerError(
                f"layer '{self.name}': {count} labels but boxes of shape "
                f"{self.boxes.shape}, expected ({count}, 7)"
            )
        if self.scores is not None and len(self.scores) != count:
            raise LayerError(f"layer '{self.name}': {count} boxes but {len(self.scores)} scores")
        if not np.isfinite(self.boxes).all():
            raise LayerError(
                f"layer '{self.name}': a box holds NaN or infinity; drop it before drawing"
            )
        if count and not (
            1 <= int(self.labels.min()) and int(self.labels.max()) <= len(self.class_names)
        ):
            raise LayerError(
                f"layer '{self.name}': labels must lie in "
                f"1..{len(self.class_names)} {self.class_names}"
            )

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.labels)

    def part(self, keep: NDArray[np.bool_]) -> BoxLayer:
        """Return some of the boxes, chosen by a mask (M,)."""
        scores = None if self.scores is None else self.scores[keep]
        return replace(self, boxes=self.boxes[keep], labels=self.labels[keep], scores=scores)

    def class_of(self, index: int) -> str:
        """Return the class name of one box."""
        return self.class_names[int(self.labels[index]) - 1]


@dataclass(frozen=True)
class GroundMap:
    """A map that lies on the ground, from nothing (0) to most (1)."""

    values: FloatArray  # (H, W), row 0 at y_min, column 0 at x_min
    name: str  # what it shows


@dataclass(frozen=True)
class Panel:
    """One part of a picture or scene, usually one model's."""

    title: str
    layers: Sequence[BoxLayer] = ()  # drawn in this order, so ground truth comes first
    note: str = ""  # below the title
    ground: GroundMap | None = None


def box_counts(panels: Sequence[Panel]) -> dict[str, str]:
    """Return for each name of a layer its number of boxes, in each of the panels that have it where
    these differ.
    """
    counts: dict[str, list[str]] = {}
    for panel in panels:
        for boxes in panel.layers:
            counts.setdefault(boxes.name, []).append(str(len(boxes)))
    return {name: own[0] if len(set(own)) == 1 else " | ".join(own) for name, own in counts.items()}


def layer(
    role: str,
    boxes: FloatArray,
    labels: IntArray,
    scores: FloatArray | None = None,
    *,
    name: str = "",
    class_names: Sequence[str] = CLASS_NAMES,
) -> BoxLayer:
    """Return a layer in the colour of its role: 'truth', 'teacher', 'student', 'miss' or
    'false_alarm'.

    Raises:
        ConfigError: If the role is unknown.
        LayerError: If the arrays do not fit together.
    """
    look = palette.role(role)
    values = None if scores is None else np.asarray(scores)
    shape = np.asarray(boxes, float).reshape(-1, 7)
    return BoxLayer(
        name or look.title,
        shape,
        np.asarray(labels),
        values,
        look.color,
        look.dash,
        look.width,
        tuple(class_names),
    )


def drawable_points(points: FloatArray) -> FloatArray:
    """Return the finite points of an (N, >=3) cloud; a sweep may legitimately be empty.

    Raises:
        LayerError: If the array has another shape.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] < 3:
        raise LayerError(f"points of shape {points.shape}, expected (N, 3 or more): x, y, z, ...")
    return points[np.isfinite(points[:, :3]).all(axis=1)]


def height_limits(points: FloatArray) -> tuple[float, float]:
    """Return the heights between which colours change: most of the cloud, without the few highest
    and lowest points.
    """
    if not len(points):
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(points[:, 2], (2, 98)))
    return low, max(high, low + 2.5)


def _directions(boxes: FloatArray) -> tuple[FloatPoints, FloatPoints]:
    """Return unit vectors (M, 2) ahead and to the left of each box."""
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    return np.stack((cos, sin), axis=-1), np.stack((-sin, cos), axis=-1)


def ground_corners(boxes: FloatArray) -> FloatPoints:
    """Return the corners (M, 4, 2) seen from above: front left, rear left, rear right, front
    right.
    """
    local = np.array([(0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5)]) * boxes[:, None, 3:5]
    ahead, left = _directions(boxes)
    return boxes[:, None, :2] + local[..., :1] * ahead[:, None] + local[..., 1:] * left[:, None]


def heading_ticks(boxes: FloatArray, beyond: float = 0.6) -> FloatPoints:
    """Return lines (M, 2, 2) from each centre through the front edge, ``beyond`` metres past it."""
    tip = boxes[:, :2] + _directions(boxes)[0] * (boxes[:, 3:4] / 2 + beyond)
    return np.stack((boxes[:, :2], tip), axis=1)


def wireframe(boxes: FloatArray) -> tuple[FloatPoints, NDArray[np.int64]]:
    """Return vertices (M, 12, 3) and edges (15, 2) of 3D boxes: 12 edges and an arrow on the ground
    that shows the heading.
    """
    ahead, left = _directions(boxes)
    # a pedestrian's arrow stays visible, a bus's stays short
    size = np.clip(boxes[:, 3:4] * 0.35, 0.5, 1.4)
    front = boxes[:, :2] + ahead * boxes[:, 3:4] / 2
    tip = front + ahead * size
    arrow = np.stack(
        (front, tip, tip + (left - ahead) * size * 0.4, tip - (left + ahead) * size * 0.4), axis=1
    )
    flat = ground_corners(boxes)
    flat = np.concatenate((flat, flat, arrow), axis=1)
    # below, above, and the arrow below again
    height = boxes[:, 2:3] + np.repeat((-0.5, 0.5, -0.5), 4) * boxes[:, 5:6]
    return np.concatenate((flat, height[..., None]), axis=2), _EDGES


def count_inside(points: FloatArray, boxes: FloatArray) -> IntArray:
    """Return how many points lie in each box, (M,), for hover texts."""
    counts = []
    for box, *axes in zip(boxes, *_directions(boxes)):
        offset = points[:, :3] - box[:3]
        local = np.column_stack((offset[:, :2] @ np.transpose(axes), offset[:, 2]))
        counts.append(np.count_nonzero((np.abs(local) <= box[3:6] / 2).all(axis=1)))
    return np.array(counts, np.int64)
