"""The operators around a detector's convolutions in, their speed beside the plain way's out; both must give the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdlib import zoo
from kdlib.errors import ConfigError, KdlibError
from kdlib.models.geometry.nms import rotated_nms
from kdlib.models.sparse.voxelize import voxelize
from kdlib.models.targets import assign_targets
from kdlib.tools.bench.duel import Duel, duel, missing
from kdlib.tools.bench.references import WheelVoxels, crowded_boxes, loop_targets, matrix_nms, shapely_nms
from kdlib.types import PointBatch

TIMES_FASTER = 20.0  # than a loop
GRIDS = ("cp_pillar", "cp_pillar_v0.64", "cp_voxel")

Found = tuple[list[Duel], list[str]]
"""Times, and a sentence for each thing that could not be measured."""


class Disagreement(KdlibError):
    """Two ways of computing the same thing gave different answers, so their times say nothing."""


def bench_nms(rounds: int, count: int = 4096) -> Found:
    """Time the suppression of ``count`` crowded boxes against shapely's polygons and against the matrix of all overlaps.

    Raises:
        Disagreement: If they do not keep the same boxes.
    """
    decode = zoo.model("cp_pillar").head.decode  # type: ignore[union-attr]
    boxes, scores = crowded_boxes(count)
    settings = {"iou": decode.nms_iou, "pre": count, "post": count}

    def ours() -> Tensor:
        return rotated_nms(boxes, scores, **settings)  # type: ignore[arg-type]

    title = f"rotated NMS of {count:,} boxes"
    kept, duels, notes = ours(), [], []
    for key, how, reference in (("nms", "a shapely loop", shapely_nms), ("nms_matrix", "all pairs in plain torch", matrix_nms)):
        target = TIMES_FASTER if key == "nms" else None

        def theirs(reference: Any = reference) -> Tensor:
            found: Tensor = reference(boxes, scores, **settings)
            return found

        try:
            _same(how, [kept], [theirs()])
        except ConfigError as error:
            notes.append(f"not compared with {how}: {error}")
            duels.append(missing(key, (title, ours), how, rounds))
            continue
        duels.append(duel(key, (title, ours), (how, theirs), rounds if key == "nms" else 1, target))
    return duels, notes


def bench_targets(rounds: int, frames: int = 4, labels: int = 100) -> Found:
    """Time the targets of a batch of full-size frames against a loop over their boxes.

    Raises:
        Disagreement: If the targets differ.
    """
    model = zoo.model("cp_pillar")
    boxes = torch.stack([crowded_boxes(labels, seed, objects=labels)[0] for seed in range(frames)])
    marks = torch.randint(1, 4, (frames, labels), generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"grid": model.grid, "head": model.head}
    _same(
        "a loop over boxes", _tensors(assign_targets(boxes, marks, **settings)), _tensors(loop_targets(boxes, marks, **settings))
    )
    title = f"targets of {frames} x {labels} boxes"
    ours = (title, lambda: assign_targets(boxes, marks, **settings))
    theirs = ("a loop over boxes", lambda: loop_targets(boxes, marks, **settings))
    return [duel("targets", ours, theirs, rounds, TIMES_FASTER)], []


def bench_voxels(points: PointBatch, rounds: int, grids: Sequence[str] = GRIDS) -> Found:
    """Time voxelisation against the wheel's own on published grids.

    Raises:
        Disagreement: If the voxels differ.
    """
    duels, notes = [], []
    for name in grids:
        grid, key = zoo.model(name).grid, f"voxels_{name}"
        ours = (f"voxelise {len(points.points):,} points for {name}", partial(voxelize, points, grid))
        how = "spconv's wheel, one thread"
        try:
            wheel = WheelVoxels(grid, points.points.shape[1])
        except ConfigError as error:
            notes = [f"not compared with spconv's wheel: {error}"]
            duels.append(missing(key, ours, how, rounds))
            continue
        mine, them = voxelize(points, grid), wheel(points)
        _same(how, [mine.coords, mine.num_points, mine.features], [them.coords, them.num_points, them.features])
        duels.append(duel(key, ours, (how, partial(wheel, points)), rounds))
    return duels, notes


def _tensors(targets: Sequence[Any]) -> list[Tensor]:
    return [tensor for head in targets for tensor in (head.heatmap, head.boxes, head.indices, head.mask)]


def _same(how: str, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, them in zip(ours, theirs):
        if mine.shape != them.shape or not torch.allclose(mine.double(), them.double(), rtol=0, atol=1e-5):
            raise Disagreement(f"kdlib and {how} give different answers; please report this with 'python -m kdlib doctor --json'")
