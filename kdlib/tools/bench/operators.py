"""The operators around a detector's convolutions beside the plain ways: both must give the same
answer, then both are timed.
"""

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
from kdlib.tools.bench.crowd import crowded_boxes
from kdlib.tools.bench.measurements import Measurement
from kdlib.tools.bench.references import loop_targets, matrix_nms, shapely_nms, wheel_voxels
from kdlib.tools.bench.timing import compare_ways
from kdlib.types import PointBatch

TIMES_FASTER = 20.0  # than a loop
GRIDS = ("cp_pillar", "cp_pillar_v0.64", "cp_voxel")

# numbers, and a sentence for each thing that could not be measured
Measured = tuple[list[Measurement], list[str]]


class Disagreement(KdlibError):
    """Two ways of computing the same thing gave different answers, so their times say nothing."""


def bench_nms(rounds: int, count: int = 4096) -> Measured:
    """Time the suppression of ``count`` crowded boxes against shapely's polygons and against the
    matrix of all overlaps.

    Raises:
        Disagreement: If they do not keep the same boxes.
    """
    threshold = zoo.model("cp_pillar").head.decode.nms_iou  # type: ignore[union-attr]
    arguments = (*crowded_boxes(count), threshold, count, count)
    ours = (f"rotated NMS of {count:,} boxes", partial(rotated_nms, *arguments))
    loop: partial[Tensor] | None = partial(shapely_nms, *arguments)
    notes: list[str] = []
    try:
        _same("a shapely loop", [ours[1]()], [shapely_nms(*arguments)])
    except ConfigError as error:
        loop, notes = None, [f"not compared with a shapely loop: {error}"]
    lines = compare_ways("nms", ours, ("a shapely loop", loop), rounds, TIMES_FASTER)
    matrix = ("all pairs in plain torch", partial(matrix_nms, *arguments))
    _same(matrix[0], [ours[1]()], [matrix[1]()])
    return [*lines, *compare_ways("nms_matrix", ours, matrix, 1)], notes


def bench_targets(rounds: int, frames: int = 4, labels: int = 100) -> Measured:
    """Time the targets of a batch of full-size frames against a loop over their boxes.

    Raises:
        Disagreement: If the targets differ.
    """
    model = zoo.model("cp_pillar")
    boxes = torch.stack([crowded_boxes(labels, seed, objects=labels)[0] for seed in range(frames)])
    marks = torch.randint(1, 4, (frames, labels), generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"grid": model.grid, "head": model.head}
    ours = (
        f"targets of {frames} x {labels} boxes",
        partial(assign_targets, boxes, marks, **settings),
    )
    theirs = ("a loop over boxes", partial(loop_targets, boxes, marks, **settings))
    _same(
        theirs[0],
        *(
            [tensor for head in work() for tensor in vars(head).values()]
            for work in (ours[1], theirs[1])
        ),
    )
    return compare_ways("targets", ours, theirs, rounds, TIMES_FASTER), []


def bench_voxels(points: PointBatch, rounds: int, grids: Sequence[str] = GRIDS) -> Measured:
    """Time voxelisation against the wheel's own on published grids.

    Raises:
        Disagreement: If the voxels differ.
    """
    lines: list[Measurement] = []
    notes: list[str] = []
    how = "spconv's wheel, one thread"
    for name in grids:
        grid = zoo.model(name).grid
        work = None
        try:
            wheel = wheel_voxels(grid, points.points.shape[1])
        except ConfigError as error:
            notes = [f"not compared with spconv's wheel: {error}"]
        else:
            work = partial(wheel, points)
            _same(
                how,
                *(
                    [voxels.coords, voxels.num_points, voxels.features]
                    for voxels in (voxelize(points, grid), work())
                ),
            )
        ours = (
            f"voxelise {len(points.points):,} points for {name}",
            partial(voxelize, points, grid),
        )
        lines += compare_ways(f"voxels_{name}", ours, (how, work), rounds)
    return lines, notes


def _same(how: str, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, them in zip(ours, theirs):
        if mine.shape != them.shape or not torch.allclose(
            mine.double(), them.double(), rtol=0, atol=1e-5
        ):
            raise Disagreement(
                f"kdlib and {how} give different answers; please report this with "
                "'python -m kdlib doctor --json'"
            )
