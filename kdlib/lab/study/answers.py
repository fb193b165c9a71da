"""A notebook's trained students in; paired differences with intervals, tables, sentences and what the report needs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kdlib import records
from kdlib.lab.comparison import METRIC, RANGES
from kdlib.lab.study.arms import LINES, Contrast, Group, Question
from kdlib.lab.study.pictures import ScheduleLine
from kdlib.lab.study.scoring import Scored, by_seed, check_store, score_all, student_name
from kdlib.lab.study.trainings import Chapter, Trained
from kdlib.lab.study.words import sentence, side, summary
from kdlib.metric.bootstrap import BootstrapReport, bootstrap
from kdlib.metric.waymo_metrics import EvalResult
from kdlib.viz import curves, palette
from kdlib.viz.curves import Estimate, ScoreTable

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")
COLORS: dict[Group, str] = {
    "logits": palette.SERIES[1],
    "labels": palette.SERIES[3],
    "features": palette.SERIES[4],
    "recipe": palette.role("student").color,
    "start": palette.role("teacher").color,
    "student": palette.SERIES[0],
}


@dataclass(frozen=True)
class Gain:
    """What came of a contrast, in points of LEVEL_2 mAPH."""

    contrast: Contrast
    first: str  # titles
    second: str
    mean: float
    low: float  # of the 95 % interval
    high: float
    seeds: tuple[float, ...]  # the difference, seed by seed

    def sentence(self, simulated: bool) -> str:
        """Say what came of it."""
        return sentence(self.first, self.second, self.mean, self.low, self.high, simulated=simulated)


@dataclass(frozen=True)
class Scores:
    """All arms of a notebook, scored on the same frames."""

    trained: Trained
    teachers: Mapping[str, EvalResult]  # by quality
    arms: Mapping[str, Sequence[EvalResult]]  # in the order of the seeds
    report: BootstrapReport

    @property
    def chapter(self) -> Chapter:
        """What was asked."""
        return self.trained.chapter

    def answer(self, question: str) -> Answer:
        """Return what came of a question.

        Raises:
            ConfigError: If the notebook does not ask it.
        """
        asked = self.chapter.question(question)
        return Answer(asked, tuple(self._gain(contrast) for contrast in asked.contrasts), self)

    def _gain(self, contrast: Contrast) -> Gain:
        found = self.report.difference(contrast.first, contrast.second)
        first, second = (self.report.arm(name).values for name in (contrast.first, contrast.second))
        ours, theirs = (self.chapter.arms[name].title for name in (contrast.first, contrast.second))
        seeds = tuple(100 * (a - b) for a, b in zip(first, second))
        return Gain(contrast, ours, theirs, 100 * found.mean, 100 * found.low, 100 * found.high, seeds)

    def mean(self, arm: str, metric: str) -> float:
        """Return a metric's mean over the seeds of an arm, as a share."""
        return float(np.mean([result.metrics[metric] for result in self.arms[arm]]))

    def table(self) -> pd.DataFrame:
        """Return the score of every teacher and arm, in percent."""
        rows: list[dict[str, Any]] = [
            {"arm": f"{quality} teacher", "LEVEL_2 mAPH": 100 * result.metrics[METRIC], "seeds": 1}
            for quality, result in self.teachers.items()
        ]
        for arm in self.report.arms:
            rows.append(
                {
                    "arm": self.chapter.arms[arm.name].title,
                    "LEVEL_2 mAPH": 100 * arm.mean,
                    "std over seeds": 100 * arm.std if len(arm.values) > 1 else np.nan,
                    "95 % low": 100 * arm.low,
                    "95 % high": 100 * arm.high,
                    "seeds": len(arm.values),
                }
            )
        columns = ["arm", "LEVEL_2 mAPH", "std over seeds", "95 % low", "95 % high", "seeds"]
        return pd.DataFrame(rows).reindex(columns=columns).round(2)

    def breakdown(self, first: str, second: str) -> ScoreTable:
        """Return ``first`` minus ``second`` by class and level: AP, APH, and APH by range where several ranges hold objects."""
        kinds = [(kind, level) for kind in CLASSES for level in (1, 2)]
        official = {kind: f"TYPE_{kind.upper()}" for kind in CLASSES}
        columns = {name: f"OBJECT_TYPE_{{}}_LEVEL_{{}}/{name}" for name in ("AP", "APH")}
        ranges = {f"APH {r} m": f"RANGE_{{}}_{r}_LEVEL_{{}}/APH" for r in RANGES}
        reached = {
            name: form
            for name, form in ranges.items()
            if any(self.mean(arm, form.format(official[kind], level)) > 0 for arm in (first, second) for kind, level in kinds)
        }
        columns |= reached if len(reached) > 1 else {}
        values = [
            [
                self.mean(first, metric) - self.mean(second, metric)
                for metric in (form.format(official[kind], level) for form in columns.values())
            ]
            for kind, level in kinds
        ]
        return ScoreTable(np.array(values), tuple(f"{kind} LEVEL_{level}" for kind, level in kinds), tuple(columns))

    def lines(self, name: str) -> list[ScheduleLine]:
        """Return scores over the length of the schedule, for those lines of :data:`LINES` whose arms are there."""
        found = []
        for line in LINES[name]:
            arms = [arm for arm in line.arms if arm in self.arms]
            samples = [self.trained.results[arm, self.chapter.seeds[0]].values["samples"] for arm in arms]
            color = palette.role(line.color).color if line.color else palette.SERIES[0]
            spans = [(100 * one.mean, 100 * one.low, 100 * one.high) for one in map(self.report.arm, arms)]
            if arms:
                found.append(ScheduleLine(line.title, tuple(samples), tuple(spans), color, line.dashed))
        return found

    def result(self, parts: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """Return what the notebook hands over: its parts for the report, every score, every term, the budget."""
        results = self.trained.results
        return {
            "metric": METRIC,
            "seeds": list(self.chapter.seeds),
            "frames": next(iter(results.values())).values["frames"],
            "parts": list(parts),
            "scores": records.table_rows(self.table()),
            "students": records.table_rows(self.trained.table()),
            "terms": records.table_rows(self.trained.terms()),
            "comparison": {"unit": self.report.unit, "units": self.report.units, "resamples": self.report.resamples},
            "minutes of training": sum(result.values["timing"]["seconds"] for result in results.values()) / 60,
            "evaluation": dict(next(iter(self.arms.values()))[0].card),
            **more,
        }


@dataclass(frozen=True)
class Answer:
    """What came of one question."""

    question: Question
    gains: tuple[Gain, ...]
    scores: Scores

    def labels(self, minus: str = " − ") -> list[str]:
        """Return what the rows are called: both arms, or only the first where all rows have one base."""
        bases = {gain.second for gain in self.gains}
        return [gain.first if len(bases) == 1 else f"{gain.first}{minus}{gain.second}" for gain in self.gains]

    @property
    def base(self) -> str:
        """What the rows are compared with."""
        bases = {gain.second for gain in self.gains}
        return bases.pop() if len(bases) == 1 else "its own base"

    def table(self) -> pd.DataFrame:
        """Return each difference with its interval, in points."""
        rows = [
            {
                f"difference from {self.base}" if self.base != "its own base" else "difference": label,
                "LEVEL_2 mAPH": gain.mean,
                "95 % low": gain.low,
                "95 % high": gain.high,
                "shown": side(gain.low, gain.high),
            }
            for label, gain in zip(self.labels(), self.gains)
        ]
        return pd.DataFrame(rows).round(2)

    def sentences(self) -> list[str]:
        """Return one sentence for each difference; it follows the interval."""
        simulated = self.scores.chapter.run.profile.simulated is not None
        return [gain.sentence(simulated) for gain in self.gains]

    def draw(self, path: Path) -> Figure:
        """Draw the differences with their intervals and seeds."""
        rows = [
            # A mean over resamples may miss the measured one's interval by a hair where all seeds agree.
            Estimate(label, one.mean, min(one.low, one.mean), max(one.high, one.mean), one.seeds, COLORS[one.contrast.group])
            for label, one in zip(self.labels(minus="\n− "), self.gains)
        ]
        label = f"points of LEVEL_2 mAPH above {self.base}"
        title = self.scores.chapter.run.profile.titled(self.question.title)
        return curves.draw_arms(rows, label=label, reference=0, title=title, path=path)

    def classes(self) -> ScoreTable:
        """Return each difference class by class, APH at both levels."""
        forms = {f"{kind} L{level}": f"OBJECT_TYPE_TYPE_{kind.upper()}_LEVEL_{level}/APH" for kind in CLASSES for level in (1, 2)}
        mean = self.scores.mean
        values = [
            [mean(one.contrast.first, form) - mean(one.contrast.second, form) for form in forms.values()] for one in self.gains
        ]
        return ScoreTable(np.array(values), tuple(self.labels(minus="\n− ")), tuple(forms))

    def part(self, pictures: Mapping[str, str]) -> dict[str, Any]:
        """Return a chapter of the report: sentences, table and pictures (file name to caption)."""
        return {
            "title": self.question.title,
            "text": summary([side(gain.low, gain.high) for gain in self.gains]),
            "sentences": self.sentences(),
            "tables": [{"caption": "Paired differences, points of LEVEL_2 mAPH", "rows": records.table_rows(self.table())}],
            "pictures": [{"file": name, "caption": caption} for name, caption in pictures.items()],
        }


def score(trained: Trained, resamples: int = 1000) -> Scores:
    """Score a notebook's students and teachers and compare them by paired bootstrap over segments and seeds.

    Raises:
        DataError: If the store is not the one the students were trained on.
    """
    chapter = trained.chapter
    check_store(chapter.run, [result.weights for result in trained.results.values()])
    teachers = {quality: Scored(f"teacher_{quality}", one.model, one.weights) for quality, one in trained.teachers.items()}
    students = [Scored(student_name(*key), chapter.arms[key[0]].student, one.weights) for key, one in trained.results.items()]
    results = score_all(chapter.run, [*teachers.values(), *students])
    arms = {name: by_seed(results, name, chapter.seeds) for name in chapter.arms}
    report = bootstrap(arms, metric=METRIC, resamples=resamples)
    return Scores(trained, {quality: results[one.name] for quality, one in teachers.items()}, arms, report)
