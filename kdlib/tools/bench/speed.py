"""``python -m kdlib bench``: the ratios that matter on this machine, each with both times behind it
and its target.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch

from kdlib import zoo
from kdlib.config import ModelConfig
from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.models.build import build
from kdlib.models.weights import load_weights
from kdlib.profiling.hardware import hardware_card
from kdlib.profiling.latency import measure_latency
from kdlib.profiling.sweep import simulated_sweeps
from kdlib.tools.bench.measurements import Benchmark, Measurement
from kdlib.tools.bench.operators import GRIDS, bench_nms, bench_targets, bench_voxels
from kdlib.tools.bench.settings import SETTINGS, bench_settings
from kdlib.tools.bench.steps import (
    BATCH,
    PAIR,
    demo_store,
    measure_steps,
    training_batches,
    training_frames,
)
from kdlib.tools.bench.timing import median_times
from kdlib.types import Batch

OVERHEAD = 1.15  # a distillation step over a plain step and the teacher's forward pass, at most
AHEAD = 2.0  # how much faster one loading process is than training, at least


def bench_speed(
    rounds: int = 15,
    pair: str = PAIR,
    store: Path | None = None,
    teacher: Path | None = None,
    compile_too: bool = True,
    boxes: int = 4096,
    sweeps: int = 2,
    grids: Sequence[str] = GRIDS,
) -> Benchmark:
    """Measure operators, training step, loader and settings of a pair of the zoo on this machine's
    processor.

    Medians of ``rounds`` timed turns count. Without a prepared store a small simulated one is made,
    without the teacher's weights fresh ones find no boxes; ``torch.compile`` takes a minute to warm
    up. Boxes are suppressed, full-size sweeps voxelised.
    """
    lines: list[Measurement] = []
    notes: list[str] = []
    points = collate(simulated_sweeps(sweeps)).points
    for more, said in (
        bench_nms(rounds, boxes),
        bench_targets(rounds),
        bench_voxels(points, rounds, grids),
    ):
        lines += more
        notes += said
    with demo_store(store) as opened:
        frames = training_frames(opened, pair)
        data = training_batches(frames)
        steps = measure_steps(pair, data, rounds, teacher, overhead=OVERHEAD)
        lines += [*steps, *_loader_lines(frames, steps[0].value, rounds)]
        for model, weights in ((zoo.pair(pair).student, None), (zoo.pair(pair).teacher, teacher)):
            lines += _latency_lines(model, weights, data, rounds)
        settings = [setting for setting in SETTINGS if compile_too or setting.key != "compile"]
        more, said = bench_settings(pair, data, max(3, rounds // 2), teacher, settings)
    facts = {
        "simulated": True,
        "pair": pair,
        "teacher weights": "fresh" if teacher is None else teacher.name,
        "batch": BATCH,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }
    return Benchmark("speed", (*lines, *more), facts, (*notes, *said), hardware_card())


def _loader_lines(frames: FrameDataset, step: float | None, rounds: int) -> list[Measurement]:
    """Return the time one process takes to load a batch, and how far ahead of a training step alone
    (ms) that is.
    """
    numbers = itertools.count()

    def load() -> None:
        collate(
            [
                frames[(number // len(frames), number % len(frames))]
                for number in itertools.islice(numbers, BATCH)
            ]
        )

    taken = median_times({"load": load}, rounds)["load"]
    return [
        Measurement("loader_ms", f"loading a batch of {BATCH}, one process", taken, "ms"),
        Measurement(
            "loader_ahead", "ahead of training alone", step and step / taken, "x", at_least=AHEAD
        ),
    ]


def _latency_lines(
    model: ModelConfig, weights: Path | None, data: Sequence[Batch], rounds: int
) -> list[Measurement]:
    """Return where the time from points to boxes goes, stage by stage."""
    torch.manual_seed(0)
    network = build(model)
    if weights is not None:
        load_weights(weights, network)
    report = measure_latency(
        network, [batch.points for batch in data], repeats=rounds, warmup=len(data)
    )
    batch = f"batch {report['batch_size']}"
    return [
        Measurement(
            f"{model.name}_{stage}_ms", f"{model.name}: {stage}, {batch}", times["p50_ms"], "ms"
        )
        for stage, times in {**report["stages"], "total": report["total"]}.items()
    ]
