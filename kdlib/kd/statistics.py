"""Blocks in which BatchNorm layers cannot touch their stored statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_STORED = ("running_mean", "running_var", "num_batches_tracked")


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return every BatchNorm layer of a model."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def hidden_statistics(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Take the stored statistics of layers away inside a block, and put back the very same tensors afterwards.

    A BatchNorm without statistics normalises by the current batch in either mode and has nothing to update.
    """
    stored = [(layer, name, getattr(layer, name)) for layer in layers for name in _STORED]
    try:
        for layer, name, _ in stored:
            setattr(layer, name, None)
        yield
    finally:
        for layer, name, tensor in stored:
            setattr(layer, name, tensor)


@contextmanager
def unmoved_statistics(model: nn.Module) -> Iterator[None]:
    """Let a model run in whatever mode its layers are, without leaving a trace in their statistics."""
    with hidden_statistics([layer for layer in batch_norms(model) if layer.training]):
        yield
