"""``bench models``: what models cost in both conventions and their latency by stage, beside the
published cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from kdlib import zoo
from kdlib.data.collate import collate
from kdlib.lab.costs import cpr
from kdlib.lab.parts import markdown_table
from kdlib.models.build import build
from kdlib.profiling import hardware, model_profile, published
from kdlib.profiling.latency import SECOND_STAGES, measure_latency
from kdlib.profiling.sweep import simulated_sweeps
from kdlib.tools.bench.steps import compile_dense, find_device
from kdlib.tools.bench.timing import device_peak
from kdlib.types import PointBatch

REFERENCE = "pointpillar"  # speeds are given as multiples of this model's
# a processor's 16 bits; accelerators take float16, as published students would
HALF = {"cpu": torch.bfloat16}
_PUBLISHED = {**published.PUBLISHED_MODELS, **published.PUBLISHED_CROSS_STAGE}
_WHY = {**published.WHY, **published.CROSS_STAGE_WHY}


def bench_models(
    names: Sequence[str] = (),
    device: str = "",
    frames: int = 3,
    repeats: int = 10,
    warmup: int = 3,
    mixed: bool = True,
    compiled: bool = False,
) -> dict[str, Any]:
    """Measure models of the zoo one after the other on the same simulated full-size sweeps, used in
    turn, with fresh weights.

    No names mean the ten of the published latency table and the teacher of two stages; latencies
    are those of ``repeats`` passes, on request also with automatic mixed precision and with
    backbone and heads compiled.

    Raises:
        ConfigError: If a model is unknown or the device is not there.
    """
    where = find_device(device)
    models = [zoo.model(name) for name in (names or _PUBLISHED)]
    sweeps = simulated_sweeps(frames)
    batches = [collate([sweep]).points.to(where) for sweep in sweeps]
    rows = []
    for model in tqdm(models, desc="bench models", unit="model"):
        torch.manual_seed(0)
        network = build(model).to(where).eval()
        cost = {
            key: value
            for key, value in model_profile.model_cost(model, sweeps).items()
            if key != "layers"
        }
        latency, peak = _latencies(network, batches, where, repeats, warmup, mixed, compiled)
        rows.append({"model": model.name, "cost": cost, "latency": latency, "peak_memory": peak})
    return {
        "bench": "models",
        "simulated": True,
        "facts": {
            "sweeps": frames,
            "repeats": repeats,
            "warmup": warmup,
            "batch_size": 1,
            "weights": "fresh",
        },
        "models": rows,
        "hardware": hardware.hardware_card(where),
    }


def _latencies(
    network: Any,
    batches: Sequence[PointBatch],
    where: torch.device,
    repeats: int,
    warmup: int,
    mixed: bool,
    compiled: bool,
) -> tuple[dict[str, Any], int | None]:
    """Return latencies by "fp32", "mixed", "bf16" where that is not mixed, and "compiled"; and
    fp32's peak memory in bytes.
    """
    latency: dict[str, Any] = {}

    def measure(name: str) -> None:
        latency[name] = measure_latency(network, batches, warmup=warmup, repeats=repeats)
        del latency[name]["hardware"]

    peak = device_peak(partial(measure, "fp32"), where)
    half = HALF.get(where.type, torch.float16)
    for name, precision in (("mixed", half), ("bf16", torch.bfloat16)) if mixed else ():
        if name == "mixed" or precision != half:
            with torch.autocast(where.type, dtype=precision):
                measure(name)
    if compiled:  # last: it cannot be undone
        compile_dense(network)
        measure("compiled")
    return latency, peak


def costs_page(values: Mapping[str, Any]) -> str:
    """Return the tables as a page of their own, with the command that makes it."""
    facts, card = values["facts"], values["hardware"]
    command = (
        f"python -m kdlib bench models --frames {facts['sweeps']} --repeats "
        f"{facts['repeats']} --warmup {facts['warmup']}"
    )
    machine = ", ".join([card["cpu"], f"{card['cores']} cores", *(card["gpus"] or ["no GPU"])])
    return (
        "# What the models cost\n\n"
        f"Made by `{command} --out FILE.json` on {machine}. Counts are the same on every "
        "machine, times are not.\n\n"
        f"{costs_text(values)}\n"
    )


def costs_text(values: Mapping[str, Any]) -> str:
    """Return the tables as Markdown: costs, latencies, and where there are any further precisions
    and ratios to a teacher.
    """
    rows = values["models"]
    return "\n\n".join(
        [
            *_costs(values["facts"], rows),
            *_latency(values, rows),
            *_second_stages(rows),
            *_precisions(rows),
            *_ratios(rows),
        ]
    )


_Model = Mapping[str, Any]  # one of the measured models


def _costs(facts: Mapping[str, Any], rows: Sequence[_Model]) -> list[str]:
    header = [
        "model",
        "parameters",
        "G, correct",
        "G, published convention",
        "of it dense",
        "**G published**",
    ]
    header += [
        "M acts, published convention",
        "of it dense",
        "**M acts published**",
        "why they differ",
    ]
    cells = []
    for row in rows:
        cost, theirs = row["cost"], _figures(row)
        giga = (
            cost["macs"],
            cost["macs_published_convention"],
            cost["dense"]["macs_published_convention"],
        )
        mega = (cost["acts_published_convention"], cost["dense"]["acts_published_convention"])
        measured = [*(f"{value / 1e9:.2f}" for value in giga), _bold(theirs.giga_flops)]
        measured += [*(f"{value / 1e6:.1f}" for value in mega), _bold(theirs.mega_acts)]
        cells.append([_name(row), f"{cost['params']:,}", *measured, _WHY.get(row["model"], "")])
    said = (
        f"Cost per frame; encoders counted on {facts['sweeps']} **simulated** full-size "
        "sweeps. G: multiply-accumulates."
    )
    return [said, markdown_table(header, cells)]


def _latency(values: Mapping[str, Any], rows: Sequence[_Model]) -> list[str]:
    card, facts = values["hardware"], values["facts"]
    # A processor's card says how many threads; an accelerator's name says it all.
    machine = (
        card["device"]
        if card["device"] != card["cpu"]
        else (f"{card['cpu']}, {card['threads']} threads")
    )
    said = (
        f"Latency on **{machine}** (torch {card['versions']['torch']}), batch 1, "
        f"{facts['weights']} weights, points to boxes, "
        f"median and 95th percentile of {facts['repeats']} passes in ms; speed as a multiple of "
        f"`{REFERENCE}`'s, "
        "published speeds from voxels to boxes."
    )
    header = [
        "model",
        "fp32 p50",
        "p95",
        "voxelise",
        "encoder",
        "BEV",
        "head",
        "decode + NMS",
        "speed",
        "mixed p50",
        "speed",
    ]
    header += ["published speed, GTX 1060", "GTX 1080 Ti", "A100"]
    reference = next((row for row in rows if row["model"] == REFERENCE), None)
    published_reference = published.PUBLISHED_MODELS[REFERENCE].latency_ms

    def speed(row: _Model, precision: str) -> str:
        if reference is None or precision not in row["latency"]:
            return ""
        return f"{_median(reference, precision) / _median(row, precision):.2f}x"

    cells = []
    for row in rows:
        single, theirs = row["latency"]["fp32"], _figures(row).latency_ms
        stages = (
            single["stages"][name]["p50_ms"]
            for name in ("voxelise", "encoder", "backbone", "head", "decode")
        )
        times = [
            f"{value:.1f}" for value in (_median(row, "fp32"), single["total"]["p95_ms"], *stages)
        ]
        speeds = [speed(row, "fp32"), _median_text(row, "mixed"), speed(row, "mixed")]
        speeds += [
            f"{ms / theirs[card]:.2f}x" if card in theirs else ""
            for card, ms in published_reference.items()
        ]
        cells.append([_name(row), *times, *speeds])
    return [said, markdown_table(header, cells)]


def _second_stages(rows: Sequence[_Model]) -> list[str]:
    said = []
    for row in rows:
        stages = row["latency"]["fp32"]["stages"]
        times = ", ".join(
            f"{name} {stages[name]['p50_ms']:.1f}" for name in SECOND_STAGES if name in stages
        )
        if times:
            said.append(
                f"{_name(row)} has a second stage between head and decode; of its fp32 "
                f"p50, in ms: {times}."
            )
    return said


def _precisions(rows: Sequence[_Model]) -> list[str]:
    """Return bf16, compiled and peak memory, where any of them was measured."""
    names = [
        name for name in ("fp32", "bf16", "compiled") if any(name in row["latency"] for row in rows)
    ]
    peaks = [
        "" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:.0f}" for row in rows
    ]
    if len(names) == 1 and not any(peaks):
        return []
    cells = [
        [_name(row), *(_median_text(row, name) for name in names), peak]
        for row, peak in zip(rows, peaks)
    ]
    return [markdown_table(["model", *(f"{name} p50" for name in names), "peak memory, MB"], cells)]


def _ratios(rows: Sequence[_Model]) -> list[str]:
    """Return the cost-performance ratios of the published students whose teacher is in the table
    too.
    """
    macs = {row["model"]: row["cost"]["macs"] for row in rows}
    cells = []

    def figures(name: str) -> tuple[float, ...]:
        """Return a published model's score and its costs, as in the header."""
        model = published.PUBLISHED_MODELS[name]
        return (
            model.level_2_maph or 0,
            model.giga_flops or 0,
            model.mega_acts or 0,
            model.latency_ms["GTX 1060"],
            macs[name],
        )

    for name, teacher in published.TEACHERS.items():
        if name in macs and teacher in macs:
            (alone, *costs), (whole, *whole_costs) = figures(name), figures(teacher)
            for score, how in ((alone, "alone"), (published.DISTILLED[name], "with SparseKD")):
                ratios = (
                    f"{cpr(score, whole, own, theirs):.2f}"
                    for own, theirs in zip(costs, whole_costs)
                )
                cells.append([f"`{name}` {how}", f"{100 * score / whole:.1f} %", *ratios])
    said = (
        "Cost-performance ratio: the share of the teacher's LEVEL_2 mAPH kept over the share of "
        "its cost kept. The definition is "
        "ours; scores are the **published** ones, measured on Waymo by the authors."
    )
    header = (
        "student",
        "mAPH kept",
        "published G",
        "published M acts",
        "published ms, GTX 1060",
        "our G, correct",
    )
    return [said, markdown_table(header, cells)] if cells else []


def _figures(row: _Model) -> published.PublishedModel:
    return _PUBLISHED.get(row["model"], published.PublishedModel())


def _median(row: _Model, precision: str) -> float:
    return float(row["latency"][precision]["total"]["p50_ms"])


def _median_text(row: _Model, precision: str) -> str:
    return f"{_median(row, precision):.1f}" if precision in row["latency"] else ""


def _name(row: _Model) -> str:
    return f"`{row['model']}`"


def _bold(value: float | None) -> str:
    return "" if value is None else f"**{value:.1f}**"
