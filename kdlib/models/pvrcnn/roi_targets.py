"""The choice of RoIs that a training step refines, and what each should answer (spec 4.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdlib.config import RoiSamplingConfig
from kdlib.models.geometry.rotated_iou import volume_iou
from kdlib.models.pvrcnn.rois import Rois
from kdlib.types import Detections, GroundTruth


@dataclass(frozen=True)
class RoiTargets:
    """The answers wanted about R RoIs."""

    overlap: Tensor  # (R,) IoU of volumes with the best object of the RoI's class
    boxes: Tensor  # (R, 7) of that object; of the RoI itself where its class has none
    confidence: Tensor  # (R,) in [0, 1]
    positive: Tensor  # (R,) bool, whether the box is to be learned


@torch.no_grad()
def sample_rois(
    proposals: Sequence[Detections],
    truth: GroundTruth,
    config: RoiSamplingConfig,
    generator: torch.Generator,
) -> tuple[Rois, RoiTargets]:
    """Choose RoIs among each frame's proposals, some on objects and some not, and match each with
    an object of its class.

    Frames with proposals give ``config.rois`` each: foreground without repetition as far as it
    goes, background with. A frame without proposals gives none; the original gives copies of a box
    of no size instead.

    The generator is one of the host: the choice is the same on every device.

    Source: ProposalTargetLayer of OpenPCDet; spec 4.6.
    """
    chosen, overlaps, boxes = [], [], []
    for number, proposed in enumerate(proposals):
        valid = truth.labels[number] > 0
        overlap, matched = match_proposals(
            proposed, truth.boxes[number][valid], truth.labels[number][valid]
        )
        rows = choose_proposals(overlap, config, generator)
        chosen.append(
            Detections(proposed.boxes[rows], proposed.scores[rows], proposed.labels[rows])
        )
        overlaps.append(overlap[rows])
        boxes.append(matched[rows])
    overlap = torch.cat(overlaps)
    low, high = config.score_iou
    confidence = ((overlap - low) / (high - low)).clamp(0, 1)
    return Rois.of(chosen), RoiTargets(
        overlap, torch.cat(boxes), confidence, overlap > config.foreground_iou
    )


def match_proposals(proposed: Detections, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each detection the largest IoU (M,) with a box (K, 7) of its class, and that box
    (M, 7), else its own.
    """
    if not len(boxes):
        return torch.zeros_like(proposed.scores), proposed.boxes
    boxes = boxes.to(proposed.boxes.dtype)
    best, index = (
        volume_iou(proposed.boxes, boxes)
        .masked_fill(proposed.labels[:, None] != labels, -1)
        .max(dim=1)
    )
    return best.clamp(min=0), torch.where(best[:, None] >= 0, boxes[index], proposed.boxes)


def choose_proposals(
    overlap: Tensor, config: RoiSamplingConfig, generator: torch.Generator
) -> Tensor:
    """Return rows of ``config.rois`` proposals with these overlaps (M,), foreground first; none of
    none.
    """
    if not len(overlap):
        return torch.zeros(0, dtype=torch.int64, device=overlap.device)
    on_object, far = overlap >= config.foreground_iou, overlap < config.easy_iou
    foreground, easy, hard = (rows.nonzero()[:, 0] for rows in (on_object, far, ~(on_object | far)))
    if not len(easy) and not len(hard):
        return _drawn(foreground, config.rois, generator)
    count = min(round(config.rois * config.foreground), len(foreground))
    order = torch.randperm(len(foreground), generator=generator)[:count].to(overlap.device)
    rest = config.rois - count
    difficult = min(int(rest * config.hard), len(hard)) if len(easy) else rest
    parts = (foreground[order], _drawn(hard, difficult if len(hard) else 0, generator))
    return torch.cat((*parts, _drawn(easy, rest - len(parts[1]), generator)))


def _drawn(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw rows with repetition."""
    if not count:  # nothing may be drawn from no rows
        return rows[:0]
    return rows[torch.randint(len(rows), (count,), generator=generator).to(rows.device)]
