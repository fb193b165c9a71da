"""What a training step minimises: a batch enters, named loss terms of the student leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from kdlib.config import KDConfig
from kdlib.errors import ConfigError
from kdlib.kd.adapter import make_adapter
from kdlib.kd.check import bev_region, check_pair, with_centre_head
from kdlib.kd.feature import feature_kd, feature_needs, feature_weights
from kdlib.kd.label import merge_labels
from kdlib.kd.logit import logit_kd
from kdlib.kd.report import ActiveTerm, ZeroWatch, detection_rows, feature_rows, further_rows, labels_added, logit_rows
from kdlib.kd.schedule import factor
from kdlib.kd.statistics import unmoved_statistics
from kdlib.kd.teacher import Teacher
from kdlib.kd.term import PREFIX, Need, StepContext, Term
from kdlib.models import ranks
from kdlib.models.detector import Detector
from kdlib.models.losses.detection import detection_loss, detector_loss, further_loss
from kdlib.models.losses.loss_part import LossPart
from kdlib.types import Batch, LossTerms


class Plain(nn.Module):
    """The student alone: its detection loss on the ground truth."""

    def __init__(self, student: Detector) -> None:
        """Take over a student with any head."""
        super().__init__()
        self.student = student

    def forward(self, batch: Batch, progress: float | None = None) -> LossTerms:
        """Return the parts ``heatmap`` and ``box``; of an anchor head ``class``, ``box`` and ``direction``.

        A second stage adds its own; where the first is frozen they are all there is. ``progress`` is there because every
        objective is called alike; nothing here depends on it.
        """
        return _of_all_ranks(self._step(batch)[0])

    def report(self, batch: Batch) -> tuple[ActiveTerm, ...]:
        """Return the active terms with their values on one batch; the student stays as it is."""
        with torch.no_grad(), unmoved_statistics(self.student):
            terms, further = self._step(batch)
            targets = self.student.targets(batch.truth)
        return detection_rows(terms, targets, self.student, None) + further_rows(terms, further)

    def _step(self, batch: Batch) -> tuple[LossTerms, tuple[LossPart, ...]]:
        prediction = self.student(batch.points, truth=batch.truth)
        parts: dict[str, Tensor] = {}
        if self.student.learns_heads:
            parts.update(detector_loss(self.student, prediction.heads, self.student.targets(batch.truth)).parts)
        further = further_loss(self.student, prediction)
        return LossTerms.total({**parts, **_weighted(further)}), further


class Distillation(nn.Module):
    """A student, a frozen teacher and the terms between them.

    The teacher moves between devices with this module but is no part of it otherwise: ``parameters()``, ``state_dict()`` and
    ``train()`` reach the student and what is learned beside it: the adapter of feature distillation, terms that are modules.

    Source: SparseKD; spec section 7.
    """

    def __init__(
        self, student: Detector, teacher: Detector | Teacher, config: KDConfig, extra: Sequence[Term] = (), seed: int = 0
    ) -> None:
        """Take over both, which need centre heads; a plain detector becomes a :class:`Teacher` in the norm mode of the recipe.

        Args:
            student: To be trained.
            teacher: To be asked; its parameters are frozen in place.
            config: Terms of the recipe.
            extra: Terms of one's own, after those of the recipe.
            seed: Draws the adapter.

        Raises:
            ConfigError: If recipe, terms, teacher and student do not fit together; the message names the setting.
        """
        super().__init__()
        if {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}:
            raise ConfigError("student and teacher share parameters, so freezing one freezes the other; build them apart")
        learner = with_centre_head(student, "student")
        frozen = teacher if isinstance(teacher, Teacher) else Teacher(with_centre_head(teacher, "teacher"), config.teacher_norm)
        check_pair(learner, frozen, config, extra)
        self.student = learner
        self.config = config
        self.adapter = make_adapter(learner, frozen.model, config.feature, seed)
        self.extra = tuple(extra)
        self.learned = nn.ModuleList(term.value for term in extra if isinstance(term.value, nn.Module))
        self._asked = _asked(config, extra)
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

    def forward(self, batch: Batch, progress: float | None = None) -> LossTerms:
        """Return the parts ``heatmap``, ``box`` and those of the distillation terms, whose names begin with ``kd_``.

        Args:
            batch: Points and ground truth.
            progress: Steps done divided by the steps of the training, for the schedule of the recipe; None for full weights.

        Raises:
            ConfigError: If an enabled distillation term was exactly 0 for fifty training steps in a row.
        """
        scale = 1.0 if progress is None else factor(progress, self.config.schedule)
        terms = _of_all_ranks(self._step(batch, scale)[0])
        # What the schedule has switched off says nothing about a term.
        if scale != 0 and self.training and torch.is_grad_enabled():
            self._watch.see({name: value for name, value in terms.parts.items() if name.startswith(PREFIX)})
        return terms

    def report(self, batch: Batch) -> tuple[ActiveTerm, ...]:
        """Return the active terms with their full values on one batch; student and teacher stay as they are."""
        with torch.no_grad(), unmoved_statistics(self.student):
            terms, context = self._step(batch)
        rows = list(detection_rows(terms, context.targets, self.student, labels_added(context, self.config.label)))
        rows += further_rows(terms, further_loss(self.student, context.prediction))
        rows += logit_rows(terms, context, self.config.logit, bev_region(self.student.config))
        rows += feature_rows(terms, context, self.config.feature, self.adapter, bev_region(self.student.config))
        rows += [ActiveTerm(term.name, term.weight, float(terms.parts[term.name]), None, None) for term in self.extra]
        return tuple(rows)

    def _step(self, batch: Batch, scale: float = 1.0) -> tuple[LossTerms, StepContext]:
        label = self.config.label
        answer = self.teacher(batch, **{name: name in self._asked for name in get_args(Need)})
        labels = batch.truth
        if label is not None:
            labels = merge_labels(answer.boxes, batch.truth, label, self.student.head.targets.max_objects)
        prediction = self.student(batch.points, sites="sites" in self._asked, truth=labels)
        context = StepContext(batch, labels, prediction, self.student.targets(labels), answer)
        parts = dict(detection_loss(prediction.heads, context.targets, self.student.head).parts)
        parts.update(_weighted(further_loss(self.student, prediction)))
        learned = {**self._logit(context), **self._features(context), **{term.name: term(context) for term in self.extra}}
        # At full weight nothing is multiplied, so that a run without a schedule has its bits as before there were any.
        parts.update(learned if scale == 1 else {name: scale * value for name, value in learned.items()})
        return LossTerms.total(parts), context

    def _logit(self, context: StepContext) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = {}
        if self.config.logit is None:
            return parts
        heads, region = context.prediction.heads, bev_region(self.student.config)
        for number, (ours, theirs) in enumerate(zip(heads, context.answer.heads)):
            marks = context.answer.targets[number] if context.answer.targets else None
            for name, value in logit_kd(ours, theirs, context.targets[number], marks, self.config.logit, region).items():
                parts[name] = parts[name] + value / len(heads) if name in parts else value / len(heads)
        return parts

    def _features(self, context: StepContext) -> Mapping[str, Tensor]:
        if self.config.feature is None or self.adapter is None:
            return {}
        return feature_kd(context, self.config.feature, self.adapter, bev_region(self.student.config)).parts


def _weighted(parts: Sequence[LossPart]) -> dict[str, Tensor]:
    """Return parts by name, times their weights."""
    return {part.name: part.weight * part.value for part in parts}


def _of_all_ranks(terms: LossTerms) -> LossTerms:
    return LossTerms.total(ranks.whole(terms.parts)) if ranks.several() else terms


def _asked(config: KDConfig, extra: Sequence[Term]) -> frozenset[Need]:
    """Return what the teacher has to answer besides its heads' maps."""
    asked: set[Need] = {need for term in extra for need in term.needs}
    if config.label is not None:
        asked.add("boxes")
    if config.feature is not None and feature_weights(config.feature):
        asked |= feature_needs(config.feature)
    logit = config.logit
    if logit is not None and logit.target == "teacher":
        if logit.regression_weight != 0 or (logit.weight != 0 and logit.positions in ("center", "gaussian")):
            asked.add("targets")
    return frozenset(asked)
