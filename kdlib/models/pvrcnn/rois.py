"""RoIs, the way into a RoI's own frame and back, and the refined detections (spec 4.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdlib.config import RefinedConfig
from kdlib.models.anchors import decode_codes, encode_codes
from kdlib.models.geometry.nms import rotated_nms
from kdlib.types import Detections


@dataclass(frozen=True)
class Rois:
    """Boxes to be refined, those of B frames one after the other."""

    boxes: Tensor  # (R, 7), without gradient
    labels: Tensor  # (R,) int64, 1-based: the class the first stage saw
    frame: Tensor  # (R,) int64, ascending
    batch_size: int

    @staticmethod
    def of(detections: Sequence[Detections]) -> Rois:
        """Return the boxes of every frame as RoIs."""
        labels = [frame.labels for frame in detections]
        boxes = torch.cat([frame.boxes for frame in detections]).detach()
        numbers = [torch.full_like(own, number) for number, own in enumerate(labels)]
        return Rois(boxes, torch.cat(labels), torch.cat(numbers), len(detections))

    @property
    def per_frame(self) -> list[Tensor]:
        """The boxes (M_b, 7) of each frame."""
        return list(self.boxes.split(self.frame.bincount(minlength=self.batch_size).tolist()))


def grid_points(boxes: Tensor, size: int) -> Tensor:
    """Return the middles (R, size^3, 3) of the cells that boxes (R, 7) are cut into, metres; x
    slowest, z fastest.
    """
    steps = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size - 0.5
    cells = torch.cartesian_prod(steps, steps, steps).view(-1, 3)
    return rotate(cells * boxes[:, None, 3:6], boxes[:, 6]) + boxes[:, None, :3]


def rotate(points: Tensor, angle: Tensor) -> Tensor:
    """Turn points (R, N, 3) around z by one angle (R,) each, counter-clockwise."""
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y, z = points.unbind(-1)
    return torch.stack((x * cos - y * sin, x * sin + y * cos, z), dim=-1)


def into_roi(boxes: Tensor, rois: Tensor) -> Tensor:
    """Return boxes (R, 7) as seen from RoIs (R, 7).

    The centre counts from the RoI's, along its axes; the heading is the difference, turned by half
    a circle where it points backwards, so that it lies in [-pi / 2, pi / 2].
    """
    centre = rotate((boxes[:, :3] - rois[:, :3])[:, None], -rois[:, 6])[:, 0]
    turn = (boxes[:, 6] - rois[:, 6]) % (2 * math.pi)
    backwards = (turn > math.pi / 2) & (turn < 3 * math.pi / 2)
    turn = torch.where(backwards, turn - math.pi, turn)
    turn = torch.where(turn > math.pi, turn - 2 * math.pi, turn).clamp(-math.pi / 2, math.pi / 2)
    return torch.cat((centre, boxes[:, 3:6], turn[:, None]), dim=1)


def anchors_of(rois: Tensor) -> Tensor:
    """Return RoIs (R, 7) in their own frames: in the origin, looking ahead."""
    return torch.cat(
        (torch.zeros_like(rois[:, :3]), rois[:, 3:6], torch.zeros_like(rois[:, :1])), dim=1
    )


def encode_roi(boxes: Tensor, rois: Tensor) -> Tensor:
    """Return the codes (R, 7) of boxes relative to RoIs, both (R, 7)."""
    return encode_codes(into_roi(boxes, rois), anchors_of(rois))


def decode_roi(codes: Tensor, rois: Tensor) -> Tensor:
    """Return the boxes (R, 7) of codes relative to RoIs, but for half a turn the inverse of
    :func:`encode_roi`.
    """
    local = decode_codes(codes, anchors_of(rois))
    centre = rotate(local[:, None, :3], rois[:, 6])[:, 0] + rois[:, :3]
    return torch.cat((centre, local[:, 3:6], local[:, 6:7] + rois[:, 6:7]), dim=1)


def refined(
    rois: Rois, logits: Tensor, codes: Tensor, config: RefinedConfig, nms: bool = True
) -> list[Detections]:
    """Return the refined boxes of every frame, best first, under the classes of their RoIs.

    Confidences are logits (R,), codes (R, 7) relative to the RoIs; ``nms`` suppresses overlapping
    boxes across classes.
    """
    scores, boxes = logits.detach().sigmoid(), decode_roi(codes.detach(), rois.boxes)
    frames = []
    for number in range(rois.batch_size):
        own = ((rois.frame == number) & (scores >= config.score_threshold)).nonzero()[:, 0]
        limits = (
            (config.nms_iou, config.nms_pre, config.nms_post) if nms else (1.0, len(own), len(own))
        )
        best = own[rotated_nms(boxes[own], scores[own], *limits)]
        frames.append(Detections(boxes[best], scores[best], rois.labels[best]))
    return frames
