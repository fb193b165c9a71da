"""What a detector has beside its first stage; the values of PV-RCNN++ (spec 4.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from kdlib.config.codec import require, require_positive
from kdlib.config.model import HeadConfig, ModelConfig, VoxelEncoderConfig
from kdlib.errors import ConfigError
from kdlib.types import POINT_FEATURES

PoolKind = Literal["local_interpolation", "voxel_random_choice"]
"""How a local voxel gets its vector: from the three points nearest to its centre, or from the first
point inside.
"""

FirstStage = Literal["trained", "frozen"]
"""Whether a training moves the first stage too, as published, or leaves it as it is, BatchNorm
statistics included.
"""


@dataclass(frozen=True)
class VectorPoolConfig:
    """Vector pooling in local voxels of several sizes; the defaults are those of the RoI grid."""

    kind: PoolKind = "voxel_random_choice"
    # channels that the support's are folded into: channel i is added to i mod reduced
    reduced: int = 30
    # local voxels along x, y, z of each group
    voxels: tuple[tuple[int, int, int], ...] = ((3, 3, 3), (3, 3, 3))
    # half the side of each group's cube of local voxels, metres
    radii: tuple[float, ...] = (0.8, 1.6)
    voxel_channels: int = 32  # that each local voxel's vector is turned into
    group_channels: tuple[int, ...] = (64, 64)  # of the MLP behind each group
    channels: tuple[int, ...] = (128,)  # of the MLP over all groups
    limit: int = 32  # neighbours looked at (interpolation), or local voxels filled (random choice)

    def __post_init__(self) -> None:
        """Check that there is a radius for each group and nothing is empty."""
        require(
            self.kind in get_args(PoolKind), (f"there is no vector pooling of kind '{self.kind}'")
        )
        require(
            len(self.voxels) == len(self.radii) > 0,
            f"vector pooling needs one radius per group of local voxels: {len(self.radii)} "
            f"radii, {len(self.voxels)} groups",
        )
        require(
            min(map(min, self.voxels)) > 0,
            (f"numbers of local voxels must be positive, not {self.voxels}"),
        )
        require_positive(
            self, "radii", "reduced", "voxel_channels", "limit", "group_channels", "channels"
        )


_NEIGHBOURS = 1000  # as many as the original's kernel has room for
_RAW = VectorPoolConfig(
    "local_interpolation", 2, ((2, 2, 2), (3, 3, 3)), (0.2, 0.4), 32, (32, 32), (32,), _NEIGHBOURS
)
_CONV3 = VectorPoolConfig("local_interpolation", 32, radii=(1.2, 2.4), limit=_NEIGHBOURS)
_CONV4 = VectorPoolConfig("local_interpolation", 32, radii=(2.4, 4.8), limit=_NEIGHBOURS)


@dataclass(frozen=True)
class SetAbstractionConfig:
    """Key points and what is gathered around them."""

    keypoints: int = 4096  # per frame; up to one more per sector but one
    sectors: int = 6
    # metres around the ball of the nearest RoI in which a point may become a key point
    keypoint_margin: float = 1.6
    raw: VectorPoolConfig = _RAW
    levels: tuple[VectorPoolConfig, ...] = (_CONV3, _CONV4)
    # of the sparse backbone's stages that ``levels`` look at: conv3, conv4
    strides: tuple[int, ...] = (4, 8)
    # metres, as above, for the raw points and each level
    margins: tuple[float, ...] = (2.4, 4.0, 6.4)
    fused: int = 90  # channels of a key point

    def __post_init__(self) -> None:
        """Check the counts and that each level has a stride and a margin."""
        require_positive(self, "keypoints", "sectors", "fused")
        require(
            len(self.strides) == len(self.levels) and len(self.margins) == len(self.levels) + 1,
            f"{len(self.levels)} levels need as many strides and one margin more, not "
            f"{self.strides} and {self.margins}",
        )
        require(min(*self.margins, self.keypoint_margin) >= 0, "margins must not be negative")

    @property
    def gathered(self) -> int:
        """Channels of a key point before fusion, those of the BEV map left out."""
        return self.raw.channels[-1] + sum(level.channels[-1] for level in self.levels)


@dataclass(frozen=True)
class PointHeadConfig:
    """The head that tells key points on objects from others."""

    channels: tuple[int, ...] = (256, 256)
    # metres that a box is longer, wider and higher for its surroundings to be left out
    margin: float = 0.2
    weight: float = 1.0  # of its loss


@dataclass(frozen=True)
class RoiHeadConfig:
    """The head that refines RoIs."""

    grid: int = 6  # points along each side of a RoI
    pool: VectorPoolConfig = VectorPoolConfig()
    shared: tuple[int, ...] = (256, 256)
    branches: tuple[int, ...] = (256, 256)  # of each of the two answers
    dropout: float = 0.3
    class_weight: float = 1.0
    box_weight: float = 1.0
    corner_weight: float = 1.0

    def __post_init__(self) -> None:
        """Check counts and shares."""
        require_positive(self, "grid", "shared", "branches")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), not {self.dropout}")


@dataclass(frozen=True)
class RoiSamplingConfig:
    """Which RoIs a training step refines, and what each should answer."""

    rois: int = 128  # per frame
    foreground: float = 0.5  # share of them, at most, that lie on objects
    # IoU of volumes with an object of the RoI's class, from which on a RoI lies on it
    foreground_iou: float = 0.55
    easy_iou: float = 0.1  # below it a background is an easy one
    hard: float = 0.8  # share of hard ones among the background, at most
    # between these the wanted confidence rises from 0 to 1
    score_iou: tuple[float, float] = (0.25, 0.75)

    def __post_init__(self) -> None:
        """Check counts and thresholds."""
        require_positive(self, "rois")
        require(
            0 <= self.foreground <= 1 and 0 <= self.hard <= 1, (f"shares must be in [0, 1]: {self}")
        )
        require(
            0 <= self.easy_iou <= self.foreground_iou <= 1,
            (f"0 <= easy_iou <= foreground_iou <= 1 fails: {self}"),
        )
        require(
            0 <= self.score_iou[0] < self.score_iou[1] <= 1,
            (f"score_iou must rise within [0, 1], not {self.score_iou}"),
        )


@dataclass(frozen=True)
class RefinedConfig:
    """From refined boxes to detections."""

    score_threshold: float = 0.1  # score >= threshold
    nms_iou: float = 0.7
    nms_pre: int = 4096
    nms_post: int = 500


@dataclass(frozen=True)
class SecondStageConfig:
    """Key points around the first stage's boxes, and boxes refined from them."""

    abstraction: SetAbstractionConfig = SetAbstractionConfig()
    points: PointHeadConfig = PointHeadConfig()
    rois: RoiHeadConfig = RoiHeadConfig()
    sampling: RoiSamplingConfig = RoiSamplingConfig()
    refined: RefinedConfig = RefinedConfig()
    first_stage: FirstStage = "trained"

    def __post_init__(self) -> None:
        """Check that what is pooled can be folded."""
        fused, folded = self.abstraction.fused, self.rois.pool.reduced
        require(
            fused % folded == 0,
            (f"{fused} channels of a key point cannot be folded into {folded}; give a multiple"),
        )


@dataclass(frozen=True)
class TwoStageConfig(ModelConfig):
    """A voxel detector with a centre head, and a second stage that refines its boxes: PV-RCNN++."""

    second: SecondStageConfig = SecondStageConfig()

    def __post_init__(self) -> None:
        """Check that the second stage can stand on the first."""
        super().__post_init__()
        encoder = self.encoder
        if not (isinstance(encoder, VoxelEncoderConfig) and isinstance(self.head, HeadConfig)):
            raise ConfigError(
                f"'{self.name}': a second stage needs voxels and a centre head below it"
            )
        config = self.second.abstraction
        widths = [("points", POINT_FEATURES - 3, config.raw)]
        for stride, level in zip(config.strides, config.levels):
            require(
                stride in (1, 2, 4, 8),
                (f"the 3D backbone has stages of stride 1, 2, 4 and 8, not {stride}"),
            )
            widths.append(
                (f"stage of stride {stride}", encoder.channels[stride.bit_length()], level)
            )
        for what, channels, pool in widths:
            require(
                channels % pool.reduced == 0,
                f"'{self.name}': {channels} channels of the {what} cannot be folded into "
                f"{pool.reduced}; change reduced",
            )
