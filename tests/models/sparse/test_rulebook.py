"""Which sites meet: against loops over every cell, on random grids; and what a rulebook refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.errors import ConfigError, DataError
from kdlib.models.sparse import Geometry, strided_rulebook, submanifold_rulebook

sizes = st.tuples(*[st.integers(1, 6)] * 3)
threes = st.tuples(*[st.integers(1, 3)] * 3)


def scattered(shape, batch_size, seed, share=0.4):
    gen = torch.Generator().manual_seed(seed)
    coords = (torch.rand(batch_size, *shape, generator=gen) < share).nonzero()
    return coords[torch.randperm(len(coords), generator=gen)]


def naive(coords, outputs, geometry, padding):
    """All meetings by looking at every cell of every receptive field: {(output row, weight): input
    row}.
    """
    rows = {tuple(site): row for row, site in enumerate(coords.tolist())}
    found = {}
    for out, (batch, *place) in enumerate(outputs.tolist()):
        for weight, offset in enumerate(geometry.offsets):
            cell = [o * s - p + k for o, s, p, k in zip(place, geometry.stride, padding, offset)]
            if (batch, *cell) in rows:
                found[out, weight] = rows[(batch, *cell)]
    return found


def meetings(book):
    found = (book.table < book.sites).nonzero().tolist()
    return {(out, weight): int(book.table[out, weight]) for out, weight in found}


@settings(max_examples=60, deadline=None)
@given(
    sizes, st.integers(1, 3), st.tuples(*[st.sampled_from((1, 3, 5))] * 3), st.integers(0, 10**6)
)
def test_submanifold_meetings(shape, batch_size, kernel, seed):
    coords, geometry = scattered(shape, batch_size, seed), Geometry(kernel)
    book = submanifold_rulebook(coords, shape, batch_size, geometry)
    assert (
        book.coords is coords
        and book.shape == shape
        and book.mirrored
        and book.table.is_contiguous()
    )
    padding = [k // 2 for k in kernel]
    assert meetings(book) == naive(coords, coords, geometry, padding)
    assert book.pairs == len(meetings(book))


@settings(max_examples=60, deadline=None)
@given(
    sizes,
    st.integers(1, 3),
    threes,
    threes,
    st.tuples(*[st.integers(0, 2)] * 3),
    st.integers(0, 10**6),
)
def test_strided_meetings_and_sites(shape, batch_size, kernel, stride, padding, seed):
    coords, geometry = scattered(shape, batch_size, seed, 0.2), Geometry(kernel, stride, padding)
    try:
        reached = geometry.output_shape(shape)
    except ConfigError:
        with pytest.raises(ConfigError, match="too small"):
            strided_rulebook(coords, shape, batch_size, geometry)
        return
    book = strided_rulebook(coords, shape, batch_size, geometry)
    everywhere = torch.tensor(
        list(itertools.product(range(batch_size), *map(range, reached)))
    ).view(-1, 4)
    expected = naive(coords, everywhere, geometry, padding)
    # exactly those whose receptive field holds an input, ascending
    active = sorted({out for out, _ in expected})
    assert book.coords.tolist() == everywhere[active].tolist() and book.shape == reached
    number = {out: row for row, out in enumerate(active)}
    assert meetings(book) == {(number[out], weight): row for (out, weight), row in expected.items()}
    for weight in range(len(geometry.offsets)):
        inputs, outputs = book.meetings(weight)
        assert len(inputs) == len(inputs.unique()) == len(outputs.unique())


def test_no_sites():
    none = torch.zeros((0, 4), dtype=torch.int64)
    book = submanifold_rulebook(none, (4, 4, 4), 2, Geometry((3, 3, 3)))
    assert book.table.shape == (0, 27) and book.pairs == 0
    book = strided_rulebook(none, (4, 4, 4), 2, Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1)))
    assert book.table.shape == (0, 27) and book.coords.shape == (0, 4) and book.shape == (2, 2, 2)


def test_a_single_cell_meets_only_itself():
    book = submanifold_rulebook(
        torch.zeros((1, 4), dtype=torch.int64), (1, 1, 1), 1, Geometry((3, 3, 3))
    )
    assert [len(book.meetings(weight)[0]) for weight in range(27)] == [0] * 13 + [1] + [0] * 13


@pytest.mark.parametrize("build", [submanifold_rulebook, strided_rulebook])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 0, 0, 0], [0, 0, 0, 4]], r"\[0, 0, 0, 4\].*outside"),
        ([[0, 0, -1, 0]], r"\[0, 0, -1, 0\].*outside"),
        ([[2, 0, 0, 0]], r"\[2, 0, 0, 0\].*outside 2 frames"),
        ([[0, 1, 2, 3], [0, 0, 0, 0], [0, 1, 2, 3]], r"\[0, 1, 2, 3\].*twice"),
    ],
)
def test_impossible_sites_are_named(build, rows, message):
    with pytest.raises(DataError, match=message):
        build(torch.tensor(rows), (4, 4, 4), 2, Geometry((3, 3, 3)))


def test_sites_of_another_kind_are_refused():
    for wrong in (
        torch.zeros((1, 3), dtype=torch.int64),
        torch.zeros((1, 4)),
        torch.zeros((1, 4), dtype=torch.int32),
    ):
        with pytest.raises(DataError, match=r"\(V, 4\) int64"):
            submanifold_rulebook(wrong, (4, 4, 4), 1, Geometry((3, 3, 3)))


def test_a_grid_that_cannot_be_numbered_is_refused():
    with pytest.raises(ConfigError, match="too many cells"):
        submanifold_rulebook(
            torch.zeros((1, 4), dtype=torch.int64), (1 << 21,) * 3, 1, Geometry((3, 3, 3))
        )


def test_kernels_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="odd sizes"):
        submanifold_rulebook(
            torch.zeros((1, 4), dtype=torch.int64), (4, 4, 4), 1, Geometry((2, 3, 3))
        )
    with pytest.raises(ConfigError, match="odd sizes"):
        submanifold_rulebook(
            torch.zeros((1, 4), dtype=torch.int64), (4, 4, 4), 1, Geometry((3, 3, 3), (2, 1, 1))
        )
    for wrong in ({"stride": (0, 1, 1)}, {"padding": (0, -1, 0)}):
        with pytest.raises(ConfigError, match="at least"):
            Geometry((3, 3, 3), **wrong)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 1, 3), (3, 1, 1)])
@pytest.mark.parametrize("strided", [False, True])
def test_shares_hold_every_meeting_once(kernel, strided):
    gen = torch.Generator().manual_seed(3)
    # most sites meet nobody above or below
    floor = (torch.rand(2, 1, 60, 60, generator=gen) < 0.7).nonzero()
    walls = (torch.rand(2, 9, 60, 60, generator=gen) < 0.06).nonzero()
    coords = torch.cat((floor, walls)).unique(dim=0)
    build = strided_rulebook if strided else submanifold_rulebook
    geometry = (
        Geometry(kernel, stride=(2, 1, 1), padding=tuple(k // 2 for k in kernel))
        if strided
        else Geometry(kernel)
    )
    book = build(coords, (9, 60, 60), 2, geometry)
    seen, found = [], {}
    for share in book.shares:
        assert share.rows is not None and share.table.is_contiguous()
        assert len(share.rows) > 1024 or share.weights == slice(0, book.table.shape[1]), (
            "small ones join the whole kernel"
        )
        seen += share.rows.tolist()
        for place, weight in (share.table < book.sites).nonzero().tolist():
            found[int(share.rows[place]), share.weights.start + weight] = int(
                share.table[place, weight]
            )
    assert sorted(seen) == list(range(len(book.table)))
    assert found == meetings(book)
    assert sum(share.table.numel() for share in book.shares) < 0.9 * book.table.numel(), (
        "zeros are left out"
    )


def test_few_sites_or_one_plane_are_one_share():
    for coords, kernel in (
        (scattered((6, 6, 6), 1, 0), (3, 3, 3)),
        (scattered((9, 40, 40), 1, 0), (1, 3, 3)),
    ):
        book = submanifold_rulebook(coords, (9, 40, 40), 1, Geometry(kernel))
        (share,) = book.shares
        assert share.rows is None and share.table is book.table
