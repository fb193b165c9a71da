"""The two sparse convolution layers; kernels are (Cout, kz, ky, kx, Cin) whatever the backend."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from kdlib.errors import ConfigError
from kdlib.models.sparse.backends import (
    Backend,
    choose_backend,
    foreign_tensor,
    load_backend,
    our_tensor,
)
from kdlib.models.sparse.gather import convolve
from kdlib.models.sparse.rulebook import (
    Geometry,
    Rulebook,
    Triple,
    strided_rulebook,
    submanifold_rulebook,
)
from kdlib.models.sparse.tensor import SparseTensor


def _triple(value: int | Triple) -> Triple:
    return (value, value, value) if isinstance(value, int) else value


class SparseConvolution(nn.Module):
    """What both layers share: weights, choice of backend, bookkeeping."""

    submanifold = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple = 3,
        *,
        stride: int | Triple = 1,
        padding: int | Triple = 0,
        bias: bool = False,
        key: str,
    ) -> None:
        """Draw fresh weights as spconv does: uniform in +-1 / sqrt(fan in) (spec 4.1).

        Layers of one key over the same sites share their rulebook.
        """
        super().__init__()
        self.in_channels, self.out_channels, self.key = in_channels, out_channels, key
        self.geometry = Geometry(_triple(kernel_size), _triple(stride), _triple(padding))
        self.sparse_backend: Backend | None = None  # see use_backend
        bound = 1 / math.sqrt(in_channels * math.prod(self.geometry.kernel))
        weight = torch.empty(out_channels, *self.geometry.kernel, in_channels)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound))
        self.bias = (
            nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound)) if bias else None
        )

    def rulebook(self, sites: SparseTensor) -> Rulebook:
        """Return the pairs of sites this layer connects, shared with all layers of its key."""
        self._claim(sites)
        build = submanifold_rulebook if self.submanifold else strided_rulebook
        return sites.books.get(
            self.key,
            lambda: build(sites.coords, sites.spatial_shape, sites.batch_size, self.geometry),
        )

    def _claim(self, sites: SparseTensor) -> None:
        kind = "submanifold" if self.submanifold else "strided"
        sites.books.claim(
            self.key, (kind, self.geometry, sites.spatial_shape, sites.batch_size), sites.coords
        )

    def forward(self, sites: SparseTensor) -> SparseTensor:
        """Convolve.

        Raises:
            ConfigError: If the features have another number of channels, or the key is used for two
                geometries.
            DataError: If a site is outside the grid or occurs twice.
        """
        expected, given = (len(sites.coords), self.in_channels), tuple(sites.features.shape)
        if given != expected:
            raise ConfigError(
                f"{expected[0]} sites and {expected[1]} input channels, but "
                f"features of shape {given}"
            )
        backend = choose_backend(sites.features, self.sparse_backend)
        if backend != "torch":
            self._claim(sites)
            answer = self.twin(backend)(
                foreign_tensor(sites, backend, reuse=self.key if self.submanifold else None)
            )
            return our_tensor(answer, sites, backend, moved=not self.submanifold)
        book = self.rulebook(sites)
        features = convolve(sites.features, self.weight.flatten(1, 3), book)
        if self.bias is not None:
            features = features + self.bias.to(features.dtype)
        return SparseTensor(features, book.coords, book.shape, sites.batch_size, sites.books)

    def twin(self, backend: Backend) -> Any:
        """Return the backend's layer over this layer's own parameters; it owns nothing and is in no
        state dict.
        """
        module, shape = load_backend(backend), self.geometry
        kind = module.SubMConv3d if self.submanifold else module.SparseConv3d
        padding = tuple(size // 2 for size in shape.kernel) if self.submanifold else shape.padding
        # spconv built for CUDA would take an algorithm that only runs there.
        settings = {"algo": module.ConvAlgo.Native} if self.weight.device.type == "cpu" else {}
        with torch.device("meta"):  # its own weights are replaced at once
            twin = kind(
                self.in_channels,
                self.out_channels,
                shape.kernel,
                stride=shape.stride,
                padding=padding,
                bias=self.bias is not None,
                indice_key=self.key,
                **settings,
            )
        twin.weight = self.weight
        if self.bias is not None:
            twin.bias = self.bias
        # In evaluation mode spconv fuses the bias into its kernel, which its processor version
        # cannot; the sums are the same.
        return twin.train()


class SubmConv3d(SparseConvolution):
    """A submanifold convolution: outputs exist where inputs do, so nothing spreads; it has stride
    1, and no padding counts.
    """

    submanifold = True


class SparseConv3d(SparseConvolution):
    """A strided sparse convolution: outputs exist where the receptive field holds an input."""


def use_backend(model: nn.Module, backend: Backend | None) -> None:
    """Make every sparse convolution of a model use a backend; None chooses by device again.

    Raises:
        ConfigError: If the backend is unknown or not installed.
    """
    if backend is not None:
        choose_backend(torch.empty(0), backend)
    for module in model.modules():
        if isinstance(module, SparseConvolution):
            module.sparse_backend = backend
