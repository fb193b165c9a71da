"""Small trainings that one process or several can run:
``python ddp_cases.py FOLDER CASE:STEPS ...`` is one rank of them.

Rank r of R takes frames r, r + R, ... of every batch. Batches have 4 frames or fewer, so that
shares are unequal or empty.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from kdlib import zoo
from kdlib.config import (
    AnchorHeadConfig,
    BackboneConfig,
    FeatureKDConfig,
    GridConfig,
    HeadConfig,
    KDConfig,
    LabelKDConfig,
    LogitKDConfig,
    PillarEncoderConfig,
    TrainConfig,
    VoxelEncoderConfig,
)
from kdlib.kd.objective import Distillation, Plain
from kdlib.kd.term import Term
from kdlib.models.build import build
from kdlib.training.distributed import ONE_PROCESS, Processes, here, joined
from kdlib.training.fit import Session, fit_objective, seed_everything
from kdlib.training.job import RunDir
from kdlib.types import Batch, GroundTruth, LossTerms, PointBatch

HALF = 5.12
SIZES = (4, 3, 4, 1, 2)  # frames of batch n, over and over
STEPS = 20

PILLAR = replace(
    zoo.CP_PILLAR_DEMO,
    name="tiny_pillar",
    grid=GridConfig((-HALF, -HALF, -2.0, HALF, HALF, 4.0), (0.64, 0.64, 6.0), 10),
    encoder=PillarEncoderConfig(filters=(8, 8)),
    backbone=BackboneConfig((1, 1), (1, 2), (8, 8), (1, 2), (8, 8)),
    head=HeadConfig(shared_channels=8),
)
TEACHER = replace(
    PILLAR, name="tiny_teacher", grid=replace(PILLAR.grid, voxel_size=(0.32, 0.32, 6.0))
)
VOXEL = replace(
    zoo.CP_VOXEL_DEMO_XS,
    name="tiny_voxel",
    grid=GridConfig((-3.84, -3.84, -2.0, 3.84, 3.84, 4.0), (0.24, 0.24, 0.15), 5),
    encoder=VoxelEncoderConfig(filters=(4, 4, 4, 8, 8, 8)),
    backbone=BackboneConfig((1, 1), (1, 2), (8, 8), (1, 2), (8, 8)),
    head=HeadConfig(shared_channels=8, stride=8),
)
ANCHOR = replace(PILLAR, name="tiny_anchors", head=AnchorHeadConfig(stride=1))
LABEL = LabelKDConfig(thresholds=(0.2, 0.2, 0.2))
# pivotal logit and label distillation, the teacher normalising by the batch
SPARSEKD = KDConfig(label=LABEL)


def _feature(form: str, **settings: object) -> KDConfig:
    return KDConfig(logit=None, label=None, feature=FeatureKDConfig(form, **settings))  # type: ignore[arg-type]


def _own(context) -> torch.Tensor:
    """A mean over the frames of a batch."""
    return (context.prediction.heads[0].heatmap.sigmoid() - 0.3).square().mean()


RECIPES = {
    "sparsekd": SPARSEKD,
    "rank": KDConfig(logit=LogitKDConfig(rank_weight=1.0, rank=50, positions="rank"), label=None),
    "instances": KDConfig(
        logit=LogitKDConfig(positions="instances", distance="focal"),
        label=None,
        teacher_norm="running",
    ),
    "regression": KDConfig(
        logit=LogitKDConfig(regression_weight=1.0, positions="center"), label=None
    ),
    "map": _feature("map"),
    "foreground": _feature("foreground", distance="cosine"),
    "rois": _feature("rois", roi_grid=3, relation_weight=1.0),
    "teacher_rois": _feature("rois", roi_grid=3, rois="teacher"),
    "affinity": _feature("affinity", roi_grid=3),
    "attention": _feature("attention"),
    "local": _feature("local", samples=8, neighbours=4),
    "own": replace(SPARSEKD, label=None),
}


class Wide(nn.Module):
    """An objective in 64 bits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.double()
        self.student = self.inner.student

    def forward(self, batch: Batch, progress: float) -> LossTerms:
        points = replace(batch.points, points=batch.points.points.double())
        return self.inner(
            Batch(points, replace(batch.truth, boxes=batch.truth.boxes.double())), progress
        )


