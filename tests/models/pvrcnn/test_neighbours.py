"""Queries on hashed cells and the three nearest neighbours against all pairs of points."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kdlib.models.pvrcnn import neighbours
from kdlib.models.pvrcnn.neighbours import Cloud, Neighbours, cube_query, near_pairs, three_nearest


def one_frame(xyz):
    return Cloud(xyz, torch.zeros(len(xyz), dtype=torch.int64))


def lists(found):
    return [part.tolist() for part in found.index.split(found.counts.tolist())]


def by_hand(support, queries, radius, limit=None, batches=None):
    """All pairs, in the points' own precision."""
    delta = support[None] - queries[:, None]
    near = delta.abs().amax(2) <= radius
    if batches is not None:
        near &= batches[0][None] == batches[1][:, None]
    return [row.nonzero()[:, 0].tolist()[:limit] for row in near]


def nearest_by_hand(support, queries, steps, rows):
    """Rows and distances of the three nearest, in double loops; the first of equally near ones
    comes first.
    """
    answers = []
    for query, members in zip(queries, rows):
        for step in itertools.product(*(s.tolist() for s in steps)):
            centre = [
                query[axis] + torch.tensor(step[axis], dtype=query.dtype) for axis in range(3)
            ]
            squares = [sum_of_squares(centre, support[row]) for row in members]
            best = sorted(range(len(members)), key=lambda i: (squares[i], i))[:3]
            best += best[:1] * (3 - len(best))
            answers.append([(members[i], math.sqrt(squares[i])) for i in best] or [(-1, 0.0)] * 3)
    return answers


def sum_of_squares(centre, point):
    x, y, z = ((c - p) ** 2 for c, p in zip(centre, point))
    return (x + y + z).item()


# quarters of a metre: cell borders, ties, duplicates
points = st.lists(st.tuples(*[st.integers(-12, 12)] * 3), max_size=40)


@settings(max_examples=150, deadline=None)
@given(points, points, st.sampled_from([0.25, 0.5, 0.6, 1.0, 7.0]), st.sampled_from([None, 1, 3]))
def test_queries_equal_all_pairs(support, queries, radius, limit):
    support, queries = (
        torch.tensor(p, dtype=torch.float32).view(-1, 3) / 4 for p in (support, queries)
    )
    found = cube_query(one_frame(support), one_frame(queries), radius, limit)
    assert lists(found) == by_hand(support, queries, radius, limit)


@pytest.mark.parametrize("candidates", [1, 100, 1 << 20])
def test_large_clouds_in_parts_and_frames(candidates, monkeypatch):
    monkeypatch.setattr(neighbours, "_HELD", candidates)
    gen = torch.Generator().manual_seed(0)
    support, queries = (
        torch.randn(500, 3, generator=gen) * 3 - 40,
        torch.randn(60, 3, generator=gen) * 4 - 40,
    )
    batches = torch.randint(0, 3, (500,), generator=gen), torch.randint(0, 4, (60,), generator=gen)
    found = cube_query(Cloud(support, batches[0]), Cloud(queries, batches[1]), 1.7, 9)
    assert lists(found) == by_hand(support, queries, 1.7, 9, batches)


@pytest.mark.parametrize("radius", [0.1, 0.3, 0.7, 1.1])
def test_points_at_the_radius_are_found_whatever_rounding_does_to_cells(radius):
    gen = torch.Generator().manual_seed(0)
    queries = torch.rand(400, 3, generator=gen) * 100 - 50
    signs = torch.randint(-1, 2, (400, 3), generator=gen)
    support = queries + signs * torch.tensor(radius)
    assert lists(cube_query(one_frame(support), one_frame(queries), radius)) == by_hand(
        support, queries, radius
    )


def test_radii_far_below_and_above_the_size_of_the_cloud():
    gen = torch.Generator().manual_seed(0)
    support = torch.rand(50, 3, generator=gen, dtype=torch.float64) * 1e6
    queries = support[:10] + 1e-4
    for radius in (1e-3, 1e7):
        assert lists(cube_query(one_frame(support), one_frame(queries), radius)) == by_hand(
            support, queries, radius
        )


def test_queries_far_outside():
    support = torch.zeros(3, 3)
    queries = torch.tensor(
        [[1e30, 0, 0], [-1e30, 0, 0], [0, 0, 2.1], [0, 0, -1.9], [0.0, 0.0, 0.0]]
    )
    assert lists(cube_query(one_frame(support), one_frame(queries), 2.0)) == [
        [],
        [],
        [],
        [0, 1, 2],
        [0, 1, 2],
    ]


@pytest.mark.parametrize(("support", "queries"), [(0, 0), (0, 4), (4, 0)])
def test_empty_clouds(support, queries):
    found = cube_query(one_frame(torch.zeros(support, 3)), one_frame(torch.zeros(queries, 3)), 1.0)
    assert found.offsets.tolist() == [0] * (queries + 1) and found.index.tolist() == []
    rows, distances = three_nearest(
        torch.zeros(support, 3), torch.zeros(queries, 3), (torch.zeros(2),) * 3, found
    )
    assert rows.tolist() == [[[-1] * 3] * 8] * queries and distances.shape == (queries, 8, 3)


