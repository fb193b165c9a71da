"""Every setting, as frozen dataclasses that check themselves; defaults are the published values."""

from __future__ import annotations

from kdlib.config.codec import config_hash, from_dict, lookup, to_dict
from kdlib.config.distillation import (
    FeatureForm,
    FeatureKDConfig,
    Initialisation,
    KDConfig,
    KDScheduleConfig,
    LabelKDConfig,
    LogitKDConfig,
    PivotalForm,
    TeacherNorm,
)
from kdlib.config.model import (
    CLASS_NAMES,
    WAYMO_ANCHORS,
    AnchorConfig,
    AnchorHeadConfig,
    BackboneConfig,
    DecodeConfig,
    GridConfig,
    HeadConfig,
    ModelConfig,
    PillarEncoderConfig,
    TargetConfig,
    VoxelEncoderConfig,
)
from kdlib.config.pvrcnn import (
    FirstStage,
    PointHeadConfig,
    PoolKind,
    RefinedConfig,
    RoiHeadConfig,
    RoiSamplingConfig,
    SecondStageConfig,
    SetAbstractionConfig,
    TwoStageConfig,
    VectorPoolConfig,
)
from kdlib.config.training import AugmentConfig, EvalConfig, ObjectSamplingConfig, TrainConfig
