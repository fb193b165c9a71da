"""What a training step minimises: the student's own loss, alone or with distillation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.config import KDConfig, KDScheduleConfig, LabelKDConfig
from kdlib.errors import ConfigError, DataError
from kdlib.kd.adapter import make_adapter
from kdlib.kd.check import check_pair, with_centre_head
from kdlib.kd.feature import feature_kd, feature_needs
from kdlib.kd.label import labels_added, merge_labels
from kdlib.kd.logit import logit_kd, logit_needs
from kdlib.kd.roi_grid import bev_region
from kdlib.kd.teacher import Need, Teacher, unmoved_statistics
from kdlib.kd.term import PREFIX, StepContext, Term
from kdlib.kd.watch import ActiveTerm, ZeroWatch, active_terms
from kdlib.models.detector import CenterPoint, Detector
from kdlib.models.losses.detection import detector_loss
from kdlib.models.losses.loss_part import LossPart, loss_terms
from kdlib.types import Batch, GroundTruth, LossTerms


class _Objective(nn.Module, ABC):
    """A student and the parts of the loss that a batch makes."""

    student: Detector
    label: LabelKDConfig | None = None

    @abstractmethod
    def _parts(self, batch: Batch) -> tuple[list[LossPart], GroundTruth]:
        """Return the parts at their full weights, and the labels they learn from."""

    def report(self, batch: Batch) -> tuple[ActiveTerm, ...]:
        """Return the active terms with their full values on one batch; student and teacher stay as
        they are.

        Raises:
            ConfigError: If a distillation term is NaN or infinite there.
        """
        with torch.no_grad(), unmoved_statistics(self.student):
            parts, labels = self._parts(batch)
        rows = active_terms(parts, labels_added(batch.truth, labels, self.label))
        for row in rows:
            if row.name.startswith(PREFIX) and not math.isfinite(row.value):
                raise ConfigError(
                    f"term '{row.name}' is {row.value} on the first batch; look for a division by "
                    "0 or the root or logarithm of one"
                )
        return rows


class Plain(_Objective):
    """The student alone: its detection loss on the ground truth."""

    def __init__(self, student: Detector) -> None:
        """Take over a student with any head."""
        super().__init__()
        self.student = student

    def forward(self, batch: Batch, progress: float | None = None) -> LossTerms:
        """Return the parts ``heatmap`` and ``box``; of an anchor head ``class``, ``box`` and
        ``direction``.

        A second stage adds its own; where the first is frozen they are all there is. ``progress``
        is there because every objective is called alike; nothing here depends on it.
        """
        return loss_terms(self._parts(batch)[0])

    def _parts(self, batch: Batch) -> tuple[list[LossPart], GroundTruth]:
        prediction = self.student(batch.points, truth=batch.truth)
        targets = self.student.targets(batch.truth) if self.student.learns_heads else ()
        return list(detector_loss(self.student, prediction, targets)), batch.truth


class Distillation(_Objective):
    """A student, a frozen teacher and the terms between them.

    The teacher moves between devices with this module but is no part of it otherwise:
    ``parameters()``, ``state_dict()`` and ``train()`` reach the student and what is learned beside
    it: the adapter of feature distillation, terms that are modules.

    Source: SparseKD; spec section 7.
    """

    student: CenterPoint

    def __init__(
        self,
        student: Detector,
        teacher: Detector | Teacher,
        config: KDConfig,
        extra: Sequence[Term] = (),
        seed: int = 0,
    ) -> None:
        """Take over both, which need centre heads; a plain detector becomes a :class:`Teacher` in
        the norm mode of the recipe.

        Args:
            student: To be trained.
            teacher: To be asked; its parameters are frozen in place.
            config: Terms of the recipe.
            extra: Terms of one's own, after those of the recipe.
            seed: Draws the adapter.

        Raises:
            ConfigError: If recipe, terms, teacher and student do not fit together; the message
                names the setting.
        """
        super().__init__()
        if {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}:
            raise ConfigError(
                "student and teacher share parameters, so freezing one freezes the "
                "other; build them apart"
            )
        learner = with_centre_head(student, "student")
        frozen = (
            teacher
            if isinstance(teacher, Teacher)
            else Teacher(with_centre_head(teacher, "teacher"), config.teacher_norm)
        )
        check_pair(learner, frozen, config, extra)
        self.student = learner
        self.config, self.label = config, config.label
        self.adapter = make_adapter(learner, frozen.model, config.feature, seed)
        self.extra = tuple(extra)
        self.learned = nn.ModuleList(
            term.value for term in extra if isinstance(term.value, nn.Module)
        )
        self._asked = _asked(config, extra)
        self._unregistered = (frozen,)  # a tuple hides it from nn.Module
        self._watch = ZeroWatch()

    @property
    def teacher(self) -> Teacher:
        """The frozen teacher."""
        return self._unregistered[0]

    def check_teacher(self, batch: Batch) -> None:
        """Ask the teacher about a batch; raises DataError if it answers with NaN or infinity."""
        for head in self.teacher(batch, ()).heads:
            for name, answer in vars(head).items():
                bad = int((~answer.isfinite()).sum())
                if bad:
                    raise DataError(
                        f"the teacher answers with NaN or infinity, {bad} of {answer.numel()} "
                        f"numbers of its '{name}' on the first batch; take other weights for it"
                    )

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Distillation:
        """Move or cast the teacher along with the student (``to``, ``cuda``, ``double`` all end
        here).
        """
        super()._apply(fn, *args, **kwargs)
        self.teacher._apply(fn, *args, **kwargs)
        return self

    def forward(self, batch: Batch, progress: float | None = None) -> LossTerms:
        """Return the parts ``heatmap``, ``box`` and those of the distillation terms, whose names
        begin with ``kd_``.

        ``progress``, steps done divided by the steps of the training, sets the weights by the
        schedule; None for full weights.

        Raises:
            ConfigError: If an enabled distillation term was exactly 0 for fifty training steps in a
                row.
        """
        scale = 1.0 if progress is None else factor(progress, self.config.schedule)
        parts, _ = self._parts(batch)
        # at full weight nothing is multiplied, so that a run without a schedule keeps its bits
        if scale != 1:
            parts = [
                replace(part, value=scale * part.value) if part.name.startswith(PREFIX) else part
                for part in parts
            ]
        terms = loss_terms(parts)
        # What the schedule has switched off says nothing about a term.
        if scale != 0 and self.training and torch.is_grad_enabled():
            self._watch.see(
                {name: value for name, value in terms.parts.items() if name.startswith(PREFIX)}
            )
        return terms

    def _parts(self, batch: Batch) -> tuple[list[LossPart], GroundTruth]:
        config, asked = self.config, self._asked
        answer = self.teacher(batch, asked)
        labels = batch.truth
        if config.label is not None:
            labels = merge_labels(
                answer.boxes, batch.truth, config.label, self.student.head.targets.max_objects
            )
        prediction = self.student(batch.points, sites="sites" in asked, truth=labels)
        context = StepContext(batch, labels, prediction, self.student.targets(labels), answer)
        parts = list(detector_loss(self.student, prediction, context.targets))
        region = bev_region(self.student.config)
        if config.logit is not None:
            parts += logit_kd(context, config.logit, region)
        if config.feature is not None and self.adapter is not None:
            parts += feature_kd(context, config.feature, self.adapter, region)
        parts += [LossPart(term.name, term.weight, term(context)) for term in self.extra]
        return parts, labels


def factor(progress: float, config: KDScheduleConfig) -> float:
    """Return what the weights of all ``kd_`` terms are multiplied by, in [0, 1]; exactly 1 outside
    of warm-up and decay.

    It rises linearly from 0 over the first ``warm_up`` of a training and falls linearly to
    ``floor`` over the last ``decay``. ``progress`` is steps done divided by the steps of the
    schedule: 0 in the first step.

    Raises:
        ValueError: If ``progress`` lies outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(
            f"progress {progress} of a training is not in [0, 1]; it is steps done "
            "divided by all steps"
        )
    if progress < config.warm_up:
        return progress / config.warm_up
    left = 1 - progress
    if left < config.decay:
        return config.floor + (1 - config.floor) * left / config.decay
    return 1.0


def _asked(config: KDConfig, extra: Sequence[Term]) -> frozenset[Need]:
    """Return what the teacher has to answer besides its heads' maps."""
    asked = {need for term in extra for need in term.needs}
    if config.label is not None:
        asked.add("boxes")
    return frozenset(asked | feature_needs(config.feature) | logit_needs(config.logit))
