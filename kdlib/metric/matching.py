"""Candidate pairs and scores in, the official matching at every score cutoff out (metric spec
section 5).

The matching is redone for each cutoff, but it only changes where a prediction joins, and only
within the connected component of candidate pairs that the prediction belongs to. So each component
is followed from the strictest cutoff to the loosest one: stars (one ground truth and its
predictions, or the reverse; nearly all components) in one vectorised pass over all frames, the rest
one by one. Where the optimum is not unique, the official order among equals depends on the whole
shard, which is then solved whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from kdlib.metric.assignment import kuhn_munkres, unique_assignment, weights_from_iou
from kdlib.metric.iou import Candidates
from kdlib.metric.objects import Rows
from kdlib.types import Bool, Int64

_BITS = 20  # a weight is at most 1,000,000 < 2 ** 20


@dataclass(frozen=True)
class Matches(Rows):
    """Matched pairs; pair i holds at the cutoffs ``low[i] <= c < high[i]``. A prediction has at
    most one pair at a cutoff.
    """

    prediction: Int64  # (K,)
    truth: Int64  # (K,)
    low: Int64  # (K,) positions in the cutoffs
    high: Int64  # (K,)


_Match = tuple[int, int, int, int]  # a row of Matches


@dataclass(frozen=True)
class _Edges(Rows):
    """Candidate pairs sorted by component, then by falling level (so: in the order in which falling
    cutoffs admit them).
    """

    prediction: Int64
    truth: Int64
    weight: Int64
    level: Int64  # of the prediction
    component: Int64  # ascending
    star: Bool


def match_boxes(
    candidates: Candidates, level: Int64, prediction_shard: Int64, truth_shard: Int64
) -> Matches:
    """Return all matches of many shards at all cutoffs.

    Args:
        candidates: Pairs whose IoU reaches the threshold; both members are in the same shard.
        level: (P,) number of cutoffs the prediction's score reaches: it takes part at cutoffs
            ``c < level``.
        prediction_shard: (P,) shard of each prediction, unique per frame and breakdown.
        truth_shard: (G,) shard of each ground truth.
    """
    edges = _sorted_edges(candidates, level)
    ties = _Ties(edges, level, prediction_shard, truth_shard)
    return Matches.joined(
        [
            _match_stars(edges.take(edges.star), ties),
            _match_meshes(edges.take(~edges.star), ties),
            ties.resolve(),
        ]
    )


def _sorted_edges(candidates: Candidates, level: Int64) -> _Edges:
    rows, row = np.unique(candidates.prediction, return_inverse=True)
    columns, column = np.unique(candidates.truth, return_inverse=True)
    nodes = len(rows) + len(columns)
    graph = coo_matrix(
        (np.ones(len(row), np.int8), (row, column + len(rows))), shape=(nodes, nodes)
    )
    count, label = connected_components(graph, directed=False)
    label = label.astype(np.int64)
    fewest = np.minimum(
        np.bincount(label[: len(rows)], minlength=count),
        np.bincount(label[len(rows) :], minlength=count),
    )
    component, edge_level = label[row], level[candidates.prediction]
    order = np.lexsort((-edge_level, component))
    edges = _Edges(
        candidates.prediction,
        candidates.truth,
        weights_from_iou(candidates.iou),
        edge_level,
        component,
        fewest[component] == 1,
    )
    return edges.take(order)


def _match_stars(edges: _Edges, ties: _Ties) -> Matches:
    """In a star the heaviest admitted pair wins: a running maximum along each component."""
    position = np.arange(len(edges.weight))
    first = np.diff(edges.component, prepend=-1) > 0
    # One maximum.accumulate serves all components: a later component beats everything before it.
    rank = (np.cumsum(first) << _BITS) | edges.weight
    best = np.maximum.accumulate(rank)
    before = np.append(0, best)[:-1]
    rises = first | (best > before)
    winner = np.maximum.accumulate(np.where(rises, position, 0))
    equal = ~rises & (rank == before)
    tied = np.maximum.accumulate(np.where(equal, position, -1)) > winner
    # The state after edge i holds until the next edge is admitted; the last one's until the loosest
    # cutoff.
    low = np.append(np.where(first, 0, edges.level), 0)[1:]
    holds = low < edges.level
    for i in np.flatnonzero(holds & tied):
        members = (
            edges.prediction[winner[i] : i + 1]
            if edges.truth[winner[i]] == edges.truth[i]
            else edges.prediction[i : i + 1]
        )
        ties.add(members, low[i], edges.level[i])
    settled = np.flatnonzero(holds & ~tied)
    won = winner[settled]
    return Matches(edges.prediction[won], edges.truth[won], low[settled], edges.level[settled])


def _match_meshes(edges: _Edges, ties: _Ties) -> Matches:
    """Components with several predictions and several ground truths: one small assignment per
    admission.
    """
    matched = []
    borders = np.flatnonzero(np.diff(edges.component)) + 1
    for start, stop in pairwise([0, *borders.tolist(), len(edges.component)]):
        mesh = edges.take(slice(start, stop))
        rows, columns = np.unique(mesh.prediction), np.unique(mesh.truth)
        weights = _weights(mesh, rows, columns)
        level = ties.level[rows]
        for low, high in pairwise(sorted({0, *level.tolist()})):
            active = np.flatnonzero(level >= high)
            pairs = unique_assignment(weights[active])
            if pairs is None:
                ties.add(rows[active], low, high)
            else:
                matched += [(rows[active[r]], columns[c], low, high) for r, c in pairs]
    return _as_matches(matched)


def _weights(edges: _Edges, rows: Int64, columns: Int64) -> Int64:
    """Return the edges' weights as a matrix of some predictions and ground truths, both
    ascending.
    """
    weights = np.zeros((len(rows), len(columns)), np.int64)
    weights[np.searchsorted(rows, edges.prediction), np.searchsorted(columns, edges.truth)] = (
        edges.weight
    )
    return weights


def _as_matches(matched: list[_Match]) -> Matches:
    return Matches(*np.array(matched, np.int64).reshape(-1, 4).T)


@dataclass
class _Ties:
    """Predictions whose partner depends on the official order among equals, and the whole shards to
    find it with.
    """

    edges: _Edges
    level: Int64
    prediction_shard: Int64
    truth_shard: Int64
    waiting: list[tuple[Int64, int, int]] = field(default_factory=list)
    solved: dict[tuple[int, int], dict[int, int]] = field(default_factory=dict)

    def add(self, predictions: Int64, low: int, high: int) -> None:
        """Leave the partners of some predictions of one component at cutoffs ``low <= c < high`` to
        the whole shard.
        """
        self.waiting.append((predictions, low, high))

    def resolve(self) -> Matches:
        matched = []
        for predictions, low, high in self.waiting:
            shard = self.prediction_shard[predictions[0]]
            members = np.flatnonzero(self.prediction_shard == shard)
            level = self.level[members]
            for begin, end in pairwise(
                sorted({low, high, *level[(level > low) & (level < high)].tolist()})
            ):
                partner = self._solve(shard, members[level >= end], end)
                matched += [
                    (p, partner[p], begin, end) for p in predictions.tolist() if p in partner
                ]
        return _as_matches(matched)

    def _solve(self, shard: int, rows: Int64, step: int) -> dict[int, int]:
        """Return each matched prediction's ground truth when exactly ``rows`` of the shard take
        part.
        """
        if (shard, step) not in self.solved:
            columns = np.flatnonzero(self.truth_shard == shard)
            weights = _weights(self.edges.take(np.isin(self.edges.prediction, rows)), rows, columns)
            self.solved[shard, step] = {rows[r]: columns[c] for r, c in kuhn_munkres(weights)}
        return self.solved[shard, step]
