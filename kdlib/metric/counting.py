"""The boxes of some frames in, true and false positives, misses and heading accuracies per frame, breakdown and cutoff out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdlib.metric.iou import Candidates, find_candidates
from kdlib.metric.matching import Matches, match
from kdlib.metric.objects import Predictions, Scene, Truth
from kdlib.metric.shards import Generator

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

# IoU a pair must reach, by Waymo's type number (UNKNOWN, VEHICLE, PEDESTRIAN, SIGN, CYCLIST).
IOU_THRESHOLDS = np.array((0.0, 0.7, 0.5, 0.5, 0.5), np.float32)
# 0.00, 0.01, ..., 0.99, 1.00, each rounded to float32 as the scores are: comparing in float64 would move scores on the grid.
CUTOFFS = np.append(np.arange(100) * 0.01, 1.0).astype(np.float32)


@dataclass(frozen=True)
class Counts:
    """What one or many frames contribute, per breakdown S and score cutoff C."""

    tp: NDArray[np.integer]  # (F, S, C) matched predictions, whatever the level of the ground truth
    fp: NDArray[np.integer]  # (F, S, C) unmatched predictions outside no-label zones
    fn1: NDArray[np.integer]  # (F, S, C) unmatched LEVEL_1 ground truth
    fn2: NDArray[np.integer]  # (F, S, C) unmatched ground truth of both levels
    sum_ha: Float32  # (F, S, C) heading accuracy summed over the matched predictions

    def fn(self, level: int) -> NDArray[np.integer]:
        """Return the misses at LEVEL_1 or LEVEL_2."""
        return self.fn1 if level == 1 else self.fn2

    def narrow(self) -> Counts:
        """Return the same with counts in 16 bits where they fit: kept for thousands of frames, the size matters."""
        counts: tuple[NDArray[np.integer], ...] = (self.tp, self.fp, self.fn1, self.fn2)
        if max(int(c.max(initial=0)) for c in counts) < 2**15:
            counts = tuple(c.astype(np.int16) for c in counts)
        tp, fp, fn1, fn2 = counts
        return Counts(tp, fp, fn1, fn2, self.sum_ha)


def count_frames(scene: Scene, generators: tuple[Generator, ...], cutoffs: Float32 = CUTOFFS) -> Counts:
    """Return the counts of a few frames (metric spec sections 5 and 6); the order of frames and of boxes within one is kept.

    Args:
        scene: The boxes; all pairs of one frame and type are held in memory at once, so pass chunks.
        generators: The breakdowns wanted, in output order.
        cutoffs: (C,) ascending score cutoffs.
    """
    predictions = scene.predictions.take(scene.predictions.kind > 0)
    truth = scene.truth.take(scene.truth.kind > 0)
    candidates = find_candidates(
        predictions.frame * len(IOU_THRESHOLDS) + predictions.kind,
        predictions.box,
        truth.frame * len(IOU_THRESHOLDS) + truth.kind,
        truth.box,
        IOU_THRESHOLDS[predictions.kind],
    )
    level = np.searchsorted(cutoffs, predictions.score, side="right").astype(np.int64)
    level[np.isnan(predictions.score)] = 0
    parts = [_count_generator(predictions, truth, candidates, level, g, scene.frames, len(cutoffs)) for g in generators]
    return Counts(*(np.concatenate([getattr(p, name) for p in parts], axis=1) for name in Counts.__dataclass_fields__))


def _count_generator(
    predictions: Predictions, truth: Truth, candidates: Candidates, level: Int64, generator: Generator, frames: int, cutoffs: int
) -> Counts:
    shards = len(generator.names)
    row_p = predictions.frame * shards + generator.shard(predictions.kind, predictions.box)
    row_g = truth.frame * shards + generator.shard(truth.kind, truth.box)
    matches = match(candidates.take(row_p[candidates.prediction] == row_g[candidates.truth]), level, row_p, row_g)
    # In prediction order: sums of float32 depend on it.
    order = np.argsort(matches.prediction, kind="stable")
    p, g, low, high = (getattr(matches, name)[order] for name in Matches.__dataclass_fields__)
    grid = _Grid(frames * shards, cutoffs)

    seen = ~predictions.overlap_nlz
    tp = grid.count(row_p[p], low, high)
    matched_seen = seen[p]
    fp = grid.count(row_p[seen], np.zeros(seen.sum(), np.int64), level[seen])
    fp = fp - grid.count(row_p[p[matched_seen]], low[matched_seen], high[matched_seen])
    misses = []
    for hardest in (1, 2):
        counted = truth.difficulty <= hardest
        found = counted[g]
        total = np.bincount(row_g[counted], minlength=frames * shards)[:, None]
        misses.append(total - grid.count(row_g[g[found]], low[found], high[found]))
    accuracy = heading_accuracy(predictions.box[p, 6], truth.box[g, 6])
    sum_ha = grid.add(row_p[p], low, high, accuracy)
    shape = (frames, shards, cutoffs)
    counts = [a.reshape(shape).astype(np.int32) for a in (tp, fp, *misses)]
    return Counts(counts[0], counts[1], counts[2], counts[3], sum_ha.reshape(shape))


@dataclass(frozen=True)
class _Grid:
    """Sums over intervals of cutoffs, one row per frame and shard."""

    rows: int
    cutoffs: int

    def count(self, row: Int64, low: Int64, high: Int64) -> Int64:
        """Return how many intervals ``low <= c < high`` of each row cover each cutoff, (rows, C)."""
        width = self.cutoffs + 1
        size = self.rows * width
        edges = np.bincount(row * width + low, minlength=size) - np.bincount(row * width + high, minlength=size)
        result: Int64 = np.cumsum(edges.reshape(self.rows, width), axis=1)[:, :-1]
        return result

    def add(self, row: Int64, low: Int64, high: Int64, value: Float32) -> Float32:
        """Return the float32 sums (rows, C) of the intervals' values, added one after the other in the given order."""
        length = high - low
        total = int(length.sum())
        within = np.arange(total) - np.repeat(np.cumsum(length) - length, length)
        cell = np.repeat(row * self.cutoffs + low, length) + within
        sums = np.zeros(self.rows * self.cutoffs, np.float32)
        np.add.at(sums, cell, np.repeat(value, length))
        return sums.reshape(self.rows, self.cutoffs)


def heading_accuracy(prediction: NDArray[np.floating], truth: NDArray[np.floating]) -> Float32:
    """Return 1 - (angle between two headings) / pi, in [0, 1] (N,), with the official roundings (metric spec section 6)."""
    first, second = wrap_heading(prediction).astype(np.float32), wrap_heading(truth).astype(np.float32)
    difference = np.abs(first - second).astype(np.float64)
    folded = (2.0 * np.pi - difference).astype(np.float32).astype(np.float64)
    difference = np.where(difference > np.pi, folded, difference)
    return np.clip(1.0 - difference / np.pi, 0.0, 1.0).astype(np.float32)


def wrap_heading(heading: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return headings in [-pi, pi), by the truncating remainder in float64."""
    turned = np.fmod(heading.astype(np.float64), 2.0 * np.pi)
    result: NDArray[np.float64] = np.where(
        turned >= np.pi, turned - 2.0 * np.pi, np.where(turned < -np.pi, turned + 2.0 * np.pi, turned)
    )
    return result
