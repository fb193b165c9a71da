"""Vector pooling: what surrounds a place, gathered in local voxels (spec 4.6)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.config import VectorPoolConfig
from kdlib.models.batch_norm import RowNorm
from kdlib.models.pvrcnn.interpolate import three_point
from kdlib.models.pvrcnn.neighbours import Cloud, cube_query, near_pairs, three_nearest


class RowConv(nn.Conv1d):
    """A 1x1 convolution on rows (R, Cin), not (1, Cin, R); its weight is the original's (Cout, Cin
    / groups, 1).
    """

    def __init__(self, inputs: int, outputs: int, groups: int = 1, bias: bool = False) -> None:
        """Build with the original's initial weights; those of a layer with bias, an answer, are
        left to its head.
        """
        super().__init__(inputs, outputs, 1, groups=groups, bias=bias)
        if not bias:
            nn.init.kaiming_normal_(self.weight)

    def forward(self, rows: Tensor) -> Tensor:
        """Return rows (R, Cout); groups come without bias."""
        weight = self.weight[:, :, 0]
        if self.groups == 1:
            return F.linear(rows, weight, self.bias)
        grouped = rows.view(len(rows), self.groups, weight.shape[1]).transpose(0, 1)
        mixed = torch.bmm(grouped, weight.view(self.groups, -1, weight.shape[1]).transpose(1, 2))
        return mixed.transpose(0, 1).reshape(len(rows), self.out_channels)


def row_layers(
    inputs: int,
    channels: Sequence[int],
    groups: int = 1,
    dropout: float = 0.0,
    dropped: Collection[int] = (),
) -> nn.Sequential:
    """Return convolution, BatchNorm, ReLU for each width, and Dropout behind those whose numbers
    are ``dropped``.
    """
    layers = []
    for number, outputs in enumerate(channels):
        layers += [RowConv(inputs, outputs, groups), RowNorm(outputs), nn.ReLU(inplace=True)]
        if number in dropped:
            layers.append(nn.Dropout(dropout))
        inputs = outputs
    return nn.Sequential(*layers)


class VectorPoolGroup(nn.Module):
    """One size of local voxels: a vector for each, a layer of its own for each, an MLP over all."""

    def __init__(
        self, config: VectorPoolConfig, voxels: tuple[int, int, int], radius: float
    ) -> None:
        """Build for so many voxels along x, y, z in a cube of twice the radius."""
        super().__init__()
        self.config, self.voxels, self.radius = config, voxels, radius
        count = math.prod(voxels)
        position = 9 if config.kind == "local_interpolation" else 3
        each = config.voxel_channels
        self.separate_local_aggregation_layer = row_layers(
            count * (config.reduced + position), (count * each,), groups=count
        )
        self.post_mlps = row_layers(count * each, config.group_channels)

    def forward(self, support: Cloud, features: Tensor, queries: Cloud) -> Tensor:
        """Return (M, channels of the group); features are folded already, all else as in
        :class:`VectorPool`.
        """
        gather = (
            self.interpolated if self.config.kind == "local_interpolation" else self.first_found
        )
        return self.post_mlps(
            self.separate_local_aggregation_layer(gather(support, features, queries).flatten(1))
        )

    def steps(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where the local voxels' centres lie along x, y, z, seen from the query, metres."""
        x, y, z = (
            like.new_tensor(
                [-self.radius + self.radius / n + k * (2 * self.radius / n) for k in range(n)]
            )
            for n in self.voxels
        )
        return x, y, z

    def interpolated(self, support: Cloud, features: Tensor, queries: Cloud) -> Tensor:
        """Return the vectors (M, V, reduced + 9) from the three points nearest to each voxel's
        centre.

        Points count up to a whole side of the cube away from the query, the first ``limit`` of
        them.
        """
        steps = self.steps(queries.xyz)
        around = cube_query(support, queries, 2 * self.radius, self.config.limit)
        rows, distances = three_nearest(support.xyz, queries.xyz, steps, around)
        mixed = three_point(features, rows.flatten(0, 1), distances.flatten(0, 1)).view(
            *rows.shape[:2], features.shape[1]
        )
        if not len(support.xyz):
            return F.pad(mixed, (0, 9))
        # Where the voxel's centre lies, seen from each of its three points; zeros where there is
        # none.
        centres = queries.xyz[:, None] + torch.cartesian_prod(*steps)
        points = support.xyz.index_select(0, rows.clamp(min=0).flatten()).view(*rows.shape, 3)
        offset = (centres[:, :, None] - points).flatten(2).masked_fill_(rows[:, :, :1] < 0, 0)
        return torch.cat((mixed, offset), dim=2)

    def first_found(self, support: Cloud, features: Tensor, queries: Cloud) -> Tensor:
        """Return the vectors (M, V, 3 + reduced) of the first point, in the support's order, inside
        each local voxel.

        A point on a face between two voxels belongs to the upper one, a point on the cube's own
        border to the voxel inside. If there are more voxels than ``limit``, those stay empty whose
        point comes after the first ``limit`` ones'.
        """
        rows = self.first_rows(support, queries)
        # the last row, of zeros, is nobody's
        values = F.pad(torch.cat((support.xyz, features), dim=1), (0, 0, 0, 1))
        vectors = values.index_select(0, rows.flatten()).view(*rows.shape, values.shape[1])
        vectors[:, :, :3] -= queries.xyz[:, None] * (rows < len(support.xyz))[:, :, None]
        return vectors

    def first_rows(self, support: Cloud, queries: Cloud) -> Tensor:
        """Return the row of the support that each local voxel takes, (M, V) int64, N where there is
        none.
        """
        count, none = math.prod(self.voxels), len(support.xyz)
        first = torch.full(
            (len(queries.xyz) * count,), none, dtype=torch.int64, device=queries.xyz.device
        )
        for query, row in near_pairs(support, queries, self.radius):
            # The number of a point's local voxel: its cell along x, y, z in a cube that begins one
            # radius below the query.
            voxel = query
            for axis, number in enumerate(self.voxels):
                offset = support.xyz[:, axis].index_select(0, row) - queries.xyz[
                    :, axis
                ].index_select(0, query)
                cell = (
                    ((offset + self.radius) / (2 * self.radius / number))
                    .floor_()
                    .clamp_(0, number - 1)
                )
                voxel = voxel * number + cell.long()
            # the lowest row wins, whatever order pairs come in
            first.scatter_reduce_(0, voxel, row, "amin")
        first = first.view(len(queries.xyz), count)
        if count > self.config.limit:
            last = first.sort(dim=1).values[:, self.config.limit - 1 : self.config.limit]
            first = first.masked_fill(first > last, none)
        return first


