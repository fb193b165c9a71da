"""What a detector is made of: grid, encoder, backbone, head (spec sections 1 to 6)."""

from __future__ import annotations

from dataclasses import dataclass

from kdlib.config.codec import require, require_positive

Bounds = tuple[float, float, float, float, float, float]
"""x, y, z minima, then maxima, metres."""

CLASS_NAMES = ("Vehicle", "Pedestrian", "Cyclist")


@dataclass(frozen=True)
class GridConfig:
    """A voxel (or pillar) grid over the vehicle frame."""

    point_range: Bounds
    voxel_size: tuple[float, float, float]  # metres
    max_points: int  # points kept per voxel
    max_voxels: int = 150_000  # voxels kept per frame

    def __post_init__(self) -> None:
        """Check that the range is a whole, positive number of voxels."""
        for axis, (a, b, size) in enumerate(
            zip(self.point_range, self.point_range[3:], self.voxel_size)
        ):
            require(
                b > a and size > 0, (f"axis {axis}: range {a}..{b} with voxel size {size} is empty")
            )
            cells = (b - a) / size
            require(
                abs(cells - round(cells)) < 1e-3,
                (f"axis {axis}: range {a}..{b} is {cells:.3f} voxels of {size} m, not whole"),
            )
        require_positive(self, "max_points", "max_voxels")

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Number of cells along x, y, z."""
        nx, ny, nz = (
            round((b - a) / s)
            for a, b, s in zip(self.point_range, self.point_range[3:], self.voxel_size)
        )
        return nx, ny, nz


def _check_features(count: int) -> None:
    require(
        count in (3, 4, 5),
        f"point_features is {count}; points have 3 (x, y, z), 4 (intensity) or 5 (elongation)",
    )


@dataclass(frozen=True)
class PillarEncoderConfig:
    """PillarVFE (spec 3.3)."""

    filters: tuple[int, ...] = (64, 64)
    point_features: int = 5  # the first 3 to 5 of x, y, z, tanh(intensity), elongation

    def __post_init__(self) -> None:
        """Check that there are that many features, and channels."""
        _check_features(self.point_features)
        require_positive(self, "filters")


@dataclass(frozen=True)
class VoxelEncoderConfig:
    """MeanVFE and the sparse 3D backbone (spec 3.2, 4.1); channel counts are
    ``int(filters * width)``.
    """

    filters: tuple[int, ...] = (16, 16, 32, 64, 128, 128)  # conv_input, conv1 to conv4, conv_out
    width: float = 1.0
    # VoxelResBackBone8x; False is SECOND's VoxelBackBone8x, with filters 16, 16, 32, 64, 64, 128
    residual: bool = True
    point_features: int = 5  # the first 3 to 5 of x, y, z, tanh(intensity), elongation

    def __post_init__(self) -> None:
        """Check that there are six positive widths, equal where the residual network adds them."""
        _check_features(self.point_features)
        require(
            len(self.filters) == 6,
            (
                "filters needs six numbers (conv_input, conv1 to conv4, "
                f"conv_out), not {self.filters}"
            ),
        )
        require(
            min(self.channels) > 0,
            (f"width {self.width} leaves a layer of {self.filters} without channels"),
        )
        require(
            not self.residual or self.filters[0] == self.filters[1],
            "a residual conv1 keeps the channels of conv_input: filters[0] and filters[1] must "
            f"be equal, not {self.filters[:2]}",
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of every stage."""
        return tuple(int(f * self.width) for f in self.filters)


