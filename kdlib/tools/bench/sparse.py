"""A simulated full-size sweep in; the speed of an encoder's sparse convolutions on a processor, beside spconv's wheel, out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kdlib import zoo
from kdlib.data.collate import collate
from kdlib.errors import ConfigError
from kdlib.models.build import build
from kdlib.models.sparse import SparseConvolution, SparseTensor
from kdlib.models.sparse.backends import load_backend
from kdlib.profiling.sweep import simulated_sweeps
from kdlib.tools.bench.measurements import Benchmark, Measurement
from kdlib.tools.own_process import peak_bytes

SPARSE_AGREEMENT = 1e-4  # of any output of the last layer, where values are about one


def encoder_input(model: str) -> tuple[SparseTensor, list[SparseConvolution]]:
    """Return a voxelised simulated sweep and a published encoder's sparse convolutions, in order, with fresh weights.

    Raises:
        ConfigError: If the model has no sparse convolutions.
    """
    torch.manual_seed(0)
    network = build(zoo.model(model)).eval()
    layers = [layer for layer in network.modules() if isinstance(layer, SparseConvolution)]
    if not layers or network.backbone_3d is None:
        raise ConfigError(f"{model} has no sparse convolutions; take cp_voxel, cp_voxel_s, cp_voxel_xs, cp_voxel_xxs or second")
    with torch.no_grad():
        voxels = network.voxelize(collate(simulated_sweeps(1)).points)
        features = network.vfe(voxels)
        sites = network.backbone_3d.sites((features - features.mean(dim=0)) / features.std(dim=0).clamp(min=1e-3), voxels)
        _scale(sites, layers)
    return sites, layers


def _scale(sites: SparseTensor, layers: list[SparseConvolution]) -> None:
    """Give every layer's output a mean square of one, as the normalisation of a trained encoder does."""
    for layer in layers:
        layer.sparse_backend = "torch"
        size = layer(sites).features.square().mean().sqrt()
        for parameter in layer.parameters():
            parameter.div_(size)
        sites = layer(sites)
        sites = sites.replace(torch.relu(sites.features))


def ours(sites: SparseTensor, layers: list[SparseConvolution]) -> SparseTensor:
    """Run the layers with the torch backend and a ReLU behind each; rulebooks are made anew."""
    sites = SparseTensor(sites.features, sites.coords, sites.spatial_shape, sites.batch_size)
    for layer in layers:
        sites = layer(sites)
        sites = sites.replace(torch.relu(sites.features))
    return sites


def wheel(sites: SparseTensor, twins: list[Any]) -> Any:
    """Run the same with spconv's own layers and tensors."""
    shape = list(sites.spatial_shape)
    tensor = load_backend("spconv").SparseConvTensor(sites.features, sites.books.narrow(sites.coords), shape, sites.batch_size)
    for layer in twins:
        tensor = layer(tensor)
        tensor = tensor.replace_feature(torch.relu(tensor.features))
    return tensor


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give torch a number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(work: Callable[[], Any], warm_up: bool = False) -> tuple[float, Any]:
    if warm_up:  # whoever ran before had another number of threads and other things in the caches
        work()
    start = time.perf_counter()
    answer = work()
    return 1000 * (time.perf_counter() - start), answer


def _training(sites: SparseTensor, layers: list[SparseConvolution]) -> tuple[float, float]:
    """Return the milliseconds of the backward pass alone and the memory both passes add, in MB."""
    before = peak_bytes()
    answer = ours(sites, layers).features.square().mean()
    backward, _ = _timed(answer.backward)
    for layer in layers:
        layer.zero_grad()
    return backward, (peak_bytes() - before) / 1e6


def bench_sparse(model: str = "cp_voxel", rounds: int = 5) -> Benchmark:
    """Time our forward and backward pass and the forward pass of spconv's wheel, in turns in one process; best rounds count.

    The wheel gets one thread, with more it loses rows; ours gets torch's. Both include finding the pairs of sites. Without the
    wheel (``pip install spconv==2.3.8``) ours is measured alone.

    Raises:
        ConfigError: If the model has no sparse convolutions.
    """
    from kdlib.profiling.hardware import hardware_card

    sites, layers = encoder_input(model)
    backward, memory = _training(sites, layers)
    backward = min([backward, *(_training(sites, layers)[0] for _ in range(rounds - 1))])
    twins, notes = _twins(layers)
    many, one, theirs = [], [], []
    same = 0
    with torch.inference_mode():
        first = ours(sites, layers)
        for _ in range(rounds):
            taken, answer = _timed(lambda: ours(sites, layers), warm_up=True)
            many.append(taken)
            same += int(torch.equal(answer.features, first.features))
            with threads(1):
                one.append(_timed(lambda: ours(sites, layers), warm_up=True)[0])
                if twins:
                    taken, reference = _timed(lambda: wheel(sites, twins), warm_up=True)
                    theirs.append(taken)
    difference = _difference(first, reference) if twins else None
    them = min(theirs) if theirs else None
    lines = (
        Measurement("wheel_ms", "spconv's wheel, one thread", them, "ms"),
        Measurement("torch_ms", "torch backend", min(many), "ms"),
        Measurement("ratio", "times faster", them / min(many) if them else None, "x", at_least=2.0),
        Measurement("torch_one_thread_ms", "torch backend, one thread", min(one), "ms"),
        Measurement("ratio_one_thread", "times faster, one thread", them / min(one) if them else None, "x"),
        Measurement("backward_ms", "torch backend, backward pass", backward, "ms"),
        Measurement("training_mb", "memory a forward and a backward pass add", memory, "MB"),
        Measurement("difference", "largest difference of an output", difference, "", at_most=SPARSE_AGREEMENT),
        Measurement("same_bits", "repeats with the same bits", same, f"of {rounds}", at_least=rounds),
    )
    facts = {
        **{"model": model, "voxels": len(sites.coords), "layers": len(layers), "rounds": rounds},
        **{"threads": torch.get_num_threads(), "largest output": round(float(first.features.abs().max()), 2)},
    }
    return Benchmark("sparse", lines, facts, notes, hardware_card())


def _twins(layers: list[SparseConvolution]) -> tuple[list[Any], tuple[str, ...]]:
    try:
        return [layer.twin("spconv") for layer in layers], ()
    except ConfigError as error:
        return [], (f"not compared with the wheel: {error}",)


def _difference(answer: SparseTensor, reference: Any) -> float:
    dense: Tensor = answer.dense()
    return float((dense - reference.dense()).abs().max())
