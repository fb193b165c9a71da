from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlib.data.sampler import StepSampler
from kdlib.errors import ConfigError

sizes = st.tuples(st.integers(1, 30), st.integers(1, 7), st.integers(1, 4), st.integers(0, 99))


@given(sizes=sizes, data=st.data())
def test_resuming_continues_the_same_batches(sizes, data):
    length, batch, epochs, seed = sizes
    whole = list(StepSampler(length, batch, epochs, seed))
    start = data.draw(st.integers(0, len(whole)))
    rest = StepSampler(length, batch, epochs, seed, start_step=start)
    assert list(rest) == whole[start:] and len(rest) == len(whole) - start


@given(sizes)
def test_every_epoch_sees_every_frame_once(sizes):
    length, batch, epochs, seed = sizes
    sampler = StepSampler(length, batch, epochs, seed)
    assert (
        len(list(sampler))
        == len(sampler)
        == sampler.total_steps
        == epochs * sampler.steps_per_epoch
    )
    pairs = [pair for some in sampler for pair in some]
    assert sorted(pairs) == [(epoch, index) for epoch in range(epochs) for index in range(length)]
    assert all(1 <= len(some) <= batch for some in sampler)


@given(sizes=sizes, world=st.integers(1, 4))
def test_ranks_share_every_batch(sizes, world):
    length, share, epochs, seed = sizes
    whole = list(StepSampler(length, share * world, epochs, seed))
    parts = [
        list(StepSampler(length, share * world, epochs, seed, rank=rank, world=world))
        for rank in range(world)
    ]
    assert {len(part) for part in parts} == {len(whole)}
    for batch, shares in zip(whole, zip(*parts)):
        assert sorted(pair for some in shares for pair in some) == sorted(batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_that_ranks_cannot_share_is_an_error():
    with pytest.raises(
        ConfigError,
        match=(
            r"6 frames cannot be shared evenly by 4 processes.*use " r"1 or 2 or 3 or 6 processes"
        ),
    ):
        StepSampler(10, 6, 1, 0, rank=0, world=4)


def test_orders_differ_between_epochs_and_seeds():
    first, second = ([index for _, index in some] for some in StepSampler(50, 50, 2, 1))
    other = [index for _, index in next(iter(StepSampler(50, 50, 1, 2)))]
    assert first != second and first != other


@pytest.mark.parametrize(
    "change", [{"length": 0}, {"batch_size": 0}, {"seed": -1}, {"rank": 1}, {"start_step": 99}]
)
def test_numbers_out_of_range_are_errors(change):
    with pytest.raises(ConfigError):
        StepSampler(**{"length": 4, "batch_size": 2, "epochs": 1, "seed": 0, **change})
