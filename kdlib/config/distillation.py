"""What a student learns from its teacher; defaults are the published values (spec sections 7 and 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PivotalForm = Literal["all", "confidence", "rank", "center", "gaussian"]
TeacherNorm = Literal["running", "batch"]
Initialisation = Literal["none", "matching", "first"]  # "first": slimmed by the first channels (FNAV2, spec 8.2)


@dataclass(frozen=True)
class LogitKDConfig:
    """Logit distillation at pivotal positions (spec 7.5)."""

    weight: float = 7.0
    positions: PivotalForm = "gaussian"
    soft: bool = True  # multiply the mask by the teacher's confidence
    threshold: float = 0.0  # teacher confidence a position must exceed
    rank: int = 500  # positions kept when positions == "rank"
    distance: Literal["mse", "smooth_l1"] = "mse"
    regression_weight: float = 0.0  # needs equal maps of teacher and student
    target: Literal["teacher", "student"] = "teacher"  # grid on which the two maps meet
    align_corners: bool = False  # the original's setting said True and was ignored


@dataclass(frozen=True)
class LabelKDConfig:
    """Teacher boxes as labels (spec 7.4)."""

    thresholds: tuple[float, ...] = (0.6, 0.6, 0.6)  # per class, strict: score > threshold
    teacher_first: bool = True  # order in the merged set
    use_truth: bool = True
    dedupe_iou: float | None = None  # drop teacher boxes that overlap a better one of the same class; None keeps all


@dataclass(frozen=True)
class KDConfig:
    """One distillation recipe."""

    logit: LogitKDConfig | None = LogitKDConfig()
    label: LabelKDConfig | None = LabelKDConfig()
    teacher_norm: TeacherNorm = "batch"  # the original's way; "running" is the textbook's
    initialisation: Initialisation = "matching"
