"""A run in; a teacher of two stages, the students it taught and what came of it out: everything notebook 07 calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdlib import records, zoo
from kdlib.config import ModelConfig
from kdlib.errors import ConfigError
from kdlib.lab import profiles
from kdlib.lab.comparison import METRIC, predict_weights, truth
from kdlib.lab.execute import run_folder
from kdlib.lab.explore.ranking import count
from kdlib.lab.explore.scenes import Scene, scene
from kdlib.lab.pipeline import Run, TeacherWeights
from kdlib.lab.profiles import CrossStageSettings
from kdlib.lab.study.scoring import Scored, check_store, score_all
from kdlib.lab.study.words import sentence, side, summary
from kdlib.metric.bootstrap import BootstrapReport, bootstrap
from kdlib.metric.waymo_metrics import EvalResult
from kdlib.training.job import TrainJob
from kdlib.training.launch import RunResult, launch
from kdlib.viz import palette
from kdlib.viz.curves import Estimate

FIRST, TEACHER = "first", "teacher"
TITLES = {FIRST: "first stage alone", TEACHER: "two-stage teacher"} | {name: arm.title for name, arm in profiles.ARMS.items()}
COLORS = {FIRST: palette.SERIES[1], TEACHER: palette.role("teacher").color, "full": palette.role("student").color}
CONTRASTS = ((TEACHER, FIRST), ("full", "init"), ("full", "alone"), ("full", FIRST))
CLASSES = ("Vehicle", "Pedestrian", "Cyclist")
Key = tuple[str, int]  # arm, seed
_READING = "the teacher is compared with the first stage it stands on; students share model, data, seeds and number of samples."
_CAUTION = """\
The student is the teacher's first stage
again: initialised from it, it starts where that one ended. The teacher of the first seed taught all students."""


def settings_of(run: Run) -> CrossStageSettings:
    """Return how the run's teacher of two stages is made.

    Raises:
        ConfigError: If its profile has none.
    """
    if run.profile.cross is None:
        found = ", ".join(name for name, profile in profiles.PROFILES.items() if profile.cross is not None)
        raise ConfigError(f"profile {run.profile.name} has no teacher of two stages; take one of {found}")
    return run.profile.cross


def first_stage(run: Run, source: str = "auto") -> TeacherWeights | None:
    """Return the first stage that the second is put on, trained if need be; None where both are trained at once.

    Args:
        run: The run.
        source: ``auto`` is the teacher of the profile's donor where there is one, else as ``scratch``; or a safetensors file.

    Raises:
        ConfigError: If the file is missing.
    """
    settings, model = settings_of(run), run.profile.student_model
    if not settings.above_first:
        return None
    if source == "auto" and settings.borrow:
        lent = run_folder(settings.borrow) / "teacher" / "scratch" / "weights.safetensors"
        if lent.is_file():
            check_store(run, [lent])
            return TeacherWeights(model, lent, settings.borrow)
    if source in ("auto", "scratch"):
        folder = run.folder / "teacher" / "first_stage"
        job = TrainJob(model, run.profile.teacher, str(run.data / "store"), name="first stage")
        return TeacherWeights(model, _launch({folder: job}, run)[0].weights, "scratch")
    if not Path(source).is_file():
        raise ConfigError(f"FIRST_STAGE={source} is neither 'auto', 'scratch' nor a safetensors file")
    return TeacherWeights(model, Path(source).resolve(), source)


def train_teachers(run: Run, first: TeacherWeights | None, epochs: int = 0) -> dict[int, RunResult]:
    """Train the detector of two stages with every seed (``epochs`` above 0 replaces the profile's length)."""
    settings = settings_of(run)
    schedule = replace(settings.teacher, epochs=epochs or settings.teacher.epochs)
    jobs = {
        run.folder / "teacher" / f"seed{seed}": TrainJob(
            zoo.model(run.profile.teacher_model.name),
            replace(schedule, seed=seed),
            str(run.data / "store"),
            init_weights=None if first is None else str(first.weights),
            name=f"two-stage teacher, seed {seed}",
        )
        for seed in settings.seeds
    }
    return dict(zip(settings.seeds, _launch(jobs, run)))


def history_of(trained: RunResult) -> list[dict[str, Any]]:
    """Return a training's history, line by line."""
    return records.read_history(trained.run_dir)


def teacher_of(run: Run, teachers: Mapping[int, RunResult]) -> TeacherWeights:
    """Return who teaches: the detector of the first seed."""
    return TeacherWeights(run.profile.teacher_model, next(iter(teachers.values())).weights, "two stages")


def _launch(jobs: Mapping[Path, TrainJob], run: Run) -> list[RunResult]:
    for folder, job in jobs.items():
        job.write(folder)
    return launch(list(jobs), parallel=run.profile.parallel, threads=run.profile.threads)


@dataclass(frozen=True)
class Outcome:
    """Every model of the notebook, scored on the same frames."""

    run: Run
    arms: Mapping[str, Sequence[EvalResult]]  # by seed
    report: BootstrapReport

    def table(self) -> pd.DataFrame:
        """Return mean, spread over seeds and interval of every arm, and its classes, in percent."""
        rows = []
        for arm in self.report.arms:
            forms = {f"{kind} APH": f"OBJECT_TYPE_TYPE_{kind.upper()}_LEVEL_2/APH" for kind in CLASSES}
            rows.append(
                {
                    "arm": TITLES[arm.name],
                    "LEVEL_2 mAPH": 100 * arm.mean,
                    "std over seeds": 100 * arm.std if len(arm.values) > 1 else np.nan,
                    "95 % low": 100 * arm.low,
                    "95 % high": 100 * arm.high,
                    "seeds": len(arm.values),
                    **{title: 100 * self._mean(arm.name, form) for title, form in forms.items()},
                }
            )
        return pd.DataFrame(rows).round(2)

    def _mean(self, arm: str, metric: str) -> float:
        return float(np.mean([result.metrics[metric] for result in self.arms[arm]]))

    def _differences(self) -> list[tuple[str, str, float, float, float]]:
        found = []
        for first, second in CONTRASTS:
            if first in self.arms and second in self.arms:
                d = self.report.difference(first, second)
                found.append((TITLES[first], TITLES[second], 100 * d.mean, 100 * d.low, 100 * d.high))
        return found

    def differences(self) -> pd.DataFrame:
        """Return the paired differences that answer the question, in points."""
        rows = [
            {
                "difference": f"{first} − {second}",
                "LEVEL_2 mAPH": mean,
                "95 % low": low,
                "95 % high": high,
                "shown": side(low, high),
            }
            for first, second, mean, low, high in self._differences()
        ]
        return pd.DataFrame(rows).round(2)

    def sentences(self) -> list[str]:
        """Return one sentence for each difference; it follows the interval."""
        return [sentence(*found, simulated=self.run.profile.simulated is not None) for found in self._differences()]

    def estimates(self) -> list[Estimate]:
        """Return every arm in percent, for a chart."""
        rows = []
        for one in self.report.arms:
            seeds, color = tuple(100 * value for value in one.values), COLORS.get(one.name, palette.SERIES[0])
            rows.append(Estimate(TITLES[one.name], 100 * one.mean, 100 * one.low, 100 * one.high, seeds, color))
        return rows

    def part(self, pictures: Mapping[str, str]) -> dict[str, Any]:
        """Return the chapter of the report: sentences, table and pictures (file name to caption)."""
        return {
            "title": "Across stages",
            "text": summary([side(low, high) for *_, low, high in self._differences()]),
            "sentences": self.sentences(),
            "tables": [{"caption": "Paired differences, points of LEVEL_2 mAPH", "rows": records.table_rows(self.differences())}],
            "pictures": [{"file": name, "caption": caption} for name, caption in pictures.items()],
        }


def score(
    run: Run,
    first: TeacherWeights | None,
    teachers: Mapping[int, RunResult],
    students: Mapping[Key, RunResult],
    resamples: int = 1000,
) -> Outcome:
    """Score everything that was trained and compare it by paired bootstrap over segments and seeds.

    Raises:
        DataError: If the store is not the one the students were trained on.
    """
    profile = run.profile
    trained = [result.weights for result in (*teachers.values(), *students.values())]
    check_store(run, trained)
    wanted: dict[str, list[Scored]] = {}
    if first is not None:
        wanted[FIRST] = [Scored(FIRST, first.model, first.weights)]
    wanted[TEACHER] = [Scored(f"{TEACHER}_seed{seed}", profile.teacher_model, one.weights) for seed, one in teachers.items()]
    for (arm, seed), one in students.items():
        wanted.setdefault(arm, []).append(Scored(f"{arm}_seed{seed}", profile.student_model, one.weights))
    results = score_all(run, [one for some in wanted.values() for one in some])
    arms = {name: [results[one.name] for one in some] for name, some in wanted.items()}
    return Outcome(run, arms, bootstrap(arms, metric=METRIC, resamples=resamples))


def example(run: Run, teachers: Mapping[int, RunResult], students: Mapping[Key, RunResult], threshold: float) -> Scene:
    """Return the frame where the distilled student is furthest ahead of the initialised, with both's boxes and the teacher's."""
    seed = next(seed for arm, seed in students if arm == "full")
    chosen: dict[str, tuple[ModelConfig, str, Path]] = {
        TEACHER: (run.profile.teacher_model, f"{TEACHER}_seed{next(iter(teachers))}", teacher_of(run, teachers).weights)
    }
    for arm in ("init", "full"):
        if (arm, seed) in students:
            chosen[arm] = (run.profile.student_model, f"{arm}_seed{seed}", students[arm, seed].weights)
    tables = {arm: predict_weights(run, name, model, weights) for arm, (model, name, weights) in chosen.items()}
    wanted = truth(run)
    merits = [count(tables[arm], wanted, run).merit for arm in (*(arm for arm in ("init",) if arm in tables), "full")]
    return scene(run, int(np.argmax(merits[-1] - merits[0])), tables, threshold)


def result(
    run: Run,
    outcome: Outcome,
    first: TeacherWeights | None,
    teachers: Mapping[int, RunResult],
    students: Mapping[Key, RunResult],
    parts: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what the notebook hands over: scores, trainings, active terms, and its part of the report."""
    rows = {**{(TEACHER, seed): one for seed, one in teachers.items()}, **students}
    trained, terms = [], []
    for (arm, seed), one in rows.items():
        values = one.values
        trained.append(
            {
                "arm": TITLES[arm],
                "model": values["model"],
                "seed": seed,
                "parameters": values["parameters"],
                "steps": values["steps"],
                "samples": values["samples"],
                "seconds": round(values["timing"]["seconds"]),
            }
        )
        if seed == min(other for name, other in rows if name == arm):
            terms += [{"arm": TITLES[arm], **term} for term in values["terms"]]
    return {
        "title": "a teacher of two stages",
        "reading": _READING,
        "caution": _CAUTION,
        "metric": METRIC,
        "seeds": sorted({seed for _, seed in students}),
        "frames": next(iter(students.values())).values["frames"],
        "first stage": None if first is None else first.origin,
        "parts": list(parts),
        "scores": records.table_rows(outcome.table()),
        "students": trained,
        "terms": records.table_rows(pd.DataFrame(terms).round(4)),
        "comparison": {"unit": outcome.report.unit, "units": outcome.report.units, "resamples": outcome.report.resamples},
        "evaluation": dict(next(iter(outcome.arms.values()))[0].card),
    }
