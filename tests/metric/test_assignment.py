from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from kdlib.metric.assignment import kuhn_munkres, unique_assignment, weights_from_iou


def best_sets(weights):
    """All sets of positive pairs with the largest sum, by trying everything."""
    rows, columns = weights.shape
    size = max(rows, columns)
    padded = np.zeros((size, size), int)
    padded[:rows, :columns] = weights
    best, found = -1, set()
    for order in permutations(range(size)):
        total = sum(padded[r, c] for r, c in enumerate(order))
        pairs = tuple((r, c) for r, c in enumerate(order) if padded[r, c] > 0)
        if total > best:
            best, found = total, {pairs}
        elif total == best:
            found.add(pairs)
    return found


def literal_kuhn_munkres(weights):
    """The order of metric spec section 5, word by word, in plain Python."""
    size = max(weights.shape)
    w = np.zeros((size, size), int)
    w[: weights.shape[0], : weights.shape[1]] = weights
    u, v = [max(row) for row in w.tolist()], [0] * size
    row_of, column_of = [None] * size, [None] * size

    def list_columns(rows, listed):
        for row in rows:
            for column in range(size):
                if u[row] + v[column] == w[row][column] and column not in listed:
                    listed[column] = row
        return listed

    for root in range(size):
        in_s, in_t = [root], []
        listed = list_columns(in_s, {})
        while True:
            while all(column in in_t for column in listed):
                d = min(u[i] + v[j] - w[i][j] for i in in_s for j in range(size) if j not in in_t)
                for i in in_s:
                    u[i] -= d
                for j in in_t:
                    v[j] += d
                listed = list_columns(in_s, {})
            column = next(column for column in listed if column not in in_t)
            in_t.append(column)
            if row_of[column] is None:
                while column is not None:
                    row = listed[column]
                    row_of[column], column_of[row], column = row, column, column_of[row]
                break
            in_s.append(row_of[column])
            list_columns([row_of[column]], listed)
    return tuple(sorted((int(r), c) for c, r in enumerate(row_of) if w[r][c] > 0))


def random_weights(rng, rows, columns, highest, density):
    weights = rng.integers(1, highest + 1, (rows, columns))
    return np.where(rng.random((rows, columns)) < density, weights, 0)


@pytest.mark.parametrize("highest", [2, 5, 1_000_000])
def test_unique_assignment_against_exhaustion(highest):
    rng = np.random.default_rng(highest)
    unique = several = 0
    for _ in range(120):
        rows, columns = rng.integers(1, 6, 2)
        weights = random_weights(rng, rows, columns, highest, rng.choice([0.4, 0.8]))
        expected = best_sets(weights)
        got = unique_assignment(weights)
        if len(expected) == 1:
            unique += 1
            assert got == next(iter(expected))
        else:
            several += 1
            assert got is None
    assert unique > 20
    assert several > 20 or highest > 5


@pytest.mark.parametrize("highest", [1, 2, 4])
def test_order_among_equals_is_the_official_one(highest):
    rng = np.random.default_rng(highest)
    for _ in range(60):
        rows, columns = rng.integers(1, 13, 2)
        weights = random_weights(rng, rows, columns, highest, rng.choice([0.2, 0.5, 0.9]))
        assert kuhn_munkres(weights) == literal_kuhn_munkres(weights)


def test_both_agree_where_the_optimum_is_unique():
    rng = np.random.default_rng(9)
    for _ in range(30):
        weights = random_weights(rng, 20, 15, 1_000_000, 0.2)
        assert kuhn_munkres(weights) == unique_assignment(weights)


def test_the_sum_counts_not_the_number_of_pairs():
    # One pair of weight 9 beats two of 4: row 0 keeps column 0 although row 1 has nothing else.
    assert unique_assignment(np.array([[9, 4], [4, 0]])) == ((0, 0),)


def test_weights_round_halves_up_in_float32():
    assert weights_from_iou(np.array([1.0, 0.5, 0.0], np.float32)).tolist() == [
        1_000_000,
        500_000,
        0,
    ]
    half = np.float32(0.7000005)
    assert weights_from_iou(np.array([half]))[0] == int(
        np.floor(float(half * np.float32(1e6)) + 0.5)
    )


def test_nothing_to_match():
    assert unique_assignment(np.zeros((3, 2), np.int64)) == ()
    assert kuhn_munkres(np.zeros((3, 2), np.int64)) == ()
