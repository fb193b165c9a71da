"""Trained weights in; predictions, Waymo scores, intervals and tables out; predictions are kept until anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from kdlib import records
from kdlib.config import ModelConfig, config_hash
from kdlib.data.dataset import FrameDataset
from kdlib.data.store import fingerprint, ground_truth_table, limit_table
from kdlib.lab import profiles
from kdlib.lab.pipeline import Run, chosen_teacher, located
from kdlib.metric.bootstrap import BootstrapReport, bootstrap
from kdlib.metric.box_tables import read_table, write_predictions
from kdlib.metric.loading import check_trained_on
from kdlib.metric.predict import predict
from kdlib.metric.waymo_metrics import EvalResult, evaluate_tables
from kdlib.models.build import build
from kdlib.models.weights import load_weights, read_card
from kdlib.viz import palette
from kdlib.viz.curves import Estimate, PRCurve, ScoreTable

METRIC = "LEVEL_2/mAPH"
RANGES = ("[0, 30)", "[30, 50)", "[50, +inf)")


def truth(run: Run) -> pa.Table:
    """Return the validation boxes that count."""
    table = ground_truth_table(
        run.store.split("validation"), run.profile.evaluation.interval, run.profile.student_model.class_names
    )
    return limit_table(table, half_width=run.profile.evaluation.half_width)


def predict_weights(run: Run, name: str, model: ModelConfig, weights: Path) -> pa.Table:
    """Return a model's boxes on the validation frames, from ``predictions/<name>.parquet`` if nothing changed since."""
    path, settings = run.folder / "predictions" / f"{name}.parquet", run.profile.evaluation
    split = run.store.split("validation")
    key = config_hash(model, settings, records.sha256(weights), split.fingerprint)
    mark = path.with_suffix(".json")
    if not (mark.is_file() and path.is_file() and records.read_json(mark).get("key") == key):
        dataset = FrameDataset(split, model.class_names, settings.interval, point_range=model.grid.point_range)
        detector = build(model)
        load_weights(weights, detector)
        table = predict(detector, dataset, batch_size=settings.batch_size, device=_device(), progress=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(path, table)
        records.write_json(mark, {"key": key, "model": model.name})
    return limit_table(read_table(path, "predictions"), half_width=run.profile.evaluation.half_width)


def _device() -> torch.device:
    # A torch that was built for an accelerator names it even where there is none.
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return there or torch.device("cpu")


def evaluate_weights(run: Run, name: str, model: ModelConfig, weights: Path) -> EvalResult:
    """Score one set of weights on the validation split."""
    return evaluate_tables(predict_weights(run, name, model, weights), truth(run))


@dataclass(frozen=True)
class Scores:
    """Everything notebook 03 scored, on the same frames."""

    teacher: EvalResult
    students: Mapping[str, Mapping[int, EvalResult]]  # arm -> seed -> result

    @property
    def arms(self) -> dict[str, list[EvalResult]]:
        """Results by arm; the teacher is one with a single seed, repeated so that every arm has as many."""
        count = max(len(seeds) for seeds in self.students.values())
        return {"teacher": [self.teacher] * count, **{arm: list(seeds.values()) for arm, seeds in self.students.items()}}


def evaluate_all(run: Run) -> Scores:
    """Score the teacher and every student of the run.

    Raises:
        ConfigError: If notebook 01 or 02 has not finished.
        DataError: If the store is not the one the students were trained on.
    """
    teacher, contents = chosen_teacher(run), run.store.contents
    present = fingerprint({"training": contents["training"]}) if "training" in contents else ""
    students: dict[str, dict[int, EvalResult]] = {}
    for row in run.result("02_distill_student")["students"]:
        name = f"{row['arm']}_seed{row['seed']}"
        print(f"scoring {name}", flush=True)
        check_trained_on(read_card(located(row["weights"])).get("dataset", ""), present, row["weights"])
        result = evaluate_weights(run, name, run.profile.student_model, located(row["weights"]))
        students.setdefault(row["arm"], {})[row["seed"]] = result
    return Scores(evaluate_weights(run, "teacher", teacher.model, teacher.weights), students)


def score_frame(result: EvalResult) -> pd.DataFrame:
    """Return AP and APH in percent, a row for each class and the mean."""
    rows = {}
    for name, kind in ((n, f"OBJECT_TYPE_TYPE_{n.upper()}_") for n in ("Vehicle", "Pedestrian", "Cyclist")):
        rows[name] = {f"LEVEL_{k} {m}": 100 * result.metrics[f"{kind}LEVEL_{k}/{m}"] for k in (1, 2) for m in ("AP", "APH")}
    rows["mean"] = {f"LEVEL_{k} {m}": 100 * result.metrics[f"LEVEL_{k}/m{m}"] for k in (1, 2) for m in ("AP", "APH")}
    return pd.DataFrame(rows).T.round(2)


def arm_color(arm: str) -> str:
    """Return the colour an arm has in every chart."""
    if arm == "teacher":
        return palette.role("teacher").color
    return palette.role("student").color if arm == "full" else {"alone": palette.SERIES[3]}.get(arm, palette.SERIES[0])


@dataclass(frozen=True)
class Wish:
    """A wanted margin between two arms, in points of LEVEL_2 mAPH."""

    first: str
    second: str
    margin: float
    significant: bool  # the interval must stay above zero


WISHES = (Wish("teacher", "alone", 5.0, False), Wish("full", "alone", 2.0, False), Wish("full", "init", 0.5, True))


@dataclass(frozen=True)
class Outcome:
    """The comparison of all arms."""

    report: BootstrapReport
    scores: Scores

    def title_of(self, arm: str) -> str:
        """Return an arm's name for people."""
        return profiles.ARMS[arm].title if arm in profiles.ARMS else arm

    def table(self) -> pd.DataFrame:
        """Return mean, spread over seeds and interval of every arm, in percent."""
        rows = [
            {
                "arm": self.title_of(arm.name),
                "LEVEL_2 mAPH": 100 * arm.mean,
                "std over seeds": 100 * arm.std if arm.name != "teacher" else np.nan,
                "95 % low": 100 * arm.low,
                "95 % high": 100 * arm.high,
                "seeds": len(arm.values) if arm.name != "teacher" else 1,
            }
            for arm in self.report.arms
        ]
        return pd.DataFrame(rows).round(2)

    def difference_table(self) -> pd.DataFrame:
        """Return the paired differences between arms, in points."""
        names = [arm.name for arm in self.report.arms]
        pairs = [(a, b) for i, b in enumerate(names) for a in names[:i] if b != "teacher"]
        pairs = [(b, a) if a != "teacher" else (a, b) for a, b in pairs]
        rows = []
        for first, second in pairs:
            d = self.report.difference(first, second)
            rows.append(
                {
                    "difference": f"{self.title_of(first)} − {self.title_of(second)}",
                    "LEVEL_2 mAPH": 100 * d.mean,
                    "95 % low": 100 * d.low,
                    "95 % high": 100 * d.high,
                    "a gain": d.low > 0,
                }
            )
        return pd.DataFrame(rows).round(2)

    def verdicts(self) -> list[dict[str, Any]]:
        """Return every wish about these arms with what came of it, in plain words."""
        names, found = {arm.name for arm in self.report.arms}, []
        for wish in WISHES:
            if not {wish.first, wish.second} <= names:
                continue
            d = self.report.difference(wish.first, wish.second)
            met = 100 * d.mean >= wish.margin and (d.low > 0 or not wish.significant)
            extra = ", with its interval above 0" if wish.significant else ""
            found.append(
                {
                    "wish": f"{self.title_of(wish.first)} at least {wish.margin:g} above {self.title_of(wish.second)}{extra}",
                    "result": f"{100 * d.mean:+.2f} points, 95 % interval {100 * d.low:+.2f} to {100 * d.high:+.2f}",
                    "met": bool(met),
                }
            )
        return found

    def last_step(self) -> tuple[str, str]:
        """Return the two arms between which the recipe's last part came in: initialised and full, where both were trained."""
        arms = [arm for arm in profiles.ARMS if arm in self.scores.students]
        return arms[-2:][0], arms[-1]

    def estimates(self) -> list[Estimate]:
        """Return every arm in percent, for a chart."""
        return [
            Estimate(
                self.title_of(arm.name),
                100 * arm.mean,
                100 * arm.low,
                100 * arm.high,
                tuple(100 * v for v in arm.values),
                arm_color(arm.name),
            )
            for arm in self.report.arms
        ]

    def precision_recall(self) -> list[PRCurve]:
        """Return the LEVEL_2 curves of the teacher and of each arm's first seed."""
        found = []
        for arm, results in self.scores.arms.items():
            for kind in ("Vehicle", "Pedestrian", "Cyclist"):
                name = f"OBJECT_TYPE_TYPE_{kind.upper()}_LEVEL_2"
                curve = results[0].curves[name]
                score = results[0].metrics[f"{name}/AP"]
                found.append(PRCurve(self.title_of(arm), kind, curve.recall, curve.precision, arm_color(arm), score))
        return found

    def change(self, first: str, second: str) -> ScoreTable:
        """Return ``second`` minus ``first``, mean over seeds: a row for each class, AP and APH, and LEVEL_2 APH by range.

        Ranges are left out where all boxes lie in one of them.
        """
        classes = ("Vehicle", "Pedestrian", "Cyclist")
        forms = {f"LEVEL_{k} {m}": f"OBJECT_TYPE_TYPE_{{}}_LEVEL_{k}/{m}" for k in (1, 2) for m in ("AP", "APH")}
        ranges = {f"{r} m": f"RANGE_TYPE_{{}}_{r}_LEVEL_2/APH" for r in RANGES}
        ranges = {title: form for title, form in ranges.items() if any(self._found(form.format(c.upper())) for c in classes)}
        columns = {**forms, **(ranges if len(ranges) > 1 else {})}
        names = [[form.format(kind.upper()) for form in columns.values()] for kind in classes]
        values = [[self._mean(second, name) - self._mean(first, name) for name in row] for row in names]
        return ScoreTable(np.array(values), classes, tuple(columns))

    def _mean(self, arm: str, metric: str) -> float:
        return float(np.mean([result.metrics[metric] for result in self.scores.arms[arm]]))

    def _found(self, metric: str) -> bool:
        """Return whether any model found anything there; a range beyond the models' reach has no boxes."""
        return any(result.metrics[metric] > 0 for results in self.scores.arms.values() for result in results)

    def to_dict(self) -> dict[str, Any]:
        """Return everything the report and the tests need."""
        seeds = {
            arm: {str(seed): result.to_dict() for seed, result in found.items()} for arm, found in self.scores.students.items()
        }
        return {
            "metric": METRIC,
            "comparison": self.report.to_dict(),
            "arms": records.table_rows(self.table()),
            "differences": records.table_rows(self.difference_table()),
            "verdicts": self.verdicts(),
            "metrics": {"teacher": self.scores.teacher.to_dict(), **seeds},
            "evaluation": dict(self.scores.teacher.card),
        }


def compare(scores: Scores, resamples: int = 1000) -> Outcome:
    """Compare all arms by paired bootstrap over segments and seeds."""
    report = bootstrap(scores.arms, metric=METRIC, resamples=resamples)
    single = [replace(arm, values=arm.values[:1], std=0.0) if arm.name == "teacher" else arm for arm in report.arms]
    return Outcome(replace(report, arms=tuple(single)), scores)


def run_predictions(run: Run, arms: Sequence[str] = ()) -> dict[str, pa.Table]:
    """Return the kept predictions of the teacher and of the first seed of each arm, by name."""
    teacher, found = chosen_teacher(run), {}
    found["teacher"] = predict_weights(run, "teacher", teacher.model, teacher.weights)
    for row in run.result("02_distill_student")["students"]:
        if row["arm"] not in found and (not arms or row["arm"] in arms):
            name = f"{row['arm']}_seed{row['seed']}"
            found[row["arm"]] = predict_weights(run, name, run.profile.student_model, located(row["weights"]))
    return found
