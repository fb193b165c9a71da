"""A detector of two stages small enough for a second, and frames with objects for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdlib import zoo
from kdlib.config import GridConfig
from kdlib.models.build import build
from kdlib.types import Batch, GroundTruth, PointBatch

SIZE = {1: (4.5, 2.0, 1.7), 2: (0.8, 0.8, 1.75), 3: (1.8, 0.8, 1.7)}  # by label, metres


def config(first_stage="trained"):
    demo = zoo.model("pv_rcnn_pp_demo")
    second = demo.second
    second = replace(
        second,
        abstraction=replace(second.abstraction, keypoints=96),
        rois=replace(second.rois, grid=3, dropout=0.0),
        sampling=replace(second.sampling, rois=24),
        first_stage=first_stage,
    )
    grid = GridConfig((-7.68, -7.68, -2.0, 7.68, 7.68, 4.0), (0.12, 0.12, 0.15), 5)
    return replace(demo, name="tiny", grid=grid, second=second)


def frames(count=2, objects=4, seed=0, points=60):
    """Frames whose objects are filled with points, above a thin floor."""
    gen = torch.Generator().manual_seed(seed)
    clouds, where, boxes, labels = [], [], [], []
    for number in range(count):
        kinds = torch.arange(objects) % 3 + 1
        spots = torch.tensor([(-4.0, -4.0), (4.0, -4.0), (-4.0, 4.0), (4.0, 4.0), (0.0, 0.0)])[
            :objects
        ]
        size = torch.tensor([SIZE[int(kind)] for kind in kinds])
        heading = torch.rand(objects, generator=gen) * 6
        row = torch.cat(
            (
                spots + torch.rand(objects, 2, generator=gen),
                torch.full((objects, 1), 0.8),
                size,
                heading[:, None],
            ),
            1,
        )
        inside = (torch.rand(objects, points, 3, generator=gen) - 0.5) * size[:, None]
        cos, sin = heading.cos()[:, None], heading.sin()[:, None]
        turned = torch.stack(
            (
                inside[..., 0] * cos - inside[..., 1] * sin,
                inside[..., 0] * sin + inside[..., 1] * cos,
            ),
            -1,
        )
        solid = torch.cat(
            (turned + row[:, None, :2], inside[..., 2:] + row[:, None, 2:3]), -1
        ).flatten(0, 1)
        floor = (torch.rand(300, 3, generator=gen) - 0.5) * torch.tensor([15.0, 15.0, 0.1])
        cloud = torch.cat((solid, floor))
        clouds.append(torch.cat((cloud, torch.rand(len(cloud), 2, generator=gen)), 1))
        where.append(torch.full((len(cloud),), number))
        boxes.append(row)
        labels.append(kinds)
    names = tuple(f"f{number}" for number in range(count))
    return Batch(
        PointBatch(torch.cat(clouds), torch.cat(where), count, names),
        GroundTruth(torch.stack(boxes), torch.stack(labels)),
    )


@pytest.fixture
def tiny():
    """Return ``f(first_stage) -> PVRCNN``, always with the same weights."""

    def make(first_stage="trained", seed=0):
        torch.manual_seed(seed)
        return build(config(first_stage))

    return make


@pytest.fixture
def batch():
    """Return ``f(count, objects, seed) -> Batch``."""
    return frames
