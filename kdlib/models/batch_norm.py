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
        if self.training or self.running_mean is None:
            if ranks.several():
                return joint_norm(self, input)
            # Of channels_last maps torch's CPU kernel adds up statistics and gradients in 32 bits,
            # a thousand times less exactly than of contiguous ones.
            input = input.contiguous() if input.is_cpu else input
        return super().forward(input)


class RowNorm(nn.BatchNorm1d):
    """BatchNorm over rows (R, C), each of which may stand for several equal ones; it also takes a
    single row, or none.
    """

    def forward(self, rows: Tensor, weight: Tensor | None = None) -> Tensor:
        """Normalise; statistics of the batch are weighted by ``weight`` (R,), stored ones are used
        as they are.
        """
        of_batch = self.training or self.running_mean is None
        if weight is None and len(rows) < 2:  # which torch's own layer refuses in training
            weight = rows.new_ones(len(rows))
        if of_batch and ranks.several():
            return joint_norm(self, rows, weight)
        if weight is None or not of_batch:
            return super().forward(rows)
        if not len(rows):
            # nothing to learn from, but the parameters keep their place in the graph
            return rows * self.weight + self.bias
        rows = wide(rows)  # statistics of many rows need it, as in torch's own layer
        count, share = weight.sum(), weight[:, None]
        mean = (share * rows).sum(dim=0) / count
        centred = rows - mean
        variance = (share * centred.square()).sum(dim=0) / count
        if self.training and self.running_mean is not None:
            with torch.no_grad():
                unbiased = variance * count / (count - 1).clamp(min=1)
                for stored, seen in ((self.running_mean, mean), (self.running_var, unbiased)):
                    stored.lerp_(seen, self.momentum or 0.0)  # type: ignore[union-attr]
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return centred * (self.weight * (variance + self.eps).rsqrt()) + self.bias


def joint_norm(layer: _BatchNorm, rows: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return rows (R, C) or maps (B, C, H, W) normalised by the statistics of all ranks, which a
    layer in training remembers.

    A rank may have fewer rows than others, or none; ``weight`` (R,) says how many equal rows a row
    stands for. One collective forward, one backward.
    """
    rows = rows.contiguous() if rows.dim() == 2 else rows
    normalised, mean, variance, count = _Joint.apply(
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


def _statistics(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Return count, mean and sum of squares around the mean of this rank's rows, one behind the
    other: (1 + 2C,) in 64 bits.
    """
    channels = rows.shape[1]
    if not rows.numel():
        return rows.new_zeros(1 + 2 * channels, dtype=torch.float64)
    values = wide(rows)
    share = 1 if weight is None else weight[:, None]
    count = values.new_tensor(rows.numel() // channels) if weight is None else weight.sum()
    mean = (share * values).sum(_axes(rows)) / count
    squares = (share * (values - _spread(mean, rows)).square()).sum(_axes(rows))
    return torch.cat((count[None], mean, squares)).double()


def _combine(gathered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, mean and variance over all ranks from the rows of :func:`_statistics`.

    Source: Chan, Golub and LeVeque, 1983: no large squares are subtracted from each other.
    """
    counts = gathered[:, :1]
    means, squares = gathered[:, 1:].chunk(2, dim=1)
    count = counts.sum()
    mean = (counts * means).sum(dim=0) / count.clamp(min=1)
    variance = (squares + counts * (means - mean).square()).sum(dim=0) / count.clamp(min=1)
    return count, mean, variance


class _Joint(torch.autograd.Function):
    """The normalisation with its derivative, which goes through the statistics to the rows of every
    rank.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor | None, scale: Tensor, shift: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count, mean, variance = _combine(ranks.gathered(_statistics(rows, weight)))
        inverse = (variance + eps).rsqrt()
        centred = wide(rows) - _spread(mean, rows)
        ctx.save_for_backward(rows, weight, scale, mean, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        normalised = torch.addcmul(
            _spread(shift, rows), centred, _spread(scale.double() * inverse, rows)
        )
        # Half precision leaves as it came, as in torch's own layer; weighted rows leave in 32 bits,
        # as they do in one process.
        return normalised.to(rows.dtype) if weight is None else normalised, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        rows, weight, scale, mean, inverse, count = ctx.saved_tensors
        values, gradient = wide(rows), wide(gradient)
        centred = values - _spread(mean, rows)
        sums = torch.stack(
            (gradient.sum(_axes(rows)), (gradient * centred).sum(_axes(rows)))
        ).double()
        # the backward pass runs outside of the block in which the forward pass did
        with ranks.together():
            shifts, slopes = ranks.total(sums) / count.clamp(min=1)
        through = _spread(shifts, rows) + centred * _spread(slopes * inverse.square(), rows)
        if weight is not None:
            through = weight[:, None] * through
        to_rows = (gradient - through) * _spread(scale.double() * inverse, rows)
        return (
            to_rows.to(rows.dtype),
            None,
            (sums[1] * inverse).to(scale.dtype),
            sums[0].to(scale.dtype),
            None,
        )
