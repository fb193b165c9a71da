"""Training steps of a pair, alone and distilled: what they are made of, their times, samples per
second and peak memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from kdlib import zoo
from kdlib.config import AugmentConfig
from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.data.store import Store
from kdlib.errors import ConfigError
from kdlib.kd.objective import Distillation, Plain
from kdlib.models.build import build
from kdlib.models.weights import load_weights
from kdlib.profiling.hardware import hardware_card
from kdlib.profiling.sweep import simulated_store
from kdlib.tools.bench.measurements import Benchmark, Measurement
from kdlib.tools.bench.timing import Work, device_peak, median_times
from kdlib.training.optim import OneCycleAdam
from kdlib.types import Batch

PAIR = "cp_pillar_demo_v0.64_sparsekd"
BATCH = 4  # frames, as the demo trains
_CLIP = 10.0
_RATE = 1e-5  # so low that the weights of a measurement stay where they are, about


def demo_teacher() -> Path | None:
    """Return the demo teacher's weights if they are there: the working folder is the
    repository's.
    """
    weights = Path("data/weights/cp_pillar_demo.safetensors")
    return weights if weights.is_file() else None


@contextmanager
def demo_store(store: Path | None = None, frames: int = 6) -> Iterator[Store]:
    """Open a prepared store, by default a small simulated one that is deleted afterwards."""
    if store is not None:
        yield Store.open(store)
        return
    with simulated_store(2, frames, 0, "demo", "training") as simulated:
        yield simulated


def training_frames(store: Store, pair: str) -> FrameDataset:
    """Return the training frames of a store for a pair, augmented as in training."""
    reach = zoo.pair(pair).student.grid.point_range
    return FrameDataset(
        store.split("training"), augment=AugmentConfig(), drop_empty=True, point_range=reach
    )


def training_batches(frames: FrameDataset, count: int = 3, size: int = BATCH) -> list[Batch]:
    """Return ``count`` batches of a dataset."""
    samples = [frames[(0, number % len(frames))] for number in range(count * size)]
    return [collate(samples[start : start + size]) for start in range(0, len(samples), size)]


def objectives(
    pair: str, teacher_weights: Path | None, device: torch.device
) -> tuple[Plain, Distillation]:
    """Return two objectives with students of their own, alike, in training mode on a device;
    without weights all are fresh.
    """
    chosen = zoo.pair(pair)
    torch.manual_seed(0)
    teacher = build(chosen.teacher)
    if teacher_weights is not None:
        load_weights(teacher_weights, teacher)
    students = [build(chosen.student) for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    plain, distilled = Plain(students[0]), Distillation(students[1], teacher, chosen.kd)
    return plain.to(device).train(), distilled.to(device).train()


def training_step(
    objective: nn.Module, data: Sequence[Batch], precision: torch.dtype | None = None
) -> Work:
    """Return what a training does with a batch: forward, backward, clip, update; batches in
    turn.
    """
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimiser = OneCycleAdam(parameters, highest=_RATE, weight_decay=0.01, total=10**6)
    turns = itertools.cycle(data)

    def step() -> None:
        batch = next(turns)
        optimiser.zero_grad(set_to_none=True)
        with mixed_precision(batch.points.points.device, precision):
            loss = objective(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimiser.step()

    return step


def mixed_precision(device: torch.device, precision: torch.dtype | None) -> torch.autocast:
    """Return the context of automatic mixed precision, switched off without a precision."""
    return torch.autocast(device.type, dtype=precision, enabled=precision is not None)


def teacher_pass(
    objective: Distillation, data: Sequence[Batch], precision: torch.dtype | None = None
) -> Work:
    """Return the teacher's forward pass, from points to the heads' maps; batches in turn."""
    turns = itertools.cycle(data)

    def work() -> None:
        batch = next(turns)
        with mixed_precision(batch.points.points.device, precision):
            objective.teacher(batch, needs=())

    return work


def measure_steps(
    pair: str,
    data: Sequence[Batch],
    rounds: int,
    teacher_weights: Path | None = None,
    precision: torch.dtype | None = None,
    change: Callable[[nn.Module], None] | None = None,
    how: str = "",
    overhead: float | None = None,
) -> list[Measurement]:
    """Time a training step alone, the same with distillation and the teacher's forward pass, in
    turns on the same batches.

    The batches are on the device; before the timed turns there are as many as there are batches. A
    fresh teacher makes no boxes. ``precision`` is that of automatic mixed precision, ``change`` is
    called with each detector, to compile it, ``how`` stands in front of every key and title,
    ``overhead`` is what a distillation step may cost over a plain step and the teacher's forward
    pass, at most.
    """
    where = data[0].points.points.device
    plain, distilled = objectives(pair, teacher_weights, where)
    if change is not None:
        for detector in (plain.student, distilled.student, distilled.teacher.model):
            change(detector)
    works = {
        "plain_step": training_step(plain, data, precision),
        "distillation_step": training_step(distilled, data, precision),
        "teacher": teacher_pass(distilled, data, precision),
    }
    times = median_times(works, rounds, warmup=len(data), device=where)
    plain_ms, distilled_ms, teacher_ms = times.values()
    lines = step_lines(plain_ms, distilled_ms, teacher_ms, data[0].points.batch_size, overhead)
    for name in ("plain_step", "distillation_step"):
        peak = device_peak(works[name], where)
        if peak is not None:
            lines.append(
                Measurement(
                    f"{name}_peak_mb", f"peak memory, {name.replace('_', ' ')}", peak / 1e6, "MB"
                )
            )
    return (
        [replace(line, key=f"{how}_{line.key}", title=f"{how}: {line.title}") for line in lines]
        if how
        else lines
    )


def step_lines(
    plain: float, distilled: float, teacher: float, batch: int, overhead: float | None = None
) -> list[Measurement]:
    """Return times (ms) and samples per second of steps, and what distillation costs besides the
    teacher's forward pass.
    """
    ratio = distilled / (plain + teacher)
    return [
        Measurement("plain_step_ms", f"training step alone, batch {batch}", plain, "ms"),
        Measurement("teacher_ms", "teacher's forward pass", teacher, "ms"),
        Measurement("distillation_step_ms", "distillation step", distilled, "ms"),
        Measurement(
            "distillation_ratio",
            "over plain step and teacher's forward pass",
            ratio,
            "x",
            at_most=overhead,
        ),
        Measurement("plain_samples_per_s", "training alone", 1000 * batch / plain, "samples/s"),
        Measurement("distilled_samples_per_s", "distilled", 1000 * batch / distilled, "samples/s"),
    ]


def bench_steps(
    pair: str = PAIR,
    device: str = "",
    rounds: int = 15,
    store: Path | None = None,
    batch: int = BATCH,
    compile_too: bool = True,
) -> Benchmark:
    """Time training steps of a pair of the zoo on a device (see :func:`find_device`), in full and
    mixed precision, and compiled.

    Raises:
        ConfigError: If the pair is unknown or the device is not there.
    """
    where = find_device(device)
    teacher = demo_teacher() if pair == PAIR else None
    with demo_store(store) as opened:
        data = [
            part.to(where) for part in training_batches(training_frames(opened, pair), size=batch)
        ]
        lines = measure_steps(pair, data, rounds, teacher, how="fp32")
        lines += measure_steps(pair, data, rounds, teacher, torch.bfloat16, how="bf16")
        if compile_too:
            lines += measure_steps(
                pair, data, rounds, teacher, change=compile_dense, how="compiled"
            )
    facts = {
        "simulated": store is None,
        "pair": pair,
        "device": str(where),
        "batch": batch,
        "rounds": rounds,
    }
    return Benchmark("steps", tuple(lines), facts, (), hardware_card(where))


def find_device(name: str) -> torch.device:
    """Return a device by torch's name for it; "" is torch's default.

    Raises:
        ConfigError: If it is not there.
    """
    if not name:
        return torch.empty(0).device
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ConfigError(
            f"device '{name}' is not there ({str(error).splitlines()[0]}); see "
            "'python -m kdlib doctor'"
        ) from error
    return device


def compile_dense(detector: nn.Module) -> None:
    """Compile backbone and heads; what comes before depends on the number of points and would be
    compiled again and again.
    """
    for name in ("backbone_2d", "dense_head"):
        detector.get_submodule(name).compile(dynamic=False)
