"""Sums over all processes of a training; a process alone gets back what it gave.

A training by several processes minimises the loss of the whole batch, of which each rank holds a
share. Sums that a loss or a BatchNorm divides by are therefore taken over all ranks, inside of
:func:`together` only: outside of it a rank may work alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


class _Block:
    """Where this process is; torch's process group, too, is one for the whole process."""

    joined = False


def world() -> int:
    """Return how many processes sum up here: 1 outside of :func:`together` and without a process
    group.
    """
    return dist.get_world_size() if _Block.joined and dist.is_initialized() else 1


def several() -> bool:
    """Return whether sums go over several processes here."""
    return world() > 1


@contextmanager
def together() -> Iterator[None]:
    """Take sums over all ranks inside a block, which every rank has to enter and to go through
    alike.
    """
    before, _Block.joined = _Block.joined, True
    try:
        yield
    finally:
        _Block.joined = before


def total(value: Tensor) -> Tensor:
    """Return the sum over the ranks, any shape; it carries no gradient where there are several."""
    if not several():
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def gathered(values: Tensor) -> Tensor:
    """Return the values (n,) of all ranks as (R, n), in the order of the ranks."""
    if not several():
        return values[None]
    rows = values.new_zeros((world(), *values.shape))
    rows[dist.get_rank()] = values.detach()
    dist.all_reduce(rows)  # zeros elsewhere, so the sum is exact; every backend has it
    return rows


def mean(values: Tensor) -> Tensor:
    """Return the mean of all elements; with several ranks this one's share of the mean over all,
    which sums up to it.
    """
    return values.mean() if not several() else values.sum() / over(values.numel(), values)


def over(number: int, like: Tensor) -> int | Tensor:
    """Return the sum of a plain number, at least 1 with several ranks; as a tensor there, so that
    nobody waits for a device.
    """
    if not several():
        return number
    kind = torch.promote_types(like.dtype, torch.float32)
    return total(torch.full((), float(number), dtype=kind, device=like.device)).clamp(min=1)


def whole(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts of a loss with their values summed over the ranks and the gradients of this
    rank's shares.
    """
    if not several():
        return dict(parts)
    values = total(torch.stack([part.detach().double() for part in parts.values()]))
    # x - x is exactly 0: the value is the sum over the ranks to the last bit, the gradient that of
    # the share.
    return {
        name: part - part.detach() + value.to(part.dtype)
        for (name, part), value in zip(parts.items(), values)
    }
