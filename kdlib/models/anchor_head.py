"""The anchor head, AnchorHeadSingle, and the boxes made of its answers (spec 4.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdlib.config import AnchorHeadConfig, GridConfig
from kdlib.models.anchors import anchor_boxes, anchors_per_cell, decode_codes, limit_period
from kdlib.models.geometry.boxes import wrap_angle
from kdlib.models.geometry.nms import rotated_nms
from kdlib.models.precision import wide
from kdlib.types import Detections

_PRIOR = 0.01  # probability of an object every anchor starts with
_DIRECTIONS = 2


@dataclass(frozen=True)
class AnchorOutput:
    """Raw answers of an anchor head; N anchors a frame, in the order of ``AnchorHead.anchors``."""

    classes: Tensor  # (B, N, C) logits
    codes: Tensor  # (B, N, 7) box codes relative to the anchors
    directions: Tensor  # (B, N, 2) logits of the two halves of the circle


class AnchorHead(nn.Module):
    """Three 1x1 convolutions over anchors on a grid (``dense_head`` in a state dict, where the
    anchors themselves are not).
    """

    anchors: Tensor  # (N, 7)

    def __init__(
        self, config: AnchorHeadConfig, grid: GridConfig, inputs: int, classes: int
    ) -> None:
        """Build and initialise the convolutions."""
        super().__init__()
        self.config, self.classes = config, classes
        kinds = anchors_per_cell(config)
        self.conv_cls = nn.Conv2d(inputs, kinds * classes, 1)
        self.conv_box = nn.Conv2d(inputs, kinds * 7, 1)
        self.conv_dir_cls = nn.Conv2d(inputs, kinds * _DIRECTIONS, 1)
        nn.init.constant_(self.conv_cls.bias, -math.log((1 - _PRIOR) / _PRIOR))  # type: ignore[arg-type]
        nn.init.normal_(self.conv_box.weight, mean=0.0, std=0.001)
        self.register_buffer("anchors", anchor_boxes(config, grid), persistent=False)

    def forward(self, bev: Tensor) -> tuple[AnchorOutput, ...]:
        """Return the answers on a map (B, C, H, W): one output, for a tuple is what every head
        gives.
        """
        return (
            AnchorOutput(
                _per_anchor(self.conv_cls(bev), self.classes),
                _per_anchor(self.conv_box(bev), 7),
                _per_anchor(self.conv_dir_cls(bev), _DIRECTIONS),
            ),
        )

    def decode(self, output: AnchorOutput, nms: bool = True) -> list[Detections]:
        """Return the detections of every frame, best first: one class per anchor, suppression
        across classes.

        Scores of at least ``score_threshold`` count; ``center_limit`` is a setting of centre heads
        and is not used. Half precision is widened first.
        """
        return [
            self._frame(*values, nms)
            for values in zip(output.classes, output.codes, output.directions)
        ]

    def _frame(self, classes: Tensor, codes: Tensor, directions: Tensor, nms: bool) -> Detections:
        settings = self.config.decode
        scores, channel = wide(classes).sigmoid().max(dim=1)
        seen = (scores >= settings.score_threshold).nonzero()[:, 0]
        seen = seen[scores[seen].argsort(descending=True, stable=True)[: settings.nms_pre]]
        boxes = decode_codes(wide(codes[seen]), self.anchors[seen])
        offset = self.config.direction_offset
        half = directions[seen].argmax(dim=1).to(boxes.dtype)
        heading = limit_period(boxes[:, 6] - offset, 0.0, math.pi) + offset + math.pi * half
        boxes = torch.cat((boxes[:, :6], wrap_angle(heading)[:, None]), dim=1)
        if nms:
            kept = rotated_nms(
                boxes, scores[seen], settings.nms_iou, settings.nms_pre, settings.nms_post
            )
            boxes, seen = boxes[kept], seen[kept]
        return Detections(boxes, scores[seen], channel[seen] + 1)


def _per_anchor(maps: Tensor, numbers: int) -> Tensor:
    """Turn maps (B, A * numbers, H, W) into (B, H * W * A, numbers)."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), maps.shape[1:].numel() // numbers, numbers)
