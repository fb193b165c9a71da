"""Names of models and a device in, one table out: cost in both conventions and latency by stage, beside the published cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from kdlib import zoo
from kdlib.data.collate import collate
from kdlib.errors import ConfigError
from kdlib.lab.costs import cpr
from kdlib.models.build import build
from kdlib.profiling import hardware, model_profile, published
from kdlib.profiling.latency import SECOND_STAGES, LatencyReport, measure_latency
from kdlib.profiling.sweep import simulated_sweeps
from kdlib.tools.bench.settings import compile_dense
from kdlib.types import PointBatch

REFERENCE = "pointpillar"
"""Speeds are given as multiples of this model's."""

HALF = {"cpu": torch.bfloat16}  # a processor's 16 bits; accelerators take float16, as published students would


@dataclass(frozen=True)
class ModelBench:
    """What one model costs on this machine and on any."""

    name: str
    cost: Mapping[str, Any]  # of model_profile.model_cost, without layers
    latency: Mapping[str, LatencyReport]  # "fp32", "mixed", "bf16" where that is not the mixed one, "compiled" (fp32)
    peak_memory: int | None  # bytes on the accelerator, fp32

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        times = {precision: _without_card(report) for precision, report in self.latency.items()}
        return {"model": self.name, "cost": dict(self.cost), "latency": times, "peak_memory": self.peak_memory}


def bench_models(
    names: Sequence[str] = (),
    device: str = "",
    frames: int = 3,
    repeats: int = 10,
    warmup: int = 3,
    mixed: bool = True,
    compiled: bool = False,
) -> dict[str, Any]:
    """Measure models one after the other on the same simulated full-size sweeps, with fresh weights.

    Args:
        names: Of the zoo; none means the ten of the published latency table and the teacher of two stages.
        device: As torch names it; "" is torch's default.
        frames: Simulated sweeps, used in turn.
        repeats: Timed passes.
        warmup: Passes before.
        mixed: Also time with automatic mixed precision.
        compiled: Also time with backbone and heads compiled.

    Raises:
        ConfigError: If a model is unknown or the device is not there.
    """
    where = find_device(device)
    models = [zoo.model(name) for name in (names or (*published.PUBLISHED_MODELS, *published.PUBLISHED_CROSS_STAGE))]
    sweeps = simulated_sweeps(frames)
    batches = [collate([sweep]).points.to(where) for sweep in sweeps]
    rows = []
    for model in tqdm(models, desc="bench models", unit="model"):
        torch.manual_seed(0)
        network = build(model).to(where).eval()
        cost = {key: value for key, value in model_profile.model_cost(model, sweeps).items() if key != "layers"}
        latency, peak = _latencies(network, batches, where, repeats, warmup, mixed, compiled)
        rows.append(ModelBench(model.name, cost, latency, peak))
    return {
        "bench": "models",
        "simulated": True,
        "facts": {"sweeps": frames, "repeats": repeats, "warmup": warmup, "batch_size": 1, "weights": "fresh"},
        "models": [row.to_dict() for row in rows],
        "hardware": hardware.hardware_card(where).to_dict(),
    }


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
        raise ConfigError(f"device '{name}' is not there ({str(error).splitlines()[0]}); see 'python -m kdlib doctor'") from error
    return device


def _latencies(
    network: Any, batches: Sequence[PointBatch], where: torch.device, repeats: int, warmup: int, mixed: bool, compiled: bool
) -> tuple[dict[str, LatencyReport], int | None]:
    backend: Any = getattr(torch, where.type, None)
    counted = hasattr(backend, "max_memory_allocated")
    if counted:
        backend.reset_peak_memory_stats(where)

    def measure() -> LatencyReport:
        return measure_latency(network, batches, warmup=warmup, repeats=repeats)

    found = {"fp32": measure()}
    peak = int(backend.max_memory_allocated(where)) if counted else None
    if mixed:
        usual = HALF.get(where.type, torch.float16)
        kinds = {"mixed": usual, **({} if usual == torch.bfloat16 else {"bf16": torch.bfloat16})}
        for name, kind in kinds.items():
            with torch.autocast(where.type, dtype=kind):
                found[name] = measure()
    if compiled:  # last: it cannot be undone
        compile_dense(network)
        found["compiled"] = measure()
    return found, peak


