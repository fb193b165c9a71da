"""Counts per score cutoff in, precision, recall and the area between them out (metric spec sections
7 and 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdlib.types import Float32, Float64, FloatArray

RECALL_STEP = 0.05  # wider gaps of recall are filled with the lower precision
_STEP_SLACK = 1e-6


@dataclass(frozen=True)
class Curve:
    """Precision and recall of one breakdown and level, per score cutoff."""

    precision: Float32  # (..., C)
    precision_heading: Float32  # (..., C) every true positive weighted by its heading accuracy
    recall: Float32  # (..., C)


def precision_recall(
    tp: NDArray[Any], fp: NDArray[Any], fn: NDArray[Any], sum_ha: FloatArray
) -> Curve:
    """Return the curve of counts (..., C); where recall is 0 both precisions are 1, as in the
    official tool.
    """
    hits, claims, positives, headings = (
        np.asarray(a, np.float32) for a in (tp, tp + fp, tp + fn, sum_ha)
    )
    recall = _divide(hits, positives)
    precision, precision_heading = (
        np.where(recall == 0.0, np.float32(1.0), _divide(numerator, claims))
        for numerator in (hits, headings)
    )
    return Curve(precision, precision_heading, recall)


def _divide(a: Float32, b: Float32) -> Float32:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def average_precision(precision: Float32, recall: Float32) -> np.float32:
    """Return the area under one curve (C,), accumulated in float32 like the official tool's: it may
    come out as 1.0000001.
    """
    best_at: dict[np.float32, np.float32] = {}
    for r, p in zip(recall, precision):
        best_at[r] = max(p, best_at.get(r, p))
    zero, step, slack = (
        np.float32(0.0),
        np.float32(RECALL_STEP),
        np.float32(RECALL_STEP + _STEP_SLACK),
    )
    best_at[zero] = np.float32(1.0)
    points = []
    best = last = zero
    for r in sorted(best_at, reverse=True):
        while last - r > slack:
            last = last - step
            points.append((best, last))
        best = max(best, best_at[r])
        points.append((best, r))
        last = r
    # The point (recall 0, precision 1) is made up; it takes its neighbour's precision.
    if len(points) > 1:
        points[-1] = (points[-2][0], points[-1][1])
    area = zero
    for (p0, r0), (p1, r1) in pairwise(points):
        # Differences and sums are float32, the product is float64, the running total is float32
        # again.
        area = np.float32(float(area) + 0.5 * float(r0 - r1) * float(p0 + p1))
    return area


def average_precisions(precision: FloatArray, recall: FloatArray) -> Float64:
    """Return the areas (...) under many curves (..., C) at once, in float64: within 2e-7 of
    :func:`average_precision`.

    Recalls are compared bitwise in float32 for equality.
    """
    r, p = recall.astype(np.float32), precision.astype(np.float32)
    order = np.lexsort((-p, -r), axis=-1)  # falling recall; among equals the best precision first
    r = np.take_along_axis(r, order, axis=-1).astype(np.float64)
    p = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1), axis=-1).astype(np.float64)
    r_next = np.concatenate((r[..., 1:], np.zeros_like(r[..., :1])), axis=-1)
    p_next = np.concatenate((p[..., 1:], p[..., -1:]), axis=-1)
    # the segment that ends at recall 0 keeps the precision it starts with
    p_next = np.where(r_next == 0.0, p, p_next)
    gap = r - r_next
    filled = RECALL_STEP * np.maximum(np.ceil((gap - RECALL_STEP - _STEP_SLACK) / RECALL_STEP), 0.0)
    return (p * filled + 0.5 * (gap - filled) * (p + p_next)).sum(axis=-1)
