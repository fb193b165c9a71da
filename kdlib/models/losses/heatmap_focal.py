"""The penalty-reduced focal loss of a centre head's heatmap."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlib.models import ranks
from kdlib.models.precision import wide

PROBABILITY_FLOOR = 1e-4
# exponents of the focusing factor, and of the penalty's reduction around a positive
_ALPHA, _BETA = 2.0, 4.0


def clamped_probability(logits: Tensor) -> Tensor:
    """Return ``sigmoid(logits)`` kept inside [1e-4, 1 - 1e-4], in at least float32.

    Clamped entries get no gradient. Half precision is widened first: its spacing near 1 is wider
    than 1e-4.

    Source: spec section 5.2.
    """
    return wide(logits).sigmoid().clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)


def focal_loss(
    probability: Tensor, target: Tensor, *, mask: Tensor | None = None, positive: float = 1.0
) -> Tensor:
    """Return the focal loss of probabilities (B, C, H, W) strictly inside (0, 1), divided by the
    number of positive cells.

    Args:
        probability: From :func:`clamped_probability`.
        target: The same shape, in [0, 1].
        mask: (B, H, W) weights of the positions; None weighs all alike.
        positive: Cells with ``target >= positive`` are positives; without any, the sum is not
            divided.

    Raises:
        ValueError: If the two maps differ in shape.

    Source: CornerNet (Law and Deng, 2018) as used by CenterPoint; spec section 5.2.
    """
    if probability.shape != target.shape:
        raise ValueError(
            f"heatmap of shape {tuple(probability.shape)} but target of shape {tuple(target.shape)}"
        )
    hit = target >= positive
    miss = 1 - probability
    # One logarithm serves both kinds of cell: ln p at positives, ln(1 - p) elsewhere.
    loss = -torch.where(hit, probability, miss).log() * torch.where(hit, miss, probability).pow(
        _ALPHA
    )
    loss = loss * torch.where(hit, 1.0, (1 - target).pow(_BETA))
    count = hit
    if mask is not None:
        loss, count = loss * mask.unsqueeze(1), hit * mask.unsqueeze(1)
    positives = ranks.total(count.sum())
    return loss.sum() / torch.where(positives > 0, positives, 1)


def heatmap_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the focal loss of heatmap logits (B, C, H, W) against Gaussian targets whose peaks are
    exactly 1.

    Source: spec section 5.2.
    """
    return focal_loss(clamped_probability(logits), target)
