"""One training as a folder: the job that says what to train, the files beside it, and the process
at work there.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from kdlib import records
from kdlib.config import (
    Initialisation,
    KDConfig,
    ModelConfig,
    TrainConfig,
    TwoStageConfig,
    config_hash,
    from_dict,
    to_dict,
)
from kdlib.data.store import fingerprint, read_index
from kdlib.errors import ConfigError, KdlibError
from kdlib.kd import own
from kdlib.records import sha256
from kdlib.types import Json


class RunBusy(KdlibError):
    """Another process is training in this run folder."""


class RunDir:
    """Where everything of a training run lies."""

    def __init__(self, path: Path) -> None:
        """Name the files of a folder; none has to exist."""
        self.path = Path(path)
        self.job = self.path / "job.json"  # what to train
        self.history = self.path / "history.jsonl"  # losses and speed, one JSON object a line
        self.log = self.path / "train.log"  # everything the child printed
        self.checkpoints = self.path / "checkpoints"  # folder of those to resume from
        self.weights = self.path / "weights.safetensors"  # the trained student
        self.result = self.path / "result.json"  # the run in numbers
        self.owner = self.path / "child.json"  # the process at work, while there is one


@dataclass(frozen=True)
class TeacherSource:
    """A teacher on disk."""

    model: ModelConfig | TwoStageConfig
    weights: str  # safetensors file


@dataclass(frozen=True)
class TrainJob:
    """Everything that decides the weights a training run ends with."""

    model: ModelConfig | TwoStageConfig
    train: TrainConfig
    store: str  # folder of the prepared store
    split: str = "training"
    kd: KDConfig | None = None  # None trains on annotations alone
    teacher: TeacherSource | None = None  # needed by kd
    init_weights: str | None = None  # safetensors the model starts from
    initialisation: Initialisation = "matching"  # how its tensors are taken over
    # of one's own beside the recipe's, each FILE.py:NAME or MODULE:NAME
    terms: tuple[str, ...] = ()
    max_steps: int | None = None  # optimiser steps, at most; the schedule spans what is left
    name: str = ""  # shown in progress and reports

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if self.kd is not None and self.teacher is None:
            raise ConfigError(f"job '{self.name}' distils (kd is set) but names no teacher")
        if self.kd is None and self.teacher is not None:
            raise ConfigError(
                f"job '{self.name}' names a teacher but no kd recipe; use "
                "init_weights to start from a teacher"
            )
        if self.terms and self.kd is None:
            raise ConfigError(
                f"job '{self.name}' names terms of its own but no kd recipe; for these terms alone "
                "take KDConfig(logit=None, label=None) and a teacher"
            )
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {self.max_steps}")

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The weight files the job reads."""
        named = (self.teacher.weights if self.teacher else None, self.init_weights)
        return tuple(Path(path) for path in named if path is not None)

    def check_inputs(self) -> None:
        """Check that the store and every weight file exist.

        Raises:
            ConfigError: If one is missing; the message names it and the remedy.
        """
        if not Path(self.store).is_dir():
            raise ConfigError(
                f"store {self.store} does not exist; make it with 'python -m kdlib "
                f"prepare SRC {self.store}'"
            )
        for path in self.inputs:
            if not path.is_file():
                raise ConfigError(
                    f"weights {path} do not exist; train that model first or "
                    "correct the path in the job"
                )

    def hash(self, dataset: str | None = None) -> str:
        """Return 12 hexadecimal digits over the settings and the contents, not the places, of
        split, weights and terms of one's own.

        It is never kept but computed anew: weights, frames and sources of terms that changed give
        another one. ``dataset`` is the fingerprint of the split where that is open; None takes it
        from the store's index.

        Raises:
            ConfigError: If an input is missing.
            DataError: If the store is damaged.
        """
        self.check_inputs()
        if dataset is None:
            splits = read_index(Path(self.store))
            if self.split not in splits:
                names = ", ".join(splits) or "none"
                raise ConfigError(
                    f"store {self.store} has no split '{self.split}', it has: {names}"
                )
            dataset = fingerprint({self.split: splits[self.split]})
        # one file is often both teacher and start
        digest = functools.cache(lambda path: sha256(Path(path)))
        terms = tuple(map(own.digest, self.terms))
        contents = replace(self._with_inputs(dataset, digest), terms=terms)
        # Where data is loaded, how often is saved and what the run is called changes no weight.
        neutral = replace(self.train, workers=0, checkpoint_steps=1)
        return config_hash(_values(replace(contents, train=neutral, name="")))

    def _with_inputs(self, store: str, named: Callable[[str], str]) -> TrainJob:
        teacher = self.teacher and replace(self.teacher, weights=named(self.teacher.weights))
        return replace(
            self,
            store=store,
            teacher=teacher,
            init_weights=self.init_weights and named(self.init_weights),
        )

    def write(self, run_dir: Path) -> None:
        """Write ``job.json``, paths made absolute, into a run folder.

        Raises:
            ConfigError: If the folder holds a different job's results or is training one, or a
                term is not there; nothing is changed then.
        """
        run = RunDir(run_dir)
        absolute = self._with_inputs(os.path.abspath(self.store), os.path.abspath)
        absolute = replace(absolute, terms=tuple(map(own.resolve, self.terms)))
        values = _values(absolute)
        if run.job.is_file() and records.read_json(run.job) != values:
            finished = (run.path / records.COMPLETE).is_file()
            if finished and not records.is_complete(run.path, absolute.hash()):
                raise ConfigError(
                    f"{run.path} holds the results of another job; delete that folder or choose "
                    "another one; to train its model for more epochs, name "
                    f"{run.weights} as init_weights of a job in another folder"
                )
            if worker(run) is not None:
                raise ConfigError(
                    f"{run.path} is being trained under other settings; stop that "
                    "run or choose another folder"
                )
        records.write_json(run.job, values)

    @staticmethod
    def read(run_dir: Path) -> TrainJob:
        """Read ``job.json``.

        Raises:
            DataError: If it is missing or damaged.
            ConfigError: If a setting is unknown or missing.
        """
        return from_dict(TrainJob, records.read_json(RunDir(run_dir).job))


def _values(job: TrainJob) -> Json:
    values = to_dict(job)
    if not job.terms:  # hashes and files stay those of a time before there were any
        del values["terms"]
    return values


def worker(run: RunDir) -> Json | None:
    """Return pid, host and start of the living process that trains here, None where there is
    none.
    """
    return records.living_process(run.owner)


@contextlib.contextmanager
def claim(run: RunDir) -> Iterator[None]:
    """Hold a run folder for this process; a claim of a process that is gone is taken over.

    Raises:
        RunBusy: If another living process holds it.
    """
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    # The lock covers only the look and the entry: data workers inherit it and would hold it after
    # our death.
    with FileLock(run.path / ".claim"):
        other = worker(run)
        if other is not None and other["pid"] != os.getpid():
            raise RunBusy(
                f"{run.path} is being trained by process {other['pid']} on {other['host']}; "
                f"wait for it, or stop it, or delete {run.owner} if that machine is gone"
            )
        records.write_json(run.owner, records.this_process())
        for home in (run.path, run.checkpoints):  # left half-written by whoever was killed here
            records.remove_leftovers(home)
    try:
        yield
    finally:
        run.owner.unlink(missing_ok=True)
