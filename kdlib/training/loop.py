"""``python -m kdlib train RUN_DIR``: a run folder with ``job.json`` goes in, its weights and result come out."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from kdlib import records
from kdlib.data.collate import collate_share
from kdlib.data.dataset import FrameDataset
from kdlib.data.sampler import StepSampler, check_shares
from kdlib.data.store import Store, StoreSplit
from kdlib.errors import ConfigError
from kdlib.kd.initialise import initialise
from kdlib.kd.objective import Distillation, Plain
from kdlib.models.build import build
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.models.weights import load_weights, read_weights, save_weights
from kdlib.training import preflight
from kdlib.training.distributed import ALONE, Processes, here, ignore_termination, joined, settle
from kdlib.training.fit import Outcome, fit, schedule_length, seed_everything
from kdlib.training.job import TrainJob
from kdlib.training.launcher import TERMINATED
from kdlib.training.rundir import RunDir, claim


def limit_threads() -> None:
    """Use as many torch threads as KDLIB_THREADS, else OMP_NUM_THREADS, says.

    Raises:
        ConfigError: If it says no number.
    """
    for name in ("KDLIB_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "")
        if text:
            if not text.isdigit() or int(text) < 1:
                raise ConfigError(f"{name}='{text}' must be a positive number")
            torch.set_num_threads(int(text))
            return


def open_dataset(job: TrainJob, split: StoreSplit | None = None) -> FrameDataset:
    """Open the job's frames (of ``split`` if it is open already), cut to the model's range.

    Raises:
        DataError: If the store is damaged, the split is empty, or none of its boxes is of a class of the model.
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
        ConfigError: If the weights do not fit the models.
    """
    student = build(job.model)
    teacher: CenterPoint | AnchorDetector | None = None
    if job.teacher is not None:
        teacher = build(job.teacher.model)
        load_weights(Path(job.teacher.weights), teacher)
    if job.init_weights is not None:
        report = initialise(student, read_weights(Path(job.init_weights)), job.initialisation)
        print(f"starting from {job.init_weights}: {report}", flush=True)
    elif job.kd is not None and teacher is not None:
        print(initialise(student, teacher.state_dict(), job.kd.initialisation), flush=True)
    if job.kd is None or teacher is None:
        return Plain(student)
    return Distillation(student, teacher, job.kd, seed=job.train.seed)


class _SharedLoader(DataLoader[Any]):
    """A loader that forks its workers while no thread of the process group is at work."""

    def __iter__(self) -> Any:
        settle()
        return super().__iter__()


def _loader(dataset: FrameDataset, job: TrainJob, first: int, processes: Processes = ALONE) -> DataLoader[Any]:
    config = job.train
    share = {"rank": processes.rank, "world": processes.world}
    sampler = StepSampler(len(dataset), config.batch_size, config.epochs, config.seed, start_step=first, **share)
    kind = _SharedLoader if torch.distributed.is_initialized() else DataLoader
    return kind(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate_share,
        num_workers=config.workers,
        worker_init_fn=ignore_termination,
        generator=torch.Generator().manual_seed(config.seed),  # so that starting a loader draws nothing from torch's own
    )


def _report(objective: Plain | Distillation, batches: Iterable[Any]) -> list[dict[str, Any]]:
    """Print the active terms on the first batch and return them."""
    rows = objective.report(next(iter(batches)))
    for row in rows:
        positions = "whole map" if row.positions is None else f"{row.positions} positions"
        labels = "" if row.teacher_labels is None else f", {row.teacher_labels} labels from the teacher"
        print(
            f"active term {row.name}: weight {row.weight:g}, {row.value:.4g} on the first batch, {positions}{labels}", flush=True
        )
    return [asdict(row) for row in rows]


def _finish(run: RunDir, job: TrainJob, key: str, student: nn.Module, outcome: Outcome, facts: dict[str, Any]) -> None:
    """Write weights, result and, last, the completion mark."""
    card = {
        "model": job.model.name,
        "job": key,
        "seed": job.train.seed,
        "steps": outcome.step,
        "dataset": facts["dataset"],
        **records.provenance(),
    }
    save_weights(run.weights, student, card)
    final = {name: outcome.last.get(name) for name in ("loss", "parts")}
    values = {
        "kind": "training",
        "name": job.name,
        "model": job.model.name,
        "job": key,
        "seed": job.train.seed,
        "steps": outcome.step,
        "epochs": job.train.epochs,
        "samples": outcome.samples,
        "parameters": sum(p.numel() for p in student.parameters()),
        "final": final,
        **facts,
        "weights": run.weights.name,
        "timing": {
            "seconds": round(outcome.seconds, 2),
            "samples_per_second": round(outcome.samples / max(outcome.seconds, 1e-9), 3),
            "memory_mb": round(outcome.memory_mb, 1),
        },
        "card": records.provenance(),
    }
    records.write_json(run.result, values)
    records.mark_complete(run.path, key)


def train(run_dir: Path, *, stop_after: int | None = None) -> None:
    """Train the job of a run folder to its end, from the newest checkpoint if there is one; a finished run is left alone.

    Under torchrun or srun this is one rank of several; they share every batch, so that the weights are those of one process.
    SIGTERM (or ``stop_after`` steps) saves a checkpoint; the same call later goes on from it, to the same weights bit for bit
    on a CPU with the same number of threads.

    Raises:
        ConfigError: If a setting, the store or a weight file is missing or does not fit.
        DataError: If the store is damaged or has nothing to learn from.
        RunBusy: If another process trains in this folder.
        SystemExit: With code 143 after SIGTERM.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s")
    limit_threads()
    run = RunDir(Path(run_dir).resolve())
    processes = here()
    with joined(processes), contextlib.ExitStack() as held:
        # The first rank looks before the others begin: what is wrong is said once.
        begin = processes.first and _open(run, held)
        if any(processes.sums(begin)):
            _train(run, processes, stop_after)


def _open(run: RunDir, held: contextlib.ExitStack) -> bool:
    """Claim a run folder and check what its job needs; False if it is complete."""
    job = TrainJob.read(run.path)
    if records.is_complete(run.path, job.hash()):
        print(f"{run.path} is complete, nothing to do", flush=True)
        return False
    held.enter_context(claim(run))
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    for line in preflight.check(job, Store.open(Path(job.store)).split(job.split), run).warnings:
        print(f"warning: {line}", flush=True)
    return True


def _train(run: RunDir, processes: Processes, stop_after: int | None) -> None:
    job = TrainJob.read(run.path)
    key = job.hash()
    check_shares(job.train.batch_size, processes.world)
    dataset = open_dataset(job)
    per_epoch = -(-len(dataset) // job.train.batch_size)
    total = schedule_length(per_epoch * job.train.epochs, job.train, job.max_steps)
    seed_everything(job.train.seed)
    objective = build_objective(job)
    terms = _report(objective, _loader(dataset, job, 0)) if processes.first else []
    among = f", shared by {processes.world} processes" if processes.several else ""
    print(
        f"{job.name or job.model.name}: {len(dataset)} frames, {total} steps of {job.train.batch_size} frames{among}", flush=True
    )
    outcome = fit(
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
    if outcome.terminated and not outcome.done:
        print(f"stopped at step {outcome.step} of {total}; start again to go on from there", flush=True)
        raise SystemExit(TERMINATED)
    if outcome.done and processes.first:
        facts = {"dataset": dataset.split.fingerprint, "frames": len(dataset), "terms": terms}
        _finish(run, job, key, objective.student, outcome, facts)
        print(f"done: {outcome.step} steps in {outcome.seconds:.0f} s", flush=True)