@dataclass(frozen=True)
class BackboneConfig:
    """The 2D backbone (spec 4.3); channel counts are ``int(filters * width)``."""

    layers: tuple[int, ...]  # extra 3x3 convolutions per level
    strides: tuple[int, ...]
    filters: tuple[int, ...]
    upsample_strides: tuple[int, ...]
    upsample_filters: tuple[int, ...]
    width: float = 1.0

    def __post_init__(self) -> None:
        """Check that every level has all five numbers."""
        lengths = {
            len(x)
            for x in (
                self.layers,
                self.strides,
                self.filters,
                self.upsample_strides,
                self.upsample_filters,
            )
        }
        require(
            len(lengths) == 1,
            (
                "layers, strides, filters, upsample_strides, upsample_filters "
                "need one entry per level"
            ),
        )
        require_positive(self, "width", "strides", "upsample_strides")
        require(
            min(*self.channels, *self.upsample_channels) > 0,
            f"width {self.width} leaves a level of {self.filters} or {self.upsample_filters} "
            "without channels",
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of every level."""
        return tuple(int(f * self.width) for f in self.filters)

    @property
    def upsample_channels(self) -> tuple[int, ...]:
        """Channels of every upsampling branch."""
        return tuple(int(f * self.width) for f in self.upsample_filters)


@dataclass(frozen=True)
class TargetConfig:
    """Target assignment (spec 5.1)."""

    max_objects: int = 500
    gaussian_overlap: float = 0.1
    min_radius: int = 2


@dataclass(frozen=True)
class DecodeConfig:
    """From maps to boxes (spec 5.3)."""

    max_objects: int = 500
    score_threshold: float = 0.1  # strict: score > threshold
    center_limit: Bounds = (-80.0, -80.0, -10.0, 80.0, 80.0, 10.0)
    nms_iou: float = 0.7
    nms_pre: int = 4096
    nms_post: int = 500

    def __post_init__(self) -> None:
        """Check counts and shares."""
        require_positive(self, "max_objects", "nms_pre", "nms_post")
        require(0 <= self.nms_iou <= 1, f"nms_iou must be in [0, 1], not {self.nms_iou}")


@dataclass(frozen=True)
class HeadConfig:
    """CenterHead (spec 4.4) with its losses' weights (spec 5.2)."""

    shared_channels: int = 64
    heads: tuple[tuple[str, ...], ...] = (CLASS_NAMES,)  # classes of each separate head
    stride: int = 1  # cells of the grid per cell of the heatmap
    heatmap_weight: float = 1.0
    box_weight: float = 2.0
    targets: TargetConfig = TargetConfig()
    decode: DecodeConfig = DecodeConfig()

    def __post_init__(self) -> None:
        """Check channels and stride."""
        require_positive(self, "shared_channels", "stride")


@dataclass(frozen=True)
class AnchorConfig:
    """The anchor boxes of one class and when they match (spec 4.5)."""

    class_name: str
    size: tuple[float, float, float]  # dx, dy, dz, metres
    bottom: float  # z of the lower face, metres
    positive_iou: float
    negative_iou: float
    rotations: tuple[float, ...] = (0.0, 1.57)  # radians

    def __post_init__(self) -> None:
        """Check sizes and the order of the two thresholds."""
        require_positive(self, "size")
        require(
            0 <= self.negative_iou <= self.positive_iou <= 1,
            f"anchor of {self.class_name}: 0 <= negative_iou {self.negative_iou} <= positive_iou "
            f"{self.positive_iou} <= 1 fails",
        )


WAYMO_ANCHORS = (
    AnchorConfig("Vehicle", (4.7, 2.1, 1.7), 0.0, 0.55, 0.40),
    AnchorConfig("Pedestrian", (0.91, 0.86, 1.73), 0.0, 0.50, 0.35),
    AnchorConfig("Cyclist", (1.78, 0.84, 1.78), 0.0, 0.50, 0.35),
)


@dataclass(frozen=True)
class AnchorHeadConfig:
    """AnchorHeadSingle with its losses' weights (spec 4.5)."""

    anchors: tuple[AnchorConfig, ...] = WAYMO_ANCHORS
    stride: int = 1  # cells of the grid per cell of the head's maps
    direction_offset: float = 0.78539  # radians
    class_weight: float = 1.0
    box_weight: float = 2.0
    direction_weight: float = 0.2
    decode: DecodeConfig = DecodeConfig()


@dataclass(frozen=True)
class ModelConfig:
    """One detector, completely."""

    name: str
    grid: GridConfig
    encoder: PillarEncoderConfig | VoxelEncoderConfig
    backbone: BackboneConfig
    head: HeadConfig | AnchorHeadConfig
    class_names: tuple[str, ...] = CLASS_NAMES

    def __post_init__(self) -> None:
        """Check that the head covers each class once."""
        if isinstance(self.head, AnchorHeadConfig):
            names = [anchor.class_name for anchor in self.head.anchors]
        else:
            names = [name for head in self.head.heads for name in head]
        require(
            sorted(names) == sorted(self.class_names),
            f"heads {names} do not cover classes {self.class_names} once each; give the head the "
            "same classes: heads of HeadConfig, anchors of AnchorHeadConfig",
        )
        apart = len({name.upper() for name in names if name}) == len(names) > 0
        require(
            apart and "," not in "".join(names),
            f"class_names are {self.class_names}; give different texts without commas, which "
            "differ by more than their case",
        )
