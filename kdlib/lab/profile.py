"""What a profile says of a run: data, pair, schedules, seeds, arms, and its notebooks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from kdlib import zoo
from kdlib.config import (
    EvalConfig,
    Initialisation,
    KDConfig,
    ModelConfig,
    TrainConfig,
    lookup,
)
from kdlib.config.codec import require, require_positive
from kdlib.errors import ConfigError

TeacherQuality = Literal["strong", "weak"]


@dataclass(frozen=True)
class SimulatedData:
    """What the simulator makes for a profile, at its demo scale."""

    training_segments: int
    validation_segments: int
    frames: int  # per segment, at 10 Hz

    def __post_init__(self) -> None:
        """Check signs."""
        require_positive(self, "training_segments", "validation_segments", "frames")

    @property
    def splits(self) -> dict[str, tuple[int, int]]:
        """How many segments each split has, and the seed they are made with."""
        return {
            "training": (self.training_segments, 1),
            "validation": (self.validation_segments, 2),
        }


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
# seeds. The last one is there where a run is given terms of one's own.
ARMS = {
    "alone": "student alone",
    "init": "initialised from the teacher",
    "full": "full SparseKD",
    "own": "full SparseKD and own terms",
}


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
    terms: tuple[str, ...] = ()  # of one's own, beside those of kd

    @property
    def recipe(self) -> str:
        """What a training step has to compute, which decides how long it takes."""
        if self.kd is None:
            return "plain"
        if self.terms:
            return "own terms"
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
    arms: tuple[str, ...] = ("alone", "init", "full")
    # of one's own, each FILE.py:NAME or MODULE:NAME; they make one more arm
    terms: tuple[str, ...] = ()
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
        title = lookup({one: ARMS[one] for one in self._known_arms}, name, "arm")
        start: Initialisation = "none" if name == "alone" else self.kd.initialisation
        kd = self.kd if name in ("full", "own") else None
        terms = self.terms if name == "own" else ()
        return Arm(name, title, self.student_model, kd, start, terms=terms)

    @property
    def _known_arms(self) -> tuple[str, ...]:
        return tuple(name for name in ARMS if self.terms or name != "own")

    def chosen_arms(self, names: str) -> tuple[str, ...]:
        """Return the arms that a comma-separated text names, the profile's where it is empty, and
        ``own`` wherever the profile has terms.

        ConfigError if one is unknown or comes twice.
        """
        arms = tuple(name.strip() for name in names.split(",")) if names else self.arms
        if not set(arms) <= set(self._known_arms) or len(set(arms)) < len(arms):
            more = "; 'own' needs TERMS" if "own" in arms and not self.terms else ""
            raise ConfigError(
                f"ARMS='{names}' must be some of {', '.join(self._known_arms)}, comma-separated, "
                f"each once; '' means the profile's{more}"
            )
        return arms if not self.terms or "own" in arms else (*arms, "own")

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
