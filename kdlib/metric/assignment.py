"""A matrix of integer weights in, the maximum-weight matching out, in the official order among
equals (spec section 5).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from kdlib.types import Bool, Float32, Int64

WEIGHT_ONE = 1_000_000  # weight of IoU 1
_NOISE = 1 << 26  # one unit of weight, in units of the noise that tells equal optima apart
_SEED = 20221128

Pairs = tuple[tuple[int, int], ...]


def weights_from_iou(iou: Float32) -> Int64:
    """Return the integer weights of the official matcher: IoU times a million in float32, halves
    rounded up.
    """
    scaled = iou.astype(np.float32) * np.float32(WEIGHT_ONE)
    return np.floor(scaled.astype(np.float64) + 0.5).astype(np.int64)


def unique_assignment(weights: Int64) -> Pairs | None:
    """Return the row-column pairs of positive weight with the largest sum, or None if several sets
    reach it.

    Whether the optimum is unique is found by solving twice, the weights disturbed by a little noise
    and by its opposite: the noise adds up to less than one unit of weight, so it only chooses among
    optima, and chooses differently if there are two.

    Args:
        weights: (P, G) integers >= 0; 0 marks a pair that cannot match.
    """
    rows, columns = np.nonzero(weights)
    if len(rows) == 0:
        return ()
    if np.bincount(rows).max() == 1 and np.bincount(columns).max() == 1:
        return tuple(zip(rows.tolist(), columns.tolist()))
    limit = _NOISE // (2 * min(weights.shape) + 2)
    noise = np.zeros(weights.shape, np.int64)
    noise[rows, columns] = np.random.default_rng(_SEED).integers(1, limit, len(rows))
    up = _solve(weights * _NOISE + noise)
    return up if up == _solve(weights * _NOISE - noise) else None


def _solve(weights: Int64) -> Pairs:
    rows, columns = linear_sum_assignment(weights.astype(np.float64), maximize=True)
    return tuple((r, c) for r, c in zip(rows.tolist(), columns.tolist()) if weights[r, c] > 0)


def kuhn_munkres(weights: Int64) -> Pairs:
    """Return the official tool's choice among all maximum-weight matchings, as row-column pairs of
    positive weight.

    Where weights are equal the order in which trees grow decides: rows are roots in ascending
    order; the tree's tight columns are listed row by row (in the order the rows joined), ascending;
    always the first listed column outside the tree joins.

    Args:
        weights: (P, G) integers >= 0, rows are predictions and columns ground truth, both in input
            order.
    """
    size = max(weights.shape)
    padded = np.zeros((size, size), np.int64)
    padded[: weights.shape[0], : weights.shape[1]] = weights
    labelling = _Labelling(padded)
    for root in range(size):
        labelling.match_row(root)
    return tuple(
        sorted((r, c) for c, r in enumerate(labelling.row_of.tolist()) if padded[r, c] > 0)
    )


class _Labelling:
    """Dual labels of rows and columns, and the matching of tight pairs found so far."""

    def __init__(self, weights: Int64) -> None:
        # Row label minus weight; a pair is tight where this plus the column's label is zero.
        self.excess = weights.max(axis=1, keepdims=True, initial=0) - weights
        self.column_label = np.zeros(len(weights), np.int64)
        self.row_of = np.full(len(weights), -1, np.int64)  # matched row of each column
        self.column_of = np.full(len(weights), -1, np.int64)

    def match_row(self, root: int) -> None:
        """Grow the alternating tree of one root until a free column joins, then flip the path back
        to the root.

        Listed columns that are matched only ever list further columns behind them, so the first
        free one listed is the one that will join: a whole generation of columns joins at once, as
        long as none of it is free.
        """
        rows = np.array([root])
        inside = np.zeros(len(self.row_of), np.bool_)  # columns of the tree
        # row that listed the column first, -1: not listed
        parent = np.full(len(self.row_of), -1, np.int64)
        queue = self._list_columns(rows, parent)
        while True:
            free = (self.row_of[queue] < 0).nonzero()[0]
            if len(free):
                self._flip(parent, queue[free[0]])
                return
            inside[queue] = True
            joined = self.row_of[queue]
            rows = np.concatenate((rows, joined))
            queue = self._list_columns(joined, parent) if len(joined) else joined
            if len(queue) == 0:
                self._relabel(rows, inside)
                parent.fill(-1)
                queue = self._list_columns(rows, parent)
                queue = queue[~inside[queue]]

    def _relabel(self, rows: Int64, columns: Bool) -> None:
        """Lower the tree's rows and raise its columns until one more column is tight."""
        step = (self.excess[rows].min(axis=0) + self.column_label)[~columns].min()
        self.excess[rows] -= step
        self.column_label[columns] += step

    def _list_columns(self, rows: Int64, parent: Int64) -> Int64:
        """Return the rows' tight columns without a parent, row by row and ascending, and note which
        row lists each first.
        """
        tight = (self.excess[rows] + self.column_label == 0) & (parent < 0)
        listed = tight.any(axis=0).nonzero()[0]
        lister = tight.argmax(axis=0)[listed]
        parent[listed] = rows[lister]
        return listed[lister.argsort(kind="stable")]

    def _flip(self, parent: Int64, column: int) -> None:
        while column >= 0:
            row = parent[column]
            previous = self.column_of[row]
            self.row_of[column], self.column_of[row] = row, column
            column = previous
