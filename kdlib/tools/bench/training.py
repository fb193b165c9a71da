"""A pair and a device in, training samples per second alone and distilled, and peak memory, out: fp32, bf16 and compiled."""

from __future__ import annotations

from pathlib import Path

import torch

from kdlib.profiling.hardware import hardware_card
from kdlib.tools.bench.models import find_device
from kdlib.tools.bench.settings import compile_dense
from kdlib.tools.bench.speed import PAIR, shipped_teacher
from kdlib.tools.bench.steps import BATCH, StepTimes, batches, bench_steps, dataset, demo_store
from kdlib.tools.bench.table import Line, Outcome


def bench_training(
    pair: str = PAIR, device: str = "", rounds: int = 15, store: Path | None = None, batch: int = BATCH, compile_too: bool = True
) -> Outcome:
    """Time training steps of a pair on a device.

    Args:
        pair: Of the zoo.
        device: As torch names it; "" is torch's default.
        rounds: Timed turns.
        store: Prepared store; default: a small simulated one.
        batch: Frames of a batch.
        compile_too: Also with backbones and heads compiled.

    Raises:
        ConfigError: If the pair is unknown or the device is not there.
    """
    where = find_device(device)
    teacher = shipped_teacher() if pair == PAIR else None
    lines: list[Line] = []
    with demo_store(store) as opened:
        data = batches(dataset(opened, pair), size=batch)
        lines += _lines("fp32", bench_steps(pair, data, rounds, teacher, where))
        lines += _lines("bf16", bench_steps(pair, data, rounds, teacher, where, torch.bfloat16))
        if compile_too:
            lines += _lines("compiled", bench_steps(pair, data, rounds, teacher, where, prepare=compile_dense))
    facts = {"simulated": store is None, "pair": pair, "device": str(where), "batch": batch, "rounds": rounds}
    return Outcome("steps", tuple(lines), facts, (), hardware_card(where).to_dict())


def _lines(how: str, times: StepTimes) -> list[Line]:
    lines = [
        Line(f"{how}_plain_ms", f"{how}: step alone", times.plain.median, "ms"),
        Line(f"{how}_distilled_ms", f"{how}: distillation step", times.distilled.median, "ms"),
        Line(f"{how}_teacher_ms", f"{how}: teacher's forward pass", times.teacher.median, "ms"),
        Line(f"{how}_ratio", f"{how}: over step alone and teacher", times.ratio, "x"),
        Line(f"{how}_plain_samples_per_s", f"{how}: alone", times.rate(times.plain, times.batch_size), "samples/s"),
        Line(f"{how}_distilled_samples_per_s", f"{how}: distilled", times.rate(times.distilled, times.batch_size), "samples/s"),
    ]
    if times.peak_memory is not None:
        for name, peak in zip(("plain", "distilled"), times.peak_memory):
            lines.append(Line(f"{how}_{name}_peak_mb", f"{how}: peak memory, {name}", peak / 1e6, "MB"))
    return lines
