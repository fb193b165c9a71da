"""A model and an input go in; a frozen report of parameters, multiply-accumulates and activations per layer comes out.

Every sum is given in two conventions. "published" is that of the tables in the SparseKD paper, whose "Flops" are
multiply-accumulates with batch normalisation, biases, empty slots of pillars and an over-count of transposed convolutions
(spec 10.1): to compare with them. The other counts the multiplications that convolutions and linear layers really do, and
nothing else: to compare models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from kdlib.errors import KdlibError
from kdlib.models.pvrcnn.two_stage import SECOND_STAGE
from kdlib.profiling.layer_rules import LayerCost, Rule, published_rule, rule, without_published
from kdlib.profiling.modes import evaluating
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
        return {"name": self.name, "kind": self.kind, "parameters": self.parameters, **asdict(self.cost)}


@dataclass(frozen=True)
class CostReport:
    """What a model costs; ``rows`` are for the whole batch, every total is the mean per frame."""

    rows: tuple[CostRow, ...]
    parameters: int  # of the model, whether or not the input reached them
    frames: int  # in the batch that was counted

    @property
    def macs(self) -> float:
        """True multiply-accumulates per frame."""
        return self._total.macs / self.frames

    @property
    def acts(self) -> float:
        """Output elements of convolutions and linear layers per frame, as kdlib computes them."""
        return self._total.acts / self.frames

    @property
    def published_macs(self) -> float:
        """Multiply-accumulates per frame as the published tables count them (their "Flops")."""
        return self._total.published_macs / self.frames

    @property
    def published_acts(self) -> float:
        """Activations per frame as the published tables count them."""
        return self._total.published_acts / self.frames

    @property
    def _total(self) -> LayerCost:
        return sum((row.cost for row in self.rows), start=LayerCost())

    def part(self, name: str) -> CostReport:
        """Return the report of one child, ``vfe`` or ``backbone_2d.blocks``; its parameters are those of the layers seen.

        Raises:
            CostError: If no counted layer lies under that name.
        """
        rows = tuple(row for row in self.rows if row.name == name or row.name.startswith(f"{name}."))
        if not rows:
            parts = sorted({row.name.partition(".")[0] for row in self.rows})
            raise CostError(f"no counted layer under '{name}'; the model's parts are {parts}")
        return CostReport(rows, sum(row.parameters for row in rows), self.frames)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, means per frame first."""
        totals = {name: getattr(self, name) for name in ("macs", "acts", "published_macs", "published_acts")}
        layers = [row.to_dict() for row in self.rows]
        return {"parameters": self.parameters, **totals, "frames": self.frames, "layers": layers}


def _counted(name: str, module: nn.Module, published: bool = True) -> Iterator[tuple[str, nn.Module, Rule]]:
    """Walk down to the layers that have a rule, in the model's order."""
    count = rule(module)
    if count is not None:
        yield name, module, count if published else without_published(count)
        return
    whole = published_rule(module)
    if whole is not None:
        yield name, module, whole
        published = False
    if any(True for _ in module.parameters(recurse=False)):
        raise CostError(
            f"'{name}' is a {type(module).__name__} with parameters of its own; kdlib.profiling.layer_rules has no rule for it"
        )
    for child, below in module.named_children():
        yield from _counted(f"{name}.{child}" if name else child, below, published)


