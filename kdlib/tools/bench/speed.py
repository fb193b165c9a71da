"""``python -m kdlib bench``: a machine in, the ratios that matter out, each with both times behind it and its target."""

from __future__ import annotations

import math
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
from kdlib.tools.bench.duel import interleaved
from kdlib.tools.bench.operators import GRIDS, bench_nms, bench_targets, bench_voxels
from kdlib.tools.bench.settings import SETTINGS, WINS, Switched, bench_settings
from kdlib.tools.bench.steps import StepTimes, batches, bench_steps, dataset, demo_store
from kdlib.tools.bench.table import Line, Outcome
from kdlib.types import Batch

OVERHEAD = 1.15  # a distillation step over a plain step and the teacher's forward pass, at most
AHEAD = 2.0  # how much faster one loading process is than training, at least
PAIR = "cp_pillar_demo_v0.64_sparsekd"


def shipped_teacher(weights: Path = Path("data/weights/cp_pillar_demo.safetensors")) -> Path | None:
    """Return the demo teacher's weights if they are there: the working folder is the repository's."""
    return weights if weights.is_file() else None


def bench_speed(
    rounds: int = 15,
    pair: str = PAIR,
    store: Path | None = None,
    teacher: Path | None = None,
    compile_too: bool = True,
    boxes: int = 4096,
    sweeps: int = 2,
    grids: Sequence[str] = GRIDS,
) -> Outcome:
    """Measure operators, training step, loader and settings of a pair on this machine's processor.

    Args:
        rounds: Timed turns of everything, after warm-up; medians count.
        pair: Of the zoo; demo pairs fit the simulated data.
        store: Prepared store; default: a small simulated one.
        teacher: Its trained weights; default: fresh ones, which find no boxes.
        compile_too: Also measure ``torch.compile``, whose warm-up takes a minute.
        boxes: For the suppression.
        sweeps: Full-size sweeps for the voxelisation.
        grids: Models whose grids are used for it.
    """
    duels, notes = bench_nms(rounds, boxes)
    targets, more = bench_targets(rounds)
    duels, notes = [*duels, *targets], [*notes, *more]
    voxels, more = bench_voxels(collate(simulated_sweeps(sweeps)).points, rounds, grids)
    duels, notes = [*duels, *voxels], [*notes, *more]
    lines = [line for one in duels for line in one.lines]
    with demo_store(store) as opened:
        frames = dataset(opened, pair)
        data = batches(frames)
        steps = bench_steps(pair, data, rounds, teacher)
        lines += step_lines(steps) + loader_lines(frames, steps, rounds)
        for model, weights in ((zoo.pair(pair).student, None), (zoo.pair(pair).teacher, teacher)):
            lines += latency_lines(model, weights, data, rounds)
        wanted = [setting for setting in SETTINGS if compile_too or setting.key != "compile"]
        switched, more = bench_settings(pair, data, max(3, rounds // 2), teacher, wanted)
    lines += [line for one in switched for line in one.lines]
    facts = {
        "simulated": True,
        "pair": pair,
        "teacher weights": "fresh" if teacher is None else teacher.name,
        "batch": steps.batch_size,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }
    kept = [verdict(one) for one in switched]
    return Outcome("speed", tuple(lines), facts, (*notes, *more, *kept), hardware_card().to_dict())


def step_lines(steps: StepTimes) -> list[Line]:
    """Return times and samples per second of the steps, and what distillation costs besides the teacher's forward pass."""
    return [
        Line("plain_step_ms", f"training step alone, batch {steps.batch_size}", steps.plain.median, "ms"),
        Line("teacher_ms", "teacher's forward pass", steps.teacher.median, "ms"),
        Line("distillation_step_ms", "distillation step", steps.distilled.median, "ms"),
        Line("distillation_ratio", "over plain step and teacher's forward pass", steps.ratio, "x", at_most=OVERHEAD),
        Line("plain_samples_per_s", "training alone", steps.rate(steps.plain, steps.batch_size), "samples/s"),
        Line("distilled_samples_per_s", "distilled", steps.rate(steps.distilled, steps.batch_size), "samples/s"),
    ]


def loader_lines(frames: FrameDataset, steps: StepTimes, rounds: int) -> list[Line]:
    """Return the time one process takes to load a batch, and how far ahead of training alone that is."""
    turn = 0

    def load() -> None:
        nonlocal turn
        turn += 1
        collate([frames[(turn, (turn * steps.batch_size + n) % len(frames))] for n in range(steps.batch_size)])

    taken = interleaved({"load": load}, rounds)["load"].median
    ahead = steps.plain.median / taken if taken and steps.plain.median is not None else None
    return [
        Line("loader_ms", f"loading a batch of {steps.batch_size}, one process", taken, "ms"),
        Line("loader_ahead", "ahead of training alone", ahead, "x", at_least=AHEAD),
    ]


def latency_lines(model: ModelConfig, weights: Path | None, data: Sequence[Batch], rounds: int) -> list[Line]:
    """Return where the time from points to boxes goes, stage by stage."""
    torch.manual_seed(0)
    network = build(model)
    if weights is not None:
        load_weights(weights, network)
    report = measure_latency(network, [batch.points for batch in data], repeats=rounds, warmup=len(data))
    lines = [
        Line(f"{model.name}_{stage.name}_ms", f"{model.name}: {stage.name}, batch {report.batch_size}", stage.p50, "ms")
        for stage in (*report.stages, report.total)
    ]
    return lines


def verdict(one: Switched) -> str:
    """Say whether a setting is worth having here."""
    ratio = one.ratio
    if ratio is None or math.isnan(ratio):
        return f"{one.title}: not measured"
    if ratio >= WINS:
        return f"{one.title}: wins, {ratio:.2f} times faster"
    return f"{one.title}: {'makes no difference' if ratio > 1 / WINS else 'loses'}, {ratio:.2f} times faster"
