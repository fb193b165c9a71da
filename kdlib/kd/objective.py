"""What a training step minimises: a batch enters, named loss terms of the student leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.config import KDConfig, ModelConfig
from kdlib.errors import ConfigError
from kdlib.kd.label import merge_labels
from kdlib.kd.logit import check_regression, logit_kd, meet
from kdlib.kd.norm import unmoved_statistics
from kdlib.kd.pivotal import check_positions, pivotal_mask
from kdlib.kd.teacher import Teacher, TeacherAnswer
from kdlib.kd.watch import ZeroWatch
from kdlib.losses.detection import detection_loss, detector_loss
from kdlib.models.anchors import AnchorTargets
from kdlib.models.detector import CenterPoint, Detector, Prediction
from kdlib.types import Batch, GroundTruth, HeadOutput, HeadTargets, LossTerms


@dataclass(frozen=True)
class ActiveTerm:
    """One line of the startup report."""

    name: str
    weight: float
    value: float  # weighted, on the batch of the report
    positions: int | None  # cells (kd_heatmap), boxes or anchors (box, kd_box, direction) it looks at; None for the whole map
    teacher_labels: int | None  # teacher boxes among its labels; None where labels come from the ground truth alone


class Plain(nn.Module):
    """The student alone: its detection loss on the ground truth."""

    def __init__(self, student: Detector) -> None:
        """Take over a student with any head."""
        super().__init__()
        self.student = student

    def forward(self, batch: Batch) -> LossTerms:
        """Return the parts ``heatmap`` and ``box``; of an anchor head ``class``, ``box`` and ``direction``."""
        prediction = self.student(batch.points)
        return detector_loss(self.student, prediction.heads, self.student.targets(batch.truth))

    def report(self, batch: Batch) -> tuple[ActiveTerm, ...]:
        """Return the active terms with their values on one batch; the student stays as it is."""
        with torch.no_grad(), unmoved_statistics(self.student):
            terms = self(batch)
            targets = self.student.targets(batch.truth)
        return _detection_rows(terms, targets, self.student, None)


class Distillation(nn.Module):
    """A student, a frozen teacher and the terms between them.

    The teacher moves between devices with this module but is no part of it otherwise: ``parameters()``, ``state_dict()`` and
    ``train()`` reach the student alone.

    Source: SparseKD; spec section 7.
    """

    def __init__(self, student: Detector, teacher: Detector | Teacher, config: KDConfig) -> None:
        """Take over both, which need centre heads; a plain detector becomes a :class:`Teacher` in the norm mode of the recipe.

        Raises:
            ConfigError: If recipe, teacher and student do not fit together; the message names the setting.
        """
        super().__init__()
        if {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}:
            raise ConfigError("student and teacher share parameters, so freezing one freezes the other; build them apart")
        learner = _with_centre_head(student, "student")
        frozen = teacher if isinstance(teacher, Teacher) else Teacher(_with_centre_head(teacher, "teacher"), config.teacher_norm)
        check_pair(learner, frozen, config)
        self.student = learner
        self.config = config
        self._unregistered = (frozen,)  # a tuple hides it from nn.Module
        self._watch = ZeroWatch()

    @property
    def teacher(self) -> Teacher:
        """The frozen teacher."""
        return self._unregistered[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Distillation:
        """Move or cast the teacher along with the student (``to``, ``cuda``, ``double`` all end here)."""
        super()._apply(fn, *args, **kwargs)
        self.teacher._apply(fn, *args, **kwargs)
        return self

    def forward(self, batch: Batch) -> LossTerms:
        """Return the parts ``heatmap``, ``box`` and, where enabled, ``kd_heatmap``, ``kd_box``.

        Raises:
            ConfigError: If an enabled distillation term was exactly 0 for fifty training steps in a row.
        """
        terms = self._step(batch)[0]
        if self.training and torch.is_grad_enabled():
            self._watch.see({name: value for name, value in terms.parts.items() if name.startswith("kd_")})
        return terms

    def report(self, batch: Batch) -> tuple[ActiveTerm, ...]:
        """Return the active terms with their values on one batch; student and teacher stay as they are."""
        with torch.no_grad(), unmoved_statistics(self.student):
            terms, labels, targets, prediction, answer = self._step(batch)
        added = None
        if self.config.label is not None:
            kept = batch.truth.labels if self.config.label.use_truth else batch.truth.labels[:0]
            added = int((labels.labels > 0).sum()) - int((kept > 0).sum())
        rows = list(_detection_rows(terms, targets, self.student, added))
        logit = self.config.logit
        if logit is not None:
            marks = answer.targets if logit.target == "teacher" else targets
            if "kd_heatmap" in terms.parts:
                cells = 0
                for number, (ours, theirs) in enumerate(zip(prediction.heads, answer.heads)):
                    _, probability = meet(ours, theirs, logit)
                    cells += int((pivotal_mask(probability, marks[number] if marks else None, logit) > 0).sum())
                rows.append(ActiveTerm("kd_heatmap", logit.weight, float(terms.parts["kd_heatmap"]), cells, None))
            if "kd_box" in terms.parts:
                boxes = sum(int(mark.mask.sum()) for mark in marks)
                rows.append(ActiveTerm("kd_box", logit.regression_weight, float(terms.parts["kd_box"]), boxes, None))
        return tuple(rows)

    def _step(self, batch: Batch) -> _Step:
        logit, label = self.config.logit, self.config.label
        answer = self.teacher(batch, targets=_needs_teacher_targets(self.config), boxes=label is not None)
        labels = batch.truth
        if label is not None:
            labels = merge_labels(answer.boxes, batch.truth, label, self.student.head.targets.max_objects)
        prediction = self.student(batch.points)
        targets = self.student.targets(labels)
        parts = dict(detection_loss(prediction.heads, targets, self.student.head).parts)
        if logit is not None:
            count = len(prediction.heads)
            for number, (ours, theirs) in enumerate(zip(prediction.heads, answer.heads)):
                marks = answer.targets[number] if answer.targets else None
                for name, value in logit_kd(ours, theirs, targets[number], marks, logit).items():
                    parts[name] = parts[name] + value / count if name in parts else value / count
        return LossTerms.total(parts), labels, targets, prediction, answer


_Step = tuple[LossTerms, GroundTruth, tuple[HeadTargets, ...], Prediction[HeadOutput], TeacherAnswer]


def _with_centre_head(model: Detector, role: str) -> CenterPoint:
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


def check_pair(student: CenterPoint, teacher: Teacher, config: KDConfig) -> None:
    """Refuse a recipe that cannot work for a teacher and a student.

    Raises:
        ConfigError: Naming what does not fit and the remedy.
    """
    ours, theirs = student.config, teacher.model.config
    if teacher.norm != config.teacher_norm:
        raise ConfigError(f"the recipe asks for teacher norm '{config.teacher_norm}', the given teacher has '{teacher.norm}'")
    if ours.class_names != theirs.class_names or student.head.heads != teacher.model.head.heads:
        raise ConfigError(
            f"student '{ours.name}' has classes {ours.class_names} in heads {student.head.heads}, teacher '{theirs.name}' "
            f"{theirs.class_names} in {teacher.model.head.heads}; both must be the same"
        )
    if _bev_range(ours) != _bev_range(theirs):
        raise ConfigError(
            f"student '{ours.name}' sees x, y in {_bev_range(ours)} m, teacher '{theirs.name}' in {_bev_range(theirs)} m; "
            "give the teacher the student's point_range"
        )
    logit = config.logit
    if config.label is None and (logit is None or logit.weight == logit.regression_weight == 0):
        raise ConfigError("the recipe has neither logit nor label distillation; train the student with Plain")
    if logit is not None:
        check_positions(logit)
        check_regression(logit, _map_size(ours), _map_size(theirs))
        if logit.weight < 0 or logit.regression_weight < 0:
            raise ConfigError(f"weights must not be negative: {logit.weight}, {logit.regression_weight}")
    if config.label is not None and len(config.label.thresholds) != len(ours.class_names):
        raise ConfigError(f"{len(config.label.thresholds)} label thresholds for {len(ours.class_names)} classes; they must match")


def _needs_teacher_targets(config: KDConfig) -> bool:
    logit = config.logit
    if logit is None or logit.target != "teacher":
        return False
    return logit.regression_weight != 0 or (logit.weight != 0 and logit.positions in ("center", "gaussian"))


def _bev_range(config: ModelConfig) -> tuple[float, ...]:
    low_x, low_y, _, high_x, high_y, _ = config.grid.point_range
    return low_x, low_y, high_x, high_y


def _map_size(config: ModelConfig) -> tuple[int, int]:
    columns, rows, _ = config.grid.grid_size
    return rows // config.head.stride, columns // config.head.stride


def _detection_rows(
    terms: LossTerms, targets: Sequence[HeadTargets | AnchorTargets], model: Detector, added: int | None
) -> tuple[ActiveTerm, ...]:
    """Return a row per part of the detection loss; classification looks at the whole map, the others at objects."""
    objects = sum(int((t.mask if isinstance(t, HeadTargets) else t.positive).sum()) for t in targets)
    rows = []
    for name in ("heatmap", "class", "box", "direction"):
        if name in terms.parts:
            weight = getattr(model.config.head, f"{name}_weight")
            whole = name in ("heatmap", "class")
            rows.append(ActiveTerm(name, weight, float(terms.parts[name]), None if whole else objects, added))
    return tuple(rows)
