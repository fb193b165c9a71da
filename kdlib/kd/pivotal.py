"""Pivotal positions: how much each map cell counts in logit distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlib.config import LogitKDConfig
from kdlib.errors import ConfigError
from kdlib.types import HeadTargets


def pivotal_mask(
    probability: Tensor,
    targets: HeadTargets | None,
    config: LogitKDConfig,
    instances: Tensor | None = None,
) -> Tensor:
    """Return the weights (B, H, W) of the positions at which the student is to copy the teacher.

    Every form keeps only cells whose confidence, the maximum over classes, exceeds
    ``config.threshold`` (float32, strict):

    - ``all``, ``confidence``: all of those;
    - ``rank``: those among the frame's ``config.rank`` most confident cells;
    - ``center``: those that hold the centre of a target box;
    - ``gaussian``: those inside a target's Gaussian, weighted by its height if ``config.soft``;
    - ``instances``: those in the boxes of :func:`kdlib.kd.instances.instance_cells`.

    With ``config.soft`` the weight is multiplied by the confidence.

    Args:
        probability: (B, C, H, W) the teacher's, on the grid where the two maps meet.
        targets: On the same grid; needed by ``center`` and ``gaussian``.
        config: Which positions.
        instances: (B, H, W) cells in instances, 1 or 0; needed by ``instances``.

    Raises:
        ConfigError: If targets are missing.
        ValueError: If the targets lie on another grid.

    Source: SparseKD section 4.2; spec section 7.5 step 3.
    """
    with torch.no_grad():
        confidence = probability.amax(dim=1)
        # A tensor of the map's own type: 0.3 must mean the float32 next to 0.3, as in the original.
        mask = (confidence > confidence.new_tensor(config.threshold)).to(confidence.dtype)
        if config.soft:
            mask = mask * confidence
        if config.positions == "rank":
            mask = mask * _top_cells(confidence, config.rank)
        elif config.positions in ("center", "gaussian"):
            mask = mask * _target_cells(confidence, targets, config)
        elif instances is not None:
            mask = mask * instances
    return mask


def _top_cells(confidence: Tensor, rank: int) -> Tensor:
    flat = confidence.flatten(1)
    best = flat.topk(min(rank, flat.shape[1]), dim=1, sorted=False).indices
    return torch.zeros_like(flat).scatter_(1, best, 1.0).view_as(confidence)


def _target_cells(confidence: Tensor, targets: HeadTargets | None, config: LogitKDConfig) -> Tensor:
    if targets is None:
        raise ConfigError(
            f"positions '{config.positions}' need targets on the '{config.target}' grid"
        )
    if targets.heatmap.shape[-2:] != confidence.shape[-2:]:
        raise ValueError(
            f"targets on a grid of {tuple(targets.heatmap.shape[-2:])} cells, maps on "
            f"{tuple(confidence.shape[-2:])} cells"
        )
    if config.positions == "center":
        # Empty slots point at cell 0, which is an ordinary cell: they add False there instead of
        # clearing it.
        used = targets.mask.to(confidence.dtype)
        return (
            torch.zeros_like(confidence.flatten(1))
            .scatter_reduce_(1, targets.indices, used, "amax")
            .view_as(confidence)
        )
    gaussian = targets.heatmap.amax(dim=1)
    return (gaussian if config.soft else gaussian > 0).to(confidence.dtype)
