"""A study whose students are made up: every arm finds a share of the objects, which tables and
pictures then show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kdlib.lab import pipeline, profiles
from kdlib.lab.comparison import compare_arms
from kdlib.lab.pipeline import Run, Student, student_folder
from kdlib.lab.study import trainings
from kdlib.lab.study.answers import ChapterComparison
from kdlib.lab.study.trainings import Chapter
from kdlib.metric.box_tables import predictions_table
from kdlib.metric.waymo_metrics import EvalResult, evaluate_tables
from kdlib.training.launch import RunResult

FRAMES = [f"segment{s}_{f:03d}" for s in range(8) for f in range(3)]
TYPES = (1, 2, 4)
EACH = 4  # objects of a class in a frame
# Share of the objects that an arm finds; those not named find half.
SHARES = {
    "none": 0.2,
    "none_long": 0.4,
    "base_long": 0.6,
    "full": 0.6,
    "full_long": 0.8,
    "full_weak_long": 0.55,
    "labels": 0.35,
}
SHARES |= {"narrow": 0.35, "narrow_none": 0.1, "narrow_full": 0.4, "narrow_boxes": 0.42}


def objects() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.repeat(FRAMES, len(TYPES) * EACH)
    types = np.tile(np.repeat(TYPES, EACH), len(FRAMES))
    places = np.tile(
        [[6.0 * c + 1, 6.0 * r, 1.0] for r in range(len(TYPES)) for c in range(EACH)],
        (len(FRAMES), 1),
    )
    return ids, np.hstack([places, np.tile([4.0, 2.0, 1.5, 0.3], (len(ids), 1))]), types


def truth_table() -> pa.Table:
    ids, boxes, types = objects()
    columns = dict(zip(("x", "y", "z", "length", "width", "height", "heading"), boxes.T))
    extra = {"difficulty": np.zeros(len(ids), np.int64), "num_points": np.full(len(ids), 50)}
    return pa.table(
        {
            "frame_id": ids.tolist(),
            **columns,
            "type": types,
            **extra,
            "speed_x": boxes[:, 0],
            "speed_y": boxes[:, 0],
        }
    )


def found(share: float, seed: int) -> EvalResult:
    """A detector that finds about this share of the objects."""
    ids, boxes, types = objects()
    rng = np.random.default_rng(seed)
    # The same objects are easy for every seed, but for a few.
    kept = np.random.default_rng(0).random(len(ids)) + 0.05 * rng.standard_normal(len(ids)) < share
    table = predictions_table(
        ids[kept].tolist(),
        boxes[kept],
        types[kept],
        rng.uniform(0.3, 0.9, kept.sum()),
        None,
        FRAMES,
    )
    return evaluate_tables(table, truth_table())


def run_of(profile: str, folder: Path) -> Run:
    """A run of a profile whose folders are empty."""
    return Run(profiles.profile(profile), folder / "run", folder / "data")


def trained_of(chapter: Chapter) -> dict[Student, RunResult]:
    """Results as trainings leave them, of students that were never trained."""
    results = {}
    for name, seed in chapter.students:
        epochs = chapter.arms[name].epochs or chapter.run.profile.student.epochs
        terms = [
            {
                "name": "heatmap",
                "weight": 1.0,
                "value": 1.9,
                "positions": None,
                "teacher_labels": None,
            }
        ]
        values = {
            "steps": 75 * epochs,
            "samples": 300 * epochs,
            "epochs": epochs,
            "frames": 300,
            "terms": terms,
        }
        folder = student_folder(chapter.run, name, seed)
        results[name, seed] = RunResult(folder, {**values, "timing": {"seconds": 60.0}})
    return results


@pytest.fixture(scope="session")
def scores_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ChapterComparison]:
    """Made-up scores of a notebook of the study, by its name."""
    made: dict[str, EvalResult] = {}

    def scored(name: str, seed: int) -> EvalResult:
        key = f"{name} {seed}"
        if key not in made:
            made[key] = found(SHARES.get(name, 0.5), sum(map(ord, name)) + seed)
        return made[key]

    def scores(notebook: str) -> ChapterComparison:
        run = run_of("study", tmp_path_factory.mktemp("study"))
        chapter = trainings.open_chapter(run, notebook)
        arms = {name: {seed: scored(name, seed) for seed in chapter.seeds} for name in chapter.arms}
        teachers = {"strong": found(0.95, 1), "weak": found(0.5, 2)}
        kinds = dict.fromkeys(arm.teacher for arm in chapter.arms.values())
        compared = vars(compare_arms(run.profile, chapter.titles, arms, resamples=200))
        beside = {kind: teachers[kind] for kind in kinds}
        return ChapterComparison(
            **compared, chapter=chapter, students=trained_of(chapter), teachers=beside
        )

    return scores


@pytest.fixture
def study(tmp_path: Path) -> Run:
    """A run of the study whose folders are empty."""
    return run_of("study", tmp_path)


@pytest.fixture
def pretend() -> Callable[[Chapter], dict[Student, RunResult]]:
    """Makes results as trainings leave them."""
    return trained_of


@pytest.fixture
def smoke(smoke_data: Path, tmp_path: Path) -> Run:
    """A run of the smoke study on real, tiny data."""
    return replace(pipeline.open_run("study_smoke", str(tmp_path / "run")), data=smoke_data)
