"""Logit distillation: one head's maps of student and teacher enter, the named, weighted parts of the loss leave."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.config import LogitKDConfig
from kdlib.errors import ConfigError
from kdlib.kd.align import align_maps
from kdlib.kd.pivotal import pivotal_mask
from kdlib.losses.box_regression import gather_codes, masked_l1
from kdlib.losses.heatmap_focal import clamped_probability
from kdlib.types import HeadOutput, HeadTargets

EPSILON = 1e-6


def check_regression(config: LogitKDConfig, student: tuple[int, int], teacher: tuple[int, int]) -> None:
    """Refuse regression distillation between maps of different size, which the original turned into 0 without a word.

    Raises:
        ConfigError: With both sizes (H, W).
    """
    if config.regression_weight != 0 and tuple(student) != tuple(teacher):
        raise ConfigError(
            f"regression_weight {config.regression_weight} needs equal maps, but the student has {student[0]} x {student[1]} "
            f"cells and the teacher {teacher[0]} x {teacher[1]}; set regression_weight to 0"
        )


def meet(student: HeadOutput, teacher: HeadOutput, config: LogitKDConfig) -> tuple[Tensor, Tensor]:
    """Return the probabilities of student and teacher on one grid, both (B, C, H, W); the teacher's has no gradient.

    Both are probabilities of logits, clamped, then resampled: in this order, as in the original.

    Raises:
        ConfigError: If the heads have different classes.

    Source: spec section 7.5 step 1.
    """
    if student.heatmap.shape[:2] != teacher.heatmap.shape[:2]:
        raise ConfigError(
            f"student heatmap {tuple(student.heatmap.shape)} and teacher heatmap {tuple(teacher.heatmap.shape)} differ in "
            "frames or classes; give both models the same heads"
        )
    ours = clamped_probability(student.heatmap)
    with torch.no_grad():
        theirs = clamped_probability(teacher.heatmap)
    height, width = (teacher if config.target == "teacher" else student).heatmap.shape[-2:]
    ours = align_maps(ours, (height, width), align_corners=config.align_corners)
    theirs = align_maps(theirs, (height, width), align_corners=config.align_corners)
    return ours, theirs


def heatmap_kd(student: Tensor, teacher: Tensor, mask: Tensor, distance: str = "mse") -> Tensor:
    """Return ``sum(mask * d) / (sum(mask) + 1e-6)`` of two probability maps (B, C, H, W), d summed over classes.

    Source: spec section 7.5 step 4.
    """
    if distance not in ("mse", "smooth_l1"):
        raise ConfigError(f"unknown distance '{distance}'; use 'mse' or 'smooth_l1'")
    measure = F.mse_loss if distance == "mse" else F.smooth_l1_loss
    apart = measure(student, teacher.detach(), reduction="none").sum(dim=1)
    return (mask * apart).sum() / (mask.sum() + EPSILON)


def regression_kd(student: HeadOutput, teacher: HeadOutput, targets: HeadTargets) -> Tensor:
    """Return the L1 distance of the eight code maps at the target cells, summed over the dimensions.

    Source: spec section 7.5 step 5.
    """
    with torch.no_grad():
        theirs = gather_codes(teacher, targets.indices)
    return masked_l1(gather_codes(student, targets.indices), theirs, targets.mask).sum()


def logit_kd(
    student: HeadOutput,
    teacher: HeadOutput,
    student_targets: HeadTargets | None,
    teacher_targets: HeadTargets | None,
    config: LogitKDConfig,
) -> dict[str, Tensor]:
    """Return the weighted parts ``kd_heatmap`` and ``kd_box`` of one head; a part with weight 0 is left out.

    Args:
        student: Logits and raw maps, with gradient.
        teacher: The teacher's, on its own grid; never receives a gradient.
        student_targets: From the student's (merged) labels; used when ``config.target`` is "student".
        teacher_targets: From the ground truth on the teacher's grid; used when ``config.target`` is "teacher".
        config: Weights, positions, distance.

    Raises:
        ConfigError: If the settings do not fit the maps.

    Source: SparseKD section 4.2; spec section 7.5.
    """
    check_regression(config, _size(student), _size(teacher))
    targets = teacher_targets if config.target == "teacher" else student_targets
    parts: dict[str, Tensor] = {}
    if config.weight != 0:
        ours, theirs = meet(student, teacher, config)
        parts["kd_heatmap"] = config.weight * heatmap_kd(ours, theirs, pivotal_mask(theirs, targets, config), config.distance)
    if config.regression_weight != 0:
        if targets is None:
            raise ConfigError(f"regression_weight {config.regression_weight} needs targets on the '{config.target}' grid")
        parts["kd_box"] = config.regression_weight * regression_kd(student, teacher, targets)
    return parts


def _size(output: HeadOutput) -> tuple[int, int]:
    height, width = output.heatmap.shape[-2:]
    return height, width
