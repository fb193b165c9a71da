"""Detectors of one stage on pillars or voxels, under the original's tensor names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from kdlib.config import AnchorHeadConfig, HeadConfig, ModelConfig, PillarEncoderConfig
from kdlib.config.codec import require
from kdlib.errors import DataError
from kdlib.models.anchor_head import AnchorHead, AnchorOutput
from kdlib.models.anchors import AnchorTargets, assign_anchors
from kdlib.models.bev_backbone import BevBackbone
from kdlib.models.center_head import CenterHead
from kdlib.models.decode import decode_maps
from kdlib.models.pillar_encoder import PillarEncoder
from kdlib.models.sparse import SparseTensor
from kdlib.models.sparse.voxelize import voxelize
from kdlib.models.targets import assign_targets
from kdlib.models.voxel_encoder import STRIDE, MeanEncoder, VoxelBackbone, bev_depth
from kdlib.types import Detections, GroundTruth, HeadOutput, HeadTargets, PointBatch, VoxelBatch

Output = TypeVar("Output")


@dataclass(frozen=True)
class Sites:
    """What an encoder found in every occupied pillar or voxel, before it becomes a map."""

    features: Tensor  # (V, C)
    coords: Tensor  # (V, 4) int64: batch, z, y, x
    shape: tuple[int, int, int]  # cells along z, y, x
    low: tuple[float, ...]  # x, y, z of the grid's corner in metres
    size: tuple[float, ...]  # x, y, z of a cell in metres
    batch_size: int

    @property
    def positions(self) -> Tensor:
        """Centres (V, 3) of the cells in metres."""
        low, size = (
            torch.tensor(values, device=self.coords.device) for values in (self.low, self.size)
        )
        return low + (self.coords[:, [3, 2, 1]] + 0.5) * size


@dataclass(frozen=True)
class Prediction(Generic[Output]):
    """What a forward pass leaves."""

    heads: tuple[Output, ...]
    bev: Tensor  # (B, C, H, W) output of the 2D backbone
    voxels: int  # non-empty pillars or voxels of the batch
    sites: Sites | None = None  # only if asked for


class Detector(nn.Module, ABC):
    """The detector of one configuration, whose head a subclass makes; it voxelises its input on its
    own grid.

    Source: spec section 4; ``state_dict`` names are the original's (spec appendix A).
    """

    global_step: Tensor
    dense_head: nn.Module
    HEAD: type[HeadConfig] | type[AnchorHeadConfig]
    """Settings of the heads this kind of detector has."""
    learns_heads = True
    """Whether a training moves what the heads answer."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the network with fresh weights.

        Raises:
            ConfigError: If grid, backbone and head do not fit together, or the head is another; the
                message names the setting.
        """
        super().__init__()
        fits, made = isinstance(config.head, self.HEAD), type(config.head).__name__
        require(
            fits,
            (
                f"'{config.name}' has {made}, {type(self).__name__} needs "
                f"{self.HEAD.__name__}; use build()"
            ),
        )
        _check(config)
        self.config, self.head = config, config.head
        self.register_buffer("global_step", torch.zeros(1, dtype=torch.long))
        self.backbone_3d: VoxelBackbone | None = None
        if isinstance(config.encoder, PillarEncoderConfig):
            self.vfe: PillarEncoder | MeanEncoder = PillarEncoder(config.encoder, config.grid)
            channels = self.vfe.channels
        else:
            self.vfe = MeanEncoder()
            self.backbone_3d = VoxelBackbone(config.encoder, config.grid)
            channels = self.backbone_3d.channels
        self.keep_places()
        self.backbone_2d = BevBackbone(config.backbone, channels)
        self.dense_head = self.make_head(self.backbone_2d.channels)

    def keep_places(self) -> None:
        """Name the children that a state dict has before the 2D backbone although their weights are
        drawn after it: none here.
        """

    @abstractmethod
    def make_head(self, inputs: int) -> nn.Module:
        """Return the head on a map of that many channels."""

    def voxelize(self, points: PointBatch) -> VoxelBatch:
        """Return the pillars or voxels of a batch on this model's grid; raises as
        :meth:`features`, and DataError if a point is not finite.
        """
        return voxelize(self.features(points), self.config.grid)

    def features(self, points: PointBatch) -> PointBatch:
        """Return a batch with the first features of its points, as many as this model takes; raises
        DataError if there are fewer.
        """
        taken, given = self.config.encoder.point_features, points.points.shape[-1]
        if given < taken:
            raise DataError(
                f"'{self.config.name}' takes {taken} features a point, the batch has {given}; give "
                f"{taken}, or build the model with point_features={given} in its encoder"
            )
        return points if given == taken else replace(points, points=points.points[:, :taken])

    def encode(self, voxels: VoxelBatch) -> tuple[Tensor, Sites]:
        """Return the BEV map (B, C, H, W) that enters the 2D backbone, and the sites it is made of.

        These are pillars, or what the 3D backbone leaves before height compression.
        """
        features = self._voxel_features(voxels)
        if self.backbone_3d is None:
            columns, rows, levels = self.config.grid.grid_size
            active = SparseTensor(
                features, voxels.coords, (levels, rows, columns), voxels.batch_size
            )
        else:
            active, _ = self.backbone_3d(features, voxels)
        return active.bev(), self.sites_of(active)

    def sites_of(self, active: SparseTensor) -> Sites:
        """Return what an encoder left, with its place in metres."""
        low, high = self.config.grid.point_range[:3], self.config.grid.point_range[3:]
        # The levels that a 3D backbone leaves share the height evenly, to within a voxel or two.
        size = tuple((b - a) / cells for a, b, cells in zip(low, high, active.spatial_shape[::-1]))
        return Sites(
            active.features, active.coords, active.spatial_shape, low, size, active.batch_size
        )

    def forward(
        self,
        points: PointBatch,
        sites: bool = False,
        boxes: bool = True,
        truth: GroundTruth | None = None,
    ) -> Prediction[Any]:
        """Return the raw answers of every head for a batch of points, with the encoder's sites
        where ``sites`` are wanted.

        Args:
            points: Of B frames.
            sites: See above.
            boxes: Whether :meth:`detect` will be asked; what only serves boxes may be left out
                otherwise.
            truth: The labels of a training step, for detectors that choose by them what they learn
                from. One stage ignores both.
        """
        voxels = self.voxelize(points)
        encoded, encoder_sites = self.encode(voxels)
        bev = self.backbone_2d(encoded)
        return Prediction(
            self.dense_head(bev), bev, len(voxels.features), encoder_sites if sites else None
        )

    def _voxel_features(self, voxels: VoxelBatch) -> Tensor:
        with torch.autocast(voxels.features.device.type, enabled=False):
            # metres do not fit into 16 bits; offsets to a pillar's centre would be noise
            return self.vfe(voxels)

    @abstractmethod
    def targets(self, truth: GroundTruth) -> tuple[Any, ...]:
        """Return what each head should answer, on this model's grid."""

    @abstractmethod
    def detect(self, prediction: Prediction[Any], nms: bool = True) -> list[Detections]:
        """Return the boxes of every frame."""


