"""Which input site meets which output site under which weight of a sparse convolution."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdlib.errors import ConfigError, DataError

Triple = tuple[int, int, int]  # z, y, x


@dataclass(frozen=True)
class Geometry:
    """How a kernel lies over the grid; all triples are z, y, x."""

    kernel: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)

    def __post_init__(self) -> None:
        """Check signs."""
        if min(*self.kernel, *self.stride) < 1 or min(self.padding) < 0:
            raise ConfigError(
                f"kernel and stride must be at least 1 and padding at least 0: {self}"
            )

    @property
    def offsets(self) -> tuple[Triple, ...]:
        """Position of every weight in the kernel, in the order of its memory."""
        depth, height, width = map(range, self.kernel)
        return tuple(itertools.product(depth, height, width))

    def output_shape(self, shape: Triple) -> Triple:
        """Return the grid behind a strided convolution: floor((in + 2 p - k) / s) + 1.

        Raises:
            ConfigError: If the grid is smaller than the kernel.
        """
        z, y, x = (
            (size + 2 * p - k) // s + 1
            for size, k, s, p in zip(shape, self.kernel, self.stride, self.padding)
        )
        if min(z, y, x) < 1:
            raise ConfigError(f"a grid of {shape} cells (z, y, x) is too small for {self}")
        return z, y, x


def cell_numbers(coords: Tensor, shape: Triple) -> Tensor:
    """Return a number for each cell (V, 4) batch, z, y, x: frame by frame, level by level, row by
    row of grids of one shape.
    """
    batch, z, y, x = coords.unbind(1)
    return ((batch * shape[0] + z) * shape[1] + y) * shape[2] + x


_FEW = 1024  # output sites that are not worth a share of their own


@dataclass(frozen=True, eq=False)
class Share:
    """Output sites that meet inputs under a run of weights only."""

    rows: Tensor | None  # (n,) int64 ascending output rows; None means all, in order
    weights: slice  # the run
    table: Tensor  # (n, length of the run) int32, as in the rulebook


@dataclass(frozen=True, eq=False)
class Rulebook:
    """Which input site meets which output site under which weight; under one weight no site occurs
    twice on either side.
    """

    # (V_out, K) int32: row of the input that meets an output row under a weight, ``sites`` where
    # there is none
    table: Tensor
    sites: int  # V_in
    coords: Tensor  # (V_out, 4) int64 output sites: batch, z, y, x
    shape: Triple  # output grid
    # outputs are the inputs: whom a site meets under a weight, it is met by under the opposite
    # weight
    mirrored: bool
    planes: int = 1  # how many layers of weights lie above each other along z

    @cached_property
    def pairs(self) -> int:
        """Number of pairs of sites; a convolution multiplies pairs x Cin x Cout times."""
        return int((self.table < self.sites).sum())

    @property
    def whole(self) -> Share:
        """All output sites under all weights."""
        return Share(None, slice(0, self.table.shape[1]), self.table)

    @cached_property
    def shares(self) -> tuple[Share, ...]:
        """The output sites by the planes of the kernel, from the lowest to the highest, in which
        they meet anybody.

        What a LiDAR sees is thin: many sites have no neighbour above or none below, and a third of
        the kernel or two thirds would multiply zeros.
        """
        sites, weights = self.table.shape
        everything = self.planes - 1  # from the first plane to the last, in the numbers below
        if self.planes == 1 or sites <= _FEW:
            return (self.whole,)
        # Planes of the kernel in which a site meets anybody; sites of one first and one last plane
        # make a share.
        met = self.table.view(sites, self.planes, -1).amin(dim=2) < self.sites
        first, last = met.byte().argmax(dim=1), everything - met.flip(1).byte().argmax(dim=1)
        kind = first * self.planes + last
        few = kind.bincount() <= _FEW
        kind[few[kind]] = everything
        plane, shares = weights // self.planes, []
        for number in kind.unique().tolist():
            low, high = divmod(number, self.planes)
            run, rows = slice(low * plane, (high + 1) * plane), (kind == number).nonzero()[:, 0]
            shares.append(Share(rows, run, self.table[:, run].index_select(0, rows)))
        return tuple(shares)

    def meetings(self, weight: int) -> tuple[Tensor, Tensor]:
        """Return the input rows and the output rows, ascending, that meet under one weight."""
        column = self.table[:, weight]
        outputs = (column < self.sites).nonzero()[:, 0]
        return column[outputs], outputs


def submanifold_rulebook(
    coords: Tensor, shape: Triple, batch_size: int, geometry: Geometry
) -> Rulebook:
    """Return the meetings of a submanifold convolution: outputs are the input sites, in their
    order.

    ``coords`` are (V, 4) int64 batch, z, y, x, each site once, in any order; padding is always half
    of the kernel.

    Raises:
        ConfigError: If the kernel has an even size or a stride, or the grid has too many cells.
        DataError: If a site is outside the grid or occurs twice.
    """
    if any(size % 2 == 0 for size in geometry.kernel) or geometry.stride != (1, 1, 1):
        raise ConfigError(f"a submanifold kernel has odd sizes and stride 1, not {geometry}")
    z, y, x = (size // 2 for size in geometry.kernel)
    grid = _PaddedGrid(shape, (z, y, x), batch_size)
    keys, order = _sorted_keys(coords, grid)
    columns = _search(
        keys, keys - grid.step(z, y, x), grid, geometry.offsets[: math.prod(geometry.kernel) // 2]
    )
    # the kernel is symmetric, so the other half is this one read backwards
    opposite = columns.flip(0)
    everyone = torch.arange(len(keys), dtype=columns.dtype, device=coords.device)
    others = torch.full_like(columns, len(keys))
    for meets, column in zip(opposite, others):
        rows = (meets < len(keys)).nonzero()[:, 0]
        column.index_copy_(0, meets.index_select(0, rows).long(), rows.int())
    table = torch.cat((columns, everyone[None], others)).t().contiguous()
    if order is not None:  # from places in the order of the keys to rows, on both sides
        table = _rows(order)[table]
        table = torch.empty_like(table).index_copy_(0, order, table)
    return Rulebook(table, len(keys), coords, shape, mirrored=True, planes=geometry.kernel[0])


def strided_rulebook(
    coords: Tensor, shape: Triple, batch_size: int, geometry: Geometry
) -> Rulebook:
    """Return the meetings of an ordinary sparse convolution: a site is active where its receptive
    field holds an active input.

    Output sites ascend in batch, z, y, x, whatever the order of the inputs; arguments as in
    :func:`submanifold_rulebook`, but for any geometry.

    Raises:
        ConfigError: If the grid is smaller than the kernel or has too many cells.
        DataError: If a site is outside the grid or occurs twice.
    """
    reached = geometry.output_shape(shape)
    grid = _PaddedGrid(shape, geometry.padding, batch_size)
    keys, order = _sorted_keys(coords, grid)
    outputs = _reached(coords, shape, batch_size, geometry)
    # Where the receptive fields begin, on the padded grid.
    starts = cell_numbers(outputs * outputs.new_tensor((1, *geometry.stride)), grid.extent)
    table = _search(keys, starts, grid, geometry.offsets).t().contiguous()
    table = table if order is None else _rows(order)[table]
    return Rulebook(table, len(keys), outputs, reached, mirrored=False, planes=geometry.kernel[0])


@dataclass(frozen=True)
class _PaddedGrid:
    """Numbers the cells of B grids with their padding, so that a step out of a grid never lands on
    an active site.
    """

    shape: Triple
    border: Triple  # cells added on both sides
    batch_size: int

    @property
    def extent(self) -> Triple:
        z, y, x = (size + 2 * border for size, border in zip(self.shape, self.border))
        return z, y, x

    def step(self, z: int, y: int, x: int) -> int:
        """Return how far apart two cells' numbers are."""
        return (z * self.extent[1] + y) * self.extent[2] + x