class VectorPool(nn.Module):
    """Vector pooling at several sizes of local voxels, ``VectorPoolAggregationModuleMSG`` of the
    original (spec 4.6).
    """

    def __init__(self, config: VectorPoolConfig) -> None:
        """Build; only the folded channels matter, so the support may have any multiple of them."""
        super().__init__()
        self.config = config
        for number, (voxels, radius) in enumerate(zip(config.voxels, config.radii)):
            self.add_module(f"layer_{number}", VectorPoolGroup(config, voxels, radius))
        self.msg_post_mlps = row_layers(
            3 + len(config.voxels) * config.group_channels[-1], config.channels
        )

    def forward(self, support: Cloud, features: Tensor, queries: Cloud) -> Tensor:
        """Gather what surrounds each of M queries, as (M, channels[-1]) in their precision.

        Another order of the queries gives the same rows in that order. Another order of the support
        gives the same result unless a tie or a limit decides, where the first row wins; which point
        a local voxel takes at random choice is such a tie. The result is differentiable in the
        features (N, C) of the support's points, C a multiple of ``reduced``.

        Raises:
            ValueError: If the channels cannot be folded.
        """
        reduced = self.config.reduced
        if features.shape[1] % reduced:
            raise ValueError(
                f"{features.shape[1]} channels cannot be folded into {reduced}: "
                "give a multiple of them"
            )
        xyz = queries.xyz.detach()
        queries = Cloud(xyz, queries.frame)
        support = Cloud(support.xyz.detach().to(xyz.dtype), support.frame)
        folded = (
            features.to(xyz.dtype)
            .view(len(features), features.shape[1] // reduced, reduced)
            .sum(dim=1)
        )
        groups = (
            self.get_submodule(f"layer_{number}") for number in range(len(self.config.voxels))
        )
        # metres: 16 bits place a point to half a metre
        with torch.autocast(xyz.device.type, enabled=False):
            parts = [group(support, folded, queries) for group in groups]
            return self.msg_post_mlps(torch.cat((xyz, *parts), dim=1))
