"""Two clouds in, which points of the one lie around each point of the other out; cells sorted by number, no N x M matrix."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Batches = tuple[Tensor | None, Tensor | None]  # frame of each point and of each query, None if there is one frame only

_HELD = 1 << 18  # pairs tested or distances held at once on a processor: about what its cache takes
_ACCELERATED = 16  # times that elsewhere, where every part costs a start
_CELLS = 1 << 19  # per axis; three axes and a batch number fit into 63 bits
_SLACK = 1 + 1e-6  # a cell is this much wider than the radius: 32 bits round what lies exactly on its border


@dataclass(frozen=True)
class Neighbours:
    """Rows of the support around each of M queries."""

    offsets: Tensor  # (M + 1,) int64: those of query m are index[offsets[m] : offsets[m + 1]]
    index: Tensor  # (E,) int64 rows of the support, ascending within a query

    @property
    def counts(self) -> Tensor:
        """Number of neighbours of each query (M,)."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def query(self) -> Tensor:
        """The query of each neighbour (E,), ascending."""
        return torch.arange(len(self.offsets) - 1, device=self.index.device).repeat_interleave(self.counts)


def cube_query(
    support: Tensor,
    queries: Tensor,
    radius: float,
    limit: int | None = None,
    support_batch: Tensor | None = None,
    query_batch: Tensor | None = None,
) -> Neighbours:
    """Find the points in a cube around each query: none of the three differences is larger than the radius.

    Memory: some 200 bytes for each of 2^18 tested pairs (2^22 on an accelerator; or one query's, if it alone has more), 16 bytes
    for each neighbour found, 500 for each query, 100 for each point. Time grows with the points in the 27 cells, one radius wide,
    around every query.

    Args:
        support: (N, 3) points, in any order.
        queries: (M, 3) centres.
        radius: Half the cube's side, borders included, metres.
        limit: Neighbours kept of each query, those of the lowest rows; None keeps all.
        support_batch: (N,) int64 frame of each point; only points of a query's frame are neighbours.
        query_batch: (M,) int64, with ``support_batch``.
    """
    return _query(support, queries, radius, limit, (support_batch, query_batch), ball=False)


def ball_query(
    support: Tensor,
    queries: Tensor,
    radius: float,
    limit: int | None = None,
    support_batch: Tensor | None = None,
    query_batch: Tensor | None = None,
) -> Neighbours:
    """Find the points in a ball around each query, its surface included; all else as :func:`cube_query`."""
    return _query(support, queries, radius, limit, (support_batch, query_batch), ball=True)


