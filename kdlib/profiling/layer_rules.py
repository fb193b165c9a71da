"""How one call of one layer is counted: its multiply-accumulates and activations, in two
conventions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from kdlib.models.pillar_encoder import PillarEncoder
from kdlib.models.sparse import SparseConvolution, SparseTensor
from kdlib.types import VoxelBatch


@dataclass(frozen=True)
class LayerCost:
    """What one call of one layer costs; sums of calls add field by field."""

    macs: float = 0  # multiplications the layer really does; normalisation and bias are not counted
    acts: float = 0  # output elements of convolutions and linear layers
    published_macs: float = 0  # the convention behind the published "Flops" (spec 10.1)
    published_acts: float = 0

    def __add__(self, other: LayerCost) -> LayerCost:
        """Return the cost of both."""
        return LayerCost(*map(operator.add, astuple(self), astuple(other)))

    def __truediv__(self, frames: int) -> LayerCost:
        """Return a frame's share."""
        return LayerCost(*(value / frames for value in astuple(self)))


Rule = Callable[[Any, tuple[Any, ...], Any], LayerCost]  # layer, positional inputs, output


def _conv(layer: _ConvNd, given: tuple[Tensor, ...], answer: Tensor) -> LayerCost:
    # The stored kernel is (out, in / groups, *kernel): each output element takes one product per
    # weight of its filter.
    outputs = answer.numel()
    products = outputs * math.prod(layer.weight.shape[1:])
    return LayerCost(
        products, outputs, products + (outputs if layer.bias is not None else 0), outputs
    )


def _conv_transpose(
    layer: _ConvTransposeNd, given: tuple[Tensor, ...], answer: Tensor
) -> LayerCost:
    # Each *input* element meets each weight of its kernel (in, out / groups, *kernel) once. The
    # published convention counts as if it were an ordinary convolution, in / groups * kernel per
    # output element: stride**2 times too many where kernel = stride.
    outputs = answer.numel()
    products = given[0].numel() * math.prod(layer.weight.shape[1:])
    published = outputs * (layer.in_channels // layer.groups * math.prod(layer.kernel_size))
    return LayerCost(
        products, outputs, published + (outputs if layer.bias is not None else 0), outputs
    )


def _linear(layer: nn.Linear, given: tuple[Tensor, ...], answer: Tensor) -> LayerCost:
    products = answer.numel() * layer.in_features
    return LayerCost(products, answer.numel(), products, answer.numel())


def _batch_norm(layer: _BatchNorm, given: tuple[Tensor, ...], answer: Tensor) -> LayerCost:
    return LayerCost(published_macs=2 * given[0].numel())


def count_pillars(
    encoder: PillarEncoder, given: tuple[VoxelBatch, ...], answer: Tensor
) -> LayerCost:
    """Return what the published convention counts, beside its layers, for an encoder that kdlib
    computes with less work.

    All empty slots of a pillar are alike and kdlib computes one of them; the original computed, and
    counted, every slot.
    """
    pillars, slots = given[0].features.shape[:2]
    linears = [layer for layer in encoder.modules() if isinstance(layer, nn.Linear)]
    # + 2: the normalisation behind each
    macs = sum(layer.out_features * (layer.in_features + 2) for layer in linears)
    acts = sum(layer.out_features for layer in linears)
    return LayerCost(published_macs=pillars * slots * macs, published_acts=pillars * slots * acts)


def _sparse(
    layer: SparseConvolution, given: tuple[SparseTensor, ...], answer: SparseTensor
) -> LayerCost:
    # The published convention adds a bias once per site, not once per element (spec 10.1).
    products = layer.rulebook(given[0]).pairs * layer.in_channels * layer.out_channels
    sites, outputs = answer.features.shape[0], answer.features.numel()
    return LayerCost(
        products, outputs, products + (sites if layer.bias is not None else 0), outputs
    )


RULES: tuple[tuple[type[nn.Module], Rule], ...] = (
    (_ConvTransposeNd, _conv_transpose),  # before _ConvNd, its base class
    (_ConvNd, _conv),
    (SparseConvolution, _sparse),
    (nn.Linear, _linear),
    (_BatchNorm, _batch_norm),
)


def rule(layer: nn.Module) -> Rule | None:
    """Return how a layer is counted, None where it counts nothing (activations, padding, maximum
    pooling).
    """
    return next((count for kind, count in RULES if isinstance(layer, kind)), None)
