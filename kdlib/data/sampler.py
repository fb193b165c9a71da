"""Orders the frames of a run into batches of (epoch, index), from any global step on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kdlib.errors import ConfigError

_ORDER = 2**32 - 1  # keeps the stream of the order apart from the stream of any frame


class StepSampler:
    """A batch sampler over all epochs of a run; batch n is the same whether the run began at step 0
    or was resumed at n.

    Each epoch is one permutation; its last batch may be smaller (nothing is dropped, spec 2.6).
    Several ranks share every batch of ``batch_size`` samples: rank r of ``world`` takes its frames
    r, r + world, and so on, so that together they see what one process would. The ranks' shares of
    a smaller batch differ by at most a frame; of one with fewer frames than ranks, some get none.

    Raises:
        ConfigError: If a number is out of range, or the ranks cannot share a batch evenly.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        epochs: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if length < 1 or batch_size < 1 or epochs < 0 or seed < 0:
            raise ConfigError(
                f"cannot sample {length} frames in batches of {batch_size} over "
                f"{epochs} epochs with seed {seed}"
            )
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} of {world} processes does not exist")
        check_shares(batch_size, world)
        self._length, self._batch_size, self._epochs, self._seed = length, batch_size, epochs, seed
        self._rank, self._world = rank, world
        self.steps_per_epoch = -(-length // batch_size)
        self.total_steps = self.steps_per_epoch * epochs
        if not 0 <= start_step <= self.total_steps:
            raise ConfigError(
                f"start step {start_step} is outside the run of {self.total_steps} steps"
            )
        self._start_step = start_step

    def __len__(self) -> int:
        return self.total_steps - self._start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = divmod(self._start_step, self.steps_per_epoch)
        for number in range(epoch, self._epochs):
            order = np.random.default_rng([self._seed, number, _ORDER]).permutation(self._length)
            for step in range(first, self.steps_per_epoch):
                batch = order[step * self._batch_size : (step + 1) * self._batch_size]
                yield [(number, int(index)) for index in batch[self._rank :: self._world]]
            first = 0


def check_shares(batch_size: int, world: int) -> None:
    """Refuse, as a ConfigError, a batch that processes cannot share evenly; it names both numbers
    and the nearest that work.
    """
    if batch_size % world:
        fits = [number for number in range(1, batch_size + 1) if batch_size % number == 0]
        raise ConfigError(
            f"a batch of {batch_size} frames cannot be shared evenly by {world} processes; "
            "batch_size counts the frames of all "
            f"processes together, so use {' or '.join(map(str, fits[-4:]))} processes, or a "
            f"batch_size divisible by {world}"
        )
