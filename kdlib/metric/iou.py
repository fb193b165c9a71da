"""Boxes of many frames in, the pairs that may be matched and their 3D IoU as the metric rounds it
out (metric spec section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kdlib.metric.objects import Rows
from kdlib.models.geometry.rotated_iou import paired_overlap
from kdlib.types import Bool, Float32, Float64, Int64

MAX_SIZE = 1e6  # a side this long or longer makes the IoU 0
MIN_SIZE = 0.01  # so does a side this short or shorter, zero and negative ones included
MIN_DOUBLE_AREA = 1e-10
MIN_UNION = 1e-6
_SLACK = 1e-6  # the pruning bounds are kept this much too generous, relatively


@dataclass(frozen=True)
class Candidates(Rows):
    """Prediction-truth pairs of one frame and type whose IoU reaches the threshold, sorted by
    prediction, then truth.
    """

    prediction: Int64  # (E,) positions in the predictions
    truth: Int64  # (E,) positions in the ground truth
    iou: Float32  # (E,)


def metric_iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> Float32:
    """Return the IoU (N,) of the upright boxes ``a[i]`` and ``b[i]``, computed in float64, rounded
    to float32.

    Args:
        a: (N, 7) x, y, z (centre), length, width, height, heading.
        b: (N, 7) the same.
    """
    first, second = a.astype(np.float64), b.astype(np.float64)
    sizes = np.concatenate((first[:, 3:6], second[:, 3:6]), axis=1)
    valid = ((sizes > MIN_SIZE) & (sizes < MAX_SIZE)).all(axis=1)
    height = _common_height(first, second)
    valid &= height >= 0.0
    iou = np.zeros(len(a), np.float32)
    first, second, height = first[valid], second[valid], height[valid]
    area = paired_overlap(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    inter = np.where(2.0 * area > MIN_DOUBLE_AREA, area, 0.0) * height
    union = (
        first[:, 3] * first[:, 4] * first[:, 5] + second[:, 3] * second[:, 4] * second[:, 5] - inter
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(union > MIN_UNION, inter / union, 0.0)
    iou[valid] = np.clip(np.nan_to_num(ratio, nan=0.0), 0.0, 1.0)
    return iou


def find_candidates(
    prediction_group: Int64,
    prediction_box: Float32,
    truth_group: Int64,
    truth_box: Float32,
    thresholds: Float32,
) -> Candidates:
    """Return the pairs with equal group (one per frame and type) whose IoU is at least the
    prediction's threshold.

    Pairs that cannot reach it (too far apart, too different in volume) are dropped before any area
    is computed.

    Args:
        prediction_group: (P,) any integers.
        prediction_box: (P, 7) boxes.
        truth_group: (G,) the same integers.
        truth_box: (G, 7) boxes.
        thresholds: (P,) smallest IoU of a pair, inclusive.
    """
    p, g = _same_group(prediction_group, truth_group)
    boxes_p, boxes_g = prediction_box.astype(np.float64), truth_box.astype(np.float64)
    near = _near(boxes_p, boxes_g, p, g)
    p, g = p[near], g[near]
    possible = _could_reach(boxes_p, boxes_g, p, g, thresholds)
    p, g = p[possible], g[possible]
    iou = metric_iou(boxes_p[p], boxes_g[g])
    return Candidates(p, g, iou).take(iou >= thresholds[p])


def _same_group(prediction_group: Int64, truth_group: Int64) -> tuple[Int64, Int64]:
    order = np.argsort(truth_group, kind="stable")
    grouped = truth_group[order]
    start = np.searchsorted(grouped, prediction_group, side="left")
    count = np.searchsorted(grouped, prediction_group, side="right") - start
    p = np.repeat(np.arange(len(prediction_group)), count)
    within = np.arange(len(p)) - np.repeat(np.cumsum(count) - count, count)
    return p, order[np.repeat(start, count) + within]


def _near(a: Float64, b: Float64, p: Int64, g: Int64) -> Int64:
    """Return the positions of the pairs whose circumscribed circles meet."""
    reach = (0.5 + _SLACK) * (np.hypot(a[:, 3], a[:, 4])[p] + np.hypot(b[:, 3], b[:, 4])[g])
    dx = a[p, 0] - b[g, 0]
    near = np.flatnonzero(np.abs(dx) <= reach)
    dy = a[p[near], 1] - b[g[near], 1]
    return near[dx[near] ** 2 + dy**2 <= reach[near] ** 2]


def _could_reach(a: Float64, b: Float64, p: Int64, g: Int64, thresholds: Float32) -> Bool:
    """The intersection is at most the smaller base times the common height, which bounds the IoU
    from above.
    """
    first, second = a[p], b[g]
    base_a, base_b = first[:, 3] * first[:, 4], second[:, 3] * second[:, 4]
    height = _common_height(first, second)
    most = np.minimum(base_a, base_b) * height
    both = base_a * first[:, 5] + base_b * second[:, 5]
    reaches = most * (1.0 + thresholds[p]) * (1.0 + _SLACK) >= thresholds[p] * both
    result: Bool = reaches & (height >= 0.0)
    return result


def _common_height(a: Float64, b: Float64) -> Float64:
    top = np.minimum(a[:, 2] + 0.5 * a[:, 5], b[:, 2] + 0.5 * b[:, 5])
    bottom = np.maximum(a[:, 2] - 0.5 * a[:, 5], b[:, 2] - 0.5 * b[:, 5])
    result: Float64 = top - bottom
    return result
