"""Sparse tensors in and out: the two convolution layers; kernels are (Cout, kz, ky, kx, Cin) whatever the backend."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from kdlib.errors import ConfigError
from kdlib.models.sparse.backends import Backend, choose_backend, foreign_tensor, load_backend, our_tensor
from kdlib.models.sparse.gather import convolve
from kdlib.models.sparse.rulebook import Geometry, Rulebook, Triple, strided_rulebook, submanifold_rulebook
from kdlib.models.sparse.tensor import SparseTensor


def _triple(value: int | Triple) -> Triple:
    return (value, value, value) if isinstance(value, int) else value


class SparseConvolution(nn.Module):
    """What both layers share: weights, choice of backend, bookkeeping."""

    submanifold = False

    def __init__(self, inputs: int, outputs: int, geometry: Geometry, bias: bool, key: str, backend: Backend | None) -> None:
        """Draw fresh weights as spconv does: uniform in +-1 / sqrt(fan in) (spec 4.1)."""
        super().__init__()
        self.in_channels, self.out_channels, self.geometry, self.key = inputs, outputs, geometry, key
        self.sparse_backend: Backend | None = backend
        bound = 1 / math.sqrt(inputs * math.prod(geometry.kernel))
        self.weight = nn.Parameter(torch.empty(outputs, *geometry.kernel, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None

    def extra_repr(self) -> str:
        """Return channels, geometry and key."""
        return f"{self.in_channels}, {self.out_channels}, {self.geometry}, key='{self.key}'"

    def rulebook(self, sites: SparseTensor) -> Rulebook:
        """Return the pairs of sites this layer connects, shared with all layers of its key."""
        self._claim(sites)
        build = submanifold_rulebook if self.submanifold else strided_rulebook
        return sites.books.get(self.key, lambda: build(sites.coords, sites.spatial_shape, sites.batch_size, self.geometry))

    def _claim(self, sites: SparseTensor) -> None:
        kind = "submanifold" if self.submanifold else "strided"
        sites.books.claim(self.key, (kind, self.geometry, sites.spatial_shape, sites.batch_size), sites.coords)

    def forward(self, sites: SparseTensor) -> SparseTensor:
        """Convolve.

        Raises:
            ConfigError: If the features have another number of channels, or the key is used for two geometries.
            DataError: If a site is outside the grid or occurs twice.
        """
        if sites.features.shape != (len(sites.coords), self.in_channels):
            found = tuple(sites.features.shape)
            raise ConfigError(f"{len(sites.coords)} sites and {self.in_channels} input channels, but features of shape {found}")
        backend = choose_backend(sites.features, self.sparse_backend)
        if backend != "torch":
            self._claim(sites)
            answer = self.twin(backend)(foreign_tensor(sites, backend, reuse=self.key if self.submanifold else None))
            return our_tensor(answer, sites, backend, moved=not self.submanifold)
        book = self.rulebook(sites)
        features = convolve(sites.features, self.weight.flatten(1, 3), book)
        if self.bias is not None:
            features = features + self.bias.to(features.dtype)
        return SparseTensor(features, book.coords, book.shape, sites.batch_size, sites.books)

    def twin(self, backend: Backend) -> Any:
        """Return the backend's layer over this layer's own parameters; it owns nothing and is in no state dict."""
        module, shape = load_backend(backend), self.geometry
        kind = module.SubMConv3d if self.submanifold else module.SparseConv3d
        settings: dict[str, Any] = {"padding": tuple((k // 2) * d for k, d in zip(shape.kernel, shape.dilation))}
        if not self.submanifold:
            settings = {"stride": shape.stride, "padding": shape.padding}
        if self.weight.device.type == "cpu":  # spconv built for CUDA would take an algorithm that only runs there
            settings["algo"] = module.ConvAlgo.Native
        with torch.device("meta"):  # its own weights are replaced at once
            twin = kind(
                self.in_channels,
                self.out_channels,
                shape.kernel,
                dilation=shape.dilation,
                bias=self.bias is not None,
                indice_key=self.key,
                **settings,
            )
        twin.weight = self.weight
        if self.bias is not None:
            twin.bias = self.bias
        # In evaluation mode spconv fuses the bias into its kernel, which its processor version cannot; the sums are the same.
        return twin.train()


class SubmConv3d(SparseConvolution):
    """A submanifold convolution: outputs exist where inputs do, so nothing spreads."""

    submanifold = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple = 3,
        *,
        dilation: int | Triple = 1,
        bias: bool = False,
        key: str,
        backend: Backend | None = None,
    ) -> None:
        """Build with fresh weights; layers of one key over the same sites share their rulebook."""
        geometry = Geometry(_triple(kernel_size), dilation=_triple(dilation))
        super().__init__(in_channels, out_channels, geometry, bias, key, backend)


class SparseConv3d(SparseConvolution):
    """A strided sparse convolution: outputs exist where the receptive field holds an input."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple = 3,
        *,
        stride: int | Triple = 1,
        padding: int | Triple = 0,
        dilation: int | Triple = 1,
        bias: bool = False,
        key: str,
        backend: Backend | None = None,
    ) -> None:
        """Build with fresh weights."""
        geometry = Geometry(_triple(kernel_size), _triple(stride), _triple(padding), _triple(dilation))
        super().__init__(in_channels, out_channels, geometry, bias, key, backend)


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