def _sorted_keys(coords: Tensor, grid: _PaddedGrid) -> tuple[Tensor, Tensor | None]:
    """Return every site's number, ascending, and the rows in that order; None if they are in
    order.
    """
    if coords.dim() != 2 or coords.shape[1] != 4 or coords.dtype != torch.int64:
        raise DataError(
            f"sites must be (V, 4) int64 batch, z, y, x, not {tuple(coords.shape)} {coords.dtype}"
        )
    if grid.batch_size * math.prod(grid.extent) >= 1 << 62:
        raise ConfigError(
            f"a grid of {grid.shape} cells in {grid.batch_size} frames has too many cells to number"
        )
    outside = ((coords < 0) | (coords >= coords.new_tensor((grid.batch_size, *grid.shape)))).any(
        dim=1
    )
    if outside.any():
        site = coords[outside.nonzero()[0, 0]].tolist()
        raise DataError(
            f"site {site} (batch, z, y, x) is outside {grid.batch_size} frames of "
            f"{grid.shape} cells"
        )
    keys, order = cell_numbers(coords + coords.new_tensor((0, *grid.border)), grid.extent), None
    if (keys[1:] < keys[:-1]).any():
        keys, order = keys.sort()
    same = keys[1:] == keys[:-1]
    if same.any():
        place = same.nonzero()[0, 0]
        site = coords[place if order is None else order[place]].tolist()
        raise DataError(f"site {site} (batch, z, y, x) occurs twice; voxelise the points first")
    return keys, order


