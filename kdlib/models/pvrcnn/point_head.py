"""The head that tells key points on objects from others, and its labels (spec 4.6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlib.config import PointHeadConfig
from kdlib.models.anchors import IGNORED
from kdlib.models.batch_norm import RowNorm
from kdlib.models.geometry.boxes import points_in_boxes
from kdlib.models.precision import wide
from kdlib.types import GroundTruth


class PointHead(nn.Module):
    """Tells key points on objects from others (``point_head`` in a state dict)."""

    def __init__(self, config: PointHeadConfig, inputs: int) -> None:
        """Build for features of that width."""
        super().__init__()
        layers = []
        for outputs in config.channels:
            layers += [nn.Linear(inputs, outputs, bias=False), RowNorm(outputs), nn.ReLU()]
            inputs = outputs
        self.cls_layers = nn.Sequential(*layers, nn.Linear(inputs, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (K,), at least float32, of features (K, C)."""
        return wide(self.cls_layers(features)[:, 0])


@torch.no_grad()
def point_labels(xyz: Tensor, frame: Tensor, truth: GroundTruth, margin: float) -> Tensor:
    """Return what key points (K, 3) of frames (K,) should answer (K,) int64: 1 in a box, -1 around
    one, else 0.

    With its surroundings a box is ``margin`` metres longer, wider and higher.
    """
    labels = torch.zeros_like(frame)
    for number, (boxes, kinds) in enumerate(zip(truth.boxes, truth.labels)):
        rows, own = (frame == number).nonzero()[:, 0], boxes[kinds > 0]
        larger = torch.cat((own[:, :3], own[:, 3:6] + margin, own[:, 6:]), dim=1)
        inside, around = (points_in_boxes(xyz[rows], size).any(dim=1) for size in (own, larger))
        labels[rows] = torch.where(inside, 1, torch.where(around, IGNORED, 0))
    return labels
