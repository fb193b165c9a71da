"""BatchNorm of maps and weighted rows, with the statistics of all processes of a training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdlib.models import ranks
from kdlib.models.precision import wide


class BatchNorm2d(nn.BatchNorm2d):
    """torch's layer, with statistics over all ranks inside :func:`kdlib.models.ranks.together`."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise maps (B, C, H, W)."""
        if _by_batch(self) and (ranks.several() or input.is_cpu):
            return batch_normalised(self, input)
        return super().forward(input)


class RowNorm(nn.BatchNorm1d):
    """BatchNorm over rows (R, C), each of which may stand for several equal ones; it also takes a
    single row, or none.
    """

    def forward(self, rows: Tensor, weight: Tensor | None = None) -> Tensor:
        """Normalise; statistics of the batch are weighted by ``weight`` (R,), stored ones are used
        as they are.
        """
        few = len(rows) < 2  # which torch's own layer refuses in training
        if _by_batch(self) and (weight is not None or few or ranks.several() or rows.is_cpu):
            return batch_normalised(self, rows, weight)
        return super().forward(rows)


def _by_batch(layer: _BatchNorm) -> bool:
    """Whether a layer normalises by what it is given, not by what it has learned."""
    return layer.training or layer.running_mean is None


def batch_normalised(layer: _BatchNorm, rows: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return rows (R, C) or maps (B, C, H, W) normalised by the statistics of all ranks, which a
    layer in training remembers.

    A rank may have fewer rows than others, or none; ``weight`` (R,) says how many equal rows a row
    stands for. With several ranks there is one collective forward, one backward. On a processor
    torch's own kernel adds up rows and channels_last maps one by one in 32 bits, which puts the
    variance of a large map a thousandth off; sums here are taken in a tree.
    """
    rows = rows.contiguous() if rows.dim() == 2 else rows
    normalised, mean, variance, count = _BatchNormalised.apply(
        rows, weight, layer.weight, layer.bias, layer.eps
    )  # type: ignore[no-untyped-call]
    if layer.training and layer.running_mean is not None:
        seen = count > 0  # a batch without rows teaches nothing
        momentum = (layer.momentum or 0.0) * seen.to(count.dtype)
        unbiased = variance * count / (count - 1).clamp(min=1)
        for stored, value in ((layer.running_mean, mean), (layer.running_var, unbiased)):
            stored.lerp_(value.to(stored.dtype), momentum.to(stored.dtype))  # type: ignore[union-attr]
        layer.num_batches_tracked.add_(seen)  # type: ignore[union-attr]
    return normalised  # type: ignore[no-any-return]


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """Return one value per channel (C,) in the shape and at least the type that meet rows or
    maps.
    """
    return values.to(wide(like).dtype).view(1, -1, *(1,) * (like.dim() - 2))


def _axes(rows: Tensor) -> list[int]:
    return [axis for axis in range(rows.dim()) if axis != 1]


def _combine(gathered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, mean and variance over all ranks from each one's count, mean and sum of squares
    around that mean (1 + 2C,).

    Source: Chan, Golub and LeVeque, 1983: no large squares are subtracted from each other.
    """
    counts = gathered[:, :1]
    means, squares = gathered[:, 1:].chunk(2, dim=1)
    count = counts.sum()
    mean = (counts * means).sum(dim=0) / count.clamp(min=1)
    variance = (squares + counts * (means - mean).square()).sum(dim=0) / count.clamp(min=1)
    return count, mean, variance


class _BatchNormalised(torch.autograd.Function):
    """The normalisation with its derivative, which goes through the statistics to the rows of every
    rank.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor | None, scale: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values, axes = wide(rows), _axes(rows)
        share = 1 if weight is None else weight[:, None]
        count = values.new_tensor(rows.numel() // rows.shape[1]) if weight is None else weight.sum()
        mean = (share * values).sum(axes) / count.clamp(min=1)
        centred = values - _spread(mean, rows)
        squares = (share * centred.square()).sum(axes)
        own = torch.cat((count[None], mean, squares)).double()
        count, joint_mean, variance = _combine(ranks.gathered(own))
        if ranks.several():
            centred -= _spread(joint_mean - mean, rows)
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(centred, weight, scale, inverse, count)
        ctx.dtype = rows.dtype
        ctx.mark_non_differentiable(joint_mean, variance, count)
        factor = _spread(scale.double() * inverse, rows)
        normalised = torch.addcmul(_spread(shift, rows), centred, factor)
        # Half precision leaves as it came, as in torch's own layer; weighted rows leave in 32 bits:
        # statistics of many rows need it.
        if weight is None:
            normalised = normalised.to(rows.dtype)
        return normalised, joint_mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        centred, weight, scale, inverse, count = ctx.saved_tensors
        gradient = wide(gradient)
        axes = _axes(gradient)
        sums = torch.stack((gradient.sum(axes), (gradient * centred).sum(axes))).double()
        # the backward pass runs outside of the block in which the forward pass did
        with ranks.together():
            shifts, slopes = ranks.total(sums) / count.clamp(min=1)
        shift, slope = (_spread(value, gradient) for value in (shifts, slopes * inverse.square()))
        if weight is None:
            to_rows = torch.addcmul(gradient - shift, centred, slope, value=-1)
        else:
            to_rows = gradient - weight[:, None] * (shift + centred * slope)
        to_rows = (to_rows * _spread(scale.double() * inverse, gradient)).to(ctx.dtype)
        return to_rows, None, (sums[1] * inverse).to(scale.dtype), sums[0].to(scale.dtype), None
