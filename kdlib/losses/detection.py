"""The detection loss of a centre-based detector: outputs and targets of all heads enter, two weighted parts leave."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdlib.config import HeadConfig
from kdlib.losses.box_regression import gather_codes, masked_l1, require_finite
from kdlib.losses.heatmap_focal import heatmap_focal_loss
from kdlib.types import HeadOutput, HeadTargets, LossTerms


def detection_loss(outputs: Sequence[HeadOutput], targets: Sequence[HeadTargets], head: HeadConfig) -> LossTerms:
    """Return the parts ``heatmap`` and ``box``, each weighted and summed over the heads.

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
