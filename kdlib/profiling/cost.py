"""Counts parameters, multiply-accumulates and activations of a model, layer by layer.

Every sum is given in two conventions. "published" is that of the tables in the SparseKD paper,
whose "Flops" are multiply-accumulates with batch normalisation, biases, empty slots of pillars and
an over-count of transposed convolutions (spec 10.1): to compare with them. The other counts the
multiplications that convolutions and linear layers really do, and nothing else: to compare models.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from kdlib.errors import KdlibError
from kdlib.models.pillar_encoder import PillarEncoder
from kdlib.models.pvrcnn.two_stage import SECOND_STAGE
from kdlib.profiling.layer_rules import LayerCost, Rule, count_pillars, rule
from kdlib.types import PointBatch


class CostError(KdlibError):
    """A model whose cost cannot be counted."""


@dataclass(frozen=True)
class CostRow:
    """One layer, summed over all its calls for the whole batch."""

    name: str  # as in the state dict, "backbone_2d.blocks.0.1"
    kind: str  # class of the layer
    parameters: int
    cost: LayerCost

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "parameters": self.parameters,
            **asdict(self.cost),
        }


@dataclass(frozen=True)
class CostReport(LayerCost):
    """What a model, or a part of one, costs per frame, as a mean; ``rows`` are for the whole
    batch.
    """

    rows: tuple[CostRow, ...] = field(default=(), kw_only=True)

    @property
    def parameters(self) -> int:
        """Of the layers that were counted."""
        return sum(row.parameters for row in self.rows)


def _report(rows: Iterable[CostRow], frames: int) -> CostReport:
    rows = tuple(rows)
    return CostReport(*astuple(sum((row.cost for row in rows), LayerCost()) / frames), rows=rows)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, then back to what each was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _counted(
    name: str, module: nn.Module, published: bool = True
) -> Iterator[tuple[str, nn.Module, Rule]]:
    """Walk down to the layers that have a rule, in the model's order."""
    count = rule(module)
    if count is not None:
        yield (
            name,
            module,
            count
            if published
            else lambda *call: replace(count(*call), published_macs=0, published_acts=0),
        )
        return
    if isinstance(module, PillarEncoder):
        yield name, module, count_pillars
        published = False
    if any(True for _ in module.parameters(recurse=False)):
        raise CostError(
            f"'{name}' is a {type(module).__name__} with parameters of its own; "
            "kdlib.profiling.layer_rules has no rule for it"
        )
    for child, below in module.named_children():
        yield from _counted(f"{name}.{child}" if name else child, below, published)


@contextmanager
def _counting(model: nn.Module, rows: dict[str, CostRow], name: str = "") -> Iterator[None]:
    """Add every call of every counted layer to ``rows``."""

    def add(where: str, count: Rule, layer: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
        before = rows[where].cost if where in rows else LayerCost()
        rows[where] = _row(where, layer, before + count(layer, given, answer))

    layers = list(_counted(name, model))
    handles = [
        layer.register_forward_hook(partial(add, where, count)) for where, layer, count in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure_cost(model: Any, points: PointBatch, *, encoder_only: bool = False) -> CostReport:
    """Count one forward pass of a detector on real points, in evaluation mode; totals are means
    over the frames of the batch.

    ``encoder_only`` stops before the 2D backbone: what is left depends on how many voxels a frame
    fills.

    Raises:
        CostError: If the batch is empty, or a layer with parameters has no counting rule; the
            message names it.
    """
    if points.batch_size < 1:
        raise CostError("cannot count the cost of a batch without frames")
    rows: dict[str, CostRow] = {}
    with torch.no_grad(), evaluating(model), _counting(model, rows):
        if encoder_only:
            model.encode(model.voxelize(points))
        else:
            model(points)
    return _report(rows.values(), points.batch_size)


def measure_second_stage_cost(model: Any, keypoints: int, rois: int) -> CostReport:
    """Count a second stage without computing it: it works row by row, so its cost depends on how
    many rows there are alone.

    Key points and RoIs are those of a frame; the model has the children ``pfe``, ``point_head`` and
    ``roi_head``.

    Raises:
        CostError: If a child is missing or a layer with parameters has no counting rule.
    """
    ghosts = {part: _ghost(model, part, "second stage") for part in SECOND_STAGE}
    rows = []
    for part, ghost in ghosts.items():
        for name, layer, count in _counted(part, ghost):
            length = rois if part == "roi_head" else keypoints
            if name.startswith("roi_head.roi_grid_pool_layer."):
                length = rois * int(model.config.second.rois.grid) ** 3
            given = torch.empty((length, _inputs(layer)), device="meta")
            with torch.no_grad():
                rows.append(_row(name, layer, count(layer, (given,), layer(given))))
    return _report(rows, 1)


def _ghost(model: nn.Module, name: str, what: str) -> nn.Module:
    """Return a copy of a child whose tensors have shapes but no storage."""
    part = getattr(model, name, None)
    if not isinstance(part, nn.Module):
        raise CostError(
            f"{type(model).__name__} has no part '{name}', so there is no {what} to count"
        )
    return copy.deepcopy(part).to("meta").eval()


def _row(name: str, layer: nn.Module, cost: LayerCost) -> CostRow:
    return CostRow(
        name, type(layer).__name__, sum(p.numel() for p in layer.parameters(recurse=False)), cost
    )


def _inputs(layer: Any) -> int:
    """Return how many numbers a row has that enters a layer."""
    return int(
        next(
            getattr(layer, name)
            for name in ("in_features", "in_channels", "num_features")
            if hasattr(layer, name)
        )
    )


def measure_dense_cost(model: nn.Module, bev_shape: tuple[int, int, int, int]) -> CostReport:
    """Count what lies behind the BEV map (``backbone_2d``, ``dense_head``) without computing it: on
    tensors with a shape only.

    ``bev_shape`` is (B, C, H, W) of the map that enters ``backbone_2d``.

    Raises:
        CostError: If a child is missing or a layer with parameters has no counting rule.
    """
    rows: dict[str, CostRow] = {}
    features: Any = torch.empty(bev_shape, device="meta")
    for name in ("backbone_2d", "dense_head"):
        ghost = _ghost(model, name, "dense part")
        with torch.no_grad(), _counting(ghost, rows, name):
            features = ghost(features)
    return _report(rows.values(), bev_shape[0])
