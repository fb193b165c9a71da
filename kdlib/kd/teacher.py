"""The frozen teacher, which answers without gradient and without any trace in itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from kdlib.config import TeacherNorm
from kdlib.errors import ConfigError
from kdlib.kd.statistics import batch_norms, hidden_statistics
from kdlib.models.detector import CenterPoint, Sites
from kdlib.types import Batch, Detections, HeadOutput, HeadTargets


@dataclass(frozen=True)
class TeacherAnswer:
    """Everything a student may learn from, on the teacher's own grid."""

    heads: tuple[HeadOutput, ...]  # logits and raw maps
    targets: tuple[HeadTargets, ...]  # from the ground truth alone, one per head; empty if not asked for
    boxes: tuple[Detections, ...]  # decoded without NMS, one per frame; empty if not asked for
    bev: Tensor | None = None  # (B, C, H, W) what enters the heads; only if asked for
    sites: Sites | None = None  # what the encoder found in every pillar or voxel; only if asked for


class Teacher(nn.Module):
    """A frozen detector with a BatchNorm mode that no outer ``train()`` can change.

    ``norm="running"`` uses the stored statistics: a frame's answer does not depend on the other frames of the batch.
    ``norm="batch"`` uses those of the current batch, as the original does: it depends on them. Neither changes what is stored.

    Source: spec section 7.2.
    """

    def __init__(self, model: CenterPoint, norm: TeacherNorm) -> None:
        """Take over a detector; its parameters are frozen in place.

        Raises:
            ConfigError: If the mode is unknown.
        """
        super().__init__()
        if norm not in get_args(TeacherNorm):
            raise ConfigError(f"unknown teacher norm '{norm}'; use one of {', '.join(get_args(TeacherNorm))}")
        self.model = model
        self.norm: TeacherNorm = norm
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Stay frozen, whatever the mode asked for."""
        self.training = False
        self.model.eval()
        return self

    @torch.no_grad()
    def forward(
        self, batch: Batch, *, targets: bool = True, boxes: bool = True, bev: bool = False, sites: bool = False
    ) -> TeacherAnswer:
        """Return the answer to a batch, voxelised on the teacher's own grid; all but the heads' maps only on demand.

        Source: spec section 7.3 step 4.
        """
        self.train()  # also after somebody switched the inner model
        with hidden_statistics(batch_norms(self.model) if self.norm == "batch" else ()):
            prediction = self.model(batch.points, sites=sites, boxes=boxes)
        return TeacherAnswer(
            heads=tuple(prediction.heads),
            targets=tuple(self.model.targets(batch.truth)) if targets else (),
            boxes=tuple(self.model.detect(prediction, nms=False)) if boxes else (),
            bev=prediction.bev if bev else None,
            sites=prediction.sites,
        )
