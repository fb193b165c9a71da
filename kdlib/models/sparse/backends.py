"""The choice of a backend for sparse convolution; the bridge to spconv and its Triton port."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kdlib.errors import ConfigError
from kdlib.models.sparse.tensor import SparseTensor

Backend = Literal["torch", "spconv", "spconv_triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
ENVIRONMENT = "KDLIB_SPARSE"
"""Environment variable that names the backend of a whole process."""

_log = logging.getLogger(__name__)
_said: set[str] = set()


def choose_backend(features: Tensor, asked: str | None = None) -> Backend:
    """Return the backend for features: the one asked for, else the environment's, else the fastest
    that works.

    Others than ``torch`` are chosen by themselves on an accelerator only, and not for float64: the
    processor version of spconv cannot train and is right on one thread only. The choice is logged
    once.

    Raises:
        ConfigError: If the backend asked for is unknown or not installed.
    """
    named = asked or os.environ.get(ENVIRONMENT) or None
    if named is not None:
        if named not in BACKENDS:
            raise ConfigError(f"unknown sparse backend '{named}'; there are: {', '.join(BACKENDS)}")
        if named != "torch":
            load_backend(named)
        chosen, reason = named, "as asked"
    elif features.device.type == "cpu" or features.dtype == torch.float64:
        chosen, reason = "torch", "the one for processors and float64"
    else:
        installed = next((name for name in BACKENDS[1:] if _works_on_accelerators(name)), None)
        chosen, reason = (
            installed or "torch",
            "installed" if installed else ("spconv is not installed: pip install spconv-cu118"),
        )
    line = f"sparse convolution on {features.device.type}: {chosen} ({reason})"
    if line not in _said:
        _said.add(line)
        _log.info(line)
    return chosen


def load_backend(backend: str) -> Any:
    """Return the module of a foreign backend.

    Raises:
        ConfigError: If it cannot be imported; the message says why and what to install.
    """
    package = {"spconv": "spconv-cu118", "spconv_triton": "spconv-triton"}[backend]
    try:
        return importlib.import_module(f"{backend}.pytorch")
    # OSError: a CUDA library is missing
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"sparse backend '{backend}' does not load ({error}); pip install "
            f"{package}, or use 'torch'"
        ) from error


@functools.cache
def _works_on_accelerators(backend: str) -> bool:
    try:
        load_backend(backend)
        if backend == "spconv":
            return not importlib.import_module("spconv.cppconstants").CPU_ONLY_BUILD
    except ConfigError as error:
        _log.info("%s", error)
        return False
    return True


def foreign_tensor(sites: SparseTensor, backend: Backend, reuse: str | None) -> Any:
    """Return a backend's own tensor of the same sites, with the indices of the key ``reuse`` if
    they are known.

    A strided layer of spconv refuses to see its own again.
    """
    coords = sites.books.narrow(sites.coords)
    tensor = load_backend(backend).SparseConvTensor(
        sites.features.contiguous(), coords, list(sites.spatial_shape), sites.batch_size
    )
    tensor.indice_dict = {
        key: value for key, value in sites.books.foreign.get(backend, {}).items() if key == reuse
    }
    return tensor


def our_tensor(answer: Any, sites: SparseTensor, backend: Backend, moved: bool) -> SparseTensor:
    """Return a backend's answer as a tensor of ours, rows in its order, and keep its indices for
    the next layer.

    ``moved`` says whether the sites are others than those that went in.
    """
    sites.books.foreign.setdefault(backend, {}).update(answer.indice_dict)
    features = answer.features
    if not moved:
        return sites.replace(features)
    z, y, x = (int(size) for size in answer.spatial_shape)
    return SparseTensor(features, answer.indices.long(), (z, y, x), sites.batch_size, sites.books)
