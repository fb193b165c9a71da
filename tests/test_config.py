"""Settings travel to JSON and back unchanged, and what does not exist is refused in one
sentence.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from kdlib import zoo
from kdlib.config import (
    BackboneConfig,
    DecodeConfig,
    EvalConfig,
    GridConfig,
    HeadConfig,
    KDConfig,
    LabelKDConfig,
    LogitKDConfig,
    ModelConfig,
    TrainConfig,
    config_hash,
    from_dict,
    to_dict,
)
from kdlib.errors import ConfigError
from kdlib.lab import profiles
from kdlib.lab.profile import Profile
from kdlib.training.job import TeacherSource, TrainJob
from kdlib.zoo import Pair

DEMO = zoo.pair("cp_pillar_demo_v0.64_sparsekd")
KD = KDConfig(
    LogitKDConfig(weight=3.0, positions="rank"),
    LabelKDConfig(dedupe_iou=0.5),
    teacher_norm="running",
    initialisation="none",
)
JOB = TrainJob(
    DEMO.student,
    TrainConfig(),
    "/store",
    kd=KD,
    teacher=TeacherSource(DEMO.teacher, "/t.safetensors"),
    name="x",
)
ALL = (
    *zoo.MODELS.values(),
    *zoo.PAIRS.values(),
    *profiles.PROFILES.values(),
    JOB,
    KDConfig(logit=None, label=None),
)


@pytest.mark.parametrize(
    "config", ALL, ids=lambda config: getattr(config, "name", "") or type(config).__name__
)
def test_json_and_back(config: Any) -> None:
    text = json.dumps(to_dict(config))
    assert from_dict(type(config), json.loads(text)) == config


def test_infinite_distance_survives() -> None:
    assert math.isinf(
        from_dict(EvalConfig, json.loads(json.dumps(to_dict(EvalConfig())))).half_width
    )


def model_with(**changes: Any) -> dict[str, Any]:
    return {**to_dict(DEMO.student), **changes}


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (TrainConfig, {"epoch": 3}, ["TrainConfig", "epoch", "epochs"]),
        (ModelConfig, model_with(width=2), ["ModelConfig", "width", "backbone"]),
        (ModelConfig, model_with(grid={"pillar": 1}), ["GridConfig", "pillar", "voxel_size"]),
        (
            ModelConfig,
            {k: v for k, v in model_with().items() if k != "head"},
            ["ModelConfig", "head"],
        ),
        (ModelConfig, model_with(grid="big"), ["ModelConfig.grid", "big"]),
        (KDConfig, {"teacher_norm": "eval"}, ["teacher_norm", "running", "batch", "eval"]),
        (KDConfig, {"initialisation": None}, ["initialisation", "matching"]),
        (KDConfig, {"logit": {"positions": "gausian"}}, ["positions", "gaussian", "gausian"]),
        (LabelKDConfig, {"thresholds": 0.6}, ["thresholds", "0.6"]),
        (LabelKDConfig, {"thresholds": [0.6, "high", 0.6]}, ["thresholds", "float", "high"]),
        (TrainConfig, {"epochs": "3"}, ["epochs", "int", "'3'"]),
        (TrainConfig, {"epochs": 3.5}, ["epochs", "int", "3.5"]),
        (TrainConfig, {"epochs": True}, ["epochs", "True"]),
        (TrainConfig, {"learning_rate": None}, ["learning_rate", "float"]),
        (TrainConfig, {"precision": "8-bit"}, ["precision", "8-bit", "32-true"]),
        (DecodeConfig, {"center_limit": [-80, -80, 80, 80]}, ["center_limit", "6", "4"]),
        (LogitKDConfig, {"soft": 1}, ["soft", "bool"]),
    ],
)
def test_what_does_not_exist_is_named(kind: type, values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(kind, values)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_file_may_write_a_whole_number_for_a_real_one() -> None:
    assert from_dict(TrainConfig, {"learning_rate": 1}).learning_rate == 1


RANGE = (-20.48, -20.48, -2.0, 20.48, 20.48, 4.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GridConfig(RANGE, (0.3, 0.3, 6.0), 20), "not whole"),
        (lambda: GridConfig(RANGE, (0.0, 0.32, 6.0), 20), "empty"),
        (lambda: GridConfig((20.0, *RANGE[1:]), (0.32, 0.32, 6.0), 20), "range 20"),
        (lambda: GridConfig(RANGE, (0.32, 0.32, 6.0), 0), "max_points"),
        (
            lambda: BackboneConfig((3, 5), (1,), (64, 128), (1, 2), (128, 128)),
            ("one entry per level"),
        ),
        (lambda: replace(zoo.CP_PILLAR.backbone, width=0), "width"),
        (
            lambda: replace(zoo.CP_PILLAR, head=HeadConfig(heads=(("Vehicle",), ("Pedestrian",)))),
            "Cyclist",
        ),
        (
            lambda: replace(
                zoo.CP_PILLAR,
                head=HeadConfig(heads=(("Vehicle", "Pedestrian", "Cyclist"), ("Cyclist",))),
            ),
            "once",
        ),
        (lambda: TrainConfig(epochs=0), "epochs must be positive, not 0"),
        (lambda: TrainConfig(batch_size=0), "batch_size"),
        (lambda: TrainConfig(interval=0), "interval"),
        (lambda: TrainConfig(accumulate=-1), "accumulate"),
        (lambda: TrainConfig(learning_rate=0), "learning_rate"),
    ],
)
def test_senseless_values_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3  # type: ignore[misc]


def variants(config: Any) -> list[tuple[str, Any]]:
    """The same configuration with one leaf changed, for every leaf; sense does not matter here."""
    found = []
    for item in fields(config):
        value = getattr(config, item.name)
        hint = get_type_hints(type(config))[item.name]
        if is_dataclass(value):
            found += [
                (f"{item.name}.{name}", unchecked(config, item.name, other))
                for name, other in variants(value)
            ]
        else:
            found.append((item.name, unchecked(config, item.name, another(hint, value))))
    return found


def unchecked(config: Any, name: str, value: Any) -> Any:
    copy = object.__new__(type(config))
    for item in fields(config):
        object.__setattr__(
            copy, item.name, value if item.name == name else getattr(config, item.name)
        )
    return copy


def another(hint: Any, value: Any) -> Any:
    if get_origin(hint) is Literal:
        return next(option for option in get_args(hint) if option != value)
    if get_origin(hint) in (Union, types.UnionType):
        return 1 if value is None else None
    if isinstance(value, tuple):
        return (*value, value[-1])
    if isinstance(value, bool):
        return not value
    return value + "x" if isinstance(value, str) else 0.5 if math.isinf(value) else value + 1


@pytest.mark.parametrize(
    "config", [DEMO.student, DEMO.kd, TrainConfig(), EvalConfig()], ids=lambda c: type(c).__name__
)
def test_hash_changes_with_every_setting(config: Any) -> None:
    every = variants(config)
    hashes = {name: config_hash(other) for name, other in every}
    assert len(every) >= len(fields(config))
    same = [name for name, value in hashes.items() if value == config_hash(config)]
    assert not same
    assert len(set(hashes.values())) == len(hashes)


def test_hash_is_twelve_digits_and_stable() -> None:
    value = config_hash(DEMO.student, TrainConfig(), "text")
    assert len(value) == 12 and int(value, 16) >= 0
    assert value == config_hash(
        from_dict(ModelConfig, to_dict(DEMO.student)), TrainConfig(), "text"
    )
    assert value != config_hash(TrainConfig(), DEMO.student, "text")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cp_pillar", "3356d76e6fee"),
        ("cp_pillar_demo", "9b1f566e5a3a"),
        ("cp_voxel_xs", "63f43fef99e5"),
        ("cp_voxel_demo", "f909ba6e8d0a"),
        ("second", "6ce1b4927834"),
        ("pointpillar", "99122bb02b48"),
    ],
)
def test_hashes_outlive_new_kinds_of_models(name: str, value: str) -> None:
    """Finished trainings are known by them: what one model gains must not make all others
    strangers.
    """
    assert config_hash(zoo.model(name)) == value


def test_profile_and_pair_are_configurations_too() -> None:
    assert {type(config) for config in ALL} >= {Profile, Pair, ModelConfig, TrainJob}