def make_model(config, seed: int) -> nn.Module:
    """A model that is sure of some places, as one that was trained."""
    torch.manual_seed(seed)
    model = build(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".hm.1." in name:
                value.mul_(6.0) if name.endswith("weight") else value.fill_(-1.0)
    return model


def make_objective(case: str) -> nn.Module:
    """``pillar``, ``voxel``, ``anchor``, a recipe, or ``voxel_RECIPE``; with ``64`` behind it in 64
    bits.
    """
    name = case.removesuffix("64")
    family, _, recipe = name.rpartition("_") if name.startswith("voxel_") else ("pillar", "", name)
    if name in ("pillar", "voxel", "anchor"):
        found: nn.Module = Plain(
            make_model({"pillar": PILLAR, "voxel": VOXEL, "anchor": ANCHOR}[name], 0)
        )
    else:
        student = VOXEL if family == "voxel" else PILLAR
        teacher = VOXEL if family == "voxel" else PILLAR if recipe == "regression" else TEACHER
        extra = (Term("kd_own", 0.5, _own),) if recipe == "own" else ()
        found = Distillation(
            make_model(student, 0), make_model(teacher, 1), RECIPES[recipe], extra, seed=3
        )
    return Wide(found) if case.endswith("64") else found


def make_frame(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points (N, 5) and three boxes (3, 7) of one frame; frames differ in their numbers of
    points.
    """
    random = torch.Generator().manual_seed(number)
    points = torch.rand(150 + 60 * (number % 4), 5, generator=random) * torch.tensor(
        [9.0, 9.0, 4.0, 1.0, 1.0]
    )
    boxes = torch.rand(3, 7, generator=random) * torch.tensor([6.0, 6.0, 1.0, 2.0, 1.0, 1.0, 6.0])
    points[:, :3] -= torch.tensor([4.5, 4.5, 1.5])
    boxes -= torch.tensor([3.0, 3.0, 0.0, -0.8, -0.6, -0.6, 0.0])
    return points, boxes


def make_batch(position: int, processes: Processes, sizes: tuple[int, ...]) -> Batch:
    size = sizes[position % len(sizes)]
    mine = range(processes.rank, size, processes.world)
    frames = [make_frame(10 * position + place) for place in mine]
    none = (torch.zeros(0, 5), torch.zeros(0, 3, 7))
    index = torch.arange(len(mine)).repeat_interleave(
        torch.tensor([len(p) for p, _ in frames], dtype=torch.int64)
    )
    points = torch.cat([p for p, _ in frames]) if frames else none[0]
    boxes = torch.stack([b for _, b in frames]) if frames else none[1]
    labels = torch.tensor([[1, 2, 3]]).repeat(len(mine), 1)
    return Batch(
        PointBatch(points, index, len(mine), tuple(map(str, mine))), GroundTruth(boxes, labels)
    )


class Batches:
    def __init__(self, start: int, processes: Processes, sizes: tuple[int, ...]) -> None:
        self.start, self.processes, self.sizes = start, processes, sizes

    def __len__(self) -> int:
        return 1000 - self.start

    def __iter__(self):
        for position in range(self.start, 1000):
            yield make_batch(position, self.processes, self.sizes)


def run_case(
    folder: Path,
    case: str,
    steps: int,
    processes: Processes = ONE_PROCESS,
    stop_after: int | None = None,
) -> Session:
    """Train from fresh weights, or from the newest checkpoint of the folder; its last checkpoint
    holds everything.
    """
    seed_everything(7)
    sizes = (3,) if steps == 1 else SIZES
    objective = make_objective(case)
    config = TrainConfig(batch_size=4, workers=0, checkpoint_steps=1000, learning_rate=0.003)
    return fit_objective(
        objective,
        lambda first: Batches(first, processes, sizes),
        RunDir(folder),
        config,
        case,
        total=steps,
        per_epoch=5,
        stop_after=stop_after,
        processes=processes,
    )


def main() -> None:
    """Run every ``CASE:STEPS`` or ``CASE:STEPS:STOP`` in ``FOLDER/CASE``; at ``die`` the last rank
    kills itself.
    """
    torch.set_num_threads(1)
    processes = here()
    with joined(processes):
        for word in sys.argv[2:]:
            if word == "die" and processes.rank == processes.world - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            elif word == "die":
                processes.sums(1)  # what a step would wait in
            case, steps, *stop = word.split(":")
            folder = Path(sys.argv[1]) / case
            run_case(
                folder,
                case.partition("@")[0],
                int(steps),
                processes,
                int(stop[0]) if stop else None,
            )


if __name__ == "__main__":
    main()
