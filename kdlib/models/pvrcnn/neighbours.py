"""Finds the points of one cloud around each point of another, without an N x M matrix."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_HELD = 1 << 18  # pairs tested or distances held at once on a processor: about what its cache takes
_ACCELERATED = 16  # times that elsewhere, where every part costs a start
_CELLS = 1 << 19  # per axis; three axes and a batch number fit into 63 bits
# a cell is this much wider than the radius: 32 bits round what lies exactly on its border
_SLACK = 1 + 1e-6


@dataclass(frozen=True)
class Cloud:
    """Points of some frames, in any order; only points of one frame are neighbours."""

    xyz: Tensor  # (N, 3) metres
    frame: Tensor  # (N,) int64

    def at(self, rows: Tensor) -> Cloud:
        """Return the points of these rows."""
        return Cloud(self.xyz.index_select(0, rows), self.frame.index_select(0, rows))


@dataclass(frozen=True)
class Neighbours:
    """Rows of the support around each of M queries."""

    offsets: Tensor  # (M + 1,) int64: those of query m are index[offsets[m] : offsets[m + 1]]
    index: Tensor  # (E,) int64 rows of the support, ascending within a query

    @property
    def counts(self) -> Tensor:
        """Number of neighbours of each query (M,)."""
        return self.offsets[1:] - self.offsets[:-1]


def cube_query(
    support: Cloud, queries: Cloud, radius: float, limit: int | None = None
) -> Neighbours:
    """Find the points in a cube around each query: no difference along an axis is larger than
    ``radius`` metres.

    Of each query's neighbours the ``limit`` of the lowest rows are kept; None keeps all. Time grows
    with the points in the 27 cells, one radius wide, around every query; memory with points,
    queries and neighbours.
    """
    points, centres = len(support.xyz), len(queries.xyz)
    counts, rows = queries.frame.new_zeros(centres), []
    for query, row in near_pairs(support, queries, radius):
        key = (query * points + row).sort().values  # by query, then by row: pairs come in no order
        query, row = key // points, key % points
        count = query.bincount(minlength=centres)
        if limit is not None:
            rank = torch.arange(len(query), device=query.device) - (
                count.cumsum(0) - count
            ).index_select(0, query)
            row, count = row[rank < limit], count.clamp(max=limit)
        counts += count
        rows.append(row)
    return Neighbours(
        F.pad(counts.cumsum(0), (1, 0)), torch.cat(rows) if rows else counts.new_zeros(0)
    )


def near_pairs(support: Cloud, queries: Cloud, radius: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the neighbours in a cube part by part as pairs (query, row of the support).

    Queries ascend from part to part and all pairs of a query are in one part; within a part, pairs
    are in no order to rely on.
    """
    if not len(support.xyz) or not len(queries.xyz):
        return
    order, first, last = _runs(support, queries, radius)
    points = [axis.contiguous() for axis in support.xyz.detach().index_select(0, order).t()]
    centres = [axis.contiguous() for axis in queries.xyz.detach().t()]
    lengths = last - first
    for begin, end in _parts(lengths.sum(dim=1).tolist(), _most(support.xyz)):
        # Every query has nine runs of places in the sorted support; here they are written out one
        # behind the other.
        length = lengths[begin:end].flatten()
        run = torch.arange(len(length), device=length.device).repeat_interleave(length)
        place = torch.arange(len(run), device=run.device)
        place += (first[begin:end].flatten() - length.cumsum(0) + length).index_select(0, run)
        query = run.div_(lengths.shape[1], rounding_mode="floor").add_(begin)
        x, y, z = (
            point.index_select(0, place) - centre.index_select(0, query)
            for point, centre in zip(points, centres)
        )
        near = torch.maximum(torch.maximum(x.abs_(), y.abs_()), z.abs_()) <= radius
        hits = near.nonzero()[:, 0]
        yield query.index_select(0, hits), order.index_select(0, place.index_select(0, hits))


