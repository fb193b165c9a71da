"""A simulated full-size sweep in; the speed of an encoder's sparse convolutions on a processor,
beside spconv's wheel, out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

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
    """Return a voxelised simulated sweep and a published encoder's sparse convolutions, in order,
    with fresh weights.

    Raises:
        ConfigError: If the model has no sparse convolutions.
    """
    torch.manual_seed(0)
    network = build(zoo.model(model)).eval()
    layers = [layer for layer in network.modules() if isinstance(layer, SparseConvolution)]
    if not layers or network.backbone_3d is None:
        raise ConfigError(
            f"{model} has no sparse convolutions; take cp_voxel, cp_voxel_s, "
            "cp_voxel_xs, cp_voxel_xxs or second"
        )
    with torch.no_grad():
        voxels = network.voxelize(collate(simulated_sweeps(1)).points)
        features = network.vfe(voxels)
        sites = network.backbone_3d.sites(
            (features - features.mean(dim=0)) / features.std(dim=0).clamp(min=1e-3), voxels
        )
        between = sites
        # whose output gets a mean square of one, as by the normalisation of a trained encoder
        for layer in layers:
            layer.sparse_backend = "torch"
            size = layer(between).features.square().mean().sqrt()
            for parameter in layer.parameters():
                parameter.div_(size)
            between = ours(between, [layer])
    return sites, layers


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
    tensor = load_backend("spconv").SparseConvTensor(
        sites.features, sites.books.narrow(sites.coords), shape, sites.batch_size
    )
    for layer in twins:
        tensor = layer(tensor)
        tensor = tensor.replace_feature(torch.relu(tensor.features))
    return tensor


def _milliseconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = work()
    return 1000 * (time.perf_counter() - start), answer


def _training(sites: SparseTensor, layers: list[SparseConvolution]) -> tuple[float, float]:
    """Return the milliseconds of the backward pass alone and the memory both passes add, in MB."""
    before = peak_bytes()
    answer = ours(sites, layers).features.square().mean()
    backward, _ = _milliseconds(answer.backward)
    for layer in layers:
        layer.zero_grad()
    return backward, (peak_bytes() - before) / 1e6


def bench_sparse(model: str = "cp_voxel", rounds: int = 5) -> Benchmark:
    """Time our forward and backward pass and the forward pass of spconv's wheel, in turns in one
    process; best rounds count.

    The wheel gets one thread, with more it loses rows; ours gets torch's. Both include finding the
    pairs of sites. Without the wheel (``pip install spconv==2.3.8``) ours is measured alone.

    Raises:
        ConfigError: If the model has no sparse convolutions.
    """
    from kdlib.profiling.hardware import hardware_card

    sites, layers = encoder_input(model)
    training = [_training(sites, layers) for _ in range(rounds)]
    threads, notes = torch.get_num_threads(), list[str]()
    works = {
        "torch": (threads, partial(ours, sites, layers)),
        "one thread": (1, partial(ours, sites, layers)),
    }
    try:
        works["wheel"] = (1, partial(wheel, sites, [layer.twin("spconv") for layer in layers]))
    except ConfigError as error:
        notes.append(f"not compared with the wheel: {error}")
    times: dict[str, float] = {}
    answers: dict[str, Any] = {}
    same = 0
    try:
        with torch.inference_mode():
            first = ours(sites, layers)
            for _ in range(rounds):
                for name, (count, work) in works.items():
                    torch.set_num_threads(count)
                    work()  # whoever ran before left other threads and other caches
                    taken, answers[name] = _milliseconds(work)
                    times[name] = min(taken, times.get(name, taken))
                same += int(torch.equal(answers["torch"].features, first.features))
    finally:
        torch.set_num_threads(threads)
    difference = (
        float((first.dense() - answers["wheel"].dense()).abs().max()) if "wheel" in works else None
    )
    many, one, them = times["torch"], times["one thread"], times.get("wheel")
    lines = (
        Measurement("wheel_ms", "spconv's wheel, one thread", them, "ms"),
        Measurement("torch_ms", "torch backend", many, "ms"),
        Measurement("ratio", "times faster", them and them / many, "x", at_least=2.0),
        Measurement("torch_one_thread_ms", "torch backend, one thread", one, "ms"),
        Measurement("ratio_one_thread", "times faster, one thread", them and them / one, "x"),
        Measurement(
            "backward_ms", "torch backend, backward pass", min(taken for taken, _ in training), "ms"
        ),
        Measurement(
            "training_mb", "memory a forward and a backward pass add", training[0][1], "MB"
        ),
        Measurement("difference", "largest difference", difference, "", at_most=SPARSE_AGREEMENT),
        Measurement(
            "same_bits", "repeats with the same bits", same, f"of {rounds}", at_least=rounds
        ),
    )
    facts = {
        **{"model": model, "voxels": len(sites.coords), "layers": len(layers), "rounds": rounds},
        **{"threads": threads, "largest output": round(float(first.features.abs().max()), 2)},
    }
    return Benchmark("sparse", lines, facts, tuple(notes), hardware_card())
