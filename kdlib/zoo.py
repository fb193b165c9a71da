"""Every published model and teacher-student pair by name (spec section 6)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdlib.config import (
    AnchorHeadConfig,
    BackboneConfig,
    DecodeConfig,
    GridConfig,
    HeadConfig,
    Initialisation,
    KDConfig,
    LabelKDConfig,
    LogitKDConfig,
    ModelConfig,
    PillarEncoderConfig,
    PointHeadConfig,
    PoolKind,
    RefinedConfig,
    RoiHeadConfig,
    SecondStageConfig,
    SetAbstractionConfig,
    TwoStageConfig,
    VectorPoolConfig,
    VoxelEncoderConfig,
    lookup,
)
from kdlib.config.model import Bounds


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

# The demo's models are CP-Pillar at a quarter of the width and 20 m of range, so that two CPU cores
# can train them. The centre limit follows the range: a box decoded on the border cell may lie a
# little outside.
CP_PILLAR_DEMO = replace(
    CP_PILLAR,
    name="cp_pillar_demo",
    grid=_pillar_grid(20.48, 0.32, 20),
    encoder=PillarEncoderConfig(filters=(16, 16)),
    backbone=replace(CP_PILLAR.backbone, filters=(16, 32, 64), upsample_filters=(32, 32, 32)),
    head=HeadConfig(
        shared_channels=16,
        decode=DecodeConfig(center_limit=(-22.0, -22.0, -10.0, 22.0, 22.0, 10.0)),
    ),
)
CP_PILLAR_DEMO_V064 = replace(
    CP_PILLAR_DEMO, name="cp_pillar_demo_v0.64", grid=_pillar_grid(20.48, 0.64, 50)
)
# Half as wide on the teacher's own pillars: as many multiply-accumulates as twice the pillar, to a
# few per cent.
CP_PILLAR_DEMO_W05 = replace(
    CP_PILLAR_DEMO,
    name="cp_pillar_demo_w0.5",
    encoder=PillarEncoderConfig(filters=(8, 8)),
    backbone=replace(CP_PILLAR_DEMO.backbone, width=0.5),
    head=HeadConfig(shared_channels=8, decode=CP_PILLAR_DEMO.head.decode),
)

_VOXEL_GRID = GridConfig((-75.2, -75.2, -2.0, 75.2, 75.2, 4.0), (0.1, 0.1, 0.15), 5)
_VOXEL_BACKBONE = BackboneConfig((5, 5), (1, 2), (128, 256), (1, 2), (256, 256))


def _cp_voxel(
    name: str,
    encoder: float,
    backbone: float,
    shared: int,
    grid: GridConfig = _VOXEL_GRID,
    center_limit: Bounds = _VOXEL_GRID.point_range,
) -> ModelConfig:
    return ModelConfig(
        name=name,
        grid=grid,
        encoder=VoxelEncoderConfig(width=encoder),
        backbone=replace(_VOXEL_BACKBONE, width=backbone),
        head=HeadConfig(
            shared_channels=shared, stride=8, decode=DecodeConfig(center_limit=center_limit)
        ),
    )


CP_VOXEL = _cp_voxel("cp_voxel", 1.0, 1.0, 64)
CP_VOXEL_S = _cp_voxel("cp_voxel_s", 1.0, 0.5, 32)
CP_VOXEL_XS = _cp_voxel("cp_voxel_xs", 0.75, 0.5, 32)
CP_VOXEL_XXS = _cp_voxel("cp_voxel_xxs", 0.5, 0.25, 16)

# The demo's voxel models are as narrow as CP-Voxel-XXS and half of that, and see 15 m, so that a
# CPU can train them.
_DEMO_GRID = GridConfig((-15.36, -15.36, -2.0, 15.36, 15.36, 4.0), (0.12, 0.12, 0.15), 5)
_DEMO_LIMIT = (-17.0, -17.0, -10.0, 17.0, 17.0, 10.0)
CP_VOXEL_DEMO = _cp_voxel("cp_voxel_demo", 0.5, 0.25, 16, _DEMO_GRID, _DEMO_LIMIT)
CP_VOXEL_DEMO_XS = _cp_voxel("cp_voxel_demo_xs", 0.25, 0.125, 8, _DEMO_GRID, _DEMO_LIMIT)


def _two_stages(name: str, first: ModelConfig, second: SecondStageConfig) -> TwoStageConfig:
    return TwoStageConfig(
        name, first.grid, first.encoder, first.backbone, first.head, second=second
    )


# The teacher across stages (spec 4.6): CP-Voxel with a second stage.
PV_RCNN_PP = _two_stages("pv_rcnn_pp", CP_VOXEL, SecondStageConfig())


def _demo_pool(
    kind: PoolKind, reduced: int, radii: tuple[float, ...], channels: int, limit: int
) -> VectorPoolConfig:
    cells = ((2, 2, 2),) * len(radii)
    return VectorPoolConfig(
        kind, reduced, cells, radii, 16, (channels, channels), (2 * channels,), limit
    )


# The demo's second stage is as narrow as its first and leaves that as it is, so that what it adds
# can be told.
PV_RCNN_PP_DEMO = _two_stages(
    "pv_rcnn_pp_demo",
    CP_VOXEL_DEMO,
    SecondStageConfig(
        abstraction=SetAbstractionConfig(
            keypoints=512,
            raw=_demo_pool("local_interpolation", 2, (0.2, 0.4), 16, 1000),
            levels=(
                _demo_pool("local_interpolation", 16, (0.6, 1.2), 32, 1000),
                _demo_pool("local_interpolation", 16, (1.2, 2.4), 32, 1000),
            ),
            fused=48,
        ),
        points=PointHeadConfig(channels=(64, 64)),
        rois=RoiHeadConfig(
            grid=4,
            pool=_demo_pool("voxel_random_choice", 16, (0.8, 1.6), 32, 32),
            shared=(128, 128),
            branches=(128, 128),
        ),
        # after so short a training two boxes of one object overlap less
        refined=RefinedConfig(nms_iou=0.5),
        first_stage="frozen",
    ),
)


# The baselines of the latency table (spec 4.5).
SECOND = replace(
    CP_VOXEL,
    name="second",
    encoder=VoxelEncoderConfig(filters=(16, 16, 32, 64, 64, 128), residual=False),
    head=AnchorHeadConfig(stride=8),
)
POINTPILLAR = replace(
    CP_PILLAR, name="pointpillar", grid=_pillar_grid(74.88, 0.32, 20), head=AnchorHeadConfig()
)

MODELS: dict[str, ModelConfig] = {
    model.name: model
    for model in (
        *(CP_PILLAR, CP_PILLAR_V04, CP_PILLAR_V048, CP_PILLAR_V064),
        *(CP_PILLAR_DEMO, CP_PILLAR_DEMO_V064, CP_PILLAR_DEMO_W05),
        *(CP_VOXEL, CP_VOXEL_S, CP_VOXEL_XS, CP_VOXEL_XXS, CP_VOXEL_DEMO, CP_VOXEL_DEMO_XS),
        *(SECOND, POINTPILLAR, PV_RCNN_PP, PV_RCNN_PP_DEMO),
    )
}


@dataclass(frozen=True)
class Pair:
    """A teacher, a student and the recipe between them."""

    name: str
    teacher: ModelConfig | TwoStageConfig
    student: ModelConfig
    kd: KDConfig
    # whose trained weights the student starts from; None: the teacher's
    initialise_from: ModelConfig | None = None
    # that the teacher is trained on, where the pair shows it another; None: what it is shown
    teacher_grid: GridConfig | None = None

    @property
    def trained_teacher(self) -> ModelConfig | TwoStageConfig:
        """The teacher as it is trained from scratch."""
        return replace(self.teacher, grid=self.teacher_grid or self.teacher.grid)


def _pillar_pair(
    name: str,
    teacher: ModelConfig,
    student: ModelConfig,
    thresholds: tuple[float, ...] = (0.6, 0.5, 0.5),
    initialisation: Initialisation = "matching",
) -> Pair:
    # The teacher looks at the student's range, on its own pillars (spec 1.4: 460, 468, 464 cells).
    half, own = student.grid.point_range[3], teacher.grid
    seen = _pillar_grid(half, own.voxel_size[0], own.max_points)
    kd = KDConfig(label=LabelKDConfig(thresholds), initialisation=initialisation)
    grid = None if seen == own else own
    return Pair(name, replace(teacher, grid=seen), student, kd, teacher_grid=grid)


def _voxel_pair(
    name: str,
    teacher: ModelConfig,
    student: ModelConfig,
    weight: float,
    initialisation: Initialisation = "first",
    initialise_from: ModelConfig | None = None,
) -> Pair:
    kd = KDConfig(
        LogitKDConfig(weight=weight, regression_weight=0.2), initialisation=initialisation
    )
    return Pair(name, teacher, student, kd, initialise_from)


PAIRS: dict[str, Pair] = {
    pair.name: pair
    for pair in (
        _pillar_pair("cp_pillar_v0.4_sparsekd", CP_PILLAR, CP_PILLAR_V04, (0.6, 0.6, 0.6)),
        _pillar_pair("cp_pillar_v0.48_sparsekd", CP_PILLAR, CP_PILLAR_V048),
        _pillar_pair("cp_pillar_v0.64_sparsekd", CP_PILLAR, CP_PILLAR_V064),
        _pillar_pair("cp_pillar_demo_v0.64_sparsekd", CP_PILLAR_DEMO, CP_PILLAR_DEMO_V064),
        _pillar_pair(
            "cp_pillar_demo_w0.5_sparsekd",
            CP_PILLAR_DEMO,
            CP_PILLAR_DEMO_W05,
            initialisation="first",
        ),
        _voxel_pair("cp_voxel_s_sparsekd", CP_VOXEL, CP_VOXEL_S, 10.0),
        _voxel_pair("cp_voxel_xs_sparsekd", CP_VOXEL, CP_VOXEL_XS, 15.0),
        # XS trained without KD
        _voxel_pair(
            "cp_voxel_xxs_sparsekd", CP_VOXEL, CP_VOXEL_XXS, 15.0, initialise_from=CP_VOXEL_XS
        ),
        _voxel_pair("cp_voxel_demo_xs_sparsekd", CP_VOXEL_DEMO, CP_VOXEL_DEMO_XS, 15.0),
        # Heatmaps of the teacher's first stage, boxes of its second; the student starts from
        # whatever has its names and shapes.
        _voxel_pair("cp_voxel_from_pv_rcnn_pp", PV_RCNN_PP, CP_VOXEL, 15.0, "matching"),
        _voxel_pair(
            "cp_voxel_demo_from_pv_rcnn_pp_demo", PV_RCNN_PP_DEMO, CP_VOXEL_DEMO, 15.0, "matching"
        ),
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
