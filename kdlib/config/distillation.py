"""What a student learns from its teacher; the published values (spec sections 7 and 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdlib.config.codec import require, require_positive

# "instances": GID's choice of boxes
PivotalForm = Literal["all", "confidence", "rank", "center", "gaussian", "instances"]
FeatureForm = Literal["map", "foreground", "rois", "attention", "affinity", "local"]
TeacherNorm = Literal["running", "batch"]
# "matching" copies equal shapes; the others slim a wider teacher (spec 8): by its first channels
# ("first" is FNAV2; "first_naive" is FNAV1, which ignores what axes are made of), by the largest
# norm scales ("bn_scale") or by the sums of weights ("l1", OFA). The "_legacy" ones repeat the
# original's faults.
Initialisation = Literal[
    "none",
    "matching",
    "first",
    "first_naive",
    "first_legacy",
    "bn_scale",
    "bn_scale_signed",
    "bn_scale_legacy",
    "l1",
    "l1_legacy",
]


@dataclass(frozen=True)
class LogitKDConfig:
    """Logit distillation at pivotal positions (spec 7.5)."""

    weight: float = 7.0
    positions: PivotalForm = "gaussian"
    soft: bool = True  # multiply the mask by the teacher's confidence
    threshold: float = 0.0  # teacher confidence a position must exceed
    rank: int = 500  # positions kept when positions == "rank"
    instances: int = 10  # boxes kept a frame when positions == "instances"
    distance: Literal["mse", "smooth_l1", "focal"] = "mse"
    # of the rank loss over the teacher's ``rank`` most confident entries (spec 7.5 step 6)
    rank_weight: float = 0.0
    regression_weight: float = 0.0  # needs equal maps of teacher and student
    target: Literal["teacher", "student"] = "teacher"  # grid on which the two maps meet
    align_corners: bool = False  # the original's setting said True and was ignored


@dataclass(frozen=True)
class LabelKDConfig:
    """Teacher boxes as labels (spec 7.4)."""

    thresholds: tuple[float, ...] = (0.6, 0.6, 0.6)  # per class, strict: score > threshold
    teacher_first: bool = True  # order in the merged set
    # compared with the thresholds; "mixed": IoU for the first class (spec 7.4)
    score: Literal["class", "iou", "mixed"] = "class"
    use_truth: bool = True
    # drop teacher boxes that overlap a better one of the same class; None keeps all
    dedupe_iou: float | None = None


@dataclass(frozen=True)
class FeatureKDConfig:
    """Feature distillation on BEV features, or around occupied pillars and voxels for ``local``
    (spec 7.7).

    ``map`` is FitNet, ``foreground`` FG, ``rois`` Mimic and with a relation weight GID-F, ``local``
    is in the manner of PointDistiller.
    """

    form: FeatureForm = "map"
    weight: float = 1.0
    distance: Literal["mse", "smooth_l1", "cosine"] = "mse"
    # from the student's channels to the teacher's; trained, never stored
    adapter: Literal["none", "1x1", "3x3"] = "1x1"
    target: Literal["teacher", "student"] = "teacher"  # grid on which the two maps meet
    align_corners: bool = False
    rois: Literal["truth", "teacher"] = "truth"
    roi_score: float = 0.3  # what a teacher's box must exceed to be one of them
    roi_grid: int = 7  # samples along each side of a box
    relation_weight: float = 0.0  # of the distances between boxes' features (GID)
    samples: int = 128  # places a frame for ``local``
    neighbours: int = 16  # around each place, for ``local``

    def __post_init__(self) -> None:
        """Check signs."""
        require(
            min(self.weight, self.relation_weight) >= 0, (f"weights must not be negative: {self}")
        )
        require_positive(self, "roi_grid", "samples", "neighbours")


@dataclass(frozen=True)
class KDScheduleConfig:
    """How the weights of all distillation terms change over a training; label distillation takes no
    part.
    """

    warm_up: float = 0.0  # share of the steps in which they rise linearly from 0
    decay: float = 0.0  # share of the steps, at the end, in which they fall linearly to ``floor``
    floor: float = 0.0  # factor at the very end

    def __post_init__(self) -> None:
        """Check shares."""
        require(
            0 <= self.warm_up and 0 <= self.decay and self.warm_up + self.decay <= 1,
            f"shares must fit into 1: {self}",
        )
        require(0 <= self.floor <= 1, f"floor must be in [0, 1], not {self.floor}")
        ignored = self.floor != 0 and self.decay == 0
        require(
            not ignored,
            (f"a schedule without decay would ignore floor {self.floor}; set decay, or floor to 0"),
        )


@dataclass(frozen=True)
class KDConfig:
    """One distillation recipe."""

    logit: LogitKDConfig | None = LogitKDConfig()
    label: LabelKDConfig | None = LabelKDConfig()
    feature: FeatureKDConfig | None = None
    schedule: KDScheduleConfig = KDScheduleConfig()
    teacher_norm: TeacherNorm = "batch"  # the original's way; "running" is the textbook's
    initialisation: Initialisation = "matching"
