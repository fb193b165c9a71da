"""Configurations of a student, a teacher and a recipe enter; what cannot work together leaves as one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from kdlib.config import KDConfig, KDScheduleConfig, ModelConfig
from kdlib.errors import ConfigError
from kdlib.kd.adapter import feature_width
from kdlib.kd.feature import check_feature, feature_weights
from kdlib.kd.logit import check_regression, logit_weights
from kdlib.kd.pivotal import check_positions
from kdlib.kd.roi_grid import Region
from kdlib.kd.schedule import check_schedule
from kdlib.kd.teacher import Teacher
from kdlib.kd.term import Term, check_terms
from kdlib.models.detector import CenterPoint, Detector


def with_centre_head(model: Detector, role: str) -> CenterPoint:
    """Refuse detectors without heatmaps.

    Raises:
        ConfigError: Naming the model.
    """
    if not isinstance(model, CenterPoint):
        raise ConfigError(
            f"{role} '{model.config.name}' has an anchor head; distillation works on centre heatmaps, so train it with Plain "
            "or take a CenterPoint model"
        )
    return model


def check_pair(student: CenterPoint, teacher: Teacher, config: KDConfig, extra: Sequence[Term] = ()) -> None:
    """Refuse a recipe, or terms beside it, that cannot work for a teacher and a student.

    Raises:
        ConfigError: Naming what does not fit and the remedy.
    """
    ours, theirs = student.config, teacher.model.config
    if not student.learns_heads:
        raise ConfigError(f"the first stage of student '{ours.name}' is frozen: nothing to distil into; set it to 'trained'")
    if teacher.norm != config.teacher_norm:
        raise ConfigError(f"the recipe asks for teacher norm '{config.teacher_norm}', the given teacher has '{teacher.norm}'")
    if ours.class_names != theirs.class_names or student.head.heads != teacher.model.head.heads:
        raise ConfigError(
            f"student '{ours.name}' has classes {ours.class_names} in heads {student.head.heads}, teacher '{theirs.name}' "
            f"{theirs.class_names} in {teacher.model.head.heads}; both must be the same"
        )
    if bev_region(ours) != bev_region(theirs):
        raise ConfigError(
            f"student '{ours.name}' sees x, y in {bev_region(ours)} m, teacher '{theirs.name}' in {bev_region(theirs)} m; "
            "give the teacher the student's point_range"
        )
    logit, feature = config.logit, config.feature
    active = {**logit_weights(logit), **feature_weights(feature)}
    if config.label is None and not active and not extra:
        raise ConfigError("the recipe has neither logit nor label nor feature distillation; train the student with Plain")
    if config.schedule != KDScheduleConfig() and not active and not extra:
        raise ConfigError("the schedule weighs distillation terms, and label distillation is none; leave it at its default")
    check_schedule(config.schedule)
    check_terms(extra, active)
    if logit is not None:
        check_positions(logit)
        check_regression(logit, _map_size(ours), _map_size(theirs))
        if min(logit.weight, logit.regression_weight, logit.rank_weight) < 0:
            raise ConfigError(f"weights must not be negative: {logit.weight}, {logit.regression_weight}, {logit.rank_weight}")
    if feature is not None:
        check_feature(feature, feature_width(student, feature.form), feature_width(teacher.model, feature.form))
    if config.label is not None and len(config.label.thresholds) != len(ours.class_names):
        raise ConfigError(f"{len(config.label.thresholds)} label thresholds for {len(ours.class_names)} classes; they must match")


def bev_region(config: ModelConfig) -> Region:
    """Return the metres that a model's maps span."""
    low_x, low_y, _, high_x, high_y, _ = config.grid.point_range
    return low_x, low_y, high_x, high_y


def _map_size(config: ModelConfig) -> tuple[int, int]:
    columns, rows, _ = config.grid.grid_size
    return rows // config.head.stride, columns // config.head.stride
