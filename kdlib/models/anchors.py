"""Anchor boxes, and the label, box code and direction that each should answer (spec 4.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdlib.config import AnchorConfig, AnchorHeadConfig, GridConfig
from kdlib.models.geometry.boxes import check_boxes
from kdlib.models.targets import check_labelled, label_of

IGNORED = -1  # label of an anchor that is neither object nor background
_PAIRS = 2**20  # anchor-box pairs whose IoU is held at once


@dataclass(frozen=True)
class AnchorTargets:
    """What the anchors of B frames should have answered; N anchors a frame, in the order of
    :func:`anchor_boxes`.
    """

    labels: Tensor  # (B, N) int64: 1-based class, 0 background, -1 ignored
    codes: Tensor  # (B, N, 7) box codes where the label is positive, else zeros
    # (B, N) int64: half of the circle the heading lies in, 0 or 1, where the label is positive
    directions: Tensor

    @property
    def positive(self) -> Tensor:
        """Which anchors hold an object (B, N)."""
        return self.labels > 0


def limit_period(value: Tensor, offset: float, period: float) -> Tensor:
    """Return values in [-offset * period, (1 - offset) * period) (spec 1.1)."""
    return value - torch.floor(value / period + offset) * period


def anchor_boxes(head: AnchorHeadConfig, grid: GridConfig) -> Tensor:
    """Return the anchors (N, 7) of a map in the order rows, columns, classes, rotations.

    Centres lie at equal distances from one border of the range to the other, both included
    (``align_center`` False; spec 4.5).
    """
    columns, rows = (cells // head.stride for cells in grid.grid_size[:2])
    low, high = grid.point_range[:2], grid.point_range[3:5]
    x = torch.linspace(low[0], high[0], columns)
    y = torch.linspace(low[1], high[1], rows)
    kinds = torch.tensor(
        [
            (0.0, 0.0, a.bottom + a.size[2] / 2, *a.size, angle)
            for a in head.anchors
            for angle in a.rotations
        ]
    )
    boxes = kinds.expand(rows, columns, -1, -1).clone()
    boxes[..., 0] = x[None, :, None]
    boxes[..., 1] = y[:, None, None]
    return boxes.flatten(0, 2)


def anchors_per_cell(head: AnchorHeadConfig) -> int:
    """Return the number of anchors of one cell, of all classes and rotations."""
    return sum(len(anchor.rotations) for anchor in head.anchors)


def encode_codes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the codes (..., 7) of boxes relative to anchors: offsets over the anchor's diagonal
    and height, log ratios, angle.

    Source: SECOND (Yan et al., 2018); ResidualCoder, spec 4.5.
    """
    offset = (boxes[..., :3] - anchors[..., :3]) / _scale(anchors)
    ratio = (boxes[..., 3:6].clamp(min=1e-5) / anchors[..., 3:6]).log()
    return torch.cat((offset, ratio, boxes[..., 6:7] - anchors[..., 6:7]), dim=-1)


def decode_codes(codes: Tensor, anchors: Tensor) -> Tensor:
    """Return the boxes (..., 7) of codes relative to anchors, the inverse of :func:`encode_codes`;
    headings are not wrapped.
    """
    centre = codes[..., :3] * _scale(anchors) + anchors[..., :3]
    size = codes[..., 3:6].exp() * anchors[..., 3:6]
    return torch.cat((centre, size, codes[..., 6:7] + anchors[..., 6:7]), dim=-1)


def _scale(anchors: Tensor) -> Tensor:
    diagonal = torch.hypot(anchors[..., 3], anchors[..., 4])
    return torch.stack((diagonal, diagonal, anchors[..., 5]), dim=-1)


def direction_of(heading: Tensor, offset: float) -> Tensor:
    """Return which half of the circle (0 or 1) headings lie in, counted from ``offset`` radians."""
    return (limit_period(heading - offset, 0.0, 2 * math.pi) / math.pi).floor().long().clamp(0, 1)


def nearest_rectangles(boxes: Tensor) -> Tensor:
    """Return the axis-aligned rectangles (M, 4: x, y minima, then maxima) nearest to boxes (M, 7).

    A heading within 45 degrees of the x axis keeps length along x, any other puts it along y.
    """
    turned = limit_period(boxes[:, 6], 0.5, math.pi).abs() >= math.pi / 4
    size = torch.where(turned[:, None], boxes[:, [4, 3]], boxes[:, [3, 4]])
    return torch.cat((boxes[:, :2] - size / 2, boxes[:, :2] + size / 2), dim=1)


