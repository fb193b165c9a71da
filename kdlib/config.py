"""Every setting, as frozen dataclasses that check themselves; defaults are the published values (spec sections 1 to 9)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kdlib.errors import ConfigError

CLASS_NAMES = ("Vehicle", "Pedestrian", "Cyclist")

T = TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class GridConfig:
    """A voxel (or pillar) grid over the vehicle frame."""

    point_range: tuple[float, float, float, float, float, float]  # x, y, z minima, then maxima, metres
    voxel_size: tuple[float, float, float]  # metres
    max_points: int  # points kept per voxel
    max_voxels: int = 150_000  # voxels kept per frame

    def __post_init__(self) -> None:
        """Check that the range is a whole, positive number of voxels."""
        low, high = self.point_range[:3], self.point_range[3:]
        for axis, (a, b, size) in enumerate(zip(low, high, self.voxel_size)):
            _require(b > a and size > 0, f"axis {axis}: range {a}..{b} with voxel size {size} is empty")
            cells = (b - a) / size
            _require(
                abs(cells - round(cells)) < 1e-3, f"axis {axis}: range {a}..{b} is {cells:.3f} voxels of {size} m, not whole"
            )
        _require(self.max_points > 0 and self.max_voxels > 0, "max_points and max_voxels must be positive")

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Number of cells along x, y, z."""
        low, high = self.point_range[:3], self.point_range[3:]
        nx, ny, nz = (round((b - a) / s) for a, b, s in zip(low, high, self.voxel_size))
        return nx, ny, nz


@dataclass(frozen=True)
class PillarEncoderConfig:
    """PillarVFE (spec 3.3)."""

    filters: tuple[int, ...] = (64, 64)
    point_features: int = 5


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
        lengths = {len(x) for x in (self.layers, self.strides, self.filters, self.upsample_strides, self.upsample_filters)}
        _require(len(lengths) == 1, "layers, strides, filters, upsample_strides, upsample_filters need one entry per level")
        _require(self.width > 0, f"width must be positive, not {self.width}")

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
    center_limit: tuple[float, float, float, float, float, float] = (-80.0, -80.0, -10.0, 80.0, 80.0, 10.0)
    nms_iou: float = 0.7
    nms_pre: int = 4096
    nms_post: int = 500


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


@dataclass(frozen=True)
class ModelConfig:
    """One detector, completely."""

    name: str
    grid: GridConfig
    encoder: PillarEncoderConfig
    backbone: BackboneConfig
    head: HeadConfig
    class_names: tuple[str, ...] = CLASS_NAMES

    def __post_init__(self) -> None:
        """Check that the heads cover each class once."""
        names = [name for head in self.head.heads for name in head]
        _require(
            sorted(names) == sorted(self.class_names),
            f"heads {self.head.heads} do not cover classes {self.class_names} once each",
        )


PivotalForm = Literal["all", "confidence", "rank", "center", "gaussian"]
TeacherNorm = Literal["running", "batch"]
Initialisation = Literal["none", "matching"]


@dataclass(frozen=True)
class LogitKDConfig:
    """Logit distillation at pivotal positions (spec 7.5)."""

    weight: float = 7.0
    positions: PivotalForm = "gaussian"
    soft: bool = True  # multiply the mask by the teacher's confidence
    threshold: float = 0.0  # teacher confidence a position must exceed
    rank: int = 500  # positions kept when positions == "rank"
    distance: Literal["mse", "smooth_l1"] = "mse"
    regression_weight: float = 0.0  # needs equal maps of teacher and student
    target: Literal["teacher", "student"] = "teacher"  # grid on which the two maps meet
    align_corners: bool = False  # the original's setting said True and was ignored


@dataclass(frozen=True)
class LabelKDConfig:
    """Teacher boxes as labels (spec 7.4)."""

    thresholds: tuple[float, ...] = (0.6, 0.6, 0.6)  # per class, strict: score > threshold
    teacher_first: bool = True  # order in the merged set
    use_truth: bool = True
    dedupe_iou: float | None = None  # drop teacher boxes that overlap a better one of the same class; None keeps all


@dataclass(frozen=True)
class KDConfig:
    """One distillation recipe."""

    logit: LogitKDConfig | None = LogitKDConfig()
    label: LabelKDConfig | None = LabelKDConfig()
    teacher_norm: TeacherNorm = "batch"  # the original's way; "running" is the textbook's
    initialisation: Initialisation = "matching"


@dataclass(frozen=True)
class AugmentConfig:
    """World augmentations in this order (spec 2.4)."""

    flip_x: bool = True  # y -> -y with probability 0.5
    flip_y: bool = True  # x -> -x with probability 0.5
    rotation: float = math.pi / 4  # uniform in +- this, radians
    scaling: tuple[float, float] = (0.95, 1.05)


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
        for name in ("epochs", "batch_size", "interval", "accumulate", "checkpoint_steps"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation of a model on a store."""

    interval: int = 5
    batch_size: int = 4
    workers: int = 0
    # Boxes with |x| or |y| above this are left out on both sides, metres: for models that see less than Waymo labels.
    # The official metric knows no such limit, so real data keeps the default.
    half_width: float = math.inf


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Rebuild a configuration written by :func:`to_dict`.

    Raises:
        ConfigError: If a key is unknown or a field is missing; the message names it.
    """
    hints = get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    _require(not unknown, f"{kind.__name__} has no setting {unknown}; it has {sorted(known)}")
    try:
        return kind(**{key: _rebuild(hints[key], value, f"{kind.__name__}.{key}") for key, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"{kind.__name__}: {error}") from error


def _rebuild(hint: Any, value: Any, where: str) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        _require(value in parts, f"{where} must be one of {parts}, not {value!r}")
        return value
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), f"{where} must be a list, not {value!r}")
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        _require(len(value) == len(kinds), f"{where} must have {len(kinds)} entries, not {len(value)}")
        return tuple(_rebuild(inner, v, where) for v, inner in zip(value, kinds))
    if origin is Union or str(origin) == "<class 'types.UnionType'>":
        options = [o for o in parts if o is not type(None)]
        return None if value is None and len(options) < len(parts) else _rebuild(_matching_option(options, value), value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        _require(isinstance(value, dict), f"{where} must be an object, not {value!r}")
        return from_dict(hint, value)
    if hint in (bool, int, float, str):
        allowed = (int, float) if hint is float else (hint,)
        fits = isinstance(value, allowed) and (hint is bool or not isinstance(value, bool))
        _require(fits, f"{where} must be of type {hint.__name__}, not {value!r}")
    return value


def _matching_option(options: list[Any], value: Any) -> Any:
    if isinstance(value, dict):
        for option in options:
            if dataclasses.is_dataclass(option) and set(value) <= {f.name for f in dataclasses.fields(option)}:
                return option
    return options[0]


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return an entry of a table of named configurations.

    Raises:
        ConfigError: If there is none of that name; the message lists those there are.
    """
    if name not in table:
        raise ConfigError(f"unknown {kind} '{name}'; there are: {', '.join(table)}")
    return table[name]


def config_hash(*configs: Any) -> str:
    """Return 12 hexadecimal digits that change whenever any setting does."""
    text = json.dumps([to_dict(c) if dataclasses.is_dataclass(c) else c for c in configs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
