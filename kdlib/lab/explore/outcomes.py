"""The truth and one model's boxes of a frame in; objects found and missed, hits and false alarms out, each a layer to draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from kdlib.metric.iou import metric_iou
from kdlib.types import FloatArray, IntArray
from kdlib.viz import palette
from kdlib.viz.layers import BoxLayer

OFFICIAL_IOU: Mapping[str, float] = {"Vehicle": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
"""What Waymo's metric asks for, by class."""


@dataclass(frozen=True)
class Judged:
    """One model's boxes beside the truth; every box is in exactly one layer."""

    found: BoxLayer  # labelled objects that have a box
    missed: BoxLayer  # labelled objects that have none
    hits: BoxLayer  # boxes of found objects, in the model's colour
    false_alarms: BoxLayer

    @property
    def layers(self) -> tuple[BoxLayer, ...]:
        """All four, in the order they are drawn."""
        return self.found, self.missed, self.hits, self.false_alarms

    def __str__(self) -> str:
        """Return the counts in words."""
        wrong = len(self.false_alarms)
        return f"{len(self.hits)} found, {len(self.missed)} missed, {wrong} false alarm{'' if wrong == 1 else 's'}"


def judge_layers(truth: BoxLayer, boxes: BoxLayer, iou: float | None = None) -> Judged:
    """Match boxes with the objects of their class one to one, at most IoU first, as many and as well as possible.

    No-label zones and difficulty, which the metric also looks at, play no part: this is what the eye sees.

    Args:
        truth: Labelled objects.
        boxes: One model's, already cut at the chosen score.
        iou: Smallest 3D IoU of a match, for all classes; None for Waymo's own.
    """
    object_used, box_used = np.zeros(len(truth), bool), np.zeros(len(boxes), bool)
    for number, name in enumerate(truth.class_names, 1):
        objects, own = np.flatnonzero(truth.labels == number), np.flatnonzero(boxes.labels == number)
        limit = OFFICIAL_IOU.get(name, 0.5) if iou is None else iou
        rows, columns = _pairs(truth.boxes[objects], boxes.boxes[own], limit)
        object_used[objects[rows]], box_used[own[columns]] = True, True
    return Judged(
        _part(truth, object_used, truth.name),
        _part(truth, ~object_used, role="miss"),
        _part(boxes, box_used, boxes.name),
        _part(boxes, ~box_used, role="false_alarm"),
    )


def _pairs(truth: FloatArray, boxes: FloatArray, limit: float) -> tuple[IntArray, IntArray]:
    left, right = np.repeat(truth, len(boxes), axis=0), np.tile(boxes, (len(truth), 1))
    overlap = metric_iou(left, right).reshape(len(truth), len(boxes)).astype(float)
    overlap[overlap < limit] = 0.0
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    matched = overlap[rows, columns] > 0
    return rows[matched], columns[matched]


def _part(layer: BoxLayer, keep: FloatArray, name: str = "", role: str = "") -> BoxLayer:
    scores = None if layer.scores is None else layer.scores[keep]
    part = replace(layer, boxes=layer.boxes[keep], labels=layer.labels[keep], scores=scores)
    if not role:
        return replace(part, name=name)
    look = palette.role(role)
    return replace(part, name=look.title, color=look.color, dash=look.dash, width=max(look.width, 1.8))
