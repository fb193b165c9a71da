"""Scores trained weights on a run's validation frames; predictions are kept until anything
changes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from kdlib import records
from kdlib.config import config_hash
from kdlib.data.processes import process_pool
from kdlib.data.store import fingerprint, ground_truth_table, limit_table
from kdlib.lab.pipeline import Run, Student, chosen_teacher, student_name, trained_students
from kdlib.lab.trained import TrainedWeights
from kdlib.metric.box_tables import read_table, write_predictions
from kdlib.metric.loading import check_trained_on
from kdlib.metric.predict import predict
from kdlib.metric.shards import type_breakdown
from kdlib.metric.waymo_metrics import EvalResult, evaluate_tables
from kdlib.models.build import build
from kdlib.models.weights import load_weights, read_card

Scores = dict[str, dict[int, EvalResult]]  # by arm and seed
_WORTH_A_PROCESS = 2000  # frames to predict: a process takes some seconds to start


def truth(run: Run) -> pa.Table:
    """Return the validation boxes that count."""
    settings, classes = run.profile.evaluation, run.profile.student_model.class_names
    return _in_range(run, ground_truth_table(run.evaluated, settings.interval, classes))


def _in_range(run: Run, table: pa.Table) -> pa.Table:
    """Return the boxes that count: where the models see less than is labelled, those in range."""
    settings = run.profile.evaluation
    table = limit_table(table, half_width=settings.half_width)
    if math.isinf(settings.half_width):
        return table
    reach = run.profile.student_model.grid.point_range
    for name, low, high in zip("xy", reach, reach[3:]):
        inside = pc.and_(pc.greater_equal(table[name], low), pc.less_equal(table[name], high))
        table = table.filter(inside)
    return table


def predict_weights(run: Run, name: str, trained: TrainedWeights) -> pa.Table:
    """Return a model's boxes on the validation frames, from ``predictions/<name>.parquet`` if
    nothing changed since.
    """
    path, settings, model = (
        run.folder / "predictions" / f"{name}.parquet",
        run.profile.evaluation,
        trained.model,
    )
    key = config_hash(model, settings, records.sha256(trained.weights), run.evaluated.fingerprint)
    mark = path.with_suffix(".json")
    if not (mark.is_file() and path.is_file() and records.read_json(mark).get("key") == key):
        detector = build(model)
        load_weights(trained.weights, detector)
        table = predict(
            detector,
            run.frames(model),
            batch_size=settings.batch_size,
            device=_device(),
            progress=False,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(path, table)
        records.write_json(mark, {"key": key, "model": model.name})
    return _in_range(run, read_table(path, "predictions"))


def _device() -> torch.device:
    # A torch that was built for an accelerator names it even where there is none.
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return there or torch.device("cpu")


def evaluate_weights(run: Run, name: str, trained: TrainedWeights) -> EvalResult:
    """Score one set of weights on the validation split."""
    return evaluate_tables(predict_weights(run, name, trained), truth(run))


def score_all(
    run: Run, students: Mapping[Student, TrainedWeights], others: Mapping[str, TrainedWeights]
) -> Scores:
    """Score other models (their seed is 0) and students side by side; DataError if weights are
    damaged or of another store.
    """
    check_store(run, [student.weights for student in students.values()])
    models = {(name, 0): (name, trained) for name, trained in others.items()}
    models |= {key: (student_name(*key), trained) for key, trained in students.items()}
    _predict_side_by_side(run, dict(models.values()))
    boxes = truth(run)
    results: Scores = {}
    for (arm, seed), (name, trained) in models.items():
        results.setdefault(arm, {})[seed] = evaluate_tables(
            predict_weights(run, name, trained), boxes
        )
    return results


def check_store(run: Run, weights: Iterable[Path]) -> None:
    """Check that students were trained on the store of the run; DataError names the first that was
    not.
    """
    contents = run.store.contents
    split = run.profile.training_split
    present = fingerprint({split: contents[split]}) if split in contents else ""
    for path in weights:
        check_trained_on(read_card(path).get("dataset", ""), present, str(path))


def _predict_side_by_side(run: Run, models: Mapping[str, TrainedWeights]) -> None:
    missing = {
        name: model
        for name, model in models.items()
        if not (run.folder / "predictions" / f"{name}.json").is_file()
    }
    if run.profile.parallel < 2 or run.frame_count * len(missing) < _WORTH_A_PROCESS:
        return
    words = "a predicting process was killed, perhaps for want of memory; run again"
    threads = run.profile.threads or torch.get_num_threads()
    with process_pool(run.profile.parallel, words, torch.set_num_threads, threads) as pool:
        for number, _ in enumerate(
            pool.map(predict_weights, itertools.repeat(run), missing, missing.values()), 1
        ):
            if number % 10 == 0 or number == len(missing):
                print(f"detected with {number} of {len(missing)} models", flush=True)


def score_frame(result: EvalResult) -> pd.DataFrame:
    """Return AP and APH in percent, a row for each class and the mean."""
    forms = {
        name.capitalize(): f"{type_breakdown(name)}_LEVEL_{{}}/{{}}" for name in result.mean_over
    } | {"mean": "LEVEL_{}/m{}"}
    columns = [(level, kind) for level in (1, 2) for kind in ("AP", "APH")]
    rows = [
        [100 * result.metrics[form.format(*column)] for column in columns]
        for form in forms.values()
    ]
    return pd.DataFrame(
        rows, list(forms), [f"LEVEL_{level} {kind}" for level, kind in columns]
    ).round(2)


def run_predictions(run: Run, arms: Sequence[str] = ()) -> dict[str, pa.Table]:
    """Return the kept predictions of the teacher and of the first seed of each arm (of some, where
    named), by arm.
    """
    tables = {"teacher": predict_weights(run, "teacher", chosen_teacher(run))}
    for (arm, seed), trained in trained_students(run).items():
        if arm not in tables and (not arms or arm in arms):
            tables[arm] = predict_weights(run, student_name(arm, seed), trained)
    return tables
