"""A toy run for the training tests, in this process or as a child:
``python toy.py train RUN_DIR``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from kdlib import records
from kdlib.config import TrainConfig
from kdlib.training.fit import fit_objective, seed_everything
from kdlib.training.job import RunDir, claim
from kdlib.types import Batch, GroundTruth, LossTerms, PointBatch

PER_EPOCH = 10
JOB = "0123456789ab"


class ToyObjective(nn.Module):
    """Two linear layers, dropout (to need the generator) and a frozen teacher that counts less from
    step to step.
    """

    def __init__(self, dropout: float = 0.2, norm: bool = True) -> None:
        super().__init__()
        middle = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.student = nn.Sequential(
            nn.Linear(5, 16), middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
        )
        self.teacher = nn.Linear(5, 3).requires_grad_(False)

    def forward(self, batch: Batch, progress: float) -> LossTerms:
        answer = self.student(batch.points.points)
        target = torch.stack(
            (
                batch.points.points.sum(1),
                batch.points.points[:, 0].sin(),
                batch.points.points[:, 1] ** 2,
            ),
            1,
        )
        return LossTerms.total(
            {
                "fit": (answer - target).pow(2).mean(),
                "kd": (0.1 - 0.05 * progress)
                * (answer - self.teacher(batch.points.points)).pow(2).mean(),
            }
        )


def make_batch(position: int, size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(position)
    points = torch.randn(size * 8, 5, generator=generator)
    index = torch.arange(size).repeat_interleave(8)
    return Batch(
        PointBatch(points, index, size, tuple(f"f_{i}" for i in range(size))),
        GroundTruth(torch.zeros(size, 0, 7), torch.zeros(size, 0, dtype=torch.int64)),
    )


class Batches:
    """Batches from a position on, each a function of its position."""

    def __init__(self, start: int, total: int, pause: float = 0.0) -> None:
        self.start, self.total, self.pause = start, total, pause

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self):
        for position in range(self.start, self.total):
            time.sleep(self.pause)
            yield make_batch(position)


def run_toy(run_dir: Path, *, steps: int = 30, pause: float = 0.0, seed: int = 1, **options):
    """Train the toy and write its weights, as the real entry does."""
    run = RunDir(run_dir)
    config = TrainConfig(
        epochs=3,
        batch_size=4,
        workers=0,
        seed=seed,
        checkpoint_steps=options.pop("checkpoint_steps", 4),
    )
    objective = ToyObjective()
    with claim(run):
        seed_everything(seed)
        objective = ToyObjective()
        outcome = fit_objective(
            objective,
            lambda start: Batches(start, 1000, pause),
            run,
            config,
            JOB,
            total=steps,
            per_epoch=PER_EPOCH,
            **options,
        )
        if outcome.terminated:
            raise SystemExit(143)
        if outcome.done:
            save_file(objective.state_dict(), run.weights)
            records.write_json(run.result, {"steps": outcome.step, "final": outcome.last["loss"]})
            records.mark_complete(run.path, JOB)
    return objective, outcome


def main() -> None:
    run_dir = Path(sys.argv[2])
    torch.set_num_threads(1)
    options = (
        json.loads((run_dir / "toy.json").read_text()) if (run_dir / "toy.json").is_file() else {}
    )
    if options.pop("fail", False):
        print("the child speaks before it dies", flush=True)
        raise ValueError("a made-up failure")
    if options.pop("kill_self", False):
        os.kill(os.getpid(), signal.SIGKILL)
    run_toy(run_dir, **options)


if __name__ == "__main__":
    main()