def near_pairs(
    support: Tensor,
    queries: Tensor,
    radius: float,
    batches: Batches = (None, None),
    ball: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the neighbours part by part as pairs (query, row of the support).

    Queries ascend from part to part and all pairs of a query are in one part; within a part, pairs are in no order to rely on.
    """
    support, queries = support.detach(), queries.detach()
    if not len(support) or not len(queries):
        return
    order, first, last = _runs(support, queries, radius, batches)
    points = [axis.contiguous() for axis in support.index_select(0, order).t()]
    centres = [axis.contiguous() for axis in queries.t()]
    lengths = last - first
    for begin, end in _parts(lengths.sum(dim=1).tolist(), _most(support)):
        length = lengths[begin:end].flatten()
        run = torch.arange(len(length), device=length.device).repeat_interleave(length)
        place = torch.arange(len(run), device=run.device)
        place += (first[begin:end].flatten() - length.cumsum(0) + length).index_select(0, run)
        query = run.div_(lengths.shape[1], rounding_mode="floor").add_(begin)
        axes = (point.index_select(0, place) - centre.index_select(0, query) for point, centre in zip(points, centres))
        if ball:
            x, y, z = axes
            near = x.square_().add_(y.square_()).add_(z.square_()) <= radius * radius
        else:
            x, y, z = axes
            near = torch.maximum(torch.maximum(x.abs_(), y.abs_()), z.abs_()) <= radius
        hits = near.nonzero()[:, 0]
        yield query.index_select(0, hits), order.index_select(0, place.index_select(0, hits))


def _query(support: Tensor, queries: Tensor, radius: float, limit: int | None, batches: Batches, ball: bool) -> Neighbours:
    counts, found = queries.new_zeros(len(queries), dtype=torch.int64), []
    for query, row in near_pairs(support, queries, radius, batches, ball):
        key = (query * len(support) + row).sort().values
        query, row = key.div(len(support), rounding_mode="floor"), key % len(support)
        count = query.bincount(minlength=len(queries))
        if limit is not None:
            rank = torch.arange(len(query), device=query.device) - (count.cumsum(0) - count).index_select(0, query)
            row, count = row[rank < limit], count.clamp(max=limit)
        counts += count
        found.append(row)
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return Neighbours(offsets, torch.cat(found) if found else counts.new_zeros(0))


def _runs(support: Tensor, queries: Tensor, radius: float, batches: Batches) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the support by cell and return that order (N,) and where in it the 9 rows of 3 cells around each query begin and end.

    Args:
        support: (N, 3), N > 0.
        queries: (M, 3).
        radius: Side of a cell, unless there were too many to number.
        batches: Frame of every point and every query, or None.

    Returns:
        (N,), (M, 9), (M, 9).
    """
    low, high = support.double().aminmax(dim=0)
    side = ((high - low) / _CELLS).clamp(min=radius * _SLACK)
    size = ((high - low) / side).floor().long() + 1
    numbers = []
    for points, batch in zip((support, queries), batches):
        cell = ((points.double() - low) / side).floor()
        cell = torch.minimum(cell.clamp(min=-2), (size + 1).double()).long()  # what is farther off has no neighbours either
        numbers.append((cell, torch.zeros_like(cell[:, 0]) if batch is None else batch))
    (cell, frame), (centre, frame_of_query) = numbers
    keys, order = (((frame * size[0] + cell[:, 0]) * size[1] + cell[:, 1]) * size[2] + cell[:, 2]).sort(stable=True)
    steps = torch.tensor(list(itertools.product((-1, 0, 1), repeat=2)), device=support.device)
    x, y = centre[:, :1] + steps[:, 0], centre[:, 1:2] + steps[:, 1]
    bottom, top = (centre[:, 2:] - 1).clamp(min=0), torch.minimum(centre[:, 2:] + 1, size[2] - 1)
    inside = (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1]) & (bottom <= top)
    column = ((frame_of_query[:, None] * size[0] + x) * size[1] + y) * size[2]
    first = torch.searchsorted(keys, column + bottom)
    last = torch.searchsorted(keys, column + top, right=True)
    return order, first, torch.where(inside, last, first)


def _most(like: Tensor) -> int:
    """Return how many pairs or distances to hold at once where a tensor lives."""
    return _HELD if like.device.type == "cpu" else _HELD * _ACCELERATED


def _parts(sizes: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield where runs of queries begin and end that have at most so many candidates together, or are one query."""
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

    The centres of a query lie on a grid of their own: query + (a step in x, one in y, one in z). Of equally near points the first
    in the support counts. Memory: 2^18 distances at once (2^22 on an accelerator), or those of one query.

    Args:
        support: (N, 3) points.
        queries: (M, 3).
        steps: Steps along x (I,), y (J,), z (L,), metres.
        neighbours: Of every query, among which to look.

    Returns:
        Rows of the support (M, V, 3) int64, nearest first, and their distances (M, V, 3); V = I * J * L, x slowest, z fastest.
        Where a query has fewer than three neighbours the nearest stands in for the missing ones; where it has none, rows are -1
        and distances 0.
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
        candidates = neighbours.index.index_select(0, place.clamp_(max=len(neighbours.index) - 1).flatten()).view_as(place)
        squares = []
        for axis, (point, step) in enumerate(zip(points, steps)):
            centre = queries[:, axis].index_select(0, members)[:, None] + step
            square = (centre[:, :, None] - point.index_select(0, candidates.flatten()).view_as(candidates)[:, None]).square_()
            squares.append(square.masked_fill_(absent[:, None], math.inf) if axis == 0 else square)
        x, y, z = squares
        squared = ((x[:, :, None] + y[:, None])[:, :, :, None] + z[:, None, None]).view(len(members), local, len(slots))
        index, square = _three_smallest(squared)
        rows[members] = candidates.gather(1, index.flatten(1)).view_as(index)
        distances[members] = square.sqrt_()
    return rows, distances


def _blocks(lengths: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield runs of queries, ascending in their neighbours, that fit into a table of so many; queries without any are left out.

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
    """Return places and values (..., 3) of the smallest along the last axis, first places first; overwrites its input."""
    places: list[Tensor] = []
    found: list[Tensor] = []
    for number in range(3):
        place = values.argmin(dim=-1, keepdim=True)
        value = values.gather(-1, place)
        if number:  # infinite: none is left
            place, value = torch.where(value < math.inf, place, places[0]), torch.where(value < math.inf, value, found[0])
        places.append(place)
        found.append(value)
        if number < 2:
            values.scatter_(-1, place, math.inf)
    return torch.cat(places, dim=-1), torch.cat(found, dim=-1)
