"""Says how many trainings a study still needs and, timed on this machine, how many minutes they will take."""

from __future__ import annotations

import contextlib
import io
import os
import time
from dataclasses import dataclass, replace

import pandas as pd
import torch

from kdlib import records
from kdlib.data.collate import collate
from kdlib.lab.pipeline import Run, student_folder
from kdlib.lab.profiles import Arm
from kdlib.lab.study.trainings import arm_job, open_chapter, weak_folder, weak_job
from kdlib.training import loop
from kdlib.training.job import TrainJob

STARTUP_SECONDS = 6.0  # of a child: Python, torch, Lightning, the store
SCORING_SECONDS = 0.02  # a frame: detection and the metric
_WARM_UP, _TIMED = 1, 4  # steps


@dataclass(frozen=True)
class Kind:
    """Trainings whose steps cost alike."""

    model: str
    recipe: str
    runs: int
    samples: int  # of all of them
    seconds: float  # a sample

    @property
    def minutes(self) -> float:
        """Time of all of them, one after the other."""
        return (self.runs * STARTUP_SECONDS + self.samples * self.seconds) / 60


@dataclass(frozen=True)
class Budget:
    """What is left to do."""

    kinds: tuple[Kind, ...]
    kept: int  # students that are trained already
    scoring: float  # minutes, one student after the other
    parallel: int

    @property
    def runs(self) -> int:
        """Trainings left."""
        return sum(kind.runs for kind in self.kinds)

    @property
    def minutes(self) -> float:
        """Time of everything."""
        return (sum(kind.minutes for kind in self.kinds) + self.scoring) / self.parallel

    def table(self) -> pd.DataFrame:
        """Return a row for each kind of training."""
        rows = [
            {
                "model": kind.model,
                "recipe": kind.recipe,
                "runs": kind.runs,
                "samples": kind.samples,
                "ms a sample": round(1000 * kind.seconds, 1),
                "minutes of one core": round(kind.minutes, 1),
            }
            for kind in self.kinds
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        """One line to print before anything starts."""
        return (
            f"study: {self.runs} trainings to do, {self.kept} kept from earlier; about {self.minutes:.0f} min on "
            f"{self.parallel} idle cores, scoring included"
        )


def estimate_budget(run: Run, seeds: str = "") -> Budget:
    """Time some steps of every kind of training that is left, on one CPU thread each, and add up the whole study.

    Args:
        run: The run, its data prepared.
        seeds: Comma-separated numbers; empty means the profile's.

    Raises:
        ConfigError: If the profile names an unknown arm.
    """
    chapters = [open_chapter(run, notebook, seeds) for notebook in run.profile.chain]
    asked = {student: chapter.arms[student[0]] for chapter in chapters for student in chapter.students}
    left = [arm for (_, seed), arm in asked.items() if not _done(run, arm, seed)]
    alike: dict[tuple[str, str], list[Arm]] = {}
    for arm in left:
        alike.setdefault((arm.student.name, arm.recipe), []).append(arm)
    kinds = []
    for (name, recipe), arms in alike.items():
        jobs = [arm_job(run, replace(arm, teacher="strong"), 0) for arm in arms]  # the weak one may not be there yet
        kinds.append(_kind(run, name, recipe, jobs))
    if any(arm.teacher == "weak" for arm in left) and not (weak_folder(run) / records.COMPLETE).is_file():
        job = weak_job(run)
        kinds.append(_kind(run, job.model.name, "weak teacher", [job]))
    scored = len(run.store.split("validation").frames(run.profile.evaluation.interval)) * len(left)
    parallel = max(1, min(run.profile.parallel, os.cpu_count() or 1))
    return Budget(tuple(kinds), len(asked) - len(left), scored * SCORING_SECONDS / 60, parallel)


def _kind(run: Run, model: str, recipe: str, jobs: list[TrainJob]) -> Kind:
    split = run.store.split("training")
    samples = sum(job.train.epochs * len(split.frames(job.train.interval)) for job in jobs)
    return Kind(model, recipe, len(jobs), samples, seconds_per_sample(jobs[0], run.profile.threads))


def _done(run: Run, arm: Arm, seed: int) -> bool:
    folder = student_folder(run, arm.name, seed)
    if not (folder / records.COMPLETE).is_file():
        return False
    job = arm_job(run, arm, seed)
    return all(path.is_file() for path in job.inputs) and records.is_complete(folder, job.hash())


def seconds_per_sample(job: TrainJob, threads: int) -> float:
    """Return what a sample of a training costs the CPU: loading it, the loss and its gradient.

    CPU time, so that what else runs on the machine at this moment is not taken for the price of a step.

    Args:
        job: The training.
        threads: Of torch; 0 leaves them all.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):  # building reports what it copies
            dataset, objective = loop.open_dataset(job), loop.build_objective(job).train()
        size, began = job.train.batch_size, 0.0
        for step in range(_WARM_UP + _TIMED):
            if step == _WARM_UP:
                began = time.process_time()
            batch = collate([dataset[0, (step * size + number) % len(dataset)] for number in range(size)])
            with torch.autocast(batch.points.points.device.type, torch.bfloat16, enabled=job.train.precision == "bf16-mixed"):
                loss = objective(batch).loss
            loss.backward()
        return (time.process_time() - began) / (_TIMED * size * torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
