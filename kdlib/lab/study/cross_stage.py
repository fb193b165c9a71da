"""Trains a teacher of two stages and compares the students it taught: everything notebook 07
calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from kdlib.errors import ConfigError
from kdlib.lab import profiles
from kdlib.lab.comparison import Comparison, Contrast, Finding, compare_arms, contrasts_among
from kdlib.lab.explore.ranking import most_improved_frame
from kdlib.lab.explore.scenes import FrameScene, scene
from kdlib.lab.folders import run_folder
from kdlib.lab.pipeline import (
    Run,
    Student,
    Students,
    given_weights,
    launch_all,
    plain_job,
    student_name,
    teacher_job,
    train_one,
)
from kdlib.lab.profile import ARMS, CrossStageSettings
from kdlib.lab.scoring import check_store, predict_weights, score_all
from kdlib.lab.study.answers import study_result
from kdlib.lab.trained import TrainedWeights
from kdlib.training.launch import RunResult
from kdlib.types import Json

FIRST, TEACHER = "first", "teacher"
_TITLES = {FIRST: "first stage alone", TEACHER: "two-stage teacher", **ARMS}
_CONTRASTS = (
    Contrast(TEACHER, FIRST),
    Contrast("full", "init"),
    Contrast("full", "alone"),
    Contrast("full", FIRST),
    Contrast("own", "full"),
)
_READING = (
    "the teacher is compared with the first stage it stands on; students share model, "
    "data, seeds and number of samples."
)
_CAUTION = """\
The student is the teacher's first stage
again: initialised from it, it starts where that one ended.
The teacher of the first seed taught all students."""


def _settings(run: Run) -> CrossStageSettings:
    if run.profile.cross is None:
        those = ", ".join(
            name for name, profile in profiles.PROFILES.items() if profile.cross is not None
        )
        raise ConfigError(
            f"profile {run.profile.name} has no teacher of two stages; take one of {those}"
        )
    return run.profile.cross


def first_stage(run: Run, source: str = "auto") -> TrainedWeights | None:
    """Return the first stage that the second is put on, trained if need be; None where both are
    trained at once.

    ``source`` is ``auto`` (the teacher of the profile's donor where there is one), ``scratch`` or a
    safetensors file.

    ConfigError if the profile has no teacher of two stages, or the file is missing.
    """
    settings, model = _settings(run), run.profile.student_model
    if not settings.above_first:
        return None
    if source == "auto" and settings.borrow:
        lent = run_folder(settings.borrow) / "teacher" / "scratch" / "weights.safetensors"
        if lent.is_file():
            check_store(run, [lent])
            return TrainedWeights(model, lent, settings.borrow)
    if source in ("auto", "scratch"):
        job = plain_job(run, model, run.profile.teacher, "first stage")
        return TrainedWeights(model, train_one(run, "teacher/first_stage", job).weights, "scratch")
    return given_weights(run, model, source, "FIRST_STAGE")


def train_teachers(run: Run, first: TrainedWeights | None, epochs: int = 0) -> dict[int, RunResult]:
    """Train the detector of two stages with every seed (``epochs`` above 0 replaces the profile's
    length).
    """
    settings, jobs = _settings(run), {}
    start = str(first.weights) if first else None
    for seed in settings.seeds:
        schedule = replace(settings.teacher, seed=seed, epochs=epochs or settings.teacher.epochs)
        job = teacher_job(run, name=f"two-stage teacher, seed {seed}")
        jobs[run.folder / "teacher" / f"seed{seed}"] = replace(
            job, train=schedule, init_weights=start
        )
    return dict(zip(settings.seeds, launch_all(run, jobs).values()))


def leading_teacher(run: Run, teachers: Mapping[int, RunResult]) -> TrainedWeights:
    """Return who teaches: the detector of the first seed."""
    return TrainedWeights(
        run.profile.teacher_model, next(iter(teachers.values())).weights, "two stages"
    )


@dataclass(frozen=True)
class CrossStageComparison(Comparison):
    """Every model of the notebook, compared on the same frames."""

    run: Run
    first: TrainedWeights | None
    models: Mapping[Student, TrainedWeights]  # teachers and students
    trained: Students  # of the same

    def table(self) -> pd.DataFrame:
        """Return mean, spread over seeds and interval of every arm, and its classes, in percent."""
        table = super().table()
        for kind in self.labelled:
            form = f"OBJECT_TYPE_TYPE_{kind.upper()}_LEVEL_2/APH"
            table[f"{kind} APH"] = [100 * self.mean(arm, form) for arm in self.results]
        return table.round(2)

    def answer(self) -> Finding:
        """Return what came of the paired differences that answer the question."""
        return Finding("Across stages", contrasts_among(_CONTRASTS, self.results), self)

    def example(self, threshold: float) -> FrameScene:
        """Return the frame where the distilled student is furthest ahead of the initialised, with
        their boxes.
        """
        seed = next(seed for arm, seed in self.models if arm == "full")
        teacher = next(key for key in self.models if key[0] == TEACHER)
        keys = [teacher, *(key for key in (("init", seed), ("full", seed)) if key in self.models)]
        tables = {
            key[0]: predict_weights(self.run, student_name(*key), self.models[key]) for key in keys
        }
        frame = most_improved_frame(tables, self.run, threshold)
        return scene(self.run, frame, tables, threshold)

    def result(self, parts: Sequence[Json]) -> Json:
        """Return what the notebook hands over: scores, trainings, active terms, and its part of the
        report.
        """
        rows = []
        for (arm, seed), result in self.trained.items():
            values = result.values
            numbers = {key: values[key] for key in ("parameters", "steps", "samples")}
            seconds = round(values["timing"]["seconds"])
            rows.append(
                {
                    "arm": self.titles[arm],
                    "model": values["model"],
                    "seed": seed,
                    **numbers,
                    "seconds": seconds,
                }
            )
        students = {key: result for key, result in self.trained.items() if key[0] != TEACHER}
        words = {"title": "a teacher of two stages", "reading": _READING, "caution": _CAUTION}
        origin = self.first.origin if self.first else None
        shared = study_result(self, students, pd.DataFrame(rows), self.trained, parts)
        return {**words, "first stage": origin, **shared}


def compare_stages(
    run: Run,
    first: TrainedWeights | None,
    teachers: Mapping[int, RunResult],
    students: Students,
    resamples: int,
) -> CrossStageComparison:
    """Score and compare everything that was trained; DataError if it was trained on another store
    than the run's.
    """
    trained = {**{(TEACHER, seed): result for seed, result in teachers.items()}, **students}
    teacher, student = run.profile.teacher_model, run.profile.student_model
    models = {
        key: TrainedWeights(teacher if key[0] == TEACHER else student, result.weights)
        for key, result in trained.items()
    }
    results = score_all(run, models, {} if first is None else {FIRST: first})
    compared = compare_arms(run.profile, _TITLES, results, resamples)
    return CrossStageComparison(
        **vars(compared), run=run, first=first, models=models, trained=trained
    )
