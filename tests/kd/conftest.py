"""A tiny teacher-student pair and batches for it: 10 m of range, a few thousand parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdlib.config import (
    CLASS_NAMES,
    BackboneConfig,
    DecodeConfig,
    GridConfig,
    HeadConfig,
    ModelConfig,
    PillarEncoderConfig,
)
from kdlib.models.build import build
from kdlib.types import Batch, GroundTruth, PointBatch

HALF = 5.12
SPLITS = {
    1: (CLASS_NAMES,),
    2: (("Vehicle", "Cyclist"), ("Pedestrian",)),
    3: (("Vehicle",), ("Pedestrian",), ("Cyclist",)),
}


def grid(pillar):
    return GridConfig((-HALF, -HALF, -2.0, HALF, HALF, 4.0), (pillar, pillar, 6.0), 10)


def tiny(name, pillar, heads=1):
    return ModelConfig(
        name=name,
        grid=grid(pillar),
        encoder=PillarEncoderConfig(filters=(8, 8)),
        backbone=BackboneConfig((1, 1), (1, 2), (8, 8), (1, 2), (8, 8)),
        head=HeadConfig(
            shared_channels=8, heads=SPLITS[heads], decode=DecodeConfig(score_threshold=0.05)
        ),
    )


def make_model(config, seed):
    """Build a model whose scores spread over (0, 1) instead of starting at 0.1."""
    torch.manual_seed(seed)
    model = build(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".hm.1." in name:
                value.mul_(6.0) if name.endswith("weight") else value.fill_(-1.0)
    return model


@pytest.fixture(scope="module", autouse=True)
def _on_every_device(device: object) -> None:
    """Ask for the device, and so for the test once on each."""


@pytest.fixture
def pair():
    """Return ``f(heads, teacher_pillar, student_pillar) -> (student, teacher)``."""

    def make(heads=1, teacher_pillar=0.32, student_pillar=0.64):
        teacher = make_model(tiny("tiny_teacher", teacher_pillar, heads), 1)
        return make_model(tiny("tiny_student", student_pillar, heads), 0), teacher

    return make


@pytest.fixture
def batch():
    """Return ``f(frames, boxes, seed) -> Batch``: random points, and boxes of all classes."""

    def make(frames=2, boxes=4, seed=0):
        gen = torch.Generator().manual_seed(seed)
        count = 400
        points = torch.rand(frames * count, 5, generator=gen) * torch.tensor(
            [10.0, 10.0, 5.0, 1.0, 1.0]
        )
        points[:, :3] -= torch.tensor([5.0, 5.0, 1.5])
        rows = torch.rand(frames, boxes, 7, generator=gen) * torch.tensor(
            [9.0, 9.0, 1.0, 3.0, 1.5, 1.0, 6.0]
        )
        rows[..., :2] -= 4.5
        rows[..., 3:6] += 0.6
        labels = torch.arange(frames * boxes).reshape(frames, boxes) % 3 + 1
        where = torch.arange(frames).repeat_interleave(count)
        return Batch(
            PointBatch(points, where, frames, tuple(f"f{i}" for i in range(frames))),
            GroundTruth(rows, labels),
        )

    return make


@pytest.fixture
def one_frame():
    """Return ``f(batch, frame) -> Batch`` with that frame alone."""

    def cut(batch, frame):
        mine = batch.points.batch_index == frame
        points = replace(
            batch.points,
            points=batch.points.points[mine],
            batch_index=torch.zeros(int(mine.sum()), dtype=torch.int64),
            batch_size=1,
            frame_ids=(batch.points.frame_ids[frame],),
        )
        return Batch(
            points,
            GroundTruth(
                batch.truth.boxes[frame : frame + 1], batch.truth.labels[frame : frame + 1]
            ),
        )

    return cut


@pytest.fixture(scope="module")
def one_thread():
    """The models are so small that threads only wait for each other, for seconds if other work
    holds the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