def _without_card(report: LatencyReport) -> dict[str, Any]:
    return {key: value for key, value in report.to_dict().items() if key != "hardware"}


def page(values: Mapping[str, Any]) -> str:
    """Return the tables as a page of their own, with the command that makes it."""
    facts, card = values["facts"], values["hardware"]
    command = f"python -m kdlib bench models --frames {facts['sweeps']} --repeats {facts['repeats']} --warmup {facts['warmup']}"
    machine = ", ".join([card["cpu"], f"{card['cores']} cores", *(card["gpus"] or ["no GPU"])])
    return (
        "# What the models cost\n\n"
        f"Made by `{command} --out FILE.json` on {machine}. Counts are the same on every machine, times are not.\n\n"
        f"{table(values)}\n"
    )


def table(values: Mapping[str, Any]) -> str:
    """Return the cost table and the latency table as Markdown, published cells beside ours and the reason where they differ."""
    return "\n".join([*_cost_lines(values), "", *_latency_lines(values), *_further_lines(values), *_ratio_lines(values)])


def _cost_lines(values: Mapping[str, Any]) -> list[str]:
    facts = values["facts"]
    lines = [
        f"Cost per frame; encoders counted on {facts['sweeps']} **simulated** full-size sweeps. G: multiply-accumulates.",
        "",
        "| model | parameters | G, correct | G, published convention | of it dense | **G published** "
        "| M acts, published convention | of it dense | **M acts published** | why they differ |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in values["models"]:
        cost, theirs = row["cost"], _figures(row["model"])
        giga = [cost["macs"], cost["macs_published_convention"], cost["dense"]["macs_published_convention"]]
        mega = [cost["acts_published_convention"], cost["dense"]["acts_published_convention"]]
        cells = [f"`{row['model']}`", f"{cost['params']:,}", *(f"{value / 1e9:.2f}" for value in giga), _cell(theirs.giga_flops)]
        cells += [*(f"{value / 1e6:.1f}" for value in mega), _cell(theirs.mega_acts), _why(row["model"])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _figures(name: str) -> published.PublishedModel:
    return {**published.PUBLISHED_MODELS, **published.PUBLISHED_CROSS_STAGE}.get(name, published.PublishedModel())


def _why(name: str) -> str:
    return {**published.WHY, **published.CROSS_STAGE_WHY}.get(name, "")


def _latency_lines(values: Mapping[str, Any]) -> list[str]:
    card, rows = values["hardware"], values["models"]
    # A processor's card says how many threads; an accelerator's name says it all.
    machine = card["device"] if card["device"] != card["cpu"] else f"{card['cpu']}, {card['threads']} threads"
    facts = values["facts"]
    lines = [
        f"Latency on **{machine}** (torch {card['versions']['torch']}), batch 1, {facts['weights']} weights, points to boxes, "
        f"median and 95th percentile of {facts['repeats']} passes in ms; speed as a multiple of `{REFERENCE}`'s, "
        "published speeds from voxels to boxes.",
        "",
        "| model | fp32 p50 | p95 | voxelise | encoder | BEV | head | decode + NMS | speed | mixed p50 | speed "
        "| published speed, GTX 1060 | GTX 1080 Ti | A100 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        single, half = row["latency"]["fp32"], row["latency"].get("mixed")
        stages = [single["stages"][name]["p50_ms"] for name in ("voxelise", "encoder", "backbone", "head", "decode")]
        cells = [
            f"`{row['model']}`",
            *(f"{value:.1f}" for value in (single["total"]["p50_ms"], single["total"]["p95_ms"], *stages)),
        ]
        cells += [_speed(rows, row, "fp32"), f"{half['total']['p50_ms']:.1f}" if half else "", _speed(rows, row, "mixed")]
        cells += _published_speeds(row["model"])
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _further_lines(values: Mapping[str, Any]) -> list[str]:
    """Return the stages only some models have, then bf16, compiled and peak memory, where any of them was measured."""
    lines = []
    for row in values["models"]:
        single = row["latency"]["fp32"]
        further = {name: times["p50_ms"] for name, times in single["stages"].items() if name in SECOND_STAGES}
        if further:
            parts = ", ".join(f"{name} {time:.1f}" for name, time in further.items())
            lines += ["", f"`{row['model']}` has a second stage between head and decode; of its fp32 p50, in ms: {parts}."]
    return [*lines, *_precision_lines(values)]


def _precision_lines(values: Mapping[str, Any]) -> list[str]:
    names = [name for name in ("fp32", "bf16", "compiled") if any(name in row["latency"] for row in values["models"])]
    if len(names) == 1 and all(row["peak_memory"] is None for row in values["models"]):
        return []
    lines = ["", f"| model | {' | '.join(f'{name} p50' for name in names)} | peak memory, MB |", "|---" * (len(names) + 2) + "|"]
    for row in values["models"]:
        times = [f"{row['latency'][name]['total']['p50_ms']:.1f}" if name in row["latency"] else "" for name in names]
        peak = "" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:.0f}"
        lines.append("| " + " | ".join([f"`{row['model']}`", *times, peak]) + " |")
    return lines


def _ratio_lines(values: Mapping[str, Any]) -> list[str]:
    """Return the cost-performance ratios of the published students whose teacher is in the table too."""
    macs = {row["model"]: row["cost"]["macs"] for row in values["models"]}
    lines = []
    for name, teacher in published.TEACHERS.items():
        if name not in macs or teacher not in macs:
            continue
        student, master = published.PUBLISHED_MODELS[name], published.PUBLISHED_MODELS[teacher]
        theirs = [(student.giga_flops, master.giga_flops), (student.mega_acts, master.mega_acts)]
        theirs.append((student.latency_ms["GTX 1060"], master.latency_ms["GTX 1060"]))
        for score, how in ((student.level_2_maph, "alone"), (published.DISTILLED[name], "with SparseKD")):
            assert score is not None and master.level_2_maph is not None, "every student was published with its score"
            ratios = [cpr(score, master.level_2_maph, own or 0, whole or 0) for own, whole in theirs]
            ratios.append(cpr(score, master.level_2_maph, macs[name], macs[teacher]))
            cells = [f"`{name}` {how}", f"{100 * score / master.level_2_maph:.1f} %", *(f"{ratio:.2f}" for ratio in ratios)]
            lines.append("| " + " | ".join(cells) + " |")
    head = [
        "",
        "Cost-performance ratio: the share of the teacher's LEVEL_2 mAPH kept over the share of its cost kept. The definition is "
        "ours; scores are the **published** ones, measured on Waymo by the authors.",
        "",
        "| student | mAPH kept | published G | published M acts | published ms, GTX 1060 | our G, correct |",
        "|---|---|---|---|---|---|",
    ]
    return [*head, *lines] if lines else []


def _speed(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], precision: str) -> str:
    reference = next((one for one in rows if one["model"] == REFERENCE), None)
    if reference is None or precision not in row["latency"]:
        return ""
    times = [one["latency"][precision]["total"]["p50_ms"] for one in (reference, row)]
    return f"{times[0] / times[1]:.2f}x"


def _published_speeds(name: str) -> list[str]:
    theirs, reference = _figures(name).latency_ms, published.PUBLISHED_MODELS[REFERENCE].latency_ms
    return [f"{reference[card] / theirs[card]:.2f}x" if card in theirs else "" for card in reference]


def _cell(value: float | None) -> str:
    return "" if value is None else f"**{value:.1f}**"
