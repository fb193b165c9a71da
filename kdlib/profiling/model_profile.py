"""Counts what a model costs: parameters, multiply-accumulates in two conventions, activations, in
all and by layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from kdlib import zoo
from kdlib.config import ModelConfig
from kdlib.data.collate import collate
from kdlib.data.scans import read_scan
from kdlib.models.build import build
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.models.pvrcnn.two_stage import PVRCNN
from kdlib.models.voxel_encoder import STRIDE
from kdlib.profiling import published
from kdlib.profiling.cost import (
    CostReport,
    measure_cost,
    measure_dense_cost,
    measure_second_stage_cost,
)
from kdlib.profiling.sweep import simulated_sweeps
from kdlib.types import Sample

_Detector = CenterPoint | AnchorDetector
SIMULATED_SWEEP = "one simulated full-size sweep (seed 0)"


def ghost(model: ModelConfig) -> _Detector:
    """Return a detector whose tensors have shapes but no storage."""
    with torch.device("meta"):
        return build(model)


def dense_report(network: _Detector) -> CostReport:
    """Return what a detector's 2D backbone and head cost per frame: the same for every frame."""
    columns, rows, _ = network.config.grid.grid_size
    stride = 1 if network.backbone_3d is None else STRIDE
    first = next(
        layer for layer in network.backbone_2d.modules() if isinstance(layer, torch.nn.Conv2d)
    )
    return measure_dense_cost(network, (1, first.in_channels, rows // stride, columns // stride))


def second_report(network: PVRCNN) -> CostReport:
    """Return what a second stage costs per frame with all the key points it may pick and the
    published RoIs.
    """
    return measure_second_stage_cost(
        network, network.second.abstraction.keypoints, published.PROPOSALS
    )


def profile_model(name: str, files: Sequence[Path] = ()) -> dict[str, Any]:
    """Return a model's cost as plain JSON values; the encoder is counted on the sweeps given, on a
    simulated one by default.

    Raises:
        ConfigError: If the zoo has no such model.
        DataError: If a sweep cannot be read.
    """
    model = zoo.model(name)
    sweeps = [read_scan(path).sample() for path in files] or simulated_sweeps(1)
    source = ", ".join(path.name for path in files) or SIMULATED_SWEEP
    return {"model": name, "counted_on": source, **model_cost(model, sweeps)}


def model_cost(model: ModelConfig, sweeps: Sequence[Sample]) -> dict[str, Any]:
    """Return a model's cost per frame, averaged over sweeps: totals, dense and sparse part,
    layers.
    """
    network = build(model).eval()
    batch = collate(sweeps).points
    encoder = measure_cost(network, batch, encoder_only=True)
    sparse = _totals(encoder)
    counted = [dense := dense_report(network)]
    extra: dict[str, Any] = {}
    if isinstance(network, PVRCNN):
        counted.append(second := second_report(network))
        sizes = {"keypoints": network.second.abstraction.keypoints, "rois": published.PROPOSALS}
        extra = {"second_stage": {**_totals(second), **sizes}}
    total = {
        key: value + sum(_totals(report)[key] for report in counted)
        for key, value in sparse.items()
    }
    rows = [replace(row, cost=row.cost / batch.batch_size) for row in encoder.rows]
    layers = [
        row.to_dict() for part in (rows, *(report.rows for report in counted)) for row in part
    ]
    voxels = len(network.voxelize(batch).coords) / batch.batch_size
    values = {
        "params": sum(p.numel() for p in network.parameters()),
        **total,
        "dense": _totals(dense),
    }
    return {
        **values,
        **extra,
        "sparse": {**sparse, "frames": batch.batch_size, "voxels": voxels},
        "layers": layers,
    }


def _totals(report: CostReport) -> dict[str, float]:
    return {
        "macs": report.macs,
        "macs_published_convention": report.published_macs,
        "acts": report.acts,
        "acts_published_convention": report.published_acts,
    }


def print_profile(values: Mapping[str, Any]) -> None:
    """Print a profile: totals first, then the layers that cost anything."""
    console = Console()
    console.print(
        f"[bold]{values['model']}[/bold]: {values['params']:,} parameters, encoder "
        f"counted on {values['counted_on']}"
    )
    table = Table("part", "G MACs", "G, published convention", "M acts")
    parts = [("total", values), ("dense", values["dense"]), ("encoder", values["sparse"])]
    if "second_stage" in values:
        second = values["second_stage"]
        parts.append(
            (f"second stage, {second['keypoints']} key points, {second['rois']} RoIs", second)
        )
    for part, numbers in parts:
        cells = (
            numbers["macs"] / 1e9,
            numbers["macs_published_convention"] / 1e9,
            numbers["acts"] / 1e6,
        )
        table.add_row(part, *(f"{cell:,.3f}" for cell in cells))
    console.print(table)
    # A name on a line of its own is whole on any terminal: some have 71 letters.
    line = "    {:16}{:>12}{:>12}{:>20}{:>12}"
    print(line.format("layer, kind", "parameters", "M MACs", "M, published conv.", "M acts"))
    for row in values["layers"]:
        costs = (f"{row[key] / 1e6:,.2f}" for key in ("macs", "published_macs", "acts"))
        print(row["name"])
        print(line.format(row["kind"], f"{row['parameters']:,}", *costs))
