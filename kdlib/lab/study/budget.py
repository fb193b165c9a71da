"""Says how many trainings a study still needs and, timed on this machine, how many minutes they
will take.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections import defaultdict
from dataclasses import dataclass, replace

import pandas as pd
import torch

from kdlib import records
from kdlib.data.collate import collate
from kdlib.lab.pipeline import Run, student_folder
from kdlib.lab.profile import Arm
from kdlib.lab.study.trainings import arm_job, open_chapter, weak_folder, weak_job
from kdlib.training import loop
from kdlib.training.job import TrainJob

STARTUP_SECONDS = 6.0  # of a child: Python, torch, Lightning, the store
SCORING_SECONDS = 0.02  # a frame: detection and the metric
# samples of all its runs, seconds a sample
KIND = ("model", "recipe", "runs", "samples", "seconds")
_WARM_UP, _TIMED = 1, 4  # steps


@dataclass(frozen=True)
class Budget:
    """What is left to do; a row of ``kinds`` are trainings whose steps cost alike, with the columns
    of :data:`KIND`.
    """

    kinds: pd.DataFrame
    kept: int  # students that are trained already
    scoring: float  # minutes, one student after the other
    parallel: int

    @property
    def runs(self) -> int:
        """Trainings left."""
        return int(self.kinds["runs"].sum())

    @property
    def minutes(self) -> float:
        """Time of everything."""
        return float(self._minutes().sum() + self.scoring) / self.parallel

    def _minutes(self) -> pd.Series:
        # Of every kind, one training after the other.
        return (
            self.kinds["runs"] * STARTUP_SECONDS + self.kinds["samples"] * self.kinds["seconds"]
        ) / 60

    def table(self) -> pd.DataFrame:
        """Return a row for each kind of training."""
        shown = {
            "ms a sample": 1000 * self.kinds["seconds"],
            "minutes of one core": self._minutes(),
        }
        return self.kinds.drop(columns="seconds").assign(**shown).round(1)

    def __str__(self) -> str:
        """One line to print before anything starts."""
        return (
            f"study: {self.runs} trainings to do, {self.kept} kept from earlier; about "
            f"{self.minutes:.0f} min on "
            f"{self.parallel} idle cores, scoring included"
        )


def estimate_budget(run: Run, seeds: str = "") -> Budget:
    """Time some steps of every kind of training that is left, on one CPU thread each, and add up
    the whole study.

    ``seeds`` are numbers separated by commas; empty means the profile's. ConfigError if the profile
    names an unknown arm.
    """
    chapters = [open_chapter(run, notebook, seeds) for notebook in run.profile.chain]
    asked = {
        student: chapter.arms[student[0]] for chapter in chapters for student in chapter.students
    }
    left = [arm for (_, seed), arm in asked.items() if not _done(run, arm, seed)]
    alike = defaultdict(list)
    for arm in left:
        job = arm_job(run, replace(arm, teacher="strong"), 0)  # the weak one may not be there yet
        alike[job.model.name, arm.recipe].append(job)
    if (
        any(arm.teacher == "weak" for arm in left)
        and not (weak_folder(run) / records.COMPLETE).is_file()
    ):
        job = weak_job(run)
        alike[job.model.name, "weak teacher"].append(job)
    split, rows = run.store.split(run.profile.training_split), []
    for kind, jobs in alike.items():
        samples = sum(job.train.epochs * len(split.frames(job.train.interval)) for job in jobs)
        rows.append((*kind, len(jobs), samples, seconds_per_sample(jobs[0], run.profile.threads)))
    scored = run.frame_count * len(left)
    parallel = min(run.profile.parallel, os.cpu_count() or 1)
    return Budget(
        pd.DataFrame(rows, columns=list(KIND)),
        len(asked) - len(left),
        scored * SCORING_SECONDS / 60,
        parallel,
    )


def _done(run: Run, arm: Arm, seed: int) -> bool:
    folder = student_folder(run, arm.name, seed)
    if not (folder / records.COMPLETE).is_file():
        return False
    job = arm_job(run, arm, seed)
    return all(path.is_file() for path in job.inputs) and records.is_complete(folder, job.hash())


def seconds_per_sample(job: TrainJob, threads: int) -> float:
    """Return the CPU time of loading and training on a sample, on so many threads (0: all); what
    else runs does not count.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        # building reports what it copies
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
            dataset, objective = loop.open_dataset(job), loop.build_objective(job).train()
        size, began = job.train.batch_size, 0.0
        for step in range(_WARM_UP + _TIMED):
            if step == _WARM_UP:
                began = time.process_time()
            batch = collate(
                [dataset[0, (step * size + number) % len(dataset)] for number in range(size)]
            )
            with torch.autocast(
                batch.points.points.device.type,
                torch.bfloat16,
                enabled=job.train.precision == "bf16-mixed",
            ):
                loss = objective(batch).loss
            loss.backward()
        return (time.process_time() - began) / (_TIMED * size * torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