def test_another_order_of_the_points_gives_the_same_neighbours():
    gen = torch.Generator().manual_seed(0)
    support, queries = torch.rand(300, 3, generator=gen) * 5, torch.rand(40, 3, generator=gen) * 5
    rows, columns = torch.randperm(300, generator=gen), torch.randperm(40, generator=gen)
    plain = lists(cube_query(one_frame(support), one_frame(queries), 0.8))
    moved = lists(cube_query(one_frame(support[rows]), one_frame(queries[columns]), 0.8))
    for place, found in zip(columns.tolist(), moved):
        assert found == sorted(found)
        assert sorted(rows[found].tolist()) == plain[place]


def test_pairs_come_query_by_query():
    gen = torch.Generator().manual_seed(0)
    support, queries = torch.rand(3000, 3, generator=gen), torch.rand(3000, 3, generator=gen)
    last = -1
    for query, _ in near_pairs(one_frame(support), one_frame(queries), 0.4):
        assert last < int(query.min()) and bool((query.diff() >= 0).all())
        last = int(query.max())


@settings(max_examples=60, deadline=None)
@given(
    points,
    st.lists(st.tuples(*[st.integers(-12, 12)] * 3), max_size=4),
    st.sampled_from([None, 1, 2, 5]),
)
def test_three_nearest_equal_the_loop(support, queries, limit):
    support, queries = (
        torch.tensor(p, dtype=torch.float32).view(-1, 3) / 4 for p in (support, queries)
    )
    steps = torch.tensor([-0.5, 0.0, 0.5]), torch.tensor([-0.25, 0.25]), torch.tensor([0.0, 1.0])
    around = cube_query(one_frame(support), one_frame(queries), 2.0, limit)
    rows, distances = three_nearest(support, queries, steps, around)
    expected = nearest_by_hand(support, queries, steps, lists(around))
    assert rows.flatten(0, 1).tolist() == [[row for row, _ in three] for three in expected]
    torch.testing.assert_close(
        distances.flatten(0, 1),
        torch.tensor([[d for _, d in three] for three in expected]).view(-1, 3),
    )


@pytest.mark.parametrize("most", [1, 300, 1 << 20])
def test_three_nearest_in_blocks(most, monkeypatch):
    monkeypatch.setattr(neighbours, "_HELD", most)
    gen = torch.Generator().manual_seed(0)
    support, queries = torch.rand(300, 3, generator=gen) * 5, torch.rand(12, 3, generator=gen) * 6
    steps = (torch.tensor([-0.4, 0.0, 0.4]),) * 3
    around = cube_query(one_frame(support), one_frame(queries), 1.2)
    rows, _ = three_nearest(support, queries, steps, around)
    expected = nearest_by_hand(support, queries, steps, lists(around))
    assert rows.flatten(0, 1).tolist() == [[row for row, _ in three] for three in expected]
    assert sum(len(found) for found in lists(around)) > 100


def test_blocks_hold_no_more_than_they_may():
    lengths = [0, 0, 1, 1, 2, 3, 7, 9, 9, 60, 70, 300]
    blocks = list(neighbours._blocks(lengths, 62))
    # six of up to 9, hence 54; the others would be too many
    assert blocks == [(2, 8), (8, 9), (9, 10), (10, 11), (11, 12)]
    assert list(neighbours._blocks([0, 0], 62)) == list(neighbours._blocks([], 62)) == []


def test_parts_hold_no_more_than_they_may():
    assert list(neighbours._parts([3, 3, 3, 0, 9, 1], 6)) == [(0, 2), (2, 4), (4, 5), (5, 6)]


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that anything makes."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tensors = [
            value
            for value in torch.utils._pytree.tree_leaves(made)
            if isinstance(value, torch.Tensor)
        ]
        self.seen = max([self.seen, *(value.numel() for value in tensors)])
        return made


def test_memory_grows_with_the_points_not_with_their_pairs():
    gen = torch.Generator().manual_seed(0)
    size = torch.tensor([150.0, 150.0, 4.0])
    support, queries = (
        torch.rand(60_000, 3, generator=gen) * size,
        torch.rand(20_000, 3, generator=gen) * size,
    )
    with Largest() as made:
        around = cube_query(one_frame(support), one_frame(queries), 1.0)
        three_nearest(support, queries, (torch.tensor([-0.5, 0.0, 0.5]),) * 3, around)
    assert len(around.index) > 2 * len(queries)
    # the answer itself is the largest tensor
    assert made.seen <= 27 * 3 * len(queries) < len(support) * len(queries) / 700


def test_the_nearest_stands_in_for_missing_ones():
    support = torch.tensor([[0.0, 0, 0], [1.0, 0, 0]])
    around = Neighbours(torch.tensor([0, 2]), torch.tensor([0, 1]))
    rows, distances = three_nearest(
        support, torch.tensor([[0.9, 0.0, 0.0]]), (torch.zeros(1),) * 3, around
    )
    assert rows.tolist() == [[[1, 0, 1]]]
    torch.testing.assert_close(distances, torch.tensor([[[0.1, 0.9, 0.1]]]))
