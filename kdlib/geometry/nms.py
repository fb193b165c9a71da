"""Scored boxes in, the indices of those that no better box covers out (torch, any device)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlib.geometry.rotated_iou import near_pairs, paired_overlap

_BLOCK = 128  # ranks settled at once


def rotated_nms(boxes: Tensor, scores: Tensor, iou: float, pre: int, post: int) -> Tensor:
    """Suppress every box that overlaps a better, kept one by a bird's-eye IoU above ``iou``.

    Args:
        boxes: (M, 7) metres and radians.
        scores: (M,); equal scores keep the order of the input.
        iou: Threshold, strict.
        pre: Boxes looked at, best first.
        post: Boxes kept at most.

    Returns:
        Indices into ``boxes`` (K,), int64, best first.

    Raises:
        ValueError: If boxes and scores differ in number.

    Source: spec 5.3 step 4.
    """
    if len(boxes) != len(scores):
        raise ValueError(f"{len(boxes)} boxes but {len(scores)} scores")
    order = scores.argsort(descending=True, stable=True)[:pre]
    if iou >= 1:  # none is above
        return order[:post]
    kept: list[Tensor] = []
    count = 0
    # Block by block in order of rank: what the best have covered is never compared again.
    while len(order) and count < post:
        ranked = boxes[order]
        conflict = _conflicts(ranked, iou)
        alive = _settle(conflict[:, : len(conflict)])
        kept.append(order[: len(conflict)][alive])
        count += len(kept[-1])
        covered = conflict[alive].any(dim=0)
        order = order[len(conflict) :][~covered[len(conflict) :]]
    return torch.cat(kept)[:post] if kept else order[:0]


def _conflicts(ranked: Tensor, iou: float) -> Tensor:
    """Return which of the first boxes would suppress which worse ones, as bool (block, M)."""
    head = ranked[:_BLOCK]
    first, second = near_pairs(head, ranked)
    worse = first < second
    first, second = first[worse], second[worse]
    overlap = paired_overlap(head[first], ranked[second])
    area = ranked[:, 3].double() * ranked[:, 4].double()
    conflict = torch.zeros((len(head), len(ranked)), dtype=torch.bool, device=ranked.device)
    conflict[first, second] = overlap > iou * (area[first] + area[second] - overlap)
    return conflict


def _settle(conflict: Tensor) -> Tensor:
    """Return which boxes (n,) stand when a fallen one suppresses nobody; conflict (n, n) points from better to worse.

    Every sweep settles at least the best unsettled box, and a sweep that changes nothing is the answer.
    """
    alive = torch.ones(len(conflict), dtype=torch.bool, device=conflict.device)
    while True:
        after = ~conflict[alive].any(dim=0)
        if torch.equal(after, alive):
            return alive
        alive = after
