"""The runs the notebooks can do, by name: which data, which pair, how long; ``dataclasses.replace``
makes another, :mod:`kdlib.lab.profile_files` one outside the package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from kdlib import zoo
from kdlib.config import (
    AugmentConfig,
    EvalConfig,
    Initialisation,
    KDConfig,
    ModelConfig,
    ObjectSamplingConfig,
    TrainConfig,
    lookup,
)
from kdlib.config.codec import require, require_positive
from kdlib.errors import ConfigError
from kdlib.lab.detector_table import DetectorTable, fit_pair

TeacherQuality = Literal["strong", "weak"]


@dataclass(frozen=True)
class SimulatedData:
    """What the simulator makes for a profile, at its demo scale."""

    training_segments: int
    validation_segments: int
    frames: int  # per segment, at 10 Hz


MAIN_LINE = (
    "00_explore_data",
    "01_train_teacher",
    "02_distill_student",
    "03_evaluate",
    "04_visualize_3d",
    "05_measure_cost",
)
ABLATIONS = (
    "11_ablate_signals",
    "12_ablate_initialisation",
    "13_ablate_teacher_batchnorm",
    "14_compress_by_width_or_resolution",
)

CROSS_STAGE = ("07_cross_stage",)


# The main line's ways of training the student, with their titles; all share data, schedule and
# seeds.
ARMS = {"alone": "student alone", "init": "initialised from the teacher", "full": "full SparseKD"}


@dataclass(frozen=True)
class Arm:
    """One way of training one student."""

    name: str  # of its folders
    title: str  # in sentences and tables
    student: ModelConfig
    kd: KDConfig | None = None  # None trains on annotations alone
    initialisation: Initialisation = "matching"  # from the arm's teacher
    teacher: TeacherQuality = "strong"
    epochs: int = 0  # 0: the profile's

    @property
    def recipe(self) -> str:
        """What a training step has to compute, which decides how long it takes."""
        if self.kd is None:
            return "plain"
        return "distilled" if self.kd.feature is None else f"features, {self.kd.feature.form}"


@dataclass(frozen=True)
class StudySettings:
    """What the ablations vary besides the recipe; the profile's student schedule is the short
    one.
    """

    # in kdlib.zoo.PAIRS: the same teacher, its student as costly as the profile's, but narrow
    # instead of coarse
    width_pair: str
    long_epochs: int  # of the long schedule
    weak_epochs: int  # of the weak teacher's training, otherwise the teacher's schedule
    arms: tuple[str, ...] = ()  # in kdlib.lab.study.arms; () means all


@dataclass(frozen=True)
class CrossStageSettings:
    """How a teacher of two stages is made; the schedule of a first stage from scratch is the
    profile's ``teacher``.
    """

    teacher: TrainConfig  # the schedule of both stages, or of the second where the first is frozen
    seeds: tuple[int, ...]  # of that training; the first one's detector teaches
    # it begins with a trained first stage; False trains both at once from nothing, as published
    above_first: bool
    # the profile whose teacher, on the same data, is that first stage where it was trained already
    borrow: str = ""


@dataclass(frozen=True)
class Profile:
    """Everything a chain of notebooks needs to know."""

    name: str
    simulated: SimulatedData | None  # None: Waymo's or one's own, under DATA_ROOT
    pair: zoo.Pair  # the teacher, the student and the recipe
    teacher: TrainConfig  # the schedule of a teacher from scratch
    shipped_teacher: str  # file in data/weights, "" where there is none
    continue_steps: int  # optimiser steps notebook 01 adds to a teacher that is given
    student: TrainConfig  # one schedule for all arms
    evaluation: EvalConfig
    seeds: tuple[int, ...]
    arms: tuple[str, ...] = tuple(ARMS)
    parallel: int = 1  # training runs side by side
    threads: int = 0  # per training run, 0 = all
    data: str = ""  # folder below data/, or a whole path; "" means the profile's name
    training_split: str = "training"  # of the store
    validation_split: str = "validation"  # of the store, of frames nobody trains on
    chain: tuple[str, ...] = MAIN_LINE  # its notebooks, in order
    study: StudySettings | None = None  # where the chain holds ablations
    cross: CrossStageSettings | None = None  # where the teacher has two stages

    def __post_init__(self) -> None:
        """Check what a run would stumble over late."""
        require(
            len(set(self.seeds)) == len(self.seeds) > 0
            and all(0 <= seed < 2**32 for seed in self.seeds),
            f"seeds are {list(self.seeds)}; give whole numbers from 0 to 2**32 - 1, each once",
        )
        require(
            len(set(self.arms)) == len(self.arms) > 0 and set(self.arms) <= set(ARMS),
            f"arms are {list(self.arms)}; give some of {', '.join(ARMS)}, each once",
        )
        require_positive(self, "continue_steps", "parallel")
        require(self.threads >= 0, f"threads is {self.threads}; give 0 for all cores, or a number")
        require(
            self.training_split != self.validation_split,
            f"training_split and validation_split are both '{self.training_split}'; evaluate on "
            "frames nobody trained on: store some drives under another split",
        )

    @property
    def folder(self) -> str:
        """Where its data lie below ``data/``; runs of profiles that share it share their store."""
        return self.data or self.name

    @property
    def kd(self) -> KDConfig:
        """The distillation recipe of the full arm."""
        return self.pair.kd

    @property
    def student_model(self) -> ModelConfig:
        """The student's configuration."""
        return self.pair.student

    @property
    def teacher_model(self) -> ModelConfig:
        """The teacher's configuration, on the student's range."""
        return self.pair.teacher

    def arm(self, name: str) -> Arm:
        """Return one of the main line's ways of training the student; ConfigError lists them if
        there is none of that name.
        """
        title = lookup(ARMS, name, "arm")
        start: Initialisation = "none" if name == "alone" else self.kd.initialisation
        return Arm(name, title, self.student_model, self.kd if name == "full" else None, start)

    def chosen_arms(self, names: str) -> tuple[str, ...]:
        """Return the arms that a comma-separated text names, the profile's where it is empty;
        ConfigError if one is unknown or comes twice.
        """
        arms = tuple(name.strip() for name in names.split(",")) if names else self.arms
        if not set(arms) <= set(ARMS) or len(set(arms)) < len(arms):
            raise ConfigError(
                f"ARMS='{names}' must be some of {', '.join(ARMS)}, comma-separated, each once; '' "
                "means the profile's"
            )
        return arms

    def chosen_seeds(self, numbers: str) -> tuple[int, ...]:
        """Return the seeds that a comma-separated text names, the profile's where it is empty;
        ConfigError if one is no whole number from 0 to 2**32 - 1 or comes twice.
        """
        words = [word.strip() for word in numbers.split(",")] if numbers else []
        seeds = tuple(int(word) if re.fullmatch("[0-9]{1,10}", word) else -1 for word in words)
        if any(not 0 <= seed < 2**32 for seed in seeds) or len(set(seeds)) < len(seeds):
            raise ConfigError(
                f"SEEDS='{numbers}' must be whole numbers from 0 to 2**32 - 1, comma-separated, "
                "each once, as 1,2,3; '' means the profile's"
            )
        return seeds or self.seeds

    def titled(self, words: str) -> str:
        """Return the title of a picture, which says so where the data are simulated."""
        return f"{words} (simulated data)" if self.simulated is not None else words


