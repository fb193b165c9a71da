"""A dataset's length enters, batches of (epoch, index) leave, from any global step on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdlib.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.data import Sampler

    _Sampler = Sampler[list[tuple[int, int]]]
else:
    _Sampler = object

_ORDER = 2**32 - 1  # keeps the stream of the order apart from the stream of any frame


class StepSampler(_Sampler):
    """A batch sampler over all epochs of a run; batch n is the same whether the run began at step 0 or was resumed at n.

    Each epoch is one permutation. With several ranks it is first padded with its own beginning to a multiple of ``world``, so
    that all ranks do the same number of steps; the last batch of an epoch may be smaller (nothing is dropped, spec 2.6).

    Args:
        length: Samples of the dataset.
        batch_size: Samples per batch and rank.
        epochs: Epochs of the whole run.
        seed: Order of the samples.
        start_step: Global step to begin with.
        rank: Which of the ``world`` processes this is.
        world: Number of processes.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self, length: int, batch_size: int, epochs: int, seed: int, start_step: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if length < 1 or batch_size < 1 or epochs < 0 or seed < 0:
            raise ConfigError(f"cannot sample {length} frames in batches of {batch_size} over {epochs} epochs with seed {seed}")
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} of {world} processes does not exist")
        self._length, self._batch_size, self._epochs, self._seed = length, batch_size, epochs, seed
        self._rank, self._world = rank, world
        self._per_rank = -(-length // world)
        if not 0 <= start_step <= self.total_steps:
            raise ConfigError(f"start step {start_step} is outside the run of {self.total_steps} steps")
        self._start_step = start_step

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch on one rank."""
        return -(-self._per_rank // self._batch_size)

    @property
    def total_steps(self) -> int:
        """Batches of the whole run on one rank."""
        return self.steps_per_epoch * self._epochs

    def __len__(self) -> int:
        return self.total_steps - self._start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = divmod(self._start_step, self.steps_per_epoch)
        for number in range(epoch, self._epochs):
            order = self._order(number)
            for step in range(first, self.steps_per_epoch):
                batch = order[step * self._batch_size : (step + 1) * self._batch_size]
                yield [(number, int(index)) for index in batch]
            first = 0

    def _order(self, epoch: int) -> NDArray[np.int64]:
        order = np.random.default_rng([self._seed, epoch, _ORDER]).permutation(self._length)
        padded = np.resize(order, self._per_rank * self._world)  # np.resize repeats from the beginning
        return padded[self._rank :: self._world].astype(np.int64)
