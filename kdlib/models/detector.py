"""A point batch enters, head maps and boxes leave: CenterPoint on pillars, under the original's tensor names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor, nn

from kdlib.config import ModelConfig
from kdlib.errors import ConfigError, DataError
from kdlib.models.bev_backbone import BevBackbone
from kdlib.models.center_head import CenterHead
from kdlib.models.decode import decode
from kdlib.models.pillar_encoder import PillarEncoder
from kdlib.models.targets import assign_targets
from kdlib.types import Detections, GroundTruth, HeadOutput, HeadTargets, PointBatch, VoxelBatch
from kdlib.voxel.voxelize import voxelize


@dataclass(frozen=True)
class Prediction:
    """What a forward pass leaves."""

    heads: tuple[HeadOutput, ...]
    bev: Tensor  # (B, C, H, W) output of the 2D backbone
    voxels: int  # non-empty pillars of the batch


class CenterPoint(nn.Module):
    """The detector of one configuration; it voxelises its input on its own grid.

    Source: spec section 4; ``state_dict`` names are the original's (spec appendix A).
    """

    global_step: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Build the network with fresh weights.

        Raises:
            ConfigError: If grid, backbone and head do not fit together; the message names the setting.
        """
        super().__init__()
        _check(config)
        self.config = config
        self.register_buffer("global_step", torch.zeros(1, dtype=torch.long))
        self.vfe = PillarEncoder(config.encoder, config.grid)
        self.backbone_2d = BevBackbone(config.backbone, self.vfe.channels)
        self.dense_head = CenterHead(config.head, self.backbone_2d.channels)

    def voxelize(self, points: PointBatch) -> VoxelBatch:
        """Return the pillars of a batch on this model's grid.

        Raises:
            DataError: If the points have not the features this model takes, or one is not finite.
        """
        expected, found = self.config.encoder.point_features, points.points.shape[-1]
        if found != expected:
            raise DataError(f"'{self.config.name}' takes {expected} features a point, the batch has {found}; prepare it anew")
        return voxelize(points, self.config.grid)

    def scatter(self, features: Tensor, pillars: VoxelBatch) -> Tensor:
        """Return the BEV map (B, C, H, W) with every pillar's features (V, C) in its cell and zeros elsewhere."""
        columns, rows, _ = self.config.grid.grid_size
        index = (pillars.coords[:, 0] * rows + pillars.coords[:, 2]) * columns + pillars.coords[:, 3]
        canvas = features.new_zeros((pillars.batch_size * rows * columns, features.shape[1]))
        canvas = canvas.index_copy(0, index, features)
        # Channels stay the fastest axis in memory: convolutions on a CPU are half as fast again that way.
        return canvas.view(pillars.batch_size, rows, columns, -1).permute(0, 3, 1, 2)

    def forward(self, points: PointBatch) -> Prediction:
        """Return the raw maps of every head for a batch of points."""
        pillars = self.voxelize(points)
        with torch.autocast(points.points.device.type, enabled=False):
            features = self.vfe(pillars)  # metres do not fit into 16 bits; their offsets to a pillar's centre would be noise
        bev = self.backbone_2d(self.scatter(features, pillars))
        return Prediction(self.dense_head(bev), bev, len(pillars.features))

    def targets(self, truth: GroundTruth) -> tuple[HeadTargets, ...]:
        """Return what the heads should answer, on this model's grid."""
        config = self.config
        return assign_targets(truth.boxes, truth.labels, grid=config.grid, head=config.head, class_names=config.class_names)

    def detect(self, prediction: Prediction, nms: bool = True) -> list[Detections]:
        """Return the boxes of every frame."""
        config = self.config
        return decode(prediction.heads, grid=config.grid, head=config.head, class_names=config.class_names, nms=nms)


def _check(config: ModelConfig) -> None:
    """Check that a pillar model's grid, backbone and head fit together.

    Raises:
        ConfigError: Naming what does not fit and the remedy.
    """
    columns, rows, layers = config.grid.grid_size
    if layers != 1:
        raise ConfigError(f"'{config.name}': pillars need one cell in z, not {layers}; make voxel_size[2] the whole range of z")
    strides, ups = config.backbone.strides, config.backbone.upsample_strides
    total = math.prod(strides)
    if columns % total or rows % total:
        raise ConfigError(
            f"'{config.name}': strides {strides} need a grid divisible by {total}, not {columns} x {rows} cells; "
            "change point_range or voxel_size"
        )
    for reached, up in zip(accumulate(strides, mul), ups):
        if reached != up * config.head.stride:
            raise ConfigError(
                f"'{config.name}': strides {strides} with upsample_strides {ups} do not bring every level to the head's stride "
                f"of {config.head.stride}"
            )


def build(config: ModelConfig) -> CenterPoint:
    """Return a detector with fresh weights, laid out for fast convolutions."""
    model = CenterPoint(config)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model
