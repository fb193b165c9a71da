"""Columns of boxes in, the same sorted by frame out: what the metric computes on, free of any table format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.integer]  # int64 in the pieces of Scene.chunks, often narrower in the whole
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Predictions:
    """Predicted boxes of many frames, by ascending frame, in input order within a frame."""

    frame: Integers  # (P,) position of the frame in ascending order of ids
    box: Float32  # (P, 7)
    kind: Integers  # (P,) Waymo's type numbers, 0 to 4
    score: Float32  # (P,)
    overlap_nlz: Bool  # (P,) overlaps a no-label zone

    def between(self, start: int, stop: int) -> Predictions:
        """Return frames ``start <= frame < stop``, numbered from 0."""
        low, high = np.searchsorted(self.frame, np.array((start, stop), self.frame.dtype))
        part = slice(low, high)
        frame, kind = self.frame[part].astype(np.int64) - start, self.kind[part].astype(np.int64)
        return Predictions(frame, self.box[part], kind, self.score[part], self.overlap_nlz[part])

    def take(self, keep: NDArray[np.generic]) -> Predictions:
        """Return some of the boxes, by mask or position."""
        return Predictions(self.frame[keep], self.box[keep], self.kind[keep], self.score[keep], self.overlap_nlz[keep])


@dataclass(frozen=True)
class Truth:
    """Labelled boxes of many frames, by ascending frame, in input order within a frame."""

    frame: Integers  # (G,)
    box: Float32  # (G, 7)
    kind: Integers  # (G,)
    difficulty: Integers  # (G,) 1 or 2; 0 counts at both levels, 3 and more at none

    def between(self, start: int, stop: int) -> Truth:
        """Return frames ``start <= frame < stop``, numbered from 0."""
        low, high = np.searchsorted(self.frame, np.array((start, stop), self.frame.dtype))
        part = slice(low, high)
        frame, kind, difficulty = (a[part].astype(np.int64) for a in (self.frame, self.kind, self.difficulty))
        return Truth(frame - start, self.box[part], kind, difficulty)

    def take(self, keep: NDArray[np.generic]) -> Truth:
        """Return some of the boxes, by mask or position."""
        return Truth(self.frame[keep], self.box[keep], self.kind[keep], self.difficulty[keep])


@dataclass(frozen=True)
class Scene:
    """The two sides of an evaluation over the same frames."""

    predictions: Predictions
    truth: Truth
    frames: int

    def chunks(self, most_frames: int = 64, most_pairs: int = 1_000_000) -> Iterator[Scene]:
        """Yield consecutive frames in pieces small enough that all their pairs of boxes fit in memory."""
        ends = np.arange(self.frames + 1)
        p, g = (np.searchsorted(frame, ends.astype(frame.dtype)) for frame in (self.predictions.frame, self.truth.frame))
        pairs = np.concatenate(([0], np.cumsum(np.diff(p) * np.diff(g))))
        start = 0
        while start < self.frames:
            fits = int(np.searchsorted(pairs, pairs[start] + most_pairs, side="right")) - 1
            stop = min(max(fits, start + 1), start + most_frames, self.frames)
            yield Scene(self.predictions.between(start, stop), self.truth.between(start, stop), stop - start)
            start = stop


def scene_from_arrays(
    *,
    prediction_frame: NDArray[np.generic],
    prediction_box: NDArray[np.floating],
    prediction_type: NDArray[np.integer],
    score: NDArray[np.floating],
    overlap_nlz: NDArray[np.bool_] | None = None,
    truth_frame: NDArray[np.generic],
    truth_box: NDArray[np.floating],
    truth_type: NDArray[np.integer],
    difficulty: NDArray[np.integer],
) -> tuple[Scene, NDArray[np.generic]]:
    """Return the scene of loose columns and its frame ids, ascending: the union of both sides' (metric spec section 1).

    Args:
        prediction_frame: (P,) ids, any sortable type.
        prediction_box: (P, 7); boxes and scores are rounded to float32 as the official op does.
        prediction_type: (P,) 0 to 4.
        score: (P,).
        overlap_nlz: (P,) or None for all False.
        truth_frame: (G,) ids.
        truth_box: (G, 7).
        truth_type: (G,).
        difficulty: (G,).
    """
    ids = np.unique(np.concatenate((prediction_frame, truth_frame)))
    flag = np.zeros(len(score), np.bool_) if overlap_nlz is None else overlap_nlz.astype(np.bool_)
    p, g = np.searchsorted(ids, prediction_frame).astype(np.int64), np.searchsorted(ids, truth_frame).astype(np.int64)
    with np.errstate(over="ignore"):
        predictions = Predictions(
            p, prediction_box.astype(np.float32), prediction_type.astype(np.int64), score.astype(np.float32), flag
        )
        truth = Truth(g, truth_box.astype(np.float32), truth_type.astype(np.int64), difficulty.astype(np.int64))
    by_frame_p, by_frame_g = np.argsort(p, kind="stable"), np.argsort(g, kind="stable")
    return Scene(predictions.take(by_frame_p), truth.take(by_frame_g), len(ids)), ids
