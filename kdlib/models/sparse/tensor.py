"""Features on active sites of a grid, and the rulebooks that layers over them share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kdlib.errors import ConfigError
from kdlib.models.sparse.rulebook import Rulebook, Triple, cell_numbers


class Rulebooks:
    """What layers over the same sites share during one forward pass, by key; it lives and dies with
    the tensors that carry it.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._claims: dict[str, tuple[object, Tensor]] = {}
        self._books: dict[str, Rulebook] = {}
        self._narrow: tuple[Tensor, Tensor] | None = None
        self.foreign: dict[str, dict[str, Any]] = {}  # the same of other backends

    def claim(self, key: str, layer: object, coords: Tensor) -> None:
        """Note what a key stands for: input sites, and all else of a layer that its rulebook
        depends on.

        Raises:
            ConfigError: If the key was used for another kernel or for other sites.
        """
        known, sites = self._claims.setdefault(key, (layer, coords))
        if known != layer:
            raise ConfigError(f"key '{key}' belongs to {known}; {layer} needs a key of its own")
        if sites is not coords and not torch.equal(sites, coords):
            raise ConfigError(
                f"key '{key}' belongs to other sites; layers behind a strided "
                "convolution need a key of their own"
            )

    def get(self, key: str, build: Callable[[], Rulebook]) -> Rulebook:
        """Return the rulebook of a claimed key, built at its first use."""
        if key not in self._books:
            self._books[key] = build()
        return self._books[key]

    def narrow(self, coords: Tensor) -> Tensor:
        """Return sites as contiguous int32, as other backends read them without a look at strides;
        the last ones are kept.
        """
        if self._narrow is None or self._narrow[0] is not coords:
            self._narrow = (coords, coords.int().contiguous())
        return self._narrow[1]


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features on the active sites of B grids."""

    features: Tensor  # (V, C)
    coords: Tensor  # (V, 4) int64 batch, z, y, x; each site once, in any order
    spatial_shape: Triple  # cells along z, y, x
    batch_size: int
    books: Rulebooks = field(default_factory=Rulebooks)

    def replace(self, features: Tensor) -> SparseTensor:
        """Return the same sites with other features (V, C')."""
        return replace(self, features=features)

    def dense(self) -> Tensor:
        """Return the grid (B, C, Z, Y, X) with zeros where no site is active."""
        channels = self.features.shape[1]
        grid = self.features.new_zeros((self.batch_size * math.prod(self.spatial_shape), channels))
        grid = grid.index_copy(0, cell_numbers(self.coords, self.spatial_shape), self.features)
        return grid.view(self.batch_size, *self.spatial_shape, channels).permute(0, 4, 1, 2, 3)

    def bev(self) -> Tensor:
        """Return the BEV map (B, C * Z, Y, X), heights among the channels: channel = c * Z + z."""
        # Channels stay the fastest axis in memory: convolutions on a CPU are half as fast again
        # that way.
        return self.dense().permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)
