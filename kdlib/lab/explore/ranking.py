"""Which frames a model does well on: objects found and missed, and false alarms, frame by frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from kdlib.lab.pipeline import Run
from kdlib.metric.waymo_metrics import evaluate_tables
from kdlib.types import FloatArray, Int64

_CUTOFF = 30  # of the 101 scores: 0.3
_FALSE_ALARM = 0.5  # what one takes off a frame's merit, where an object found counts 1


@dataclass(frozen=True)
class Counted:
    """One model's outcome on every evaluated frame, in the order of the frame numbers, at a score
    of 0.3 and Waymo's IoU.
    """

    found: Int64  # (F,) objects
    false_alarms: Int64  # (F,)
    missed: Int64  # (F,) objects

    @property
    def merit(self) -> FloatArray:
        """Objects found, less half a point for each false alarm."""
        return self.found - _FALSE_ALARM * self.false_alarms


def count_outcomes(table: pa.Table, truth: pa.Table, run: Run) -> Counted:
    """Return a model's outcome on every evaluated frame; a frame without boxes of either counts
    nothing.
    """
    frames = evaluate_tables(table, truth, ranges=False).frames
    assert frames is not None  # kept by default
    order = run.evaluated.frame_ids(run.profile.evaluation.interval)
    place = {name: number for number, name in enumerate(order)}
    rows = [place[name] for name in frames.frame_ids]
    columns = np.zeros((3, len(order)), np.int64)
    for column, counts in zip(columns, (frames.counts.tp, frames.counts.fp, frames.counts.fn2)):
        column[rows] = counts[:, :, _CUTOFF].sum(axis=1)
    return Counted(*columns)


def most_improved_frame(predictions: Mapping[str, pa.Table], truth: pa.Table, run: Run) -> int:
    """Return the position of the frame where the last arm is furthest ahead of the first, by their
    merits.
    """
    arms = [name for name in predictions if name != "teacher"] or ["teacher"]
    first, last = (count_outcomes(predictions[arm], truth, run) for arm in (arms[0], arms[-1]))
    return int(np.argmax(last.merit - first.merit))
