"""How a model is trained and evaluated; the published values (spec sections 2 and 9)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kdlib.config.codec import require, require_positive


@dataclass(frozen=True)
class ObjectSamplingConfig:
    """Objects of other frames pasted into a training frame (GT sampling, spec 2.3)."""

    counts: tuple[int, ...] = (15, 10, 10)  # per class; a frame is filled up to this many
    min_points: int = 5  # an object of the bank needs at least this many
    # metres added to a pasted box before points inside are removed
    extra_width: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        """Check signs."""
        require(min(self.counts, default=0) >= 0, f"counts must not be negative: {self.counts}")
        require_positive(self, "min_points")
        require(min(self.extra_width) >= 0, f"extra_width must not be negative: {self.extra_width}")


@dataclass(frozen=True)
class AugmentConfig:
    """World augmentations in this order (spec 2.4)."""

    flip_x: bool = True  # y -> -y with probability 0.5
    flip_y: bool = True  # x -> -x with probability 0.5
    rotation: float = math.pi / 4  # uniform in +- this, radians
    scaling: tuple[float, float] = (0.95, 1.05)
    # pasted before all of these; needs the store's object bank
    objects: ObjectSamplingConfig | None = None

    def __post_init__(self) -> None:
        """Check signs and order."""
        require(self.rotation >= 0, f"rotation must not be negative: {self.rotation}")
        low, high = self.scaling
        require(0 < low <= high, f"scaling must be positive and rise, not {self.scaling}")


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation (spec section 9)."""

    epochs: int = 30
    batch_size: int = 2
    learning_rate: float = 0.003
    weight_decay: float = 0.01
    clip_norm: float = 10.0
    interval: int = 5  # every n-th frame of the split
    seed: int = 666
    workers: int = 4
    accumulate: int = 1  # batches per optimiser step
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    checkpoint_steps: int = 500  # steps between two resumable checkpoints
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self) -> None:
        """Check signs."""
        require_positive(
            self,
            "epochs",
            "batch_size",
            "learning_rate",
            "interval",
            "accumulate",
            "checkpoint_steps",
        )
        require(self.clip_norm > 0, f"clip_norm must be positive, not {self.clip_norm}")
        require(
            0 <= self.weight_decay < math.inf,
            f"weight_decay must be finite and not negative: {self.weight_decay}",
        )
        require(self.workers >= 0, f"workers must not be negative: {self.workers}")
        require(0 <= self.seed < 2**32, f"seed must be from 0 to 2**32 - 1, not {self.seed}")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation of a model on a store."""

    interval: int = 5
    batch_size: int = 4
    workers: int = 0
    # Boxes with |x| or |y| above this are left out on both sides, metres: for models that see less
    # than Waymo labels. The official metric knows no such limit, so real data keeps the default.
    half_width: float = math.inf

    def __post_init__(self) -> None:
        """Check signs."""
        require_positive(self, "interval", "batch_size")
        require(self.workers >= 0, f"workers must not be negative: {self.workers}")
        require(self.half_width > 0, f"half_width must be positive, not {self.half_width}")
