"""Compares arms that were scored on the same frames: paired differences with intervals, tables,
sentences, charts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kdlib import records
from kdlib.lab.gain import NO_INTERVAL, UNIT, Gain, in_percent, summary
from kdlib.lab.parts import Words, part
from kdlib.lab.pipeline import Run, Students, chosen_teacher, trained_students
from kdlib.lab.profile import ARMS, Profile
from kdlib.lab.scoring import Scores, score_all
from kdlib.metric.bootstrap import BootstrapReport, bootstrap
from kdlib.types import Float64, Json
from kdlib.viz import curves, palette
from kdlib.viz.curves import Estimate, PRCurve, ScoreTable

METRIC = "LEVEL_2/mAPH"
RANGES = ("[0, 30)", "[30, 50)", "[50, +inf)")
Group = Literal["logits", "labels", "features", "own", "recipe", "start", "student"]
_GROUP_COLORS: dict[Group, str] = {
    "logits": palette.SERIES[1],
    "labels": palette.SERIES[3],
    "features": palette.SERIES[4],
    "own": palette.SERIES[6],
    "recipe": palette.role("student").color,
    "start": palette.role("teacher").color,
    "student": palette.SERIES[0],
}
_ARM_COLORS = {
    "teacher": palette.role("teacher").color,
    "full": palette.role("student").color,
    "alone": palette.SERIES[3],
    "own": palette.SERIES[6],
    "first": palette.SERIES[1],
}


def arm_color(arm: str) -> str:
    """Return the colour an arm has in every chart."""
    return _ARM_COLORS.get(arm, palette.SERIES[0])


@dataclass(frozen=True)
class Contrast:
    """Two arms whose difference is asked for; ``second`` is the first one's own base."""

    first: str
    second: str
    group: Group = "recipe"  # what differs; colours its row


CONTRASTS = (
    Contrast("teacher", "alone"),
    Contrast("teacher", "init"),
    Contrast("init", "alone"),
    Contrast("teacher", "full"),
    Contrast("full", "alone"),
    Contrast("full", "init"),
    Contrast("own", "alone"),
    Contrast("own", "init"),
    Contrast("own", "full"),
)


def contrasts_among(contrasts: Iterable[Contrast], arms: Collection[str]) -> tuple[Contrast, ...]:
    """Return those contrasts whose arms are both there."""
    return tuple(
        contrast for contrast in contrasts if contrast.first in arms and contrast.second in arms
    )


# Those that say what each part was worth, in this order.
_READ = (
    Contrast("init", "alone"),
    Contrast("full", "alone"),
    Contrast("full", "init"),
    Contrast("own", "full"),
    Contrast("teacher", "full"),
)
# Wanted margins in points of LEVEL_2 mAPH, and whether the interval must stay above zero.
_WISHES = {
    Contrast("teacher", "alone"): (5.0, False),
    Contrast("full", "alone"): (2.0, False),
    Contrast("full", "init"): (0.5, True),
}


