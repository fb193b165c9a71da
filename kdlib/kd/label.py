"""Label distillation: the teacher's detections and the ground truth enter, one merged ground truth leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from kdlib.config import LabelKDConfig
from kdlib.errors import ConfigError
from kdlib.models.geometry.nms import rotated_nms
from kdlib.models.geometry.rotated_iou import bev_iou, volume_iou
from kdlib.types import Detections, GroundTruth

LabelScore = Literal["class", "iou", "mixed"]


def confident(
    found: Detections,
    thresholds: Sequence[float],
    *,
    score: LabelScore = "class",
    annotated: tuple[Tensor, Tensor] | None = None,
) -> Detections:
    """Return the detections whose mark exceeds the threshold of their class, in float32 and strictly, order kept.

    The mark is for ``class`` the detection's score; for ``iou`` its largest IoU of volumes with an annotated box of any class;
    for ``mixed`` that with an annotated box of the first class (vehicles) if it is one itself, else the score.

    Args:
        found: A frame's detections.
        thresholds: One per class.
        score: The kind of mark.
        annotated: Boxes (M, 7) and labels (M,) of the frame; needed unless ``score`` is ``class``.

    Raises:
        ConfigError: If a label has no threshold or ``score`` is unknown.
        ValueError: If annotated boxes are missing.

    Source: spec section 7.4; goldens of the original show that its ``mixed`` asks for a box of the first class.
    """
    if found.labels.numel() and int(found.labels.max()) > len(thresholds):
        raise ConfigError(
            f"a teacher box has label {int(found.labels.max())} but only {len(thresholds)} classes have a threshold"
        )
    if score not in get_args(LabelScore):
        raise ConfigError(f"unknown label score '{score}'; use one of {', '.join(get_args(LabelScore))}")
    marks = found.scores.float()
    if score != "class":
        if annotated is None:
            raise ValueError(f"label score '{score}' compares with annotated boxes, and none were given")
        boxes, labels = annotated
        overlap = _best_overlap(found.boxes, boxes if score == "iou" else boxes[labels == 1])
        marks = overlap if score == "iou" else torch.where(found.labels == 1, overlap, marks)
    limits = marks.new_tensor(list(thresholds))
    return _take(found, marks > limits[found.labels - 1])


def _best_overlap(boxes: Tensor, others: Tensor) -> Tensor:
    if not len(others):
        return boxes.new_zeros(len(boxes), dtype=torch.float32)
    return volume_iou(boxes.to(others.dtype), others).amax(dim=1).float()


def merge_labels(
    teacher: Sequence[Detections],
    truth: GroundTruth,
    config: LabelKDConfig,
    max_objects: int = 500,
    *,
    legacy: bool = False,
) -> GroundTruth:
    """Return confident teacher boxes and ground truth as one set of labels, at most ``max_objects`` per frame.

    Ground truth always stays: where both exceed the limit, the teacher's boxes of lowest score leave. With ``legacy`` nothing is
    dropped here, so that target assignment cuts the tail of the list, whatever it holds, as the original does (pains B13).

    Args:
        teacher: One entry per frame, decoded without NMS; near-duplicates are kept unless ``config.dedupe_iou`` is set.
        truth: Annotated boxes.
        config: Thresholds, order, duplicates.
        max_objects: Slots of target assignment.
        legacy: Reproduce the original's truncation.

    Raises:
        ConfigError: If a label has no threshold.
        ValueError: If the numbers of frames differ.

    Source: SparseKD section 4.3; spec section 7.4.
    """
    frames = truth.boxes.shape[0]
    if len(teacher) != frames:
        raise ValueError(f"teacher boxes of {len(teacher)} frames but ground truth of {frames}")
    merged = [_merge_frame(teacher[b], truth.boxes[b], truth.labels[b], config, max_objects, legacy) for b in range(frames)]
    longest = max((len(labels) for _, labels in merged), default=0)
    boxes = truth.boxes.new_zeros(frames, longest, 7)
    labels = truth.labels.new_zeros(frames, longest)
    for frame, (some, named) in enumerate(merged):
        boxes[frame, : len(some)] = some
        labels[frame, : len(named)] = named
    return GroundTruth(boxes, labels)


def _merge_frame(
    found: Detections, boxes: Tensor, labels: Tensor, config: LabelKDConfig, max_objects: int, legacy: bool
) -> tuple[Tensor, Tensor]:
    valid = labels > 0
    boxes, labels = boxes[valid], labels[valid]
    found = confident(found, config.thresholds, score=config.score, annotated=(boxes, labels))
    if not config.use_truth:
        boxes, labels = boxes[:0], labels[:0]
    if config.dedupe_iou is not None:
        found = _without_duplicates(found, boxes, labels, config.dedupe_iou)
    room = max(max_objects - len(labels), 0)
    if not legacy and len(found.labels) > room:
        best = found.scores.topk(room).indices.sort().values
        found = _take(found, best)
    first, second = (found.boxes.to(boxes.dtype), boxes), (found.labels, labels)
    if not config.teacher_first:
        first, second = (first[1], first[0]), (second[1], second[0])
    return torch.cat(first), torch.cat(second)


def _without_duplicates(found: Detections, boxes: Tensor, labels: Tensor, limit: float) -> Detections:
    """Drop boxes that overlap an annotated box, or a teacher's box of higher score, of their own class by more than ``limit``."""
    kept: list[Tensor] = []
    for label in found.labels.unique().tolist():
        own = (found.labels == label).nonzero().squeeze(1)
        same = boxes[labels == label]
        if len(same):
            own = own[bev_iou(found.boxes[own].to(same.dtype), same).amax(dim=1) <= limit]
        if len(own):
            own = own[rotated_nms(found.boxes[own], found.scores[own], limit, len(own), len(own))]
        kept.append(own)
    if not kept:
        return found
    return _take(found, torch.cat(kept).sort().values)


def _take(found: Detections, which: Tensor) -> Detections:
    return Detections(found.boxes[which], found.scores[which], found.labels[which])
