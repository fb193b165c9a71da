"""The few numbers that turn a teacher and a student into ones for other data: classes, range,
point features, pillar, width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kdlib.config import HeadConfig, ModelConfig, TwoStageConfig, VoxelEncoderConfig
from kdlib.config.codec import require, require_positive
from kdlib.config.model import Bounds
from kdlib.zoo import Pair

_MARGIN = 2.0  # metres around the range in which the centre of a decoded box may lie
_THRESHOLD = 0.5  # of the teacher's boxes as labels, for a class that the recipe does not know
_FARTHEST = 1000.0  # metres
_UNIT = 10_000  # of a metre, in which sizes are compared exactly


@dataclass(frozen=True)
class DetectorTable:
    """What both models of a pair are for; None leaves what the pair has."""

    classes: tuple[str, ...] | None = None
    range: Bounds | None = None  # x, y, z minima, then maxima, metres
    point_features: int | None = None  # the first 3 to 5 of x, y, z, tanh(intensity), elongation
    pillar: float | None = None  # of the teacher, metres; the student's keeps its ratio
    width: float | None = None  # factor of every layer's channels, of both models

    def __post_init__(self) -> None:
        """Check that nothing is empty."""
        require(self.classes != (), "detector.classes is empty; name at least one class")
        for name in ("pillar", "width"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        if self.range is not None:
            require(
                all(map(math.isfinite, self.range)),
                f"detector.range must be finite, not {self.range}",
            )


def fit_pair(pair: Pair, table: DetectorTable, name: str) -> Pair:
    """Return a pair whose models and recipe are those of the table; the models are called after
    ``name``, since they are none of the zoo.

    Raises:
        ConfigError: If the pair's models cannot be made so; the message says what can.
    """
    kd, label = pair.kd, pair.kd.label
    if table.classes is not None and label is not None:
        known = dict(zip(pair.student.class_names, label.thresholds))
        thresholds = tuple(known.get(name, _THRESHOLD) for name in table.classes)
        kd = replace(kd, label=replace(label, thresholds=thresholds))
    finest = pair.teacher.grid.voxel_size[0]

    def fitted(model: ModelConfig, role: str) -> ModelConfig:
        ratio = model.grid.voxel_size[0] / finest
        return replace(_fit_model(model, table, ratio), name=f"{name}_{role}")

    student = fitted(
        pair.student, "student"
    )  # first: what fits its coarser cells mostly fits the teacher's
    start = pair.initialise_from
    same_range = table.range is None and table.pillar is None
    return replace(
        pair,
        teacher=fitted(pair.teacher, "teacher"),
        student=student,
        kd=kd,
        initialise_from=None if start is None else fitted(start, "start"),
        teacher_grid=pair.teacher_grid if same_range else None,
    )


def _fit_model(model: ModelConfig, table: DetectorTable, ratio: float) -> ModelConfig:
    head, encoder, backbone, grid = model.head, model.encoder, model.backbone, model.grid
    require(
        isinstance(head, HeadConfig) and not isinstance(model, TwoStageConfig),
        f"[detector] changes models of one stage with a centre head, and '{model.name}' is none; "
        "take another base",
    )
    assert isinstance(head, HeadConfig)
    if table.point_features is not None:
        encoder = replace(encoder, point_features=table.point_features)
    if table.width is not None:
        backbone = replace(backbone, width=backbone.width * table.width)
        head = replace(head, shared_channels=int(head.shared_channels * table.width))
        if isinstance(encoder, VoxelEncoderConfig):
            encoder = replace(encoder, width=encoder.width * table.width)
        else:
            encoder = replace(encoder, filters=tuple(int(f * table.width) for f in encoder.filters))
    if table.classes is not None:
        head = replace(head, heads=(table.classes,))
    if table.pillar is not None or table.range is not None:
        reach = table.range or grid.point_range
        size = grid.voxel_size
        if isinstance(encoder, VoxelEncoderConfig):
            require(table.pillar is None, f"detector.pillar: '{model.name}' has voxels, no pillars")
            height = grid.point_range[5] - grid.point_range[2]
            require(
                math.isclose(reach[5] - reach[2], height),
                f"[detector] range: '{model.name}' has voxels up to a height of {height:g} m, so z "
                f"may go from {reach[2]:g} to {reach[2] + height:g}, not to {reach[5]:g}",
            )
        else:
            side = size[0] if table.pillar is None else table.pillar * ratio
            size = (side, side, reach[5] - reach[2])
        check_cells(f"'{model.name}'", reach, size[:2], cells_a_side(model))
        grid = replace(grid, point_range=reach, voxel_size=size)
        (x0, y0, z0), (x1, y1, z1) = reach[:3], reach[3:]
        least, most = (x0 - _MARGIN, y0 - _MARGIN, z0 - _MARGIN), (x1 + _MARGIN, y1 + _MARGIN)
        limit = (*least, *most, z1 + _MARGIN)
        head = replace(head, decode=replace(head.decode, center_limit=limit))
    return replace(
        model,
        grid=grid,
        encoder=encoder,
        backbone=backbone,
        head=head,
        class_names=table.classes or model.class_names,
    )


def cells_a_side(model: ModelConfig) -> int:
    """Return of how many cells a model's grid must have a multiple along x and y, for all its maps
    to meet again.
    """
    sparse = 8 if isinstance(model.encoder, VoxelEncoderConfig) else 1
    return sparse * math.prod(model.backbone.strides)


def check_cells(where: str, reach: Bounds, size: tuple[float, float], cells: int) -> None:
    """Check that a range is a multiple of so many cells of a size (metres) along x and y.

    Raises:
        ConfigError: If it is none; the message says the next wider range.
    """
    for axis, low, high, side in zip("xy", reach, reach[3:], size):
        step, extent = round(side * cells * _UNIT), round((high - low) * _UNIT)
        require(
            extent > 0 and step > 0,
            f"{where}: the range {low:g} to {high:g} along {axis} is empty",
        )
        if extent % step:
            wide = math.ceil(extent / step) * step / _UNIT
            fits = (-wide / 2, wide / 2) if low == -high else (low, low + wide)
            require(
                wide < _FARTHEST,
                f"{where}: the range {low:g} to {high:g} along {axis} is no detector's; give "
                f"metres around the sensor, less than {_FARTHEST:g}",
            )
            require(
                False,
                f"{where}: the range {low:g} to {high:g} along {axis} is no multiple of "
                f"{step / _UNIT:g} m ({cells} cells of {side:g} m); {fits[0]:g} to {fits[1]:g} is",
            )
