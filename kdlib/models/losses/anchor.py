"""The losses of an anchor head: classes, box codes and directions of every anchor (spec 4.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.config import AnchorHeadConfig
from kdlib.models import ranks
from kdlib.models.anchor_head import AnchorOutput
from kdlib.models.anchors import IGNORED, AnchorTargets
from kdlib.models.losses.loss_part import LossPart, weighed
from kdlib.models.precision import wide

_ALPHA, _GAMMA = 0.25, 2.0
BETA = 1 / 9  # where smooth-L1 of box codes turns from a parabola into a line


def sigmoid_focal(logits: Tensor, target: Tensor) -> Tensor:
    """Return the focal loss of every logit against 0 or 1, same shape.

    Source: Lin et al., 2017, with alpha 0.25 and gamma 2; spec 4.5.
    """
    probability = logits.sigmoid()
    miss = torch.where(target > 0, 1 - probability, probability)
    alpha = torch.where(target > 0, _ALPHA, 1 - _ALPHA)
    return (
        alpha
        * miss.pow(_GAMMA)
        * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    )


def code_distance(codes: Tensor, wanted: Tensor) -> Tensor:
    """Return the smooth-L1 distance (..., 7) of box codes; that of headings is the sine of their
    difference.

    Only ``sin(a) cos(b)`` against ``cos(a) sin(b)`` is compared, so half a turn is no error: the
    direction decides that.

    Source: SECOND section 3.3.1; spec 4.5.
    """
    ours, theirs = codes[..., 6:7], wanted[..., 6:7]
    codes = torch.cat((codes[..., :6], ours.sin() * theirs.cos()), dim=-1)
    wanted = torch.cat((wanted[..., :6], ours.cos() * theirs.sin()), dim=-1)
    return F.smooth_l1_loss(codes, wanted, reduction="none", beta=BETA)


def anchor_loss(
    output: AnchorOutput, targets: AnchorTargets, head: AnchorHeadConfig
) -> tuple[LossPart, ...]:
    """Return the parts ``class``, ``box`` and ``direction``, each divided by a frame's positives
    (at least 1) and the frames.

    Raises:
        ValueError: If outputs and targets do not have one set of anchors.

    Source: spec 4.5.
    """
    if output.classes.shape[:2] != targets.labels.shape:
        raise ValueError(
            f"answers of {tuple(output.classes.shape[:2])} anchors, targets of "
            f"{tuple(targets.labels.shape)}"
        )
    frames = ranks.over(len(targets.labels), output.classes)
    positive = targets.positive
    logits = wide(output.classes)
    share = positive.sum(dim=1).clamp(min=1).to(logits.dtype).reciprocal()  # (B,)
    wanted = F.one_hot(targets.labels.clamp(min=0), logits.shape[2] + 1)[..., 1:].to(logits.dtype)
    counted = (targets.labels != IGNORED) * share[:, None]
    classes = (sigmoid_focal(logits, wanted).sum(dim=2) * counted).sum() / frames
    frame, anchor = positive.nonzero(as_tuple=True)
    codes = code_distance(wide(output.codes[frame, anchor]), targets.codes[frame, anchor]).sum(
        dim=1
    )
    sides = F.cross_entropy(
        wide(output.directions[frame, anchor]), targets.directions[frame, anchor], reduction="none"
    )
    # A part is weighed before it is divided by the frames: the order of these two decides the last
    # bit.
    return (
        weighed("class", head.class_weight, classes),
        LossPart(
            "box",
            head.box_weight,
            head.box_weight * (codes * share[frame]).sum() / frames,
            len(frame),
        ),
        LossPart(
            "direction",
            head.direction_weight,
            head.direction_weight * (sides * share[frame]).sum() / frames,
            len(frame),
        ),
    )
