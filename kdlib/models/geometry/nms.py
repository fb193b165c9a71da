"""Rotated non-maximum suppression: drops boxes that a better one covers (torch, any device)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlib.models.geometry.rotated_iou import paired_overlap, touching_pairs

_BLOCK = 128  # ranks settled at once


def rotated_nms(boxes: Tensor, scores: Tensor, iou: float, pre: int, post: int) -> Tensor:
    """Suppress every box that overlaps a better, kept one by a bird's-eye IoU above ``iou``.

    Boxes are (M, 7), scores (M,); equal scores keep the order of the input. The ``pre`` best are
    looked at, at most ``post`` kept: their indices (K,) come best first.

    Raises:
        ValueError: If boxes and scores differ in number.

    Source: spec 5.3 step 4.
    """
    if len(boxes) != len(scores):
        raise ValueError(f"{len(boxes)} boxes but {len(scores)} scores")
    order = scores.argsort(descending=True, stable=True)[:pre]
    if iou >= 1:  # none is above
        return order[:post]
    kept = []
    count = 0
    # Block by block in order of rank: what the best have covered is never compared again.
    while len(order) and count < post:
        ranked = boxes[order]
        size = min(_BLOCK, len(order))
        better, worse = _conflicts(ranked, size, iou)
        alive = _settle(better, worse, size)
        kept.append(order[:size][alive])
        count += len(kept[-1])
        standing = torch.ones(len(order), dtype=torch.bool, device=order.device)
        standing[:size] = False
        standing[worse[alive[better]]] = False
        order = order[standing]
    return torch.cat(kept)[:post] if kept else order[:0]


def _conflicts(ranked: Tensor, size: int, iou: float) -> tuple[Tensor, Tensor]:
    """Return pairs of ranks: which of the first ``size`` boxes would suppress which worse ones."""
    first, second = touching_pairs(ranked[:size], ranked)
    worse = first < second
    first, second = first[worse], second[worse]
    winner, loser = ranked[first], ranked[second]
    overlap = paired_overlap(winner, loser)
    both = (
        winner[:, 3].double() * winner[:, 4].double() + loser[:, 3].double() * loser[:, 4].double()
    )
    conflict = overlap > iou * (both - overlap)
    return first[conflict], second[conflict]


def _settle(better: Tensor, worse: Tensor, size: int) -> Tensor:
    """Return which of the first ``size`` boxes stand when a fallen one suppresses nobody.

    Every sweep settles at least the best unsettled box, and a sweep that changes nothing is the
    answer.
    """
    inside = worse < size
    better, worse = better[inside], worse[inside]
    alive = torch.ones(size, dtype=torch.bool, device=better.device)
    while True:
        after = torch.ones_like(alive)
        after[worse[alive[better]]] = False
        if torch.equal(after, alive):
            return alive
        alive = after