@contextmanager
def _counting(model: nn.Module, rows: dict[str, CostRow], name: str = "") -> Iterator[None]:
    """Add every call of every counted layer to ``rows``."""

    def hook(where: str, count: Rule) -> Callable[..., None]:
        def add(layer: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
            before = rows[where].cost if where in rows else LayerCost()
            parameters = sum(p.numel() for p in layer.parameters(recurse=False))
            rows[where] = CostRow(where, type(layer).__name__, parameters, before + count(layer, given, answer))

        return add

    layers = list(_counted(name, model))
    handles = [layer.register_forward_hook(hook(where, count)) for where, layer, count in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def measure_cost(model: nn.Module, points: PointBatch) -> CostReport:
    """Count one forward pass of a detector on real points, in evaluation mode; totals are means over the frames of the batch.

    Raises:
        CostError: If the batch is empty, or a layer with parameters has no counting rule; the message names it.
    """
    if points.batch_size < 1:
        raise CostError("cannot count the cost of a batch without frames")
    rows: dict[str, CostRow] = {}
    with torch.no_grad(), evaluating(model), _counting(model, rows):
        model(points)
    return CostReport(tuple(rows.values()), _parameters(model), points.batch_size)


def measure_encoder_cost(model: Any, points: PointBatch) -> CostReport:
    """Count what lies before the 2D backbone, on real points: the part whose cost depends on how many voxels a frame fills.

    Args:
        model: A detector: ``voxelize`` and ``encode`` lead from points to the BEV map.
        points: The frames; totals are means over them.

    Raises:
        CostError: If the batch is empty, or a layer with parameters has no counting rule; the message names it.
    """
    if points.batch_size < 1:
        raise CostError("cannot count the cost of a batch without frames")
    rows: dict[str, CostRow] = {}
    parts = [(name, part) for name, part in model.named_children() if name in ("vfe", "backbone_3d")]
    with torch.no_grad(), evaluating(model), ExitStack() as counting:
        for name, part in parts:
            counting.enter_context(_counting(part, rows, name))
        model.encode(model.voxelize(points))
    return CostReport(tuple(rows.values()), sum(_parameters(part) for _, part in parts), points.batch_size)


def measure_second_stage_cost(model: Any, keypoints: int, rois: int) -> CostReport:
    """Count a second stage without computing it: it works row by row, so its cost depends on how many rows there are alone.

    Args:
        model: A detector of two stages: children ``pfe``, ``point_head`` and ``roi_head``.
        keypoints: Of a frame.
        rois: Refined in a frame.

    Raises:
        CostError: If a child is missing or a layer with parameters has no counting rule.
    """
    for part in SECOND_STAGE:
        if not isinstance(getattr(model, part, None), nn.Module):
            raise CostError(f"{type(model).__name__} has no part '{part}', so there is no second stage to count")
    rows: dict[str, CostRow] = {}
    parameters = 0
    cells = int(model.config.second.rois.grid) ** 3
    for part in SECOND_STAGE:
        ghost = copy.deepcopy(getattr(model, part)).to("meta").eval()
        parameters += _parameters(ghost)
        for name, layer, count in _counted(part, ghost):
            length = rois if part == "roi_head" else keypoints
            if name.startswith("roi_head.roi_grid_pool_layer."):
                length = rois * cells
            given = torch.empty((length, _inputs(layer)), device="meta")
            with torch.no_grad():
                cost = count(layer, (given,), layer(given))
            rows[name] = CostRow(name, type(layer).__name__, sum(p.numel() for p in layer.parameters(recurse=False)), cost)
    return CostReport(tuple(rows.values()), parameters, 1)


def _inputs(layer: Any) -> int:
    """Return how many numbers a row has that enters a layer."""
    return int(next(getattr(layer, name) for name in ("in_features", "in_channels", "num_features") if hasattr(layer, name)))


def measure_dense_cost(model: nn.Module, bev_shape: tuple[int, int, int, int]) -> CostReport:
    """Count what lies behind the BEV map (``backbone_2d``, ``dense_head``) without computing it: on tensors with a shape only.

    Args:
        model: A detector with the children ``backbone_2d`` and ``dense_head``.
        bev_shape: (B, C, H, W) of the map that enters ``backbone_2d``.

    Raises:
        CostError: If a child is missing or a layer with parameters has no counting rule.
    """
    rows: dict[str, CostRow] = {}
    features: Any = torch.empty(bev_shape, device="meta")
    parameters = 0
    for name in ("backbone_2d", "dense_head"):
        child = getattr(model, name, None)
        if not isinstance(child, nn.Module):
            raise CostError(f"{type(model).__name__} has no part '{name}', so there is no dense part to count")
        ghost = copy.deepcopy(child).to("meta").eval()
        parameters += _parameters(ghost)
        with torch.no_grad(), _counting(ghost, rows, name):
            features = ghost(features)
    return CostReport(tuple(rows.values()), parameters, bev_shape[0])