def _rows(order: Tensor) -> Tensor:
    """Return the row of every place in an order, and of the place behind the last the number of
    rows.
    """
    return torch.cat((order, order.new_full((1,), len(order)))).int()


def _search(keys: Tensor, starts: Tensor, grid: _PaddedGrid, offsets: tuple[Triple, ...]) -> Tensor:
    """Return (weights, V_out) int32: the place among the keys of the cell under each weight,
    len(keys) if empty.

    Keys (V_in,) ascend, as do ``starts`` (V_out,), the receptive fields' first cells; offsets of
    weights go row by row.
    """
    columns = torch.empty((len(offsets), len(starts)), dtype=torch.int32, device=keys.device)
    # place len(keys) can be looked at
    known = torch.cat((keys, keys.new_full((1,), torch.iinfo(keys.dtype).max)))
    nowhere = torch.full_like(starts, len(keys), dtype=torch.int32)
    place = hit = columns
    for weight, (z, y, x) in enumerate(offsets):
        cell = starts + grid.step(z, y, x)
        if x == 0:
            place = torch.searchsorted(keys, cell, out_int32=True)
        else:  # the next cell of the row is in the next place, if this one is there at all
            place = place + hit
        hit = known.index_select(0, place) == cell
        torch.where(hit, place, nowhere, out=columns[weight])
    return columns


def _reached(coords: Tensor, shape: Triple, batch_size: int, geometry: Geometry) -> Tensor:
    """Return the output sites, ascending: those whose receptive field holds an input, one axis
    after the other.
    """
    sizes, reached = [*shape], geometry.output_shape(shape)
    keys = cell_numbers(coords, shape)
    # One axis at a time: after each, sites are fewer by far than all meetings of a whole kernel
    # would be.
    for axis in (2, 1, 0):
        behind = math.prod(sizes[axis + 1 :])
        rest, inner = keys // behind, keys % behind
        outer, place = rest // sizes[axis], rest % sizes[axis]
        targets = []
        for offset in range(geometry.kernel[axis]):
            scaled = place + (geometry.padding[axis] - offset)
            target = scaled // geometry.stride[axis]
            meets = (
                (target * geometry.stride[axis] == scaled)
                & (target >= 0)
                & (target < reached[axis])
            )
            targets.append(((outer * reached[axis] + target) * behind + inner)[meets])
        keys = torch.cat(targets).unique()
        sizes[axis] = reached[axis]
    return torch.stack(torch.unravel_index(keys, (batch_size, *reached)), dim=1)
