"""Trains the job of a run folder, in this process or in several that share every batch:
``python -m kdlib train RUN_DIR``.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from kdlib import records
from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.data.sampler import StepSampler, check_shares
from kdlib.data.store import Store, StoreSplit
from kdlib.errors import DataError
from kdlib.kd.initialise import initialise
from kdlib.kd.objective import Distillation, Plain
from kdlib.kd.own import load_terms
from kdlib.models.build import build
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.models.weights import load_weights, read_weights, save_weights
from kdlib.training.distributed import (
    ONE_PROCESS,
    Processes,
    here,
    ignore_termination,
    joined,
    settle,
)
from kdlib.training.fit import Session, fit_objective, schedule_length, seed_everything
from kdlib.training.job import RunDir, TrainJob, claim
from kdlib.training.launcher import (
    TERMINATED,
    check_devices,
    positive_number,
    ranks_to_start,
    start_ranks,
)
from kdlib.training.preflight import check_split
from kdlib.types import Json


def limit_threads() -> None:
    """Use as many torch threads as KDLIB_THREADS, else OMP_NUM_THREADS, says; raises ConfigError if
    it says no number.
    """
    threads = positive_number("KDLIB_THREADS") or positive_number("OMP_NUM_THREADS")
    if threads:
        torch.set_num_threads(threads)


def open_dataset(job: TrainJob, split: StoreSplit | None = None) -> FrameDataset:
    """Open the job's frames (of ``split`` if it is open already), cut to the model's range.

    Raises:
        DataError: If the store is damaged, the split is empty, or none of its boxes is of a class
            of the model.
    """
    config = job.train
    return FrameDataset(
        Store.open(Path(job.store)).split(job.split) if split is None else split,
        job.model.class_names,
        interval=config.interval,
        augment=config.augment,
        seed=config.seed,
        drop_empty=True,
        point_range=job.model.grid.point_range,
    )


def build_objective(job: TrainJob) -> Plain | Distillation:
    """Build the student with its first weights, and around it what it is to minimise.

    Raises:
        ConfigError: If teacher, student, recipe and terms do not fit together.
        DataError: If weights do not fit the models, or hold NaN.
    """
    student = build(job.model)
    teacher: CenterPoint | AnchorDetector | None = None
    if job.teacher is not None:
        teacher = build(job.teacher.model)
        with _naming_teacher():
            load_weights(Path(job.teacher.weights), teacher)
    if job.init_weights is not None:
        taken = initialise(student, read_weights(Path(job.init_weights)), job.initialisation)
        print(f"starting from {job.init_weights}: {taken}", flush=True)
    elif job.kd is not None and teacher is not None:
        print(initialise(student, teacher.state_dict(), job.kd.initialisation), flush=True)
    if job.kd is None or teacher is None:
        return Plain(student)
    extra = load_terms(job.terms)
    return Distillation(student, teacher, job.kd, extra=extra, seed=job.train.seed)


class _Loader(DataLoader[Any]):
    """A loader that forks its workers while no thread of the process group is at work."""

    def __iter__(self) -> Any:
        if torch.distributed.is_initialized():
            settle()
        return super().__iter__()


def _loader(
    dataset: FrameDataset, job: TrainJob, first: int, processes: Processes = ONE_PROCESS
) -> DataLoader[Any]:
    config = job.train
    frames = (len(dataset), config.batch_size, config.epochs, config.seed)
    return _Loader(
        dataset,  # type: ignore[arg-type]  # it has __len__ and __getitem__
        batch_sampler=StepSampler(
            *frames, start_step=first, rank=processes.rank, world=processes.world
        ),
        collate_fn=collate,
        num_workers=config.workers,
        worker_init_fn=ignore_termination,
        # so that starting a loader draws nothing from torch's own
        generator=torch.Generator().manual_seed(config.seed),
    )


@contextlib.contextmanager
def _naming_teacher(weights: str = "") -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"the teacher cannot teach, {weights}{error}") from error


def _report(objective: Plain | Distillation, batches: Iterable[Any], teacher: str) -> list[Json]:
    """Print the active terms on the first batch and return them; DataError if the teacher, whose
    file is named, answers with NaN there.
    """
    batch = next(iter(batches))
    if isinstance(objective, Distillation):
        with _naming_teacher(f"{teacher}: "):
            objective.check_teacher(batch)
    rows = objective.report(batch)
    for row in rows:
        positions = "whole map" if row.positions is None else f"{row.positions} positions"
        labels = (
            ""
            if row.teacher_labels is None
            else (f", {row.teacher_labels} labels from the teacher")
        )
        print(
            f"active term {row.name}: weight {row.weight:g}, {row.value:.4g} on the first batch, "
            f"{positions}{labels}",
            flush=True,
        )
    return [asdict(row) for row in rows]


def train(run_dir: Path, devices: int | None = None, *, stop_after: int | None = None) -> None:
    """Train the job of a run folder to its end, from the newest checkpoint if there is one; a
    finished run is left alone.

    SIGTERM (or ``stop_after`` steps) saves a checkpoint; the same call later goes on from it, to
    the same weights bit for bit on a CPU with the same number of threads.

    Args:
        run_dir: Folder with its ``job.json``.
        devices: Processes of this machine that share every batch, so that the weights are those of
            one; each takes a GPU where there are some. None: as many as KDLIB_DEVICES says, else
            one. Under torchrun or srun this call is one of theirs.
        stop_after: Save and return after this step, for tests.

    Raises:
        ConfigError: If a setting, the store, a weight file or the number of processes is missing or
            does not fit.
        DataError: If the store is damaged or has nothing to learn from.
        RunBusy: If another process trains in this folder.
        SystemExit: With code 143 after SIGTERM; with the code of the rank that failed.
    """
    run = RunDir(Path(run_dir).resolve())
    count = ranks_to_start(devices)
    if count > 1:
        check_shares(TrainJob.read(run.path).train.batch_size, count)
        check_devices(count)
        code = start_ranks(("-m", "kdlib", "train", str(run.path)), count)
        if code:
            raise SystemExit(code)
        return
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s"
    )
    limit_threads()
    processes = here()
    with joined(processes), contextlib.ExitStack() as claimed:
        # The first rank looks before the others begin: what is wrong is said once.
        opened = _begin(run, claimed) if processes.first else None
        if processes.from_first(opened is not None):
            _train(run, *(opened or _open(run)), processes, stop_after)


def _open(run: RunDir) -> tuple[TrainJob, StoreSplit, str]:
    """Return a job, the frames it learns from, and the hash of exactly these settings, frames and
    weight files.
    """
    job = TrainJob.read(run.path)
    job.check_inputs()
    split = Store.open(Path(job.store)).split(job.split)
    return job, split, job.hash(split.fingerprint)


def _begin(run: RunDir, claimed: contextlib.ExitStack) -> tuple[TrainJob, StoreSplit, str] | None:
    """Open a training, claim its folder and check what it needs; None where it is complete."""
    job, split, key = _open(run)
    if records.is_complete(run.path, key):
        print(f"{run.path} is complete, nothing to do", flush=True)
        return None
    claimed.enter_context(claim(run))
    for line in check_split(job, split):
        print(f"warning: {line}", flush=True)
    return job, split, key


def _train(
    run: RunDir,
    job: TrainJob,
    split: StoreSplit,
    key: str,
    processes: Processes,
    stop_after: int | None,
) -> None:
    check_shares(job.train.batch_size, processes.world)
    dataset = open_dataset(job, split)
    per_epoch = -(-len(dataset) // job.train.batch_size)
    total = schedule_length(per_epoch * job.train.epochs, job.train, job.max_steps)
    seed_everything(job.train.seed)
    objective = build_objective(job)
    taught = job.teacher.weights if job.teacher else ""
    terms = _report(objective, _loader(dataset, job, 0), taught) if processes.first else []
    among = f", shared by {processes.world} processes" if processes.several else ""
    print(
        f"{job.name or job.model.name}: {len(dataset)} frames, {total} steps of "
        f"{job.train.batch_size} frames{among}",
        flush=True,
    )
    session = fit_objective(
        objective,
        lambda first: _loader(dataset, job, first, processes),
        run,
        job.train,
        key,
        total=total,
        per_epoch=per_epoch,
        stop_after=stop_after,
        processes=processes,
    )
    if session.terminated and not session.done:
        print(
            f"stopped at step {session.step} of {total}; start again to go on from there",
            flush=True,
        )
        raise SystemExit(TERMINATED)
    if session.done and processes.first:
        facts = {"dataset": split.fingerprint, "frames": len(dataset), "terms": terms}
        _finish(run, job, key, objective.student, session, facts)
        print(f"done: {session.step} steps in {session.seconds:.0f} s", flush=True)


def _finish(
    run: RunDir, job: TrainJob, key: str, student: nn.Module, session: Session, facts: Json
) -> None:
    """Write weights, result and, last, the completion mark."""
    made = {"model": job.model.name, "job": key, "seed": job.train.seed, "steps": session.step}
    provenance = records.provenance()
    save_weights(run.weights, student, {**made, "dataset": facts["dataset"], **provenance})
    values = {
        "kind": "training",
        "name": job.name,
        **made,
        "epochs": job.train.epochs,
        "samples": session.samples,
        "parameters": sum(p.numel() for p in student.parameters()),
        "final": {name: session.last.get(name) for name in ("loss", "parts")},
        **facts,
        "weights": run.weights.name,
        "timing": {
            "seconds": round(session.seconds, 2),
            "samples_per_second": round(session.samples / max(session.seconds, 1e-9), 3),
            "memory_mb": round(session.memory_mb, 1),
        },
        "card": provenance,
    }
    records.write_json(run.result, values)
    records.mark_complete(run.path, key)
