"""Runs an objective through its schedule with Lightning, writing history and checkpoints from which
it resumes exactly.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning import pytorch as pl
from torch import Tensor, nn

from kdlib import records
from kdlib.config import TrainConfig
from kdlib.errors import ConfigError
from kdlib.training import history
from kdlib.training.checkpoint import Checkpoint, CheckpointError, latest, save
from kdlib.training.distributed import (
    ONE_PROCESS,
    Processes,
    held_back_termination,
    let_termination_in,
)
from kdlib.training.history import Meter
from kdlib.training.job import RunDir
from kdlib.training.module import TrainingModule
from kdlib.types import Json

_LINES = 400  # in a whole history, about


@dataclass
class Session:
    """How far a training came, in all its sessions up to this one."""

    total: int  # optimiser steps of the schedule
    step: int = 0
    terminated: bool = False  # by SIGTERM
    seconds: float = 0.0
    samples: int = 0
    memory_mb: float = 0.0  # peak of this session
    last: Json = field(default_factory=dict)  # newest line of the history

    @property
    def done(self) -> bool:
        """Whether the schedule is at its end."""
        return self.step == self.total


def schedule_length(batches: int, config: TrainConfig, max_steps: int | None) -> int:
    """Return the optimiser steps of a job with this many batches over all epochs.

    Raises:
        ConfigError: If there is not one whole step.
    """
    steps = batches // config.accumulate
    if steps == 0:
        raise ConfigError(
            f"{batches} batches are fewer than accumulate={config.accumulate}; "
            "lower it or add epochs"
        )
    return min(steps, max_steps or steps)


def _random_state(where: torch.device) -> dict[str, Tensor]:
    device = {"random/device": torch.cuda.get_rng_state(where)} if where.type == "cuda" else {}
    return {"random/host": torch.get_rng_state(), **device}


def _set_random_state(tensors: Mapping[str, Tensor], where: torch.device) -> None:
    torch.set_rng_state(tensors["random/host"])
    if where.type == "cuda" and "random/device" in tensors:
        torch.cuda.set_rng_state(tensors["random/device"], where)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (augmentation has generators of its own; this is for libraries)
    torch.manual_seed(seed)


@dataclass(eq=False)
class _Recorder(pl.Callback):
    """After each optimiser step: history, checkpoint, and the question whether to stop."""

    run: RunDir
    job: str
    config: TrainConfig
    per_epoch: int
    stop_after: int | None
    resumed: Checkpoint | None
    processes: Processes
    session: Session
    begun: float = 0.0  # when the first step would have begun in one session
    mark: float = 0.0  # when the last line was written
    marked_samples: int = 0  # of all ranks since then
    fresh: int = 0  # samples of this rank since the last step

    def _terminate(self, number: int, frame: Any) -> None:
        self.session.terminated = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.config.precision == "16-mixed" and pl_module.device.type == "cpu":
            raise ConfigError("precision 16-mixed needs a GPU; use bf16-mixed or 32-true here")
        if threading.current_thread() is threading.main_thread():
            # Lightning puts the earlier handler back when it ends
            signal.signal(signal.SIGTERM, self._terminate)
            let_termination_in()
        if self.resumed is not None:
            trainer.precision_plugin.load_state_dict(self.resumed.notes["precision"])
        self.mark = time.monotonic()
        self.begun = self.mark - self.session.seconds

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Here and not earlier: starting the loader may have drawn from the generators.
        if batch_idx == 0 and self.resumed is not None:
            _set_random_state(self.resumed.tensors, pl_module.device)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.fresh += batch.points.batch_size
        step, session = pl_module.step, self.session
        if step == session.step:
            return  # still accumulating
        # SIGTERM to one rank stops all at one step
        terminated, samples = self.processes.sums(session.terminated, self.fresh)
        session.step, session.terminated = step, bool(terminated)
        session.seconds = time.monotonic() - self.begun
        session.samples += int(samples)
        self.marked_samples += int(samples)
        self.fresh = 0
        first = self.processes.first
        if session.done or step % max(1, session.total // _LINES) == 0:
            if first:
                self._line(pl_module, step)
            pl_module.meter = Meter()
        stop = session.terminated or (self.stop_after is not None and step >= self.stop_after)
        if first and (session.done or stop or step % self.config.checkpoint_steps == 0):
            self._checkpoint(trainer, pl_module, step)
        if stop and not session.done:
            trainer.should_stop = True

    def _line(self, module: TrainingModule, step: int) -> None:
        now, norm = time.monotonic(), float(module.grad_norm)
        self.session.last = {
            "step": step,
            "steps": module.total,
            "epoch": (step * self.config.accumulate - 1) // self.per_epoch,
            "lr": module.optimiser.param_groups[0]["lr"],
            **module.meter.means(),
            "grad_norm": norm if math.isfinite(norm) else None,
            "samples_per_second": round(self.marked_samples / max(now - self.mark, 1e-9), 3),
            "seconds": round(self.session.seconds, 3),
            "memory_mb": round(_memory_mb(module.device), 1),
        }
        history.append(self.run.history, self.session.last)
        self.mark, self.marked_samples = now, 0

    def _checkpoint(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        notes = {
            # raises where the loss is no number, so no checkpoint holds broken weights
            "meter": module.meter.state(),
            "seconds": self.session.seconds,
            "samples": self.session.samples,
            "last": self.session.last,
            "precision": trainer.precision_plugin.state_dict(),
            "versions": records.versions(),
        }
        save(
            self.run.checkpoints,
            Checkpoint(step, self.job, {**module.state(), **_random_state(module.device)}, notes),
        )


def _memory_mb(where: torch.device) -> float:
    # the peak of this process: the GPU's, or else the resident set's
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@contextlib.contextmanager
def _deterministic(where: torch.device) -> Iterator[None]:
    """Insist on deterministic algorithms on a CPU; on a GPU some operations have none."""
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before or where.type == "cpu")
    memory.fill_uninitialized_memory = False  # costs time, changes no result
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fill


def _trainer(
    config: TrainConfig, run: RunDir, steps: int, recorder: _Recorder, processes: Processes
) -> pl.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|treespec, LeafSpec).*")
    return pl.Trainer(
        accelerator="auto",
        **processes.trainer_options(),
        max_epochs=1,  # the loader runs through all epochs
        max_steps=steps,
        precision=config.precision,
        accumulate_grad_batches=config.accumulate,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=str(run.path),
    )


def fit_objective(
    objective: nn.Module,
    loader: Callable[[int], Iterable[Any]],
    run: RunDir,
    config: TrainConfig,
    job: str,
    *,
    total: int,
    per_epoch: int,
    stop_after: int | None = None,
    processes: Processes = ONE_PROCESS,
) -> Session:
    """Train an objective up to step ``total``, from the newest checkpoint of this job if there is
    one.

    Args:
        objective: Module with ``student``; called with a batch it returns LossTerms.
        loader: Makes the batches from a given one on, counted over all epochs; each must follow
            from seed and position alone.
        run: Folder for history and checkpoints, which the first rank alone writes.
        config: Optimisation settings.
        job: Hash that checkpoints must carry.
        total: Optimiser steps of the schedule.
        per_epoch: Batches of one pass over the data.
        stop_after: Save and return after this step, for tests and time limits.
        processes: The ranks of this training; the loader makes this one's share of every batch.

    Raises:
        CheckpointError: If the folder's checkpoints belong to another job, the disk is full, or
            ranks see different folders.
        Diverged: If the loss became NaN or infinite.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    resumed = latest(run.checkpoints, job)
    start = resumed.step if resumed else 0
    if start != processes.from_first(start):
        raise CheckpointError(
            f"{run.checkpoints} differs between the ranks; put the run folder "
            "on a file system they share"
        )
    module = TrainingModule(
        objective.train(),
        config,
        total,
        start,
        Meter(**resumed.notes["meter"]) if resumed else None,
    )
    session = Session(total, start)
    if resumed is not None:
        module.load_state(resumed.tensors)
        session.seconds, session.samples, session.last = (
            resumed.notes[name] for name in ("seconds", "samples", "last")
        )
        print(f"going on from step {start} of {total}", flush=True)
    if processes.first:
        history.rewind(run.history, start)
    if start < total and not (stop_after is not None and start >= stop_after):
        recorder = _Recorder(run, job, config, per_epoch, stop_after, resumed, processes, session)
        trainer = _trainer(config, run, total - start, recorder, processes)
        with _deterministic(trainer.strategy.root_device), held_back_termination(processes):
            trainer.fit(module, train_dataloaders=loader(start * config.accumulate))
    session.memory_mb = _memory_mb(module.device)
    return session
