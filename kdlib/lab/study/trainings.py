"""Trains the students of a notebook's arms; what is trained already, by any notebook, is kept."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kdlib.config import lookup
from kdlib.errors import ConfigError
from kdlib.lab import pipeline
from kdlib.lab.parts import Words
from kdlib.lab.pipeline import Run, Student, Students, launch_all, student_folder, student_job
from kdlib.lab.profile import Arm, TeacherQuality
from kdlib.lab.study.arms import RETITLED, Question, arms_of, questions_of, study_settings
from kdlib.lab.trained import TrainedWeights
from kdlib.training.job import TrainJob
from kdlib.training.launch import RunResult

_EVERY = 30.0  # seconds between two lines of a run: there are many runs


@dataclass(frozen=True)
class Chapter:
    """One notebook of the study: what it trains and what it asks."""

    run: Run
    notebook: str
    arms: Mapping[str, Arm]
    questions: tuple[Question, ...]
    seeds: tuple[int, ...]

    @property
    def stage(self) -> Path:
        """The folder of its pictures and its result."""
        return self.run.stage(self.notebook)

    @property
    def titles(self) -> dict[str, str]:
        """What its arms are called beside each other."""
        return {name: arm.title for name, arm in self.arms.items()} | RETITLED.get(
            self.notebook, {}
        )

    @property
    def students(self) -> tuple[Student, ...]:
        """Every training, seed by seed."""
        return tuple((arm, seed) for seed in self.seeds for arm in self.arms)

    def question(self, name: str) -> Question:
        """Return a question by name; ConfigError if the notebook does not ask it, or the arms for
        it were left out.
        """
        return lookup(
            {question.name: question for question in self.questions},
            name,
            f"question of {self.notebook}",
        )


def open_chapter(run: Run, notebook: str, seeds: str = "") -> Chapter:
    """Return what a notebook of the profile's chain trains and asks; ``seeds`` are separated by
    commas, "" means the profile's.

    ConfigError if the profile names an unknown arm, or leaves nothing to compare.
    """
    known = arms_of(run.profile)
    names = study_settings(run.profile).arms or tuple(known)
    names += tuple(name for name, arm in known.items() if arm.terms and name not in names)
    questions = questions_of(notebook, [lookup(known, name, "arm").name for name in names])
    if not questions:
        raise ConfigError(
            f"{notebook} has nothing to compare among the arms of profile "
            f"{run.profile.name}: {', '.join(names)}"
        )
    used = {name for question in questions for name in question.arms}
    chosen = run.profile.chosen_seeds(seeds)
    return Chapter(
        run, notebook, {name: arm for name, arm in known.items() if name in used}, questions, chosen
    )


def weak_folder(run: Run) -> Path:
    """Return where the weak teacher is trained."""
    return run.folder / "teacher" / "weak"


def weak_job(run: Run) -> TrainJob:
    """Return the training of the weak teacher: the teacher's own, cut short."""
    return pipeline.teacher_job(run, study_settings(run.profile).weak_epochs, "weak teacher")


def arm_teacher(run: Run, quality: TeacherQuality) -> TrainedWeights:
    """Return the run's teacher, or where the weak one is or will be."""
    if quality == "strong":
        return pipeline.choose_teacher(run, "auto")
    return TrainedWeights(
        run.profile.teacher_model, weak_folder(run) / "weights.safetensors", "weak"
    )


def arm_job(run: Run, arm: Arm, seed: int) -> TrainJob:
    """Return the training of one arm and seed, by its own teacher."""
    return student_job(run, arm, seed, arm_teacher(run, arm.teacher))


def training_table(chapter: Chapter, results: Students) -> pd.DataFrame:
    """Return a row for each arm: what it is and what its trainings took."""
    rows = []
    for name, arm in chapter.arms.items():
        values = [results[name, seed].values for seed in chapter.seeds]
        rows.append(
            {
                "arm": chapter.titles[name],
                "student": arm.student.name,
                "starts from": "nothing"
                if arm.initialisation == "none"
                else (f"{arm.teacher} teacher, {arm.initialisation}"),
                **{key: values[0][key] for key in ("epochs", "steps", "samples")},
                "seconds a run": round(
                    sum(run["timing"]["seconds"] for run in values) / len(values)
                ),
            }
        )
    return pd.DataFrame(rows)


def term_table(titles: Words, results: Students) -> pd.DataFrame:
    """Return the startup report of every arm's first seed: each active term, its weight and its
    value on the first batch.
    """
    first: dict[str, RunResult] = {}
    for (arm, _), result in results.items():
        first.setdefault(arm, result)
    rows = [
        {"arm": titles[arm], **term}
        for arm, result in first.items()
        for term in result.values["terms"]
    ]
    return pd.DataFrame(rows).round(4)


def train_chapter(chapter: Chapter) -> Students:
    """Train every arm with every seed, the longest first; an interrupted call is continued by the
    next one.

    TrainingFailed if a training did not finish, ConfigError if two arms that are compared saw
    different numbers of samples.
    """
    run, results = chapter.run, dict[Path, RunResult]()
    order = pipeline.longest_first(run, chapter.arms.values(), chapter.seeds)
    jobs = (
        {weak_folder(run): weak_job(run)} if any(arm.teacher == "weak" for arm, _ in order) else {}
    )
    # a job is known by the bytes of its teacher, so the weak one has to be there first
    for quality in ("strong", "weak"):
        jobs |= {
            student_folder(run, arm.name, seed): arm_job(run, arm, seed)
            for arm, seed in order
            if arm.teacher == quality
        }
        results |= launch_all(run, jobs, _EVERY)
        jobs = {}
    students = {key: results[student_folder(run, *key)] for key in chapter.students}
    _check_budgets(chapter, students)
    return students


def _check_budgets(chapter: Chapter, students: Students) -> None:
    pairs = [
        (pair.first, pair.second) for question in chapter.questions for pair in question.contrasts
    ]
    for (first, second), seed in itertools.product(pairs, chapter.seeds):
        ours, theirs = (students[arm, seed].values["samples"] for arm in (first, second))
        if ours != theirs:
            raise ConfigError(
                f"'{first}' saw {ours} samples and '{second}' {theirs}, with seed {seed}: not to "
                "be compared; delete "
                f"{chapter.run.folder / 'students'}"
            )
