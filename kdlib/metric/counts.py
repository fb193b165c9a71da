"""The boxes of some frames in, true and false positives, misses and heading accuracies per frame,
breakdown and cutoff out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kdlib.metric.iou import Candidates, find_candidates
from kdlib.metric.matching import match_boxes
from kdlib.metric.objects import EvalBoxes, Predictions, Rows, Truth
from kdlib.metric.shards import LEVELS, WAYMO, Generator
from kdlib.types import Bool, Float32, Float64, FloatArray, Int64, IntArray

# 0.00, 0.01, ..., 0.99, 1.00, each rounded to float32 as the scores are: comparing in float64 would
# move scores on the grid.
CUTOFFS = np.append(np.arange(100) * 0.01, 1.0).astype(np.float32)
COUNTED = ("tp", "fp", "fn1", "fn2")  # fields of Counts that are integers


@dataclass(frozen=True)
class Counts(Rows):
    """What one or many frames contribute, per breakdown S and score cutoff C."""

    tp: IntArray  # (F, S, C) matched predictions, whatever the level of the ground truth
    fp: IntArray  # (F, S, C) unmatched predictions outside no-label zones
    fn1: IntArray  # (F, S, C) unmatched LEVEL_1 ground truth
    fn2: IntArray  # (F, S, C) unmatched ground truth of both levels
    sum_ha: Float32  # (F, S, C) heading accuracy summed over the matched predictions

    def fn(self, level: int) -> IntArray:
        """Return the misses at LEVEL_1 or LEVEL_2."""
        return self.fn1 if level == 1 else self.fn2

    def narrow(self) -> Counts:
        """Return the same with counts in 16 bits where they fit: kept for thousands of frames, the
        size matters.
        """
        columns = vars(self)
        if max(columns[name].max(initial=0) for name in COUNTED) >= 2**15:
            return self
        return replace(self, **{name: columns[name].astype(np.int16) for name in COUNTED})


def count_frames(
    boxes: EvalBoxes,
    generators: tuple[Generator, ...],
    thresholds: tuple[float, ...] = WAYMO.thresholds,
) -> Counts:
    """Return the counts of a few frames (metric spec sections 5 and 6); the order of frames and of
    boxes within one is kept.

    Args:
        boxes: Of both sides; all pairs of one frame and type are held in memory at once, so pass
            chunks.
        generators: The breakdowns wanted, in output order.
        thresholds: IoU a pair must reach, by type number from 1 on.
    """
    least = np.array((0.0, *thresholds), np.float32)  # type 0 is unknown
    predictions = boxes.predictions.take(boxes.predictions.kind > 0)
    truth = boxes.truth.take(boxes.truth.kind > 0)
    candidates = find_candidates(
        predictions.frame * len(least) + predictions.kind,
        predictions.box,
        truth.frame * len(least) + truth.kind,
        truth.box,
        least[predictions.kind],
    )
    level = np.searchsorted(CUTOFFS, predictions.score, side="right").astype(np.int64)
    level[np.isnan(predictions.score)] = 0
    parts = [
        _count_generator(predictions, truth, candidates, level, g, boxes.frames) for g in generators
    ]
    return Counts.joined(parts, axis=1)


def _count_generator(
    predictions: Predictions,
    truth: Truth,
    candidates: Candidates,
    level: Int64,
    generator: Generator,
    frames: int,
) -> Counts:
    shards = len(generator.names)
    row_p = predictions.frame * shards + generator.shard(predictions.kind, predictions.box)
    row_g = truth.frame * shards + generator.shard(truth.kind, truth.box)
    matches = match_boxes(
        candidates.take(row_p[candidates.prediction] == row_g[candidates.truth]),
        level,
        row_p,
        row_g,
    )
    # In prediction order: sums of float32 depend on it.
    matches = matches.take(np.argsort(matches.prediction, kind="stable"))
    p, g, low, high = matches.prediction, matches.truth, matches.low, matches.high
    rows = frames * shards

    def matched(row: Int64, which: Bool) -> Int64:
        return _count_intervals(rows, row[which], low[which], high[which])

    seen = ~predictions.overlap_nlz
    tp = _count_intervals(rows, row_p[p], low, high)
    claims = _count_intervals(rows, row_p[seen], np.zeros(seen.sum(), np.int64), level[seen])
    fp = claims - matched(row_p[p], seen[p])
    misses = []
    for hardest in LEVELS:
        counted = truth.difficulty <= hardest
        misses.append(
            np.bincount(row_g[counted], minlength=rows)[:, None] - matched(row_g[g], counted[g])
        )
    sum_ha = _add_intervals(
        rows, row_p[p], low, high, heading_accuracy(predictions.box[p, 6], truth.box[g, 6])
    )
    shape = (frames, shards, len(CUTOFFS))
    counts = (column.reshape(shape).astype(np.int32) for column in (tp, fp, *misses))
    return Counts(sum_ha=sum_ha.reshape(shape), **dict(zip(COUNTED, counts)))


def _count_intervals(rows: int, row: Int64, low: Int64, high: Int64) -> Int64:
    """Return how many intervals ``low <= c < high`` of each row (a frame and shard) cover each
    cutoff, (rows, C).
    """
    width = len(CUTOFFS) + 1
    size = rows * width
    edges = np.bincount(row * width + low, minlength=size) - np.bincount(
        row * width + high, minlength=size
    )
    return np.cumsum(edges.reshape(rows, width), axis=1)[:, :-1]


def _add_intervals(rows: int, row: Int64, low: Int64, high: Int64, value: Float32) -> Float32:
    """Return the float32 sums (rows, C) of the intervals' values, added one after the other in the
    given order.
    """
    length = high - low
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    sums = np.zeros(rows * len(CUTOFFS), np.float32)
    np.add.at(sums, np.repeat(row * len(CUTOFFS) + low, length) + within, np.repeat(value, length))
    return sums.reshape(rows, len(CUTOFFS))


def heading_accuracy(prediction: FloatArray, truth: FloatArray) -> Float32:
    """Return 1 - (angle between two headings) / pi, in [0, 1] (N,), with the official roundings
    (metric spec section 6).
    """
    first, second = (
        wrap_by_remainder(prediction).astype(np.float32),
        wrap_by_remainder(truth).astype(np.float32),
    )
    difference = np.abs(first - second).astype(np.float64)
    folded = (2.0 * np.pi - difference).astype(np.float32).astype(np.float64)
    difference = np.where(difference > np.pi, folded, difference)
    return np.clip(1.0 - difference / np.pi, 0.0, 1.0).astype(np.float32)


def wrap_by_remainder(heading: FloatArray) -> Float64:
    """Return headings in [-pi, pi), by the truncating remainder in float64."""
    turned = np.fmod(heading.astype(np.float64), 2.0 * np.pi)
    turned[turned >= np.pi] -= 2.0 * np.pi
    turned[turned < -np.pi] += 2.0 * np.pi
    return turned
