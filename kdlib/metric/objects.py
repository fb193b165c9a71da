"""The boxes of both sides of an evaluation, sorted by frame: what the metric computes on, free of
any table format.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdlib.types import Bool, Float32, IntArray

_Rows = TypeVar("_Rows", bound="Rows")
_Boxes = TypeVar("_Boxes", bound="FrameBoxes")


@dataclass(frozen=True)
class Rows:
    """Columns of one length: a dataclass whose fields are arrays, one entry a row."""

    def take(self: _Rows, rows: NDArray[Any] | slice) -> _Rows:
        """Return some of the rows, by mask, position or slice."""
        return replace(self, **{name: values[rows] for name, values in vars(self).items()})

    @classmethod
    def joined(cls: type[_Rows], parts: Sequence[_Rows], axis: int = 0) -> _Rows:
        """Return several parts, at least one, as one."""
        return cls(
            **{
                name: np.concatenate([vars(part)[name] for part in parts], axis)
                for name in vars(parts[0])
            }
        )


@dataclass(frozen=True)
class FrameBoxes(Rows):
    """Boxes of many frames, by ascending frame, in input order within a frame."""

    # (N,) position of the frame in ascending order of ids; int64 in a chunk, often narrower in the
    # whole
    frame: IntArray
    box: Float32  # (N, 7)
    kind: IntArray  # (N,) Waymo's type numbers, 0 to 4

    def between(self: _Boxes, start: int, stop: int) -> _Boxes:
        """Return frames ``start <= frame < stop``, numbered from 0."""
        low, high = np.searchsorted(self.frame, np.array((start, stop), self.frame.dtype))
        part = self.take(slice(low, high))
        return replace(
            part, frame=part.frame.astype(np.int64) - start, kind=part.kind.astype(np.int64)
        )


@dataclass(frozen=True)
class Predictions(FrameBoxes):
    """Predicted boxes."""

    score: Float32  # (N,)
    overlap_nlz: Bool  # (N,) overlaps a no-label zone


@dataclass(frozen=True)
class Truth(FrameBoxes):
    """Labelled boxes."""

    difficulty: IntArray  # (N,) 1 or 2; 0 counts at both levels, 3 and more at none


@dataclass(frozen=True)
class EvalBoxes:
    """The two sides of an evaluation over the same frames."""

    predictions: Predictions
    truth: Truth
    frames: int

    def chunks(self, most_frames: int = 64, most_pairs: int = 1_000_000) -> Iterator[EvalBoxes]:
        """Yield consecutive frames in pieces small enough that all their pairs of boxes fit in
        memory.
        """
        ends = np.arange(self.frames + 1)
        p, g = (
            np.searchsorted(side.frame, ends.astype(side.frame.dtype))
            for side in (self.predictions, self.truth)
        )
        pairs = np.concatenate(([0], np.cumsum(np.diff(p) * np.diff(g))))
        start = 0
        while start < self.frames:
            fits = int(np.searchsorted(pairs, pairs[start] + most_pairs, side="right")) - 1
            stop = min(max(fits, start + 1), start + most_frames, self.frames)
            yield EvalBoxes(
                self.predictions.between(start, stop), self.truth.between(start, stop), stop - start
            )
            start = stop
