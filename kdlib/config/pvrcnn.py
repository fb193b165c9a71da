"""What the second stage of PV-RCNN++ is made of; defaults are the published values (spec 4.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdlib.config.codec import require

PoolKind = Literal["local_interpolation", "voxel_random_choice"]
"""How a local voxel gets its vector: from the three points nearest to its centre, or from the first point inside."""


@dataclass(frozen=True)
class VectorPoolConfig:
    """Vector pooling in local voxels of several sizes; the defaults are those of the RoI grid."""

    kind: PoolKind = "voxel_random_choice"
    reduced: int = 30  # channels that the support's are folded into: channel i is added to i mod reduced
    voxels: tuple[tuple[int, int, int], ...] = ((3, 3, 3), (3, 3, 3))  # local voxels along x, y, z of each group
    radii: tuple[float, ...] = (0.8, 1.6)  # half the side of each group's cube of local voxels, metres
    voxel_channels: int = 32  # that each local voxel's vector is turned into
    group_channels: tuple[int, ...] = (64, 64)  # of the MLP behind each group
    channels: tuple[int, ...] = (128,)  # of the MLP over all groups
    limit: int = 32  # neighbours looked at (interpolation), or local voxels filled (random choice)

    def __post_init__(self) -> None:
        """Check that there is a radius for each group and nothing is empty."""
        require(self.kind in ("local_interpolation", "voxel_random_choice"), f"there is no vector pooling of kind '{self.kind}'")
        require(
            len(self.voxels) == len(self.radii) > 0,
            f"vector pooling needs one radius per group of local voxels: {len(self.radii)} radii, {len(self.voxels)} groups",
        )
        require(min(self.radii) > 0, f"radii must be positive, not {self.radii}")
        sizes = (self.reduced, self.voxel_channels, self.limit, *(n for group in self.voxels for n in group))
        require(min(sizes) > 0, f"channels, local voxels and limit must be positive: {self}")
        require(
            len(self.group_channels) > 0 and len(self.channels) > 0 and min(*self.group_channels, *self.channels) > 0,
            f"both MLPs need positive channels, not {self.group_channels} and {self.channels}",
        )


_NEIGHBOURS = 1000  # as many as the original's kernel has room for
_RAW = VectorPoolConfig("local_interpolation", 2, ((2, 2, 2), (3, 3, 3)), (0.2, 0.4), 32, (32, 32), (32,), _NEIGHBOURS)
_CONV3 = VectorPoolConfig("local_interpolation", 32, radii=(1.2, 2.4), limit=_NEIGHBOURS)
_CONV4 = VectorPoolConfig("local_interpolation", 32, radii=(2.4, 4.8), limit=_NEIGHBOURS)


@dataclass(frozen=True)
class SetAbstractionConfig:
    """Key points and what is gathered around them."""

    keypoints: int = 4096  # per frame; up to one more per sector but one
    sectors: int = 6
    keypoint_margin: float = 1.6  # metres around the ball of the nearest RoI in which a point may become a key point
    raw: VectorPoolConfig = _RAW
    levels: tuple[VectorPoolConfig, ...] = (_CONV3, _CONV4)
    strides: tuple[int, ...] = (4, 8)  # of the sparse backbone's stages that ``levels`` look at: conv3, conv4
    margins: tuple[float, ...] = (2.4, 4.0, 6.4)  # metres, as above, for the raw points and each level
    fused: int = 90  # channels of a key point

    def __post_init__(self) -> None:
        """Check the counts and that each level has a stride and a margin."""
        require(self.keypoints > 0 and self.sectors > 0 and self.fused > 0, "keypoints, sectors and fused must be positive")
        require(
            len(self.strides) == len(self.levels) and len(self.margins) == len(self.levels) + 1,
            f"{len(self.levels)} levels need as many strides and one margin more, not {self.strides} and {self.margins}",
        )
        require(min(*self.margins, self.keypoint_margin) >= 0, "margins must not be negative")

    @property
    def gathered(self) -> int:
        """Channels of a key point before fusion, those of the BEV map left out."""
        return self.raw.channels[-1] + sum(level.channels[-1] for level in self.levels)
