"""Answers the questions of a notebook: its students scored and compared, and what it hands over for
the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from kdlib import records
from kdlib.lab.comparison import METRIC, Comparison, Finding, compare_arms
from kdlib.lab.gain import in_percent
from kdlib.lab.pipeline import Students
from kdlib.lab.profile import TeacherQuality
from kdlib.lab.scoring import score_all
from kdlib.lab.study.arms import ARM_LINES
from kdlib.lab.study.pictures import ScheduleLine
from kdlib.lab.study.trainings import Chapter, arm_teacher, term_table, training_table
from kdlib.lab.trained import TrainedWeights
from kdlib.metric.waymo_metrics import EvalResult
from kdlib.types import Json


@dataclass(frozen=True)
class ChapterComparison(Comparison):
    """The arms of a notebook of the study, compared; its teachers are scored beside them."""

    chapter: Chapter
    students: Students
    teachers: Mapping[TeacherQuality, EvalResult]  # by quality

    def table(self) -> pd.DataFrame:
        """Return the score of every teacher and arm, in percent."""
        teachers = [
            {"arm": f"{quality} teacher", "LEVEL_2 mAPH": 100 * result.metrics[METRIC], "seeds": 1}
            for quality, result in self.teachers.items()
        ]
        arms = super().table()
        return pd.concat([pd.DataFrame(teachers).round(2), arms], ignore_index=True).reindex(
            columns=arms.columns
        )

    def answer(self, question: str) -> Finding:
        """Return what came of a question; ConfigError if the notebook does not ask it."""
        asked = self.chapter.question(question)
        return Finding(asked.title, asked.contrasts, self)

    def lines(self, name: str) -> list[ScheduleLine]:
        """Return scores over the length of the schedule, for those lines of :data:`ARM_LINES` whose
        arms are there.
        """
        drawn = []
        for line in ARM_LINES[name]:
            arms = [self.report.arm(arm) for arm in line.arms if arm in self.results]
            samples = [
                self.students[arm.name, self.chapter.seeds[0]].values["samples"] for arm in arms
            ]
            if arms:
                drawn.append(
                    replace(line, samples=tuple(samples), scores=tuple(map(in_percent, arms)))
                )
        return drawn

    def result(self, parts: Sequence[Json], **more: Any) -> Json:
        """Return what the notebook hands over: its parts for the report, every score, every term,
        the budget.
        """
        seconds = sum(result.values["timing"]["seconds"] for result in self.students.values())
        trained = training_table(self.chapter, self.students)
        return study_result(self, self.students, trained, self.students, parts) | {
            "minutes of training": seconds / 60,
            **more,
        }


def study_result(
    comparison: Comparison,
    students: Students,
    trained: pd.DataFrame,
    reporting: Students,
    parts: Sequence[Json],
) -> Json:
    """Return what every notebook with a study's report hands over; of ``reporting`` the terms are
    listed.
    """
    report = comparison.report
    return {
        "metric": METRIC,
        "seeds": list(dict.fromkeys(seed for _, seed in students)),
        "frames": next(iter(students.values())).values["frames"],
        "parts": list(parts),
        "scores": records.table_rows(comparison.table()),
        "students": records.table_rows(trained),
        "terms": records.table_rows(term_table(comparison.titles, reporting)),
        "comparison": {
            "unit": report.unit,
            "units": report.units,
            "resamples": report.resamples,
            "basis": report.basis,
        },
        "evaluation": dict(next(iter(next(iter(comparison.results.values())).values())).card),
    }


def compare_chapter(chapter: Chapter, students: Students, resamples: int) -> ChapterComparison:
    """Score a notebook's students and teachers, and compare the arms; DataError if students were
    trained on another store.
    """
    run = chapter.run
    kinds = dict.fromkeys(arm.teacher for arm in chapter.arms.values())
    models = {
        key: TrainedWeights(chapter.arms[key[0]].student, result.weights)
        for key, result in students.items()
    }
    results = score_all(
        run, models, {f"teacher_{quality}": arm_teacher(run, quality) for quality in kinds}
    )
    teachers = {quality: results.pop(f"teacher_{quality}")[0] for quality in kinds}
    compared = compare_arms(run.profile, chapter.titles, results, resamples)
    return ChapterComparison(
        **vars(compared), chapter=chapter, students=students, teachers=teachers
    )
