"""The detector of two stages, PV-RCNN++ (spec 4.6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.config import ModelConfig, TwoStageConfig
from kdlib.errors import ConfigError
from kdlib.models.detector import CenterPoint, Prediction
from kdlib.models.pvrcnn.point_head import PointHead, point_labels
from kdlib.models.pvrcnn.roi_head import RoiHead
from kdlib.models.pvrcnn.roi_targets import RoiTargets, sample_rois
from kdlib.models.pvrcnn.rois import Rois, refined
from kdlib.models.pvrcnn.set_abstraction import VoxelSetAbstraction
from kdlib.models.voxel_encoder import VoxelBackbone
from kdlib.types import POINT_FEATURES, Detections, GroundTruth, HeadOutput, PointBatch

SECOND_STAGE = ("pfe", "point_head", "roi_head")  # children of the second stage


@dataclass(frozen=True)
class Refinement:
    """What a second stage answers."""

    points: Tensor  # (K, 3) key points
    frame: Tensor  # (K,) of each key point
    point_logits: Tensor  # (K,) of lying on an object
    rois: Rois
    logits: Tensor  # (R,) confidence
    codes: Tensor  # (R, 7) refined boxes relative to the RoIs
    roi_targets: RoiTargets | None = None  # where labels were given
    # (K,) 1 on an object, 0 off, -1 near one; where labels were given
    point_labels: Tensor | None = None


@dataclass(frozen=True)
class TwoStagePrediction(Prediction[HeadOutput]):
    """What a forward pass of both stages leaves."""

    second: Refinement | None = None  # None if no boxes were asked for


class PVRCNN(CenterPoint):
    """CP-Voxel with a second stage: ``pfe``, ``point_head`` and ``roi_head`` beside its tensors'
    names.
    """

    backbone_3d: VoxelBackbone  # a TwoStageConfig has voxels
    pfe: VoxelSetAbstraction

    def __init__(self, config: ModelConfig) -> None:
        """Build both stages with fresh weights.

        Raises:
            ConfigError: If the stages do not fit together, or the configuration has no second one;
                the message names the setting.
        """
        if not isinstance(config, TwoStageConfig):
            raise ConfigError(f"'{config.name}' has no second stage; use build()")
        super().__init__(config)
        self.second = config.second
        self.learns_heads = config.second.first_stage == "trained"
        self.pfe = VoxelSetAbstraction(
            config.second.abstraction, config.grid, self.backbone_3d.channels
        )
        self.point_head = PointHead(config.second.points, self.pfe.channels)
        self.roi_head = RoiHead(config.second.rois)
        if not self.learns_heads:
            for module in self._first_stage():
                module.requires_grad_(False)

    def keep_places(self) -> None:
        """Keep the place of ``pfe`` before the 2D backbone, as in the original's state dict."""
        self.register_module("pfe", None)

    def train(self, mode: bool = True) -> PVRCNN:
        """Set the training mode; a frozen first stage keeps its statistics."""
        super().train(mode)
        if not self.learns_heads:
            for module in self._first_stage():
                module.train(False)
        return self

    def _first_stage(self) -> list[nn.Module]:
        return [module for name, module in self.named_children() if name not in SECOND_STAGE]

    def forward(
        self,
        points: PointBatch,
        sites: bool = False,
        boxes: bool = True,
        truth: GroundTruth | None = None,
    ) -> TwoStagePrediction:
        """Return the raw answers of both stages.

        Args:
            points: Of B frames.
            sites: Whether the encoder's sites are wanted.
            boxes: Whether boxes will be; without them the second stage does not run.
            truth: Labels of a training step: RoIs are sampled and their targets come along. Drawn
                from torch's own generator, whose state is in every checkpoint.
        """
        voxels, taken = self.voxelize(points), self.features(points).points
        # the second stage pools all features of the raw points: those the model does not take are 0
        points = replace(points, points=F.pad(taken, (0, POINT_FEATURES - taken.shape[1])))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.learns_heads):
            last, levels = self.backbone_3d(
                self._voxel_features(voxels), voxels, self.second.abstraction.strides
            )
            encoded = last.bev()
            bev = self.backbone_2d(encoded)
            heads = self.dense_head(bev)
        first = TwoStagePrediction(
            heads, bev, len(voxels.features), self.sites_of(last) if sites else None
        )
        if not boxes:
            return first
        with torch.no_grad():
            proposals = super().detect(first)
        rois, targets, labels = Rois.of(proposals), None, None
        if truth is not None:
            rois, targets = sample_rois(
                proposals, truth, self.second.sampling, torch.default_generator
            )
        keys = self.pfe(points, encoded, levels, rois.per_frame)
        logits = self.point_head(keys.before)
        if truth is not None:
            labels = point_labels(keys.xyz, keys.frame, truth, self.second.points.margin)
        confidence, codes = self.roi_head(keys, logits.sigmoid(), rois)
        return replace(
            first,
            second=Refinement(
                keys.xyz, keys.frame, logits, rois, confidence, codes, targets, labels
            ),
        )

    def detect(self, prediction: Prediction[Any], nms: bool = True) -> list[Detections]:
        """Return the refined boxes of every frame; raises as :func:`refinement_of`."""
        second = refinement_of(prediction)
        return refined(second.rois, second.logits, second.codes, self.second.refined, nms)


def refinement_of(prediction: Prediction[Any]) -> Refinement:
    """Return what the second stage answered; raises ValueError if the forward pass was told that
    nobody wants boxes.
    """
    if not isinstance(prediction, TwoStagePrediction) or prediction.second is None:
        raise ValueError("the second stage did not run: no boxes were asked for")
    return prediction.second