def rectangle_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU (M, K) of axis-aligned rectangles (M, 4) and (K, 4)."""
    width, depth = (
        (
            torch.minimum(a[:, None, axis + 2], b[:, axis + 2])
            - torch.maximum(a[:, None, axis], b[:, axis])
        ).clamp_(min=0)
        for axis in (0, 1)
    )
    shared = width.mul_(depth)
    area_a, area_b = ((corners[:, 2:] - corners[:, :2]).prod(dim=1) for corners in (a, b))
    return shared / (area_a[:, None] + area_b - shared).clamp_(min=1e-6)


def match_anchors(anchors: Tensor, boxes: Tensor, config: AnchorConfig) -> Tensor:
    """Return for every anchor (N,) of one class the index of its box, -1 for background, -2 for
    ignored.

    An anchor takes the box it overlaps most if that reaches ``positive_iou``, or if the anchor is
    the best (ties included) of any box; it is background below ``negative_iou``. Overlap is that of
    the nearest axis-aligned rectangles seen from above.

    Boxes (M, 7) are all of this class. Source: AxisAlignedTargetAssigner; spec 4.5.
    """
    if not len(boxes):
        return torch.full((len(anchors),), -1, dtype=torch.long, device=anchors.device)
    ours, theirs = nearest_rectangles(anchors), nearest_rectangles(boxes)
    best = anchors.new_full((len(anchors),), -1.0)
    which, forced = (torch.zeros_like(best, dtype=kind) for kind in (torch.long, torch.bool))
    step = max(_PAIRS // max(len(anchors), 1), 1)
    # a million anchors times a hundred boxes would not fit
    for start in range(0, len(boxes), step):
        iou = rectangle_iou(theirs[start : start + step], ours)
        top, index = iou.max(dim=0)
        better = top > best  # equal overlap stays with the earlier box
        best, which = torch.where(better, top, best), torch.where(better, index + start, which)
        peak = iou.amax(dim=1, keepdim=True)
        forced |= ((iou == peak) & (peak > 0)).any(dim=0)
    answer = torch.where(best < config.negative_iou, -1, -2)
    return torch.where(forced | (best >= config.positive_iou), which, answer)


def assign_anchors(
    boxes: Tensor,
    labels: Tensor,
    anchors: Tensor,
    head: AnchorHeadConfig,
    class_names: tuple[str, ...],
) -> AnchorTargets:
    """Return the targets of every anchor (N, 7), class by class; no sampling. A box that is damaged
    or empty counts as absent.

    Boxes are (B, M, 7), labels (B, M) 1-based positions in ``class_names``, 0 for padding.

    Raises:
        ValueError: If the shapes do not fit, or the head names an unknown class.
    """
    check_boxes(boxes)
    check_labelled(boxes, labels)
    cells = anchors.view(-1, anchors_per_cell(head), 7).split(
        [len(config.rotations) for config in head.anchors], dim=1
    )
    solid = torch.isfinite(boxes).all(dim=2) & (boxes[..., 3:6] > 0).all(dim=2)
    frames = []
    for frame_boxes, frame_labels in zip(boxes, labels.where(solid, 0)):
        answers = []
        for config, own in zip(head.anchors, cells):
            label = label_of(config.class_name, class_names)
            theirs = frame_boxes[frame_labels == label].to(anchors.dtype)
            values = _answers(own.flatten(0, 1), theirs, label, config, head.direction_offset)
            answers.append([value.unflatten(0, own.shape[:2]) for value in values])
        frames.append([torch.cat(parts, dim=1).flatten(0, 1) for parts in zip(*answers)])
    return AnchorTargets(*(torch.stack(parts) for parts in zip(*frames)))


def _answers(
    anchors: Tensor, boxes: Tensor, label: int, config: AnchorConfig, offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels (N,), codes (N, 7) and directions (N,) of the anchors of one class, given the
    boxes of that class.
    """
    which = match_anchors(anchors, boxes, config)
    hit = which >= 0
    codes, directions = torch.zeros_like(anchors), torch.zeros_like(which)
    codes[hit] = encode_codes(boxes[which[hit]], anchors[hit])
    directions[hit] = direction_of(boxes[which[hit], 6], offset)
    return torch.where(hit, label, torch.where(which == -1, 0, IGNORED)), codes, directions
