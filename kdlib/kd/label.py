"""Label distillation: the teacher's confident boxes, merged with the ground truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kdlib.config import LabelKDConfig
from kdlib.errors import ConfigError
from kdlib.models.geometry.nms import rotated_nms
from kdlib.models.geometry.rotated_iou import bev_iou, volume_iou
from kdlib.types import Detections, GroundTruth


def confident(
    detections: Detections,
    thresholds: Sequence[float],
    annotated: tuple[Tensor, Tensor],
    score: str = "class",
) -> Detections:
    """Return a frame's detections whose mark exceeds the threshold of their class, in float32 and
    strictly, order kept.

    The mark is for ``class`` the detection's score; for ``iou`` its largest IoU of volumes with an
    annotated box of any class; for ``mixed`` that with an annotated box of the first class
    (vehicles) if it is one itself, else the score. ``annotated`` are boxes (M, 7) and labels (M,).

    Raises:
        ConfigError: If a label has no threshold.

    Source: spec section 7.4; goldens of the original show that its ``mixed`` asks for a box of the
        first class.
    """
    labels = detections.labels
    if labels.numel() and labels.max() > len(thresholds):
        raise ConfigError(
            f"a teacher box has label {labels.max()} but only {len(thresholds)} "
            "classes have a threshold"
        )
    marks = detections.scores.float()
    if score != "class":
        boxes, kinds = annotated
        overlap = _best_overlap(detections.boxes, boxes if score == "iou" else boxes[kinds == 1])
        marks = overlap if score == "iou" else torch.where(labels == 1, overlap, marks)
    return _take(detections, marks > marks.new_tensor(thresholds)[labels - 1])


def _best_overlap(boxes: Tensor, others: Tensor) -> Tensor:
    if not len(others):
        return boxes.new_zeros(len(boxes), dtype=torch.float32)
    return volume_iou(boxes.to(others.dtype), others).amax(dim=1).float()


def merge_labels(
    teacher: Sequence[Detections], truth: GroundTruth, config: LabelKDConfig, max_objects: int = 500
) -> GroundTruth:
    """Return confident teacher boxes and ground truth as one set of labels, at most ``max_objects``
    per frame.

    Ground truth always stays: where both exceed the limit, the teacher's boxes of lowest score
    leave. (The original cuts the tail of the list in target assignment, whatever it holds; pains
    B13.) The teacher's boxes are one entry per frame, decoded without NMS; near-duplicates are kept
    unless ``config.dedupe_iou`` is set.

    Raises:
        ConfigError: If a label has no threshold.
        ValueError: If the numbers of frames differ.

    Source: SparseKD section 4.3; spec section 7.4.
    """
    frames = len(truth.boxes)
    if len(teacher) != frames:
        raise ValueError(f"teacher boxes of {len(teacher)} frames but ground truth of {frames}")
    if not frames:
        return truth
    merged = [
        _merge_frame(*frame, config, max_objects)
        for frame in zip(teacher, truth.boxes, truth.labels)
    ]
    return GroundTruth(*(pad_sequence(list(rows), batch_first=True) for rows in zip(*merged)))


def labels_added(
    truth: GroundTruth, labels: GroundTruth, config: LabelKDConfig | None
) -> int | None:
    """Return how many labels are the teacher's; None without label distillation."""
    if config is None:
        return None
    return int((labels.labels > 0).sum()) - (
        int((truth.labels > 0).sum()) if config.use_truth else 0
    )


def _merge_frame(
    teacher: Detections, boxes: Tensor, labels: Tensor, config: LabelKDConfig, max_objects: int
) -> tuple[Tensor, Tensor]:
    valid = labels > 0
    boxes, labels = boxes[valid], labels[valid]
    teacher = confident(teacher, config.thresholds, (boxes, labels), config.score)
    if not config.use_truth:
        boxes, labels = boxes[:0], labels[:0]
    if config.dedupe_iou is not None:
        teacher = _without_duplicates(teacher, boxes, labels, config.dedupe_iou)
    room = max(max_objects - len(labels), 0)
    if len(teacher.labels) > room:
        teacher = _take(teacher, teacher.scores.topk(room).indices.sort().values)
    order = 1 if config.teacher_first else -1
    return torch.cat((teacher.boxes.to(boxes.dtype), boxes)[::order]), torch.cat(
        (teacher.labels, labels)[::order]
    )


def _without_duplicates(
    teacher: Detections, boxes: Tensor, labels: Tensor, limit: float
) -> Detections:
    """Drop boxes that overlap an annotated box, or a teacher's box of higher score, of their own
    class by more than ``limit``.
    """
    kept = []
    for label in teacher.labels.unique().tolist():
        own = (teacher.labels == label).nonzero().squeeze(1)
        same = boxes[labels == label]
        if len(same):
            own = own[bev_iou(teacher.boxes[own].to(same.dtype), same).amax(dim=1) <= limit]
        if len(own):
            own = own[
                rotated_nms(teacher.boxes[own], teacher.scores[own], limit, len(own), len(own))
            ]
        kept.append(own)
    if not kept:
        return teacher
    return _take(teacher, torch.cat(kept).sort().values)


def _take(teacher: Detections, which: Tensor) -> Detections:
    return Detections(teacher.boxes[which], teacher.scores[which], teacher.labels[which])
