"""What the module tells an objective: how far the training is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from kdlib.config import TrainConfig
from kdlib.training.fit import fit_objective
from kdlib.training.job import RunDir

sys.path.insert(0, str(Path(__file__).parent))
import toy


class Listening(toy.ToyObjective):
    """Keeps the progress of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[float] = []

    def forward(self, batch, progress):
        self.heard.append(progress)
        return super().forward(batch, progress)


def train(folder, total, accumulate=1, stop_after=None):
    torch.manual_seed(0)
    objective = Listening()
    config = TrainConfig(
        epochs=3, batch_size=4, workers=0, checkpoint_steps=100, accumulate=accumulate
    )
    fit_objective(
        objective,
        lambda start: toy.Batches(start, 1000),
        RunDir(folder),
        config,
        toy.JOB,
        total=total,
        per_epoch=toy.PER_EPOCH,
        stop_after=stop_after,
    )
    return objective.heard


@pytest.mark.parametrize("accumulate", [1, 2])
def test_progress_is_steps_done_of_all_steps_and_a_resumed_run_goes_on_from_it(
    tmp_path, accumulate
):
    wanted = [step / 6 for step in range(6) for _ in range(accumulate)]
    assert train(tmp_path / "whole", 6, accumulate) == wanted
    before = train(tmp_path / "stopped", 6, accumulate, stop_after=2)
    after = train(tmp_path / "stopped", 6, accumulate)
    assert len(before) == 2 * accumulate and before + after == wanted
