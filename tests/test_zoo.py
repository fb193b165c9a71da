"""The zoo holds the published figures of every model and pair, digit by digit (spec sections 1.4,
4.3, 4.5, 5, 6, 7, 9).
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from kdlib import zoo
from kdlib.config import (
    AnchorHeadConfig,
    AugmentConfig,
    DecodeConfig,
    LabelKDConfig,
    LogitKDConfig,
    ModelConfig,
    TrainConfig,
    VoxelEncoderConfig,
)
from kdlib.errors import ConfigError
from kdlib.kd.remap import remap
from kdlib.lab import profiles
from kdlib.models.build import build

# name: half range, pillar, cells, points kept in a pillar
FAMILY = {
    "cp_pillar": (74.24, 0.32, 464, 20),
    "cp_pillar_v0.4": (73.6, 0.40, 368, 28),
    "cp_pillar_v0.48": (74.88, 0.48, 312, 36),
    "cp_pillar_v0.64": (74.24, 0.64, 232, 50),
}
# name: student, the teacher's cells on the student's range, label thresholds
PAIRS = {
    "cp_pillar_v0.4_sparsekd": ("cp_pillar_v0.4", 460, (0.6, 0.6, 0.6)),
    "cp_pillar_v0.48_sparsekd": ("cp_pillar_v0.48", 468, (0.6, 0.5, 0.5)),
    "cp_pillar_v0.64_sparsekd": ("cp_pillar_v0.64", 464, (0.6, 0.5, 0.5)),
}


# name: channels of the 3D backbone, 2D channels, upsampled channels, shared channels, parameters
VOXELS = {
    "cp_voxel": ((16, 16, 32, 64, 128, 128), (128, 256), (256, 256), 64, 7_758_811),
    "cp_voxel_s": ((16, 16, 32, 64, 128, 128), (64, 128), (128, 128), 32, 4_038_203),
    "cp_voxel_xs": ((12, 12, 24, 48, 96, 96), (64, 128), (128, 128), 32, 2_823_223),
    "cp_voxel_xxs": ((8, 8, 16, 32, 64, 64), (32, 64), (64, 64), 16, 1_012_643),
}
# name: student, weight of heatmap distillation, whose weights the student starts from
VOXEL_PAIRS = {
    "cp_voxel_s_sparsekd": ("cp_voxel_s", 10.0, None),
    "cp_voxel_xs_sparsekd": ("cp_voxel_xs", 15.0, None),
    "cp_voxel_xxs_sparsekd": ("cp_voxel_xxs", 15.0, "cp_voxel_xs"),
}


@pytest.mark.parametrize("name", VOXELS)
def test_voxel_family(name: str) -> None:
    sparse, dense, upsampled, shared, parameters = VOXELS[name]
    model = zoo.model(name)
    assert model.name == name and model.class_names == ("Vehicle", "Pedestrian", "Cyclist")
    assert model.grid.point_range == (-75.2, -75.2, -2.0, 75.2, 75.2, 4.0)
    assert model.grid.voxel_size == (0.1, 0.1, 0.15) and model.grid.grid_size == (1504, 1504, 40)
    assert (model.grid.max_points, model.grid.max_voxels) == (5, 150_000)
    assert (model.encoder.channels, model.encoder.residual, model.encoder.point_features) == (
        sparse,
        True,
        5,
    )
    backbone = model.backbone
    assert (backbone.layers, backbone.strides, backbone.upsample_strides) == (
        (5, 5),
        (1, 2),
        (1, 2),
    )
    assert (backbone.channels, backbone.upsample_channels) == (dense, upsampled)
    assert (model.head.shared_channels, model.head.stride) == (shared, 8)
    limit = (-75.2, -75.2, -2.0, 75.2, 75.2, 4.0)
    assert model.head == replace(
        zoo.CP_PILLAR.head,
        shared_channels=shared,
        stride=8,
        decode=DecodeConfig(center_limit=limit),
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in build(model).parameters()) == parameters


@pytest.mark.parametrize("name", VOXEL_PAIRS)
def test_voxel_pairs(name: str) -> None:
    student, weight, start = VOXEL_PAIRS[name]
    pair = zoo.pair(name)
    assert (pair.name, pair.student, pair.teacher) == (name, zoo.model(student), zoo.CP_VOXEL)
    assert pair.initialise_from == (None if start is None else zoo.model(start))
    assert pair.kd.logit == LogitKDConfig(weight=weight, regression_weight=0.2)
    logit = pair.kd.logit
    assert logit is not None
    assert (logit.positions, logit.soft, logit.threshold, logit.distance) == (
        "gaussian",
        True,
        0.0,
        "mse",
    )
    assert pair.kd.label == LabelKDConfig(thresholds=(0.6, 0.6, 0.6))
    assert (pair.kd.teacher_norm, pair.kd.initialisation) == ("batch", "first")


@pytest.mark.parametrize("name", [*VOXEL_PAIRS, "cp_voxel_demo_xs_sparsekd"])
def test_every_voxel_student_can_be_slimmed_from_where_it_starts(name: str) -> None:
    pair = zoo.pair(name)
    with torch.device("meta"):
        source, student = (
            build(pair.initialise_from or pair.teacher).state_dict(),
            build(pair.student).state_dict(),
        )
    assert {key: value.shape for key, value in remap(source, student).tensors.items()} == {
        k: v.shape for k, v in student.items()
    }


def test_baselines() -> None:
    second, pillars = zoo.model("second"), zoo.model("pointpillar")
    assert second.grid == zoo.CP_VOXEL.grid and second.backbone == zoo.CP_VOXEL.backbone
    assert (second.encoder.channels, second.encoder.residual) == ((16, 16, 32, 64, 64, 128), False)
    assert pillars.grid.grid_size == (468, 468, 1) and pillars.grid.point_range[3] == 74.88
    assert (
        replace(pillars, name="cp_pillar", grid=zoo.CP_PILLAR.grid, head=zoo.CP_PILLAR.head)
        == zoo.CP_PILLAR
    )
    for model, stride, parameters in ((second, 8, 5_326_008), (pillars, 1, 4_838_760)):
        head = model.head
        assert head == AnchorHeadConfig(stride=stride)
        kinds = [
            (a.class_name, a.size, a.bottom, a.rotations, a.positive_iou, a.negative_iou)
            for a in head.anchors
        ]
        assert kinds == [
            ("Vehicle", (4.7, 2.1, 1.7), 0, (0, 1.57), 0.55, 0.4),
            ("Pedestrian", (0.91, 0.86, 1.73), 0, (0, 1.57), 0.5, 0.35),
            ("Cyclist", (1.78, 0.84, 1.78), 0, (0, 1.57), 0.5, 0.35),
        ]
        assert (
            head.class_weight,
            head.box_weight,
            head.direction_weight,
            head.direction_offset,
        ) == (1.0, 2.0, 0.2, 0.78539)
        decode = head.decode
        assert (decode.score_threshold, decode.nms_iou, decode.nms_pre, decode.nms_post) == (
            0.1,
            0.7,
            4096,
            500,
        )
        with torch.device("meta"):
            assert sum(p.numel() for p in build(model).parameters()) == parameters


@pytest.mark.parametrize("name", FAMILY)
def test_grids(name: str) -> None:
    half, pillar, cells, points = FAMILY[name]
    model = zoo.model(name)
    assert model.name == name
    assert model.grid.point_range == (-half, -half, -2.0, half, half, 4.0)
    assert model.grid.voxel_size == (pillar, pillar, 6.0)
    assert model.grid.grid_size == (cells, cells, 1)
    assert (model.grid.max_points, model.grid.max_voxels) == (points, 150_000)


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_changes_resolution_only(name: str) -> None:
    model = zoo.model(name)
    assert replace(model, name="cp_pillar", grid=zoo.CP_PILLAR.grid) == zoo.CP_PILLAR
    assert model.class_names == ("Vehicle", "Pedestrian", "Cyclist")
    assert (model.encoder.filters, model.encoder.point_features) == ((64, 64), 5)
    backbone = model.backbone
    assert (backbone.layers, backbone.strides, backbone.channels) == (
        (3, 5, 5),
        (1, 2, 2),
        (64, 128, 256),
    )
    assert (backbone.upsample_strides, backbone.upsample_channels) == ((1, 2, 4), (128, 128, 128))
    head = model.head
    assert (head.shared_channels, head.heads, head.stride) == (
        64,
        (("Vehicle", "Pedestrian", "Cyclist"),),
        1,
    )
    assert (head.heatmap_weight, head.box_weight) == (1.0, 2.0)
    assert (head.targets.max_objects, head.targets.gaussian_overlap, head.targets.min_radius) == (
        500,
        0.1,
        2,
    )
    decode = head.decode
    assert decode.center_limit == (-80.0, -80.0, -10.0, 80.0, 80.0, 10.0)
    assert (decode.score_threshold, decode.nms_iou, decode.nms_pre, decode.nms_post) == (
        0.1,
        0.7,
        4096,
        500,
    )
    assert decode.max_objects == 500


@pytest.mark.parametrize("name", FAMILY)
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        network = build(zoo.model(name))
    assert sum(p.numel() for p in network.parameters()) == 5_224_043


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str) -> None:
    student, cells, thresholds = PAIRS[name]
    pair = zoo.pair(name)
    assert pair.name == name
    assert pair.student == zoo.model(student)
    assert pair.teacher.grid.grid_size == (cells, cells, 1)
    assert pair.teacher.grid.voxel_size == (0.32, 0.32, 6.0) and pair.teacher.grid.max_points == 20
    assert pair.teacher.grid.point_range == pair.student.grid.point_range
    assert replace(pair.teacher, grid=zoo.CP_PILLAR.grid) == zoo.CP_PILLAR
    logit, label = pair.kd.logit, pair.kd.label
    assert logit is not None
    assert (logit.weight, logit.regression_weight, logit.threshold) == (7.0, 0.0, 0.0)
    assert (logit.positions, logit.soft, logit.distance) == ("gaussian", True, "mse")
    assert (logit.target, logit.align_corners) == ("teacher", False)
    assert label == LabelKDConfig(
        thresholds=thresholds, teacher_first=True, use_truth=True, dedupe_iou=None
    )
    assert (pair.kd.teacher_norm, pair.kd.initialisation) == ("batch", "matching")


def test_published_schedule() -> None:
    schedule = TrainConfig()
    assert (schedule.epochs, schedule.batch_size, schedule.learning_rate) == (30, 2, 0.003)
    assert (schedule.weight_decay, schedule.clip_norm, schedule.seed) == (0.01, 10.0, 666)
    assert schedule.augment == AugmentConfig(True, True, math.pi / 4, (0.95, 1.05))
    for name, interval in (("waymo20", 5), ("waymo100", 1)):
        profile = profiles.profile(name)
        for each in (profile.teacher, profile.student):
            assert (each.epochs, each.batch_size, each.interval) == (30, 2, interval)
        assert profile.evaluation.interval == interval
        assert profile.simulated is None and profile.pair.name in PAIRS and len(profile.seeds) >= 3


@pytest.mark.parametrize("name", ["smoke", "demo"])
def test_simulated_profiles_use_the_small_pair(name: str) -> None:
    profile = profiles.profile(name)
    pair = profile.pair
    assert profile.simulated is not None
    assert pair.teacher == zoo.model("cp_pillar_demo") == profile.teacher_model
    assert pair.student == zoo.model("cp_pillar_demo_v0.64") == profile.student_model
    assert tuple(profile.arms) == ("alone", "init", "full")
    small, full = zoo.CP_PILLAR_DEMO.backbone, zoo.CP_PILLAR.backbone
    assert (small.layers, small.strides, small.upsample_strides) == (
        full.layers,
        full.strides,
        full.upsample_strides,
    )
    assert tuple(4 * channels for channels in small.channels) == full.channels
    assert pair.teacher.grid.grid_size == (128, 128, 1) and pair.student.grid.grid_size == (
        64,
        64,
        1,
    )


def test_demo_has_three_seeds_and_one_budget() -> None:
    demo = profiles.profile("demo")
    assert len(set(demo.seeds)) >= 3
    assert demo.evaluation.half_width == demo.student_model.grid.point_range[3]
    assert profiles.profile("smoke").pair == demo.pair


def test_arms_differ_in_the_teacher_only() -> None:
    arms = [profiles.profile("demo").arm(name) for name in profiles.profile("demo").arms]
    uses = {arm.name: (arm.initialisation != "none", arm.kd is not None) for arm in arms}
    assert uses == {"alone": (False, False), "init": (True, False), "full": (True, True)}


@pytest.mark.parametrize("name", zoo.MODELS)
def test_maps_can_be_halved_as_often_as_the_backbone_does(name: str) -> None:
    model: ModelConfig = zoo.model(name)
    columns, rows, _ = model.grid.grid_size
    if isinstance(model.encoder, VoxelEncoderConfig):
        columns, rows = columns // 8, rows // 8
    assert (
        columns % math.prod(model.backbone.strides) == rows % math.prod(model.backbone.strides) == 0
    )


@pytest.mark.parametrize(
    "find", [zoo.model, zoo.pair, profiles.profile], ids=["model", "pair", "profile"]
)
def test_unknown_names_list_what_there_is(find) -> None:
    known = {zoo.model: zoo.MODELS, zoo.pair: zoo.PAIRS, profiles.profile: profiles.PROFILES}[find]
    with pytest.raises(ConfigError, match="'cp_pilar'") as caught:
        find("cp_pilar")
    message = str(caught.value)
    assert "\n" not in message
    assert all(re.search(rf"\b{re.escape(name)}(,|;|$)", message) for name in known)
