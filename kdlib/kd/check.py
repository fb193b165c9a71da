"""Refuses a student, a teacher and a recipe that cannot work together, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from kdlib.config import KDConfig, KDScheduleConfig, LogitKDConfig, ModelConfig
from kdlib.errors import ConfigError
from kdlib.kd.adapter import feature_width
from kdlib.kd.feature import check_feature, feature_weights
from kdlib.kd.logit import logit_weights
from kdlib.kd.roi_grid import bev_region
from kdlib.kd.teacher import Teacher
from kdlib.kd.term import Term
from kdlib.models.detector import CenterPoint, Detector


def with_centre_head(model: Detector, role: str) -> CenterPoint:
    """Refuse detectors without heatmaps.

    Raises:
        ConfigError: Naming the model.
    """
    if not isinstance(model, CenterPoint):
        raise ConfigError(
            f"{role} '{model.config.name}' has an anchor head; distillation works on centre "
            "heatmaps, so train it with Plain "
            "or take a CenterPoint model"
        )
    return model


def check_pair(
    student: CenterPoint, teacher: Teacher, config: KDConfig, extra: Sequence[Term] = ()
) -> None:
    """Refuse a recipe, or terms beside it, that cannot work for a teacher and a student.

    Raises:
        ConfigError: Naming what does not fit and the remedy.
    """
    ours, theirs = student.config, teacher.model.config
    if not student.learns_heads:
        raise ConfigError(
            f"the first stage of student '{ours.name}' is frozen: nothing to "
            "distil into; set it to 'trained'"
        )
    if teacher.norm != config.teacher_norm:
        raise ConfigError(
            f"the recipe asks for teacher norm '{config.teacher_norm}', the given "
            f"teacher has '{teacher.norm}'"
        )
    if ours.class_names != theirs.class_names or student.head.heads != teacher.model.head.heads:
        raise ConfigError(
            f"student '{ours.name}' has classes {ours.class_names} in heads "
            f"{student.head.heads}, teacher '{theirs.name}' "
            f"{theirs.class_names} in {teacher.model.head.heads}; both must be the same"
        )
    if bev_region(ours) != bev_region(theirs):
        raise ConfigError(
            f"student '{ours.name}' sees x, y in {bev_region(ours)} m, teacher '{theirs.name}' "
            f"in {bev_region(theirs)} m; "
            "give the teacher the student's point_range"
        )
    logit, feature = config.logit, config.feature
    names = check_names(config, extra)
    if config.label is None and not names:
        raise ConfigError(
            "the recipe has neither logit nor label nor feature distillation; "
            "train the student with Plain"
        )
    if config.schedule != KDScheduleConfig() and not names:
        raise ConfigError(
            "the schedule weighs distillation terms, and label distillation is "
            "none; leave it at its default"
        )
    if logit is not None:
        check_logit(logit, _map_size(ours), _map_size(theirs))
    if feature is not None:
        check_feature(
            feature,
            feature_width(student, feature.form),
            feature_width(teacher.model, feature.form),
        )
    if config.label is not None and len(config.label.thresholds) != len(ours.class_names):
        raise ConfigError(
            f"{len(config.label.thresholds)} label thresholds for "
            f"{len(ours.class_names)} classes; they must match"
        )


def check_names(config: KDConfig, extra: Sequence[Term]) -> list[str]:
    """Return the names of a recipe's terms and of those beside it; ConfigError if one comes
    twice.
    """
    recipe = [*logit_weights(config.logit), *feature_weights(config.feature)]
    names = recipe + [term.name for term in extra]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"there is a term '{name}' already; give yours another name")
    return names


def check_logit(config: LogitKDConfig, student: tuple[int, int], teacher: tuple[int, int]) -> None:
    """Refuse settings of logit distillation that contradict each other or do not fit the sizes (H,
    W) of the two maps.

    Raises:
        ConfigError: Naming the setting.
    """
    if config.positions == "all" and config.threshold > 0:
        raise ConfigError(
            f"positions 'all' would ignore the threshold {config.threshold}; set positions to "
            "'confidence' or threshold to 0"
        )
    if config.positions == "rank" and config.rank < 1:
        raise ConfigError(f"positions 'rank' needs a rank of at least 1, not {config.rank}")
    if config.positions == "instances" and config.instances < 1:
        raise ConfigError(f"positions 'instances' needs at least 1 of them, not {config.instances}")
    if config.rank_weight != 0 and config.rank < 2:
        raise ConfigError(
            f"rank_weight {config.rank_weight} compares entries with each other, "
            "so rank must be at least 2"
        )
    # the original turned this into 0 without a word
    if config.regression_weight != 0 and student != teacher:
        raise ConfigError(
            f"regression_weight {config.regression_weight} needs equal maps, but the student has "
            f"{student[0]} x {student[1]} "
            f"cells and the teacher {teacher[0]} x {teacher[1]}; set regression_weight to 0"
        )
    if min(config.weight, config.regression_weight, config.rank_weight) < 0:
        raise ConfigError(
            f"weights must not be negative: {config.weight}, "
            f"{config.regression_weight}, {config.rank_weight}"
        )


def _map_size(config: ModelConfig) -> tuple[int, int]:
    columns, rows, _ = config.grid.grid_size
    return rows // config.head.stride, columns // config.head.stride
