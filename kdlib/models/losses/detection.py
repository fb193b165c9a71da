"""The detection loss of a detector: what its heads answered and should have answered enter, weighted parts leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kdlib.config import HeadConfig, TwoStageConfig
from kdlib.models.detector import AnchorDetector, CenterPoint, Detector, Prediction
from kdlib.models.losses.anchor import anchor_loss
from kdlib.models.losses.box_regression import gather_codes, masked_l1, require_finite
from kdlib.models.losses.heatmap_focal import heatmap_focal_loss
from kdlib.models.losses.loss_part import LossPart
from kdlib.models.losses.second_stage import second_stage_loss
from kdlib.models.pvrcnn.two_stage import TwoStagePrediction
from kdlib.types import HeadOutput, HeadTargets, LossTerms


def detector_loss(model: Detector, outputs: Sequence[Any], targets: Sequence[Any]) -> LossTerms:
    """Return the loss of a detector's heads, by the kind of its heads.

    Raises:
        TypeError: If there is no loss for this kind of detector.
    """
    if isinstance(model, CenterPoint):
        return detection_loss(outputs, targets, model.head)
    if isinstance(model, AnchorDetector):
        return anchor_loss(outputs[0], targets[0], model.head)
    raise TypeError(f"no loss for a {type(model).__name__}")


def further_loss(model: Detector, prediction: Prediction[Any]) -> tuple[LossPart, ...]:
    """Return the parts of a detector's loss beside those of its heads: none with one stage, four with two."""
    if isinstance(prediction, TwoStagePrediction) and isinstance(model.config, TwoStageConfig):
        if prediction.second is None:
            raise ValueError("the second stage did not run: no boxes were asked for")
        return second_stage_loss(prediction.second, model.config.second)
    return ()


def detection_loss(outputs: Sequence[HeadOutput], targets: Sequence[HeadTargets], head: HeadConfig) -> LossTerms:
    """Return the parts ``heatmap`` and ``box`` of centre heads, each weighted and summed over the heads.

    Raises:
        ValueError: If outputs and targets are not one per head.
        DataError: If a target box is not finite.

    Source: spec section 5.2.
    """
    if not outputs or len(outputs) != len(targets):
        raise ValueError(f"{len(outputs)} head outputs but {len(targets)} head targets; both must be one per head")
    heatmap: list[Tensor] = []
    box: list[Tensor] = []
    for output, target in zip(outputs, targets):
        require_finite(target)
        heatmap.append(heatmap_focal_loss(output.heatmap, target.heatmap))
        box.append(masked_l1(gather_codes(output, target.indices), target.boxes, target.mask).sum())
    return LossTerms.total({"heatmap": head.heatmap_weight * _total(heatmap), "box": head.box_weight * _total(box)})


def _total(values: list[Tensor]) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = result + value
    return result