@dataclass(frozen=True)
class Comparison:
    """Arms scored on the same frames, compared by paired bootstrap over segments and seeds."""

    profile: Profile
    titles: Words  # of the arms, for people
    results: Scores
    report: BootstrapReport

    @property
    def intervals(self) -> str:
        """What the intervals rest on, as a sentence."""
        basis = self.report.basis
        return f"{basis[0].upper()}{basis[1:]}."

    @property
    def labelled(self) -> tuple[str, ...]:
        """The student's classes that the evaluated frames have labels of: those of the mean."""
        over = next(iter(next(iter(self.results.values())).values())).mean_over
        names = self.profile.student_model.class_names
        return tuple(name for name in names if name.upper() in over) or names

    def mean(self, arm: str, metric: str) -> float:
        """Return a metric's mean over the seeds of an arm, as a share."""
        return float(np.mean([result.metrics[metric] for result in self.results[arm].values()]))

    def table(self) -> pd.DataFrame:
        """Return mean, spread over seeds and interval of every arm, in percent."""
        rows = []
        for arm in self.report.arms:
            mean, low, high = in_percent(arm)
            std = 100 * arm.std if len(arm.values) > 1 else np.nan
            rows.append((self.titles[arm.name], mean, std, low, high, len(arm.values)))
        columns = ["arm", "LEVEL_2 mAPH", "std over seeds", "95 % low", "95 % high", "seeds"]
        return pd.DataFrame(rows, columns=columns).round(2)

    def estimates(self) -> list[Estimate]:
        """Return every arm in percent, for a chart."""
        return [
            Estimate(
                self.titles[arm.name],
                *in_percent(arm),
                tuple(100 * value for value in arm.values),
                arm_color(arm.name),
            )
            for arm in self.report.arms
        ]

    def gain(self, contrast: Contrast) -> Gain:
        """Return what the contrast's first arm scores above its second."""
        first, second = contrast.first, contrast.second
        pairs = zip(self.report.arm(first).values, self.report.arm(second).values)
        seeds = tuple(100 * (ours - theirs) for ours, theirs in pairs)
        return Gain(
            self.titles[first],
            self.titles[second],
            *in_percent(self.report.difference(first, second)),
            seeds,
        )

    def difference_table(self) -> pd.DataFrame:
        """Return the paired differences between the arms of the main line, in points."""
        gains = map(self.gain, contrasts_among(CONTRASTS, self.results))
        rows = [
            {
                "difference": f"{gain.first} − {gain.second}",
                **gain.row(),
                "a gain": gain.low > 0 if gain.measured else None,
            }
            for gain in gains
        ]
        return pd.DataFrame(rows).round(2)

    def sentences(self) -> list[str]:
        """Say what each part of the recipe was worth; the words follow the intervals."""
        simulated = self.profile.simulated is not None
        told = contrasts_among(_READ, self.results)
        return [self.gain(contrast).sentence(simulated) for contrast in told]

    def verdicts(self) -> list[Json]:
        """Return every wish about these arms with what came of it, in plain words."""
        verdicts = []
        for wish in contrasts_among(_WISHES, self.results):
            gain, (margin, significant) = self.gain(wish), _WISHES[wish]
            extra = ", with its interval above 0" if significant else ""
            met = bool(gain.mean >= margin and (gain.low > 0 or not significant))
            interval = f"95 % interval {gain.low:+.2f} to {gain.high:+.2f}"
            verdicts.append(
                {
                    "wish": f"{gain.first} at least {margin:g} above {gain.second}{extra}",
                    "result": f"{gain.mean:+.2f} points, "
                    f"{interval if gain.measured else NO_INTERVAL}",
                    "met": met if gain.measured else None,
                }
            )
        return verdicts

    def last_step(self) -> tuple[str, str]:
        """Return the arm that the recipe's last part led to, and the one it came from: full and
        initialised, where both are; own and full, where there are terms of one's own.
        """
        arms = [arm for arm in ARMS if arm in self.results]
        return arms[-1], arms[-2:][0]

    def precision_recall(self) -> list[PRCurve]:
        """Return the LEVEL_2 curves of each arm's first seed."""
        drawn = []
        for arm, results in self.results.items():
            result = next(iter(results.values()))
            for kind in self.labelled:
                name = f"OBJECT_TYPE_TYPE_{kind.upper()}_LEVEL_2"
                curve, score = result.curves[name], result.metrics[f"{name}/AP"]
                drawn.append(
                    PRCurve(
                        self.titles[arm], kind, curve.recall, curve.precision, arm_color(arm), score
                    )
                )
        return drawn

    def breakdown(self, first: str, second: str) -> ScoreTable:
        """Return ``first`` minus ``second`` by class and level: AP, APH, and APH by range where
        several ranges hold objects.
        """
        kinds = [(kind, level) for kind in self.labelled for level in (1, 2)]

        def scores(form: str) -> Float64:
            names = [form.format(kind.upper(), level) for kind, level in kinds]
            return np.array([[self.mean(arm, name) for name in names] for arm in (first, second)])

        columns = {
            name: scores(f"OBJECT_TYPE_TYPE_{{}}_LEVEL_{{}}/{name}") for name in ("AP", "APH")
        }
        ranges = {f"APH {r} m": scores(f"RANGE_TYPE_{{}}_{r}_LEVEL_{{}}/APH") for r in RANGES}
        reached = {name: values for name, values in ranges.items() if values.any()}
        columns |= reached if len(reached) > 1 else {}
        change = [ours - theirs for ours, theirs in columns.values()]
        return ScoreTable(
            np.stack(change, axis=1),
            tuple(f"{kind} LEVEL_{level}" for kind, level in kinds),
            tuple(columns),
        )

    def to_dict(self) -> Json:
        """Return everything the report of the main line and the tests need."""
        metrics = {
            arm: {str(seed): result.to_dict() for seed, result in own.items()}
            for arm, own in self.results.items()
        }
        teacher = next(iter(self.results["teacher"].values()))
        return {
            "metric": METRIC,
            "comparison": self.report.to_dict(),
            "arms": records.table_rows(self.table()),
            "differences": records.table_rows(self.difference_table()),
            "verdicts": self.verdicts(),
            "metrics": {**metrics, "teacher": teacher.to_dict()},
            "evaluation": dict(teacher.card),
        }


