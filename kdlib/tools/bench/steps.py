"""A teacher-student pair and batches in; the times of a step alone and distilled, and of the teacher's forward pass, out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdlib import zoo
from kdlib.config import AugmentConfig
from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.data.store import Store
from kdlib.kd.objective import Distillation, Plain
from kdlib.models.build import build
from kdlib.models.weights import load_weights
from kdlib.tools.bench.duel import Times, Work, interleaved
from kdlib.training.optim import OneCycleAdam
from kdlib.types import Batch

BATCH = 4  # frames, as the demo trains
_CLIP = 10.0
_RATE = 1e-5  # so low that the weights of a measurement stay where they are, about


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of one batch."""

    plain: Times
    distilled: Times
    teacher: Times  # forward pass alone: points to the heads' maps
    batch_size: int
    peak_memory: tuple[int, int] | None  # bytes on the accelerator, plain and distilled

    @property
    def ratio(self) -> float | None:
        """A distillation step over a plain step and the teacher's forward pass."""
        plain, distilled, teacher = self.plain.median, self.distilled.median, self.teacher.median
        return None if plain is None or distilled is None or teacher is None else distilled / (plain + teacher)

    @staticmethod
    def rate(times: Times, samples: int) -> float | None:
        """Samples per second."""
        return None if times.median is None else 1000.0 * samples / times.median


@contextmanager
def demo_store(store: Path | None = None, frames: int = 6) -> Iterator[Store]:
    """Open a prepared store, by default a small simulated one that is deleted afterwards."""
    if store is not None:
        yield Store.open(store)
        return
    from kdlib.data.prepare import prepare
    from kdlib.simulate import simulate

    with tempfile.TemporaryDirectory(prefix="kdlib-bench-") as folder:
        source, out = Path(folder, "waymo"), Path(folder, "store")
        simulate(source, segments=2, frames=frames, seed=0, scale="demo", workers=1, progress=False)
        prepare(source, out, splits=("training",), workers=1, progress=False, objects=False)
        yield Store.open(out)


def dataset(store: Store, pair: str) -> FrameDataset:
    """Return the training frames of a store for a pair, augmented as in training."""
    reach = zoo.pair(pair).student.grid.point_range
    return FrameDataset(store.split("training"), augment=AugmentConfig(), drop_empty=True, point_range=reach)


def batches(frames: FrameDataset, count: int = 3, size: int = BATCH) -> list[Batch]:
    """Return ``count`` batches of a dataset."""
    order = [number % len(frames) for number in range(count * size)]
    return [collate([frames[(0, index)] for index in order[start : start + size]]) for start in range(0, len(order), size)]


def objectives(pair: str, teacher_weights: Path | None, device: torch.device) -> tuple[Plain, Distillation]:
    """Return two objectives with students of their own, alike, in training mode on a device; without weights all are fresh."""
    chosen = zoo.pair(pair)
    torch.manual_seed(0)
    teacher = build(chosen.teacher)
    if teacher_weights is not None:
        load_weights(teacher_weights, teacher)
    students = [build(chosen.student) for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    plain, distilled = Plain(students[0]), Distillation(students[1], teacher, chosen.kd)
    return plain.to(device).train(), distilled.to(device).train()


def training_step(objective: nn.Module, data: Sequence[Batch], precision: torch.dtype | None = None) -> Callable[[], None]:
    """Return what a training does with a batch: forward, backward, clip, update; batches in turn.

    ``precision`` is that of automatic mixed precision, None for none.
    """
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimiser = OneCycleAdam(parameters, highest=_RATE, weight_decay=0.01, total=10**6)
    turn = 0

    def step() -> None:
        nonlocal turn
        batch = data[turn % len(data)]
        turn += 1
        optimiser.zero_grad(set_to_none=True)
        with mixed(batch.points.points.device, precision):
            loss = objective(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimiser.step()

    return step


def mixed(device: torch.device, precision: torch.dtype | None) -> Any:
    """Return the context of automatic mixed precision, or one that does nothing."""
    return nullcontext() if precision is None else torch.autocast(device.type, dtype=precision)


def teacher_pass(objective: Distillation, data: Sequence[Batch], precision: torch.dtype | None = None) -> Work:
    """Return the teacher's forward pass, from points to the heads' maps; batches in turn."""
    turn = 0

    def work() -> None:
        nonlocal turn
        batch = data[turn % len(data)]
        turn += 1
        with mixed(batch.points.points.device, precision):
            objective.teacher(batch, targets=False, boxes=False)

    return work


def bench_steps(
    pair: str,
    data: Sequence[Batch],
    rounds: int,
    teacher_weights: Path | None = None,
    device: torch.device | None = None,
    precision: torch.dtype | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
) -> StepTimes:
    """Time the three in turns on the same batches.

    Args:
        pair: Of the zoo.
        data: Batches, used in turn.
        rounds: Timed turns; there are as many before as there are batches.
        teacher_weights: Of the pair's teacher; fresh ones make no boxes.
        device: Default torch's own.
        precision: Of automatic mixed precision, None for none.
        prepare: Called with each detector, to compile it or to change its layout.
    """
    where = device or torch.empty(0).device
    moved = [batch.to(where) for batch in data]
    plain, distilled = objectives(pair, teacher_weights, where)
    if prepare is not None:
        for detector in (plain.student, distilled.student, distilled.teacher.model):
            prepare(detector)
    works = {
        "plain step": training_step(plain, moved, precision),
        "distillation step": training_step(distilled, moved, precision),
        "teacher's forward pass": teacher_pass(distilled, moved, precision),
    }
    plain_step, distilled_step, asked = interleaved(works, rounds, warmup=len(moved), device=where).values()
    peaks = [_peak(works[name], where) for name in ("plain step", "distillation step")]
    memory = None if peaks[0] is None or peaks[1] is None else (peaks[0], peaks[1])
    return StepTimes(plain_step, distilled_step, asked, moved[0].points.batch_size, memory)


def _peak(work: Work, where: torch.device) -> int | None:
    """Return the most device memory a piece of work holds; None on the host, which does not count."""
    backend: Any = getattr(torch, where.type, None)
    if not hasattr(backend, "max_memory_allocated"):
        return None
    backend.reset_peak_memory_stats(where)
    work()
    return int(backend.max_memory_allocated(where))
