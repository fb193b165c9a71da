"""One training job: what to train, on what, from what; a frozen dataclass in, ``job.json`` and a hash out."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.config import Initialisation, KDConfig, ModelConfig, TrainConfig, TwoStageConfig, config_hash, from_dict, to_dict
from kdlib.errors import ConfigError
from kdlib.records import sha256
from kdlib.training.rundir import RunDir, worker

# Settings that change how a run goes but not where it ends; two jobs that differ only here are the same job.
_NEUTRAL: dict[str, Any] = {"workers": 0, "checkpoint_steps": 1}


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
    max_steps: int | None = None  # optimiser steps, at most; the schedule spans what is left of the epochs
    name: str = ""  # shown in progress and reports

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if self.kd is not None and self.teacher is None:
            raise ConfigError(f"job '{self.name}' distils (kd is set) but names no teacher")
        if self.kd is None and self.teacher is not None:
            raise ConfigError(f"job '{self.name}' names a teacher but no kd recipe; use init_weights to start from a teacher")
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
            raise ConfigError(f"store {self.store} does not exist; make it with 'python -m kdlib prepare SRC {self.store}'")
        for path in self.inputs:
            if not path.is_file():
                raise ConfigError(f"weights {path} do not exist; train that model first or correct the path in the job")

    def hash(self) -> str:
        """Return 12 hexadecimal digits over the settings and over the contents (not the places) of split and weights.

        Raises:
            ConfigError: If an input is missing.
            DataError: If the store is damaged.
        """
        from kdlib.data.store import Store, fingerprint

        self.check_inputs()
        splits = Store.open(Path(self.store)).contents
        if self.split not in splits:
            raise ConfigError(f"store {self.store} has no split '{self.split}', it has: {', '.join(splits) or 'none'}")
        contents = replace(
            self,
            train=replace(self.train, **_NEUTRAL),
            store=fingerprint({self.split: splits[self.split]}),
            teacher=replace(self.teacher, weights=sha256(Path(self.teacher.weights))) if self.teacher else None,
            init_weights=sha256(Path(self.init_weights)) if self.init_weights else None,
            name="",
        )
        return config_hash(contents)

    def write(self, run_dir: Path) -> None:
        """Write ``job.json``, paths made absolute, into a run folder.

        Raises:
            ConfigError: If the folder holds a different job's results or is training one; nothing is changed then.
        """
        run = RunDir(Path(run_dir))
        absolute = replace(
            self,
            store=os.path.abspath(self.store),
            teacher=replace(self.teacher, weights=os.path.abspath(self.teacher.weights)) if self.teacher else None,
            init_weights=os.path.abspath(self.init_weights) if self.init_weights else None,
        )
        values = to_dict(absolute)
        if run.job.is_file() and records.read_json(run.job) != values:
            mark = run.path / records.COMPLETE
            if mark.is_file() and not records.is_complete(run.path, absolute.hash()):
                raise ConfigError(f"{run.path} holds the results of another job; delete that folder or choose another one")
            if worker(run) is not None:
                raise ConfigError(f"{run.path} is being trained under other settings; stop that run or choose another folder")
        records.write_json(run.job, values)

    @staticmethod
    def read(run_dir: Path) -> TrainJob:
        """Read ``job.json``.

        Raises:
            DataError: If it is missing or damaged.
            ConfigError: If a setting is unknown or missing.
        """
        return from_dict(TrainJob, records.read_json(RunDir(Path(run_dir)).job))
