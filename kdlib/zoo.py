"""Every published model and teacher-student pair by name; a variant is one ``dataclasses.replace`` (spec section 6)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdlib.config import (
    BackboneConfig,
    DecodeConfig,
    GridConfig,
    HeadConfig,
    KDConfig,
    LabelKDConfig,
    LogitKDConfig,
    ModelConfig,
    PillarEncoderConfig,
    lookup,
)


def _pillar_grid(half: float, pillar: float, max_points: int) -> GridConfig:
    return GridConfig((-half, -half, -2.0, half, half, 4.0), (pillar, pillar, 6.0), max_points)


CP_PILLAR = ModelConfig(
    name="cp_pillar",
    grid=_pillar_grid(74.24, 0.32, 20),
    encoder=PillarEncoderConfig(),
    backbone=BackboneConfig((3, 5, 5), (1, 2, 2), (64, 128, 256), (1, 2, 4), (128, 128, 128)),
    head=HeadConfig(),
)
CP_PILLAR_V04 = replace(CP_PILLAR, name="cp_pillar_v0.4", grid=_pillar_grid(73.6, 0.40, 28))
CP_PILLAR_V048 = replace(CP_PILLAR, name="cp_pillar_v0.48", grid=_pillar_grid(74.88, 0.48, 36))
CP_PILLAR_V064 = replace(CP_PILLAR, name="cp_pillar_v0.64", grid=_pillar_grid(74.24, 0.64, 50))

# The demo's models are CP-Pillar at a quarter of the width and 20 m of range, so that two CPU cores can train them. The centre
# limit follows the range: a box decoded on the border cell may lie a little outside.
CP_PILLAR_DEMO = replace(
    CP_PILLAR,
    name="cp_pillar_demo",
    grid=_pillar_grid(20.48, 0.32, 20),
    encoder=PillarEncoderConfig(filters=(16, 16)),
    backbone=replace(CP_PILLAR.backbone, filters=(16, 32, 64), upsample_filters=(32, 32, 32)),
    head=HeadConfig(shared_channels=16, decode=DecodeConfig(center_limit=(-22.0, -22.0, -10.0, 22.0, 22.0, 10.0))),
)
CP_PILLAR_DEMO_V064 = replace(CP_PILLAR_DEMO, name="cp_pillar_demo_v0.64", grid=_pillar_grid(20.48, 0.64, 50))

MODELS: dict[str, ModelConfig] = {
    model.name: model for model in (CP_PILLAR, CP_PILLAR_V04, CP_PILLAR_V048, CP_PILLAR_V064, CP_PILLAR_DEMO, CP_PILLAR_DEMO_V064)
}


@dataclass(frozen=True)
class Pair:
    """A teacher, a student and the recipe between them."""

    name: str
    teacher: ModelConfig
    student: ModelConfig
    kd: KDConfig


def _pillar_pair(name: str, teacher: ModelConfig, student: ModelConfig, thresholds: tuple[float, ...]) -> Pair:
    # The teacher looks at the student's range, on its own pillars (spec 1.4: 460, 468, 464 cells).
    half = student.grid.point_range[3]
    seen = replace(teacher, grid=_pillar_grid(half, teacher.grid.voxel_size[0], teacher.grid.max_points))
    kd = KDConfig(logit=LogitKDConfig(weight=7.0), label=LabelKDConfig(thresholds=thresholds))
    return Pair(name, seen, student, kd)


PAIRS: dict[str, Pair] = {
    pair.name: pair
    for pair in (
        _pillar_pair("cp_pillar_v0.4_sparsekd", CP_PILLAR, CP_PILLAR_V04, (0.6, 0.6, 0.6)),
        _pillar_pair("cp_pillar_v0.48_sparsekd", CP_PILLAR, CP_PILLAR_V048, (0.6, 0.5, 0.5)),
        _pillar_pair("cp_pillar_v0.64_sparsekd", CP_PILLAR, CP_PILLAR_V064, (0.6, 0.5, 0.5)),
        _pillar_pair("cp_pillar_demo_v0.64_sparsekd", CP_PILLAR_DEMO, CP_PILLAR_DEMO_V064, (0.6, 0.5, 0.5)),
    )
}


def model(name: str) -> ModelConfig:
    """Return a model's configuration by name.

    Raises:
        ConfigError: If the zoo has no such model; the message lists those there are.
    """
    return lookup(MODELS, name, "model")


def pair(name: str) -> Pair:
    """Return a distillation pair by name.

    Raises:
        ConfigError: If the zoo has no such pair; the message lists those there are.
    """
    return lookup(PAIRS, name, "pair")
