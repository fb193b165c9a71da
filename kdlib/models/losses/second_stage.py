"""The losses of a second stage: key points, confidence, boxes and corners of RoIs (spec 4.6)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.config import SecondStageConfig
from kdlib.models import ranks
from kdlib.models.anchors import IGNORED
from kdlib.models.geometry.boxes import corners_3d
from kdlib.models.losses.anchor import BETA, sigmoid_focal
from kdlib.models.losses.loss_part import LossPart, weighed
from kdlib.models.pvrcnn.rois import decode_roi, encode_roi
from kdlib.models.pvrcnn.two_stage import Refinement


def point_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the focal loss of key points, logits and labels (K,), ignored ones left out, over the
    number of those on objects.
    """
    apart = sigmoid_focal(logits, (labels > 0).to(logits.dtype)) * (labels != IGNORED)
    return apart.sum() / ranks.total((labels > 0).sum()).clamp(min=1)


def confidence_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of RoIs' logits (R,) against confidences (R,); 0 without
    RoIs.
    """
    apart = F.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype), reduction="sum")
    return apart / torch.as_tensor(ranks.over(len(logits), logits)).clamp(min=1)


def refinement_loss(codes: Tensor, rois: Tensor, boxes: Tensor, positive: Tensor) -> Tensor:
    """Return the smooth-L1 distance of box codes (R, 7) of RoIs (R, 7) to those of the boxes wanted
    (R, 7).

    It is summed over the seven numbers and averaged over the RoIs on objects, ``positive`` (R,).
    """
    wanted = encode_roi(boxes[positive], rois[positive])
    apart = F.smooth_l1_loss(codes[positive], wanted, reduction="sum", beta=BETA)
    return apart / ranks.total(positive.sum()).clamp(min=1)


def corner_loss(codes: Tensor, rois: Tensor, boxes: Tensor, positive: Tensor) -> Tensor:
    """Return the smooth-L1 distance (beta 1 m) of the corners of refined boxes, or of boxes turned
    round, whichever is nearer.

    Mean over eight corners and over the RoIs on objects; the arguments are those of
    :func:`refinement_loss`.

    Source: Frustum PointNets section 4.4; spec 4.6.
    """
    refined, wanted = corners_3d(decode_roi(codes[positive], rois[positive])), boxes[positive]
    turned = torch.cat((wanted[:, :6], wanted[:, 6:] + math.pi), dim=1)
    apart = torch.minimum(
        _distance(refined, corners_3d(wanted)), _distance(refined, corners_3d(turned))
    )
    near = F.smooth_l1_loss(apart, torch.zeros_like(apart), reduction="sum")
    return near / (apart.shape[1] * ranks.total(positive.sum()).clamp(min=1))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return distances (R, 8) of corners (R, 8, 3); where they coincide the gradient is 0, not
    undefined.
    """
    squared = (a - b).square().sum(dim=2)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def second_stage_loss(answer: Refinement, config: SecondStageConfig) -> tuple[LossPart, ...]:
    """Return the parts ``point``, ``roi_class``, ``roi_box`` and ``roi_corner`` with the number of
    points or RoIs each looks at.

    Raises:
        ValueError: If the answer has no targets: the forward pass was not given labels.
    """
    targets, labels = answer.roi_targets, answer.point_labels
    if targets is None or labels is None:
        raise ValueError("the second stage was not told the labels; call the detector with truth=")
    regression = (
        answer.codes,
        answer.rois.boxes.to(answer.codes.dtype),
        targets.boxes.to(answer.codes.dtype),
        targets.positive,
    )
    learned, positive, rois = (labels != IGNORED).sum(), targets.positive.sum(), config.rois
    return (
        weighed("point", config.points.weight, point_loss(answer.point_logits, labels), learned),
        weighed(
            "roi_class",
            rois.class_weight,
            confidence_loss(answer.logits, targets.confidence),
            len(answer.logits),
        ),
        weighed("roi_box", rois.box_weight, refinement_loss(*regression), positive),
        weighed("roi_corner", rois.corner_weight, corner_loss(*regression), positive),
    )