class CenterPoint(Detector):
    """A detector with a centre head (spec 4.4): CP-Pillar and CP-Voxel."""

    HEAD = HeadConfig
    head: HeadConfig

    def make_head(self, inputs: int) -> CenterHead:
        """Return a centre head."""
        return CenterHead(self.head, inputs)

    def targets(self, truth: GroundTruth) -> tuple[HeadTargets, ...]:
        """Return what the heads should answer, on this model's grid."""
        config = self.config
        return assign_targets(
            truth.boxes,
            truth.labels,
            grid=config.grid,
            head=self.head,
            class_names=config.class_names,
        )

    def detect(self, prediction: Prediction[HeadOutput], nms: bool = True) -> list[Detections]:
        """Return the boxes of every frame."""
        config = self.config
        return decode_maps(
            prediction.heads,
            grid=config.grid,
            head=self.head,
            class_names=config.class_names,
            nms=nms,
        )


class AnchorDetector(Detector):
    """A detector with an anchor head (spec 4.5): SECOND and PointPillar."""

    HEAD = AnchorHeadConfig
    head: AnchorHeadConfig
    dense_head: AnchorHead

    def make_head(self, inputs: int) -> AnchorHead:
        """Return an anchor head."""
        return AnchorHead(self.head, self.config.grid, inputs, len(self.config.class_names))

    def targets(self, truth: GroundTruth) -> tuple[AnchorTargets, ...]:
        """Return what every anchor should answer."""
        return (
            assign_anchors(
                truth.boxes,
                truth.labels,
                self.dense_head.anchors,
                self.head,
                self.config.class_names,
            ),
        )

    def detect(self, prediction: Prediction[AnchorOutput], nms: bool = True) -> list[Detections]:
        """Return the boxes of every frame."""
        return self.dense_head.decode(prediction.heads[0], nms)


def _check(config: ModelConfig) -> None:
    """Check that a model's grid, encoder, backbone and head fit together.

    Raises:
        ConfigError: Naming what does not fit and the remedy.
    """
    columns, rows, layers = config.grid.grid_size
    pillars = isinstance(config.encoder, PillarEncoderConfig)
    if pillars:
        wanted = "pillars need one cell in z, not {}; make voxel_size[2] the whole range of z"
    else:
        wanted = "{} cells in z vanish in the 3D backbone, which needs 24; make voxel_size[2] less"
    require(
        layers == 1 if pillars else bev_depth(layers) > 0,
        (f"'{config.name}': {wanted.format(layers)}"),
    )
    strides, ups, stride = (
        config.backbone.strides,
        config.backbone.upsample_strides,
        config.head.stride,
    )
    steps = f"'{config.name}': strides {strides}" + (
        "" if pillars else (f" behind the {STRIDE} of the 3D backbone")
    )
    _, *levels = accumulate((1 if pillars else STRIDE, *strides), mul)
    require(
        columns % levels[-1] == rows % levels[-1] == 0,
        f"{steps} need a grid divisible by {levels[-1]}, not {columns} x {rows} cells; change "
        "point_range or voxel_size",
    )
    require(
        all(level == up * stride for level, up in zip(levels, ups)),
        f"{steps} with upsample_strides {ups} do not bring every level to the head's stride of "
        f"{stride}",
    )