def _runs(support: Cloud, queries: Cloud, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the support by cell and return that order (N,) and where in it the rows of 3 cells
    around each query begin and end.

    There are 9 such rows, so both are (M, 9). A cell is one radius wide, unless there were too many
    to number.
    """
    low, high = support.xyz.detach().double().aminmax(dim=0)
    side = ((high - low) / _CELLS).clamp(min=radius * _SLACK)
    size = ((high - low) / side).floor().long() + 1
    cell, centre = (
        # What is farther off than one cell has no neighbours either.
        torch.minimum(
            ((cloud.xyz.detach().double() - low) / side).floor().clamp(min=-2), (size + 1).double()
        ).long()
        for cloud in (support, queries)
    )
    keys, order = (
        ((support.frame * size[0] + cell[:, 0]) * size[1] + cell[:, 1]) * size[2] + cell[:, 2]
    ).sort(stable=True)
    steps = torch.tensor(list(itertools.product((-1, 0, 1), repeat=2)), device=support.xyz.device)
    x, y = centre[:, :1] + steps[:, 0], centre[:, 1:2] + steps[:, 1]
    bottom, top = (centre[:, 2:] - 1).clamp(min=0), torch.minimum(centre[:, 2:] + 1, size[2] - 1)
    inside = (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1]) & (bottom <= top)
    column = ((queries.frame[:, None] * size[0] + x) * size[1] + y) * size[2]
    first = torch.searchsorted(keys, column + bottom)
    last = torch.searchsorted(keys, column + top, right=True)
    return order, first, torch.where(inside, last, first)


def _most(like: Tensor) -> int:
    """Return how many pairs or distances to hold at once where a tensor lives."""
    return _HELD if like.device.type == "cpu" else _HELD * _ACCELERATED


def _parts(sizes: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield where runs of queries begin and end that have at most so many candidates together, or
    are one query.
    """
    begin = held = 0
    for number, size in enumerate(sizes):
        if number > begin and held + size > most:
            yield begin, number
            begin, held = number, 0
        held += size
    yield begin, len(sizes)


def three_nearest(
    support: Tensor, queries: Tensor, steps: tuple[Tensor, Tensor, Tensor], neighbours: Neighbours
) -> tuple[Tensor, Tensor]:
    """Find the three neighbours nearest to each of the local centres around every query.

    The centres of a query lie on a grid of their own: query + (a step in x, one in y, one in z). Of
    equally near points the first in the support counts.

    Args:
        support: (N, 3) points.
        queries: (M, 3).
        steps: Steps along x (I,), y (J,), z (L,), metres.
        neighbours: Of every query, among which to look.

    Returns:
        Rows of the support (M, V, 3), nearest first, and their distances (M, V, 3); V = I * J * L,
        x slowest, z fastest. The nearest stands in for the second and the third where they are
        missing; without any, rows are -1 and distances 0.
    """
    support, queries = support.detach(), queries.detach()
    local = math.prod(len(step) for step in steps)
    rows = torch.full((len(queries), local, 3), -1, dtype=torch.int64, device=queries.device)
    distances = queries.new_zeros((len(queries), local, 3))
    length, order = neighbours.counts.sort()
    lengths = length.tolist()
    points = [axis.contiguous() for axis in support.t()]
    for begin, end in _blocks(lengths, _most(support) // local):
        members, slots = order[begin:end], torch.arange(lengths[end - 1], device=order.device)
        place = neighbours.offsets.index_select(0, members)[:, None] + slots
        absent = slots >= length[begin:end, None]
        candidates = neighbours.index.index_select(
            0, place.clamp_(max=len(neighbours.index) - 1).flatten()
        ).view_as(place)
        squares = []
        for axis, (point, step) in enumerate(zip(points, steps)):
            centre = queries[:, axis].index_select(0, members)[:, None] + step
            square = (
                centre[:, :, None]
                - point.index_select(0, candidates.flatten()).view_as(candidates)[:, None]
            ).square_()
            squares.append(square.masked_fill_(absent[:, None], math.inf) if axis == 0 else square)
        x, y, z = squares
        squared = ((x[:, :, None] + y[:, None])[:, :, :, None] + z[:, None, None]).view(
            len(members), local, len(slots)
        )
        index, square = _three_smallest(squared)
        rows[members] = candidates.gather(1, index.flatten(1)).view_as(index)
        distances[members] = square.sqrt_()
    return rows, distances


def _blocks(lengths: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield runs of queries, ascending in their neighbours, that fit into a table of so many;
    queries without any are left out.

    All queries of a run are padded to the last one, which has the most neighbours.
    """
    begin = lengths.count(0)
    for number in range(begin + 1, len(lengths)):
        if (number + 1 - begin) * lengths[number] > most:
            yield begin, number
            begin = number
    if begin < len(lengths):
        yield begin, len(lengths)


def _three_smallest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return places and values (..., 3) of the smallest along the last axis, first places first;
    overwrites its input.

    The smallest stands in for those that are not there, which are infinite.
    """
    places, smallest = [], []
    for _ in range(3):
        places.append(values.argmin(dim=-1, keepdim=True))
        smallest.append(values.gather(-1, places[-1]))
        values.scatter_(-1, places[-1], math.inf)
    place, value = torch.cat(places, dim=-1), torch.cat(smallest, dim=-1)
    there = value < math.inf  # else none was left
    return torch.where(there, place, place[..., :1]), torch.where(there, value, value[..., :1])
