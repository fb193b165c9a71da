"""Which frames a model does well on: what it finds, misses and makes up, frame by frame, judged as
the pictures judge it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from kdlib.lab.explore.outcomes import judge_layers
from kdlib.lab.explore.scenes import found_boxes, of_class, true_boxes
from kdlib.lab.pipeline import Run
from kdlib.types import FloatArray, Int64
from kdlib.viz.layers import BoxLayer

_FALSE_ALARM = 0.5  # what one takes off a frame's merit, where an object found counts 1


@dataclass(frozen=True)
class Counted:
    """One model's outcome on every evaluated frame, in the order of the frame numbers."""

    found: Int64  # (F,) objects
    false_alarms: Int64  # (F,)
    missed: Int64  # (F,) objects

    @property
    def merit(self) -> FloatArray:
        """Objects found, less half a point for each false alarm."""
        return self.found - _FALSE_ALARM * self.false_alarms


def count_outcomes(
    table: pa.Table,
    truths: Sequence[tuple[str, BoxLayer]],
    min_score: float,
    iou: float | None = None,
    class_name: str | None = None,
) -> Counted:
    """Return a model's outcome on every evaluated frame (:func:`true_boxes`): of boxes of a score
    and above, matched as :func:`judge_layers` does, of one class or of all.
    """
    rows = _rows_by_frame(table)
    counts, nothing = np.zeros((3, len(truths)), np.int64), np.zeros(0, np.int64)
    for number, (frame_id, truth) in enumerate(truths):
        own = table.take(rows.get(frame_id, nothing))
        boxes = found_boxes(own, min_score, truth.class_names)
        judged = judge_layers(of_class(truth, class_name), of_class(boxes, class_name), iou)
        counts[:, number] = len(judged.hits), len(judged.false_alarms), len(judged.missed)
    return Counted(*counts)


def most_improved_frame(predictions: Mapping[str, pa.Table], run: Run, min_score: float) -> int:
    """Return the position of the frame where the last arm is furthest ahead of the first, by their
    merits.
    """
    arms = [name for name in predictions if name != "teacher"] or ["teacher"]
    truths = true_boxes(run)
    first, last = (
        count_outcomes(predictions[arm], truths, min_score) for arm in (arms[0], arms[-1])
    )
    return int(np.argmax(last.merit - first.merit))


def _rows_by_frame(table: pa.Table) -> dict[str, Int64]:
    """Return which rows of a table belong to each frame."""
    frames = np.array(table["frame_id"].to_pylist(), dtype=str)
    names, place = np.unique(frames, return_inverse=True)
    order = np.argsort(place, kind="stable")
    ends = np.cumsum(np.bincount(place, minlength=len(names)))
    return dict(zip(names.tolist(), np.split(order, ends[:-1])))