# The students see every tenth frame; the shipped teacher saw all of them.
_DEMO_SCHEDULE = TrainConfig(epochs=12, batch_size=4, interval=10, workers=0, checkpoint_steps=200)

DEMO = Profile(
    name="demo",
    simulated=SimulatedData(training_segments=150, validation_segments=25, frames=20),
    pair=zoo.pair("cp_pillar_demo_v0.64_sparsekd"),
    teacher=replace(
        _DEMO_SCHEDULE, epochs=20, interval=1, precision="bf16-mixed", checkpoint_steps=500
    ),
    shipped_teacher="cp_pillar_demo.safetensors",
    continue_steps=40,
    student=_DEMO_SCHEDULE,
    evaluation=EvalConfig(interval=2, batch_size=4, half_width=20.48),
    seeds=(1, 2, 3),
    parallel=2,
    threads=1,
)

# Small enough for the tests: every cell runs, no number means anything. A checkpoint after each of
# the few steps, so that a training that is killed has something to go on from.
SMOKE = replace(
    DEMO,
    name="smoke",
    simulated=SimulatedData(training_segments=2, validation_segments=2, frames=4),
    teacher=replace(_DEMO_SCHEDULE, epochs=1, interval=1, batch_size=2, checkpoint_steps=1),
    continue_steps=2,
    student=replace(_DEMO_SCHEDULE, epochs=1, interval=1, batch_size=2, checkpoint_steps=1),
    evaluation=EvalConfig(interval=1, batch_size=2, half_width=20.48),
    seeds=(1, 2),
)

# The ablations, on the demo's data and with its teacher: many short trainings instead of a few long
# ones, and every validation frame, because differences are small.
_STUDY = StudySettings("cp_pillar_demo_w0.5_sparsekd", long_epochs=10, weak_epochs=1)
STUDY = replace(
    DEMO,
    name="study",
    data="demo",
    chain=ABLATIONS,
    student=replace(_DEMO_SCHEDULE, epochs=4, checkpoint_steps=100),
    evaluation=replace(DEMO.evaluation, interval=1),
    study=_STUDY,
)

STUDY_SMOKE = replace(
    SMOKE,
    name="study_smoke",
    data="smoke",
    chain=ABLATIONS,
    seeds=(1,),
    study=replace(
        _STUDY, arms=("base", "full", "full_running", "narrow_none", "narrow", "narrow_full")
    ),
)

