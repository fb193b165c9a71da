"""Logit distillation of heatmaps, ranks and box codes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdlib.config import LogitKDConfig
from kdlib.errors import ConfigError
from kdlib.kd.align import align_maps
from kdlib.kd.distance import ELEMENTWISE, EPSILON
from kdlib.kd.instances import instance_cells
from kdlib.kd.pivotal import pivotal_mask
from kdlib.kd.roi_grid import Region
from kdlib.kd.teacher import Need
from kdlib.kd.term import StepContext
from kdlib.models import ranks
from kdlib.models.losses.box_regression import gather_codes, masked_l1
from kdlib.models.losses.heatmap_focal import clamped_probability
from kdlib.models.losses.loss_part import LossPart, weighed
from kdlib.types import HeadOutput, HeadTargets


def meet(student: HeadOutput, teacher: HeadOutput, config: LogitKDConfig) -> tuple[Tensor, Tensor]:
    """Return the probabilities of student and teacher on one grid, both (B, C, H, W); the teacher's
    has no gradient.

    Both are probabilities of logits, clamped, then resampled: in this order, as in the original.

    Raises:
        ConfigError: If the heads have different classes.

    Source: spec section 7.5 step 1.
    """
    if student.heatmap.shape[:2] != teacher.heatmap.shape[:2]:
        raise ConfigError(
            f"student heatmap {tuple(student.heatmap.shape)} and teacher heatmap "
            f"{tuple(teacher.heatmap.shape)} differ in "
            "frames or classes; give both models the same heads"
        )
    height, width = (teacher if config.target == "teacher" else student).heatmap.shape[-2:]
    ours, theirs = (
        align_maps(clamped_probability(logits), (height, width), align_corners=config.align_corners)
        for logits in (student.heatmap, teacher.heatmap.detach())
    )
    return ours, theirs


def position_weights(
    ours: Tensor,
    theirs: Tensor,
    heads: tuple[HeadOutput, HeadOutput],
    targets: HeadTargets | None,
    config: LogitKDConfig,
    region: Region,
) -> Tensor:
    """Return the weights (B, H, W) of the positions compared.

    ``ours`` and ``theirs`` are probabilities (B, C, H, W) of :func:`meet`, ``heads`` the raw maps
    of both on their own grids, ``targets`` lie where the maps meet, ``region`` is the metres they
    span.

    Raises:
        ConfigError: If what the positions need is missing.
    """
    instances = (
        instance_cells(ours, theirs, *heads, config.instances, region)
        if config.positions == "instances"
        else None
    )
    return pivotal_mask(theirs, targets, config, instances)


def heatmap_kd(student: Tensor, teacher: Tensor, mask: Tensor, distance: str = "mse") -> Tensor:
    """Return ``sum(mask * d) / (sum(mask) + 1e-6)`` of two probability maps (B, C, H, W), d summed
    over classes.

    ``d`` is the squared error, smooth L1 (beta 1), or for ``focal``
    ``-(t - s)^2 * (t ln s + (1 - t) ln(1 - s))``, for probabilities strictly inside (0, 1). That is
    CenterNet's focal loss carried over to soft targets: at t = 1 it is ``-(1 - s)^2 ln s``, at t =
    0 ``-s^2 ln(1 - s)``, and at s = t it is 0. The original's focal type instead cut the teacher's
    probability into positives and negatives, looked at all positions whatever the mask, and was not
    0 for equal maps; ``focal_loss(s, t, positive=...)`` of ``kdlib.models.losses.heatmap_focal`` is
    that.

    Source: spec section 7.5 step 4; focal as in Generalized Focal Loss (Li et al., NeurIPS 2020).
    """
    teacher = teacher.detach()
    if distance in ELEMENTWISE:
        apart = ELEMENTWISE[distance](student, teacher, reduction="none")
    elif distance == "focal":
        # Not F.binary_cross_entropy: autocast refuses it.
        apart = -(teacher - student).square() * (
            teacher * student.log() + (1 - teacher) * (1 - student).log()
        )
    else:
        raise ConfigError(f"unknown distance '{distance}'; use 'mse', 'smooth_l1' or 'focal'")
    return (mask * apart.sum(dim=1)).sum() / (ranks.total(mask.sum()) + EPSILON)


def rank_kd(student: Tensor, teacher: Tensor, rank: int) -> Tensor:
    """Return ``mean(p_t * (ln p_t - ln p_s))`` over the teacher's ``rank`` best entries of every
    frame.

    Both maps are probabilities above 0 (B, C, H, W) on one grid, of which the teacher's receives no
    gradient. An entry is a class at a cell; ``p`` is a frame's probabilities there over their sum
    (plus 1e-6), so that only the order and the proportions count, not the height. The original's
    ``-mean(p_t * ln p_s)`` differs by the teacher's entropy, a constant: the gradient is the same,
    and here a student equal to its teacher is at 0. The original also indexed frames by a fraction,
    so it never ran, and would have kept the last head's value alone (spec section 11 items 15, 16).

    Source: spec section 7.5 step 6.
    """
    ours, theirs = student.flatten(1), teacher.detach().flatten(1)
    best = theirs.topk(min(rank, theirs.shape[1]), dim=1, sorted=False).indices
    given, wanted = (
        entries / (entries.sum(dim=1, keepdim=True) + EPSILON)
        for entries in (ours.gather(1, best), theirs.gather(1, best))
    )
    return ranks.mean(wanted * (wanted.log() - given.log()))


def regression_kd(student: HeadOutput, teacher: HeadOutput, targets: HeadTargets) -> Tensor:
    """Return the L1 distance of the eight code maps at the target cells, summed over the
    dimensions.

    Source: spec section 7.5 step 5.
    """
    with torch.no_grad():
        theirs = gather_codes(teacher, targets.indices)
    return masked_l1(gather_codes(student, targets.indices), theirs, targets.mask).sum()


def head_kd(
    student: HeadOutput,
    teacher: HeadOutput,
    targets: HeadTargets | None,
    config: LogitKDConfig,
    region: Region,
) -> tuple[LossPart, ...]:
    """Return the parts ``kd_heatmap``, ``kd_rank`` and ``kd_box`` of one head; a part with weight 0
    is left out.

    The teacher's maps are on its own grid and never receive a gradient. Targets are on the grid of
    ``config.target``: the student's from its (merged) labels, the teacher's from the ground truth.

    Raises:
        ConfigError: If targets are missing, or the heads have different classes.

    Source: SparseKD section 4.2; spec section 7.5.
    """
    parts = []
    if config.weight != 0 or config.rank_weight != 0:
        ours, theirs = meet(student, teacher, config)
        if config.weight != 0:
            mask = position_weights(ours, theirs, (student, teacher), targets, config, region)
            value = heatmap_kd(ours, theirs, mask, config.distance)
            parts.append(weighed("kd_heatmap", config.weight, value, (mask > 0).sum()))
        if config.rank_weight != 0:
            entries = len(theirs) * min(config.rank, theirs[0].numel())
            parts.append(
                weighed("kd_rank", config.rank_weight, rank_kd(ours, theirs, config.rank), entries)
            )
    if config.regression_weight != 0:
        if targets is None:
            raise ConfigError(
                f"regression_weight {config.regression_weight} needs targets on "
                f"the '{config.target}' grid"
            )
        value = regression_kd(student, teacher, targets)
        parts.append(weighed("kd_box", config.regression_weight, value, targets.mask.sum()))
    return tuple(parts)


def logit_kd(context: StepContext, config: LogitKDConfig, region: Region) -> list[LossPart]:
    """Return the parts of all heads: their mean, their positions summed.

    The teacher has answered with what :func:`logit_needs` names; all maps span the metres of
    ``region``.
    """
    heads, marks = (
        context.prediction.heads,
        context.answer.targets if config.target == "teacher" else context.targets,
    )
    apart = [
        head_kd(ours, theirs, targets, config, region)
        for ours, theirs, targets in zip(heads, context.answer.heads, marks or [None] * len(heads))
    ]
    joined = []
    for parts in zip(*apart):
        first, *others = (part.value / len(heads) for part in parts)
        reach = sum(part.positions for part in parts)
        joined.append(replace(parts[0], value=sum(others, first), positions=reach))
    return joined


def logit_needs(config: LogitKDConfig | None) -> frozenset[Need]:
    """Return what the teacher has to answer besides its heads' maps."""
    if config is None or config.target != "teacher":
        return frozenset()
    marked = config.weight != 0 and config.positions in ("center", "gaussian")
    return frozenset({"targets"} if marked or config.regression_weight != 0 else ())


def logit_weights(config: LogitKDConfig | None) -> dict[str, float]:
    """Return the parts a recipe adds to a loss, with their weights."""
    if config is None:
        return {}
    named = {
        "kd_heatmap": config.weight,
        "kd_rank": config.rank_weight,
        "kd_box": config.regression_weight,
    }
    return {name: weight for name, weight in named.items() if weight != 0}
