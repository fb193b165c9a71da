"""The detection loss of a detector, by the kind of its heads and stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdlib.config import HeadConfig
from kdlib.models.detector import AnchorDetector, CenterPoint, Detector, Prediction
from kdlib.models.losses.anchor import anchor_loss
from kdlib.models.losses.box_regression import box_regression_loss
from kdlib.models.losses.heatmap_focal import heatmap_focal_loss
from kdlib.models.losses.loss_part import LossPart, weighed
from kdlib.models.losses.second_stage import second_stage_loss
from kdlib.models.pvrcnn.two_stage import PVRCNN, refinement_of
from kdlib.types import HeadOutput, HeadTargets


def detector_loss(
    model: Detector, prediction: Prediction[Any], targets: Sequence[Any]
) -> tuple[LossPart, ...]:
    """Return the parts of a detector's loss: those of its heads, unless these are frozen, then
    those of a second stage.

    Raises:
        TypeError: If there is no loss for this kind of detector.
        ValueError: If a second stage did not run.
    """
    parts: tuple[LossPart, ...] = ()
    if isinstance(model, CenterPoint):
        parts = detection_loss(prediction.heads, targets, model.head) if model.learns_heads else ()
    elif isinstance(model, AnchorDetector):
        parts = anchor_loss(prediction.heads[0], targets[0], model.head)
    else:
        raise TypeError(f"no loss for a {type(model).__name__}")
    if isinstance(model, PVRCNN):
        parts += second_stage_loss(refinement_of(prediction), model.second)
    return parts


def detection_loss(
    outputs: Sequence[HeadOutput], targets: Sequence[HeadTargets], head: HeadConfig
) -> tuple[LossPart, ...]:
    """Return the parts ``heatmap`` and ``box`` of centre heads, each weighted and summed over the
    heads.

    Raises:
        ValueError: If outputs and targets are not one per head.
        DataError: If a target box is not finite.

    Source: spec section 5.2.
    """
    if not outputs or len(outputs) != len(targets):
        raise ValueError(
            f"{len(outputs)} head outputs but {len(targets)} head targets; both "
            "must be one per head"
        )
    pairs = list(zip(outputs, targets))
    box = [box_regression_loss(output, target).sum() for output, target in pairs]
    heatmap = [heatmap_focal_loss(output.heatmap, target.heatmap) for output, target in pairs]
    return (
        weighed("heatmap", head.heatmap_weight, sum(heatmap[1:], heatmap[0])),
        weighed(
            "box",
            head.box_weight,
            sum(box[1:], box[0]),
            sum(target.mask.sum() for target in targets),
        ),
    )