_PUBLISHED = TrainConfig(
    epochs=30,
    batch_size=2,
    interval=5,
    workers=4,
    augment=AugmentConfig(objects=ObjectSamplingConfig()),
)

WAYMO20 = Profile(
    name="waymo20",
    simulated=None,
    pair=zoo.pair("cp_pillar_v0.64_sparsekd"),
    teacher=_PUBLISHED,
    shipped_teacher="",
    continue_steps=40,
    student=_PUBLISHED,
    evaluation=EvalConfig(interval=5, batch_size=4, workers=4),
    seeds=(1, 2, 3),
)

WAYMO100 = replace(
    WAYMO20,
    name="waymo100",
    teacher=replace(_PUBLISHED, interval=1),
    student=replace(_PUBLISHED, interval=1),
    evaluation=replace(WAYMO20.evaluation, interval=1),
)

# A dataset of one's own on a laptop: the demo's models with half as much range again, every frame
# used, the teacher from scratch.
_OWN_SCHEDULE = TrainConfig(epochs=15, batch_size=4, interval=1, workers=0, checkpoint_steps=200)
_OWN_RANGE = DetectorTable(range=(-30.72, -30.72, -2.0, 30.72, 30.72, 4.0))
OWN_SMALL = replace(
    DEMO,
    name="own_small",
    simulated=None,
    pair=fit_pair(DEMO.pair, _OWN_RANGE, "own_small"),
    teacher=replace(_OWN_SCHEDULE, epochs=30),
    shipped_teacher="",
    student=_OWN_SCHEDULE,
    evaluation=EvalConfig(interval=1, batch_size=4, half_width=30.72),
    seeds=(1, 2),
)

# The voxel family: width instead of resolution. On the demo's data, with a teacher of its own; a
# step takes ten times as long as one of the pillars, so there are fewer of them, on smaller
# batches.
DEMO_VOXEL = replace(
    DEMO,
    name="demo_voxel",
    data="demo",
    pair=zoo.pair("cp_voxel_demo_xs_sparsekd"),
    shipped_teacher="",
    teacher=replace(DEMO.teacher, epochs=4, batch_size=2),
    student=replace(_DEMO_SCHEDULE, epochs=8, batch_size=2, precision="bf16-mixed"),
    evaluation=replace(DEMO.evaluation, half_width=15.36),
)


def _waymo20_voxel(size: str) -> Profile:
    schedule = replace(_PUBLISHED, batch_size=4)
    return replace(
        WAYMO20,
        name=f"waymo20_voxel_{size}",
        pair=zoo.pair(f"cp_voxel_{size}_sparsekd"),
        teacher=schedule,
        student=schedule,
    )


# Across stages: a second stage above the voxel teacher, and that teacher's own architecture as the
# student.
_SECOND_STAGE = replace(DEMO_VOXEL.teacher, epochs=1, weight_decay=0.001)
DEMO_CROSS_STAGE = replace(
    DEMO_VOXEL,
    name="demo_cross_stage",
    pair=zoo.pair("cp_voxel_demo_from_pv_rcnn_pp_demo"),
    student=replace(DEMO_VOXEL.student, epochs=1, interval=3),
    chain=CROSS_STAGE,
    cross=CrossStageSettings(_SECOND_STAGE, seeds=(1, 2, 3), above_first=True, borrow="demo_voxel"),
)

SMOKE_CROSS_STAGE = replace(
    DEMO_CROSS_STAGE,
    name="smoke_cross_stage",
    data="smoke",
    simulated=SMOKE.simulated,
    teacher=SMOKE.teacher,
    student=SMOKE.student,
    evaluation=replace(SMOKE.evaluation, interval=2, half_width=15.36),
    seeds=(1,),
    cross=CrossStageSettings(
        replace(SMOKE.teacher, weight_decay=0.001), seeds=(1,), above_first=True
    ),
)

WAYMO20_CROSS_STAGE = replace(
    WAYMO20,
    name="waymo20_cross_stage",
    pair=zoo.pair("cp_voxel_from_pv_rcnn_pp"),
    chain=CROSS_STAGE,
    cross=CrossStageSettings(
        replace(_PUBLISHED, learning_rate=0.01, weight_decay=0.001), seeds=(1,), above_first=False
    ),
)

PROFILES = {
    profile.name: profile
    for profile in (
        *(SMOKE, DEMO, DEMO_VOXEL, OWN_SMALL, STUDY, STUDY_SMOKE, WAYMO20, WAYMO100),
        *(_waymo20_voxel(size) for size in ("s", "xs", "xxs")),
        *(DEMO_CROSS_STAGE, SMOKE_CROSS_STAGE, WAYMO20_CROSS_STAGE),
    )
}


def profile(name: str) -> Profile:
    """Return a profile by name; ConfigError if there is none of that name; the message lists those
    there are.
    """
    return lookup(PROFILES, name, "profile")
