"""Weights in, one EvalResult each out: predictions are made side by side, and kept until anything changes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from kdlib.config import ModelConfig
from kdlib.data.store import fingerprint
from kdlib.lab.comparison import predict_weights, truth
from kdlib.lab.pipeline import Run
from kdlib.metric.loading import check_trained_on
from kdlib.metric.waymo_metrics import EvalResult, evaluate_tables
from kdlib.models.weights import read_card

_WORTH_A_PROCESS = 2000  # frames to predict: a process takes some seconds to start


@dataclass(frozen=True)
class Scored:
    """A model to be scored."""

    name: str  # of its predictions
    model: ModelConfig
    weights: Path


def score_all(run: Run, wanted: Sequence[Scored]) -> dict[str, EvalResult]:
    """Return the Waymo metric of every model on the validation frames, by name.

    Raises:
        DataError: If weights are damaged.
    """
    _predict_side_by_side(run, wanted)
    boxes = truth(run)
    return {one.name: evaluate_tables(predict_weights(run, one.name, one.model, one.weights), boxes) for one in wanted}


def check_store(run: Run, weights: Sequence[Path]) -> None:
    """Check that students were trained on the store of the run.

    Raises:
        DataError: Naming the first that was not.
    """
    contents = run.store.contents
    present = fingerprint({"training": contents["training"]}) if "training" in contents else ""
    for path in weights:
        check_trained_on(read_card(path).get("dataset", ""), present, str(path))


def _predict_side_by_side(run: Run, wanted: Sequence[Scored]) -> None:
    missing = [one for one in wanted if not (run.folder / "predictions" / f"{one.name}.json").is_file()]
    frames = len(run.store.split("validation").frames(run.profile.evaluation.interval))
    if run.profile.parallel < 2 or frames * len(missing) < _WORTH_A_PROCESS:
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in an unknown state
    with ProcessPoolExecutor(run.profile.parallel, context) as pool:
        for number, _ in enumerate(pool.map(_predict, [(run, one) for one in missing]), 1):
            if number % 10 == 0 or number == len(missing):
                print(f"detected with {number} of {len(missing)} models", flush=True)


def _predict(task: tuple[Run, Scored]) -> None:
    run, one = task
    if run.profile.threads:
        torch.set_num_threads(run.profile.threads)
    predict_weights(run, one.name, one.model, one.weights)


def by_seed(results: Mapping[str, EvalResult], arm: str, seeds: Sequence[int]) -> list[EvalResult]:
    """Return an arm's results in the order of the seeds."""
    return [results[student_name(arm, seed)] for seed in seeds]


def student_name(arm: str, seed: int) -> str:
    """Return what a student's predictions are called."""
    return f"{arm}_seed{seed}"
