"""Which labelled objects a model found: its boxes matched with the truth, every box in exactly one
layer to draw.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from kdlib.metric.iou import metric_iou
from kdlib.viz import palette
from kdlib.viz.layers import BoxLayer

# what Waymo's metric asks for, by class
OFFICIAL_IOU = {"Vehicle": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}


class Judged(NamedTuple):
    """One model's boxes beside the truth, in the order they are drawn."""

    found: BoxLayer  # labelled objects that have a box
    hits: BoxLayer  # boxes of found objects, in the model's colour
    missed: BoxLayer  # labelled objects that have none
    false_alarms: BoxLayer

    def __str__(self) -> str:
        """Return the counts in words."""
        wrong = len(self.false_alarms)
        return (
            f"{len(self.hits)} found, {len(self.missed)} missed, {wrong} false "
            f"alarm{'' if wrong == 1 else 's'}"
        )


def judge_layers(truth: BoxLayer, boxes: BoxLayer, iou: float | None = None) -> Judged:
    """Match boxes with the objects of their class one to one, at most IoU first, as many and as
    well as possible.

    No-label zones and difficulty, which the metric also looks at, play no part: this is what the
    eye sees. ``boxes`` are one model's, cut at the chosen score; ``iou`` is the smallest 3D IoU of
    a match, for all classes; None for Waymo's own.
    """
    object_used, box_used = np.zeros(len(truth), bool), np.zeros(len(boxes), bool)
    for number, name in enumerate(truth.class_names, 1):
        objects, own = (
            np.flatnonzero(truth.labels == number),
            np.flatnonzero(boxes.labels == number),
        )
        left = np.repeat(truth.boxes[objects], len(own), axis=0)
        right = np.tile(boxes.boxes[own], (len(objects), 1))
        overlap = metric_iou(left, right).reshape(len(objects), len(own)).astype(float)
        overlap[overlap < (OFFICIAL_IOU.get(name, 0.5) if iou is None else iou)] = 0.0
        rows, columns = linear_sum_assignment(overlap, maximize=True)
        matched = overlap[rows, columns] > 0
        object_used[objects[rows[matched]]], box_used[own[columns[matched]]] = True, True
    missed, wrong = (
        _marked(truth.part(~object_used), "miss"),
        _marked(boxes.part(~box_used), "false_alarm"),
    )
    return Judged(truth.part(object_used), boxes.part(box_used), missed, wrong)


def _marked(layer: BoxLayer, role: str) -> BoxLayer:
    look = palette.role(role)
    return replace(
        layer, name=look.title, color=look.color, dash=look.dash, width=max(look.width, 1.8)
    )
