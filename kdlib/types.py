"""The values that travel between stages, as frozen dataclasses; nobody writes into an input.

Letters used in every shape comment of kdlib:
    B batch, N points, V voxels or pillars, P points kept per voxel, C channels or classes, H / W
    BEV rows (y) / columns (x), M boxes, K detections or target slots.
Boxes are always ``(M, 7) = x, y, z, dx, dy, dz, heading``: metres and radians, geometric centre,
vehicle frame, heading counter-clockwise from +x. Labels are 1-based positions in
``ModelConfig.class_names``; 0 marks padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, device

    _T = TypeVar("_T")

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

Json = dict[str, Any]
"""A JSON object."""

POINT_FEATURES = 5
"""Features of a point of a :class:`Sample`: x, y, z, tanh(intensity), elongation."""

WAYMO_TYPES: Mapping[str, int] = {"Vehicle": 1, "Pedestrian": 2, "Sign": 3, "Cyclist": 4}
"""Waymo's own type numbers, used in every file and table; labels inside the networks are positions
instead. A store of one's own classes numbers those from 1.
"""


@dataclass(frozen=True)
class FrameLabels:
    """The annotated boxes of one frame, in the frame's vehicle coordinates."""

    boxes: FloatArray  # (M, 7)
    types: IntArray  # (M,) 1-based positions in class_names: Waymo's type numbers
    ids: tuple[str, ...]  # M object ids, stable over a segment
    difficulty: IntArray  # (M,) 0 unset, 1 LEVEL_1, 2 LEVEL_2, as annotated
    num_points: IntArray  # (M,) LiDAR points inside, all lasers
    velocity: FloatArray  # (M, 2) vx, vy in the vehicle frame, m/s
    class_names: tuple[str, ...] = tuple(WAYMO_TYPES)  # of the dataset

    def __post_init__(self) -> None:
        """Check that all columns have one length and the boxes have seven numbers."""
        count = len(self.ids)
        if self.boxes.shape != (count, 7):
            raise ValueError(
                f"{count} box ids but boxes of shape {self.boxes.shape}, expected ({count}, 7)"
            )
        for name in ("types", "difficulty", "num_points", "velocity"):
            if (values := len(getattr(self, name))) != count:
                raise ValueError(f"{count} boxes but {values} values of '{name}'")

    @staticmethod
    def empty() -> FrameLabels:
        """Return labels of a frame without boxes."""
        none = np.zeros(0, np.int64)
        return FrameLabels(np.zeros((0, 7)), none, (), none, none, np.zeros((0, 2)))


@dataclass(frozen=True)
class Frame:
    """One LiDAR sweep of all lasers and both returns, with its labels."""

    segment: str  # context name
    index: int  # position in the segment, 0-based
    timestamp_micros: int
    # (N, 6) x, y, z, intensity (raw), elongation, no-label-zone flag (+1 inside, -1 outside)
    points: Float32
    pose: Float64  # (4, 4) world from vehicle
    labels: FrameLabels

    @property
    def frame_id(self) -> str:
        """Name of the frame in every table: segment and index."""
        return frame_id(self.segment, self.index)


def frame_id(segment: str, index: int) -> str:
    """Return the name a frame has in every table."""
    return f"{segment}_{index:03d}"


@dataclass(frozen=True)
class Sample:
    """What one frame becomes for a network: five point features, labelled boxes of the wanted
    classes.
    """

    frame_id: str
    points: Float32  # (N, 5) x, y, z, tanh(intensity), elongation
    boxes: Float32  # (M, 7)
    labels: Int64  # (M,) 1-based class positions

    @staticmethod
    def unlabelled(frame_id: str, points: Float32) -> Sample:
        """Return a frame without boxes."""
        return Sample(frame_id, points, np.zeros((0, 7), np.float32), np.zeros(0, np.int64))


class _Movable:
    """Gives a dataclass of tensors a ``to``."""

    def to(self: _T, where: device | str) -> _T:
        """Return a copy with every tensor on another device."""
        moved = {
            name: value.to(where) for name, value in vars(self).items() if hasattr(value, "to")
        }
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True)
class PointBatch(_Movable):
    """The points of B frames, concatenated; every model voxelises them on its own grid."""

    points: Tensor  # (N, 5) float32
    batch_index: Tensor  # (N,) int64, ascending
    batch_size: int
    frame_ids: tuple[str, ...]


@dataclass(frozen=True)
class GroundTruth(_Movable):
    """Boxes of B frames, padded to the longest one."""

    boxes: Tensor  # (B, M, 7) float32
    labels: Tensor  # (B, M) int64, 1-based, 0 = padding


@dataclass(frozen=True)
class Batch(_Movable):
    """One training or evaluation step's input."""

    points: PointBatch
    truth: GroundTruth


@dataclass(frozen=True)
class VoxelBatch(_Movable):
    """Points gathered into voxels (or pillars) of one grid."""

    features: Tensor  # (V, P, C) float32, unused slots are zero
    coords: Tensor  # (V, 4) int64: batch, z, y, x
    num_points: Tensor  # (V,) int64, at most P
    batch_size: int


@dataclass(frozen=True)
class HeadOutput(_Movable):
    """Raw maps of one centre head; ``heatmap`` holds logits, always."""

    heatmap: Tensor  # (B, C, H, W) logits
    center: Tensor  # (B, 2, H, W) sub-cell offset x, y
    center_z: Tensor  # (B, 1, H, W) metres
    dim: Tensor  # (B, 3, H, W) log dx, dy, dz
    rot: Tensor  # (B, 2, H, W) cos, sin

    @property
    def regression(self) -> Tensor:
        """The eight regression maps in target order: center, center_z, dim, rot."""
        import torch

        return torch.cat((self.center, self.center_z, self.dim, self.rot), dim=1)


@dataclass(frozen=True)
class HeadTargets(_Movable):
    """What one centre head should have answered."""

    heatmap: Tensor  # (B, C, H, W) Gaussians, peaks are exactly 1
    boxes: Tensor  # (B, K, 8) cx - ix, cy - iy, z, log dx, log dy, log dz, cos, sin
    indices: Tensor  # (B, K) int64, iy * W + ix
    mask: Tensor  # (B, K) bool, True where the slot holds a box


@dataclass(frozen=True)
class Detections(_Movable):
    """Boxes found in one frame, best first."""

    boxes: Tensor  # (K, 7)
    scores: Tensor  # (K,) in [0, 1]
    labels: Tensor  # (K,) int64, 1-based


@dataclass(frozen=True)
class LossTerms:
    """A loss with its named, already weighted parts; ``parts`` sum to ``loss``."""

    loss: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def total(parts: Mapping[str, Tensor]) -> LossTerms:
        """Return the sum of named parts; raises ValueError if there is no part."""
        if not parts:
            raise ValueError("a loss needs at least one part")
        first, *others = parts.values()
        return LossTerms(sum(others, first), dict(parts))