def compare_arms(profile: Profile, titles: Words, results: Scores, resamples: int) -> Comparison:
    """Compare arms that were scored on the same frames, by paired bootstrap over segments and
    seeds.

    An arm with a single seed, as a given teacher has, stands beside every seed of the others.
    """
    count = max(len(seeds) for seeds in results.values())
    lists = {
        arm: list(seeds.values()) * (count if len(seeds) == 1 else 1)
        for arm, seeds in results.items()
    }
    report = bootstrap(lists, metric=METRIC, resamples=resamples)
    arms = [
        replace(arm, values=arm.values[:1], std=math.nan) if len(results[arm.name]) == 1 else arm
        for arm in report.arms
    ]
    return Comparison(profile, titles, results, replace(report, arms=tuple(arms)))


def compare_run(run: Run, resamples: int) -> Comparison:
    """Score the teacher and every student of notebooks 01 and 02 on the same frames and compare
    them.

    ConfigError if one of these notebooks has not finished, DataError if the students were trained
    on another store.
    """
    results = score_all(run, trained_students(run), {"teacher": chosen_teacher(run)})
    return compare_arms(run.profile, {"teacher": "teacher", **ARMS}, results, resamples)


def losses_reading(students: Students) -> str:
    """Say in words where the detection losses of the first seed ended."""
    ended = dict[str, float]()
    for (arm, _), result in students.items():
        parts = result.values["final"]["parts"]
        ended.setdefault(arm, sum(v for name, v in parts.items() if not name.startswith("kd_")))
    told = ", ".join(f"{value:.2f} {ARMS.get(arm, arm)}" for arm, value in ended.items())
    return (
        f"The detection loss of the first seed ends at {told}. It is a training "
        "loss: which student finds more is notebook 03's question."
    )


@dataclass(frozen=True)
class Finding:
    """What came of some contrasts that belong together: a table, sentences, pictures and a part of
    the report.
    """

    title: str
    contrasts: tuple[Contrast, ...]
    comparison: Comparison

    @property
    def gains(self) -> tuple[Gain, ...]:
        """What came of each contrast."""
        return tuple(map(self.comparison.gain, self.contrasts))

    @property
    def base(self) -> str:
        """What the rows are compared with."""
        bases = {gain.second for gain in self.gains}
        return bases.pop() if len(bases) == 1 else "its own base"

    def labels(self, minus: str = " − ") -> list[str]:
        """Return what the rows are called: both arms, or only the first where all rows have one
        base.
        """
        alone = self.base != "its own base"
        return [gain.first if alone else f"{gain.first}{minus}{gain.second}" for gain in self.gains]

    def table(self) -> pd.DataFrame:
        """Return each difference with its interval, in points."""
        name = "difference" if self.base == "its own base" else f"difference from {self.base}"
        rows = [
            {name: label, **gain.row(), "shown": gain.shown}
            for label, gain in zip(self.labels(), self.gains)
        ]
        return pd.DataFrame(rows).round(2)

    def sentences(self) -> list[str]:
        """Return one sentence for each difference; it follows the interval."""
        return [gain.sentence(self.comparison.profile.simulated is not None) for gain in self.gains]

    def draw(self, path: Path) -> Figure:
        """Draw the differences with their intervals and seeds."""
        rows = []
        for label, gain, contrast in zip(self.labels(minus="\n− "), self.gains, self.contrasts):
            color = _GROUP_COLORS[contrast.group]
            rows.append(Estimate(label, gain.mean, gain.low, gain.high, gain.seeds, color))
        title = self.comparison.profile.titled(self.title)
        return curves.draw_arms(
            rows, label=f"{UNIT} above {self.base}", reference=0, title=title, path=path
        )

    def classes(self) -> ScoreTable:
        """Return each difference class by class, APH at both levels."""
        changes = [self.comparison.breakdown(pair.first, pair.second) for pair in self.contrasts]
        columns = tuple(row.replace("LEVEL_", "L") for row in changes[0].rows)
        values = np.stack([change.values[:, 1] for change in changes])  # the column of APH
        return ScoreTable(values, tuple(self.labels(minus="\n− ")), columns)

    def part(self, pictures: Words) -> Json:
        """Return a chapter of the report: sentences, table and pictures (file name to caption)."""
        tables = {f"Paired differences, {UNIT}": self.table()}
        return part(
            self.title,
            summary(self.gains),
            sentences=self.sentences(),
            tables=tables,
            pictures=pictures,
        )
