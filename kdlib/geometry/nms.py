"""Scored boxes in, the indices of those that no better box covers out (torch, any device)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlib.geometry.rotated_iou import near_pairs, paired_overlap


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
    ranked = boxes[order]
    first, second = near_pairs(ranked, ranked)
    forward = first < second  # only a better box can suppress
    first, second = first[forward], second[forward]
    overlap = paired_overlap(ranked[first], ranked[second])
    area = ranked[:, 3].double() * ranked[:, 4].double()
    covered = overlap > iou * (area[first] + area[second] - overlap).clamp(min=1e-6)
    return order[_survivors(len(ranked), first[covered], second[covered])][:post]


def _survivors(count: int, better: Tensor, worse: Tensor) -> Tensor:
    """Walk the conflicts in order of rank: a box that fell suppresses nobody. Short lists, so it runs on the host."""
    alive = [True] * count
    for i, j in zip(better.tolist(), worse.tolist()):  # nonzero() lists pairs row by row: i ascends
        if alive[i]:
            alive[j] = False
    return torch.tensor([i for i, a in enumerate(alive) if a], dtype=torch.long, device=better.device)
