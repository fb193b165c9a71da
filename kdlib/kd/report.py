"""The startup report of active terms, and the guard against terms that do nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdlib.config import FeatureKDConfig, LabelKDConfig, LogitKDConfig
from kdlib.errors import ConfigError
from kdlib.kd.feature import feature_kd, feature_weights
from kdlib.kd.logit import logit_weights, meet, position_weights
from kdlib.kd.roi_grid import Region
from kdlib.kd.term import StepContext
from kdlib.models.anchors import AnchorTargets
from kdlib.models.detector import Detector
from kdlib.models.losses.loss_part import LossPart
from kdlib.types import HeadTargets, LossTerms

PATIENCE = 50  # steps


@dataclass(frozen=True)
class ActiveTerm:
    """One line of the startup report."""

    name: str
    weight: float
    value: float  # weighted, on the batch of the report
    # Cells (kd_heatmap), entries (kd_rank), boxes or anchors (box, kd_box, direction) it looks at, any of these by its form
    # (kd_feature, kd_relation); None for the whole map.
    positions: int | None
    teacher_labels: int | None  # teacher boxes among its labels; None where labels come from the ground truth alone


def detection_rows(
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


def further_rows(terms: LossTerms, parts: Sequence[LossPart]) -> tuple[ActiveTerm, ...]:
    """Return a row per part of the loss beside those of the heads."""
    return tuple(ActiveTerm(part.name, part.weight, float(terms.parts[part.name]), int(part.positions), None) for part in parts)


def labels_added(context: StepContext, label: LabelKDConfig | None) -> int | None:
    """Return how many of the labels are the teacher's; None without label distillation."""
    if label is None:
        return None
    own = int((context.batch.truth.labels > 0).sum()) if label.use_truth else 0
    return int((context.labels.labels > 0).sum()) - own


def logit_rows(terms: LossTerms, context: StepContext, logit: LogitKDConfig | None, region: Region) -> tuple[ActiveTerm, ...]:
    """Return a row per part of logit distillation, positions summed over the heads."""
    weights = logit_weights(logit)
    if logit is None or not weights:
        return ()
    found = dict.fromkeys(weights, 0)
    marks = context.answer.targets if logit.target == "teacher" else context.targets
    for number, pair in enumerate(zip(context.prediction.heads, context.answer.heads)):
        mark = marks[number] if marks else None
        ours, theirs = meet(*pair, logit)
        if "kd_heatmap" in found:
            found["kd_heatmap"] += int((position_weights(ours, theirs, pair, mark, logit, region) > 0).sum())
        if "kd_rank" in found:
            found["kd_rank"] += len(theirs) * min(logit.rank, theirs[0].numel())
        if "kd_box" in found and mark is not None:
            found["kd_box"] += int(mark.mask.sum())
    return tuple(ActiveTerm(name, weights[name], float(terms.parts[name]), found[name], None) for name in weights)


def feature_rows(
    terms: LossTerms, context: StepContext, feature: FeatureKDConfig | None, adapter: nn.Module | None, region: Region
) -> tuple[ActiveTerm, ...]:
    """Return a row per part of feature distillation."""
    if feature is None or adapter is None:
        return ()
    places = feature_kd(context, feature, adapter, region).positions
    found = None if places is None else int(places)
    return tuple(ActiveTerm(n, weight, float(terms.parts[n]), found, None) for n, weight in feature_weights(feature).items())


class ZeroWatch:
    """Counts on the tensors' own device and looks at the counts once in ``patience`` steps, so that no step waits for it."""

    def __init__(self, patience: int = PATIENCE) -> None:
        """Start with no step seen."""
        self.patience = patience
        self.steps = 0
        self.zeros: dict[str, Tensor] = {}

    def see(self, parts: Mapping[str, Tensor]) -> None:
        """Take note of one training step.

        Raises:
            ConfigError: If a part was exactly 0 for ``patience`` steps in a row.
        """
        self.steps += 1
        with torch.no_grad():
            for name, value in parts.items():
                before = self.zeros.get(name)
                zero = (value.detach() == 0).to(torch.int64)
                self.zeros[name] = zero if before is None else (before.to(zero.device) + 1) * zero
        if self.steps % self.patience == 0:
            for name, count in self.zeros.items():
                if int(count) >= self.patience:
                    raise ConfigError(
                        f"term '{name}' is enabled but was exactly 0 for the last {int(count)} steps; "
                        "look at the startup report of active terms, then mend its settings or set its weight to 0"
                    )
