"""Mixed precision, channels_last and compilation of a detector's dense part, each switched on and
off: what it wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kdlib import zoo
from kdlib.models.build import build
from kdlib.tools.bench.measurements import Measurement, times_faster
from kdlib.tools.bench.steps import (
    compile_dense,
    mixed_precision,
    objectives,
    teacher_pass,
    training_step,
)
from kdlib.tools.bench.timing import Work, median_times
from kdlib.types import Batch

WINS = 1.05  # times faster, at least, for a setting to be worth having


@dataclass(frozen=True)
class Setting:
    """One thing switched on and off."""

    key: str
    title: str
    on: Callable[[nn.Module], None] | None = None  # done to a detector; it is off in a fresh one
    off: Callable[[nn.Module], None] | None = None  # done to a detector; it is on in a fresh one
    precision: torch.dtype | None = None


def contiguous(detector: nn.Module) -> None:
    """Lay weights and maps out channel by channel, as torch does by default and :func:`build` does
    not.
    """
    detector.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    detector.get_submodule("backbone_2d").register_forward_pre_hook(
        lambda _, inputs: (inputs[0].contiguous(),)
    )


SETTINGS = (
    Setting("bf16", "bf16 mixed precision", precision=torch.bfloat16),
    Setting("channels_last", "channels_last", off=contiguous),
    Setting("compile", "torch.compile", on=compile_dense),
)


def bench_settings(
    pair: str,
    data: Sequence[Batch],
    rounds: int,
    weights: Path | None = None,
    settings: Sequence[Setting] = SETTINGS,
) -> tuple[list[Measurement], list[str]]:
    """Time training step and inference of a pair's student and the teacher's forward pass, every
    setting on and off.

    Returns:
        Times and ratios, and a verdict on each ratio; what fails (compilation without a C++
        compiler) has a sentence instead.
    """
    lines: list[Measurement] = []
    notes: list[str] = []
    for setting in settings:
        try:
            works = {
                state: _works(pair, data[:1], weights, setting, state) for state in ("on", "off")
            }
            times = median_times(
                {f"{name} {state}": work for state in works for name, work in works[state].items()},
                rounds,
                2,
            )
        # what torch's compiler raises, also where there is no C++ compiler
        except RuntimeError as error:
            first = (str(error).splitlines() or [""])[0]
            notes.append(f"{setting.title} could not be measured: {type(error).__name__} {first}")
            continue
        for name in works["on"]:
            key, title = f"{setting.key}_{name.replace(' ', '_')}", f"{name}: {setting.title}"
            on, off = (
                Measurement(f"{key}_{s}_ms", f"{title} {s}", times[f"{name} {s}"], "ms")
                for s in ("on", "off")
            )
            lines += times_faster(key, on, off)
            notes.append(verdict(title, times[f"{name} off"] / times[f"{name} on"]))
    return lines, notes


def verdict(title: str, ratio: float) -> str:
    """Say whether a setting that makes something ``ratio`` times faster is worth having here."""
    word = "wins" if ratio >= WINS else "makes no difference" if ratio > 1 / WINS else "loses"
    return f"{title}: {word}, {ratio:.2f} times faster"


def _works(
    pair: str, data: Sequence[Batch], weights: Path | None, setting: Setting, state: str
) -> dict[str, Work]:
    """Return what is timed with a setting on or off, on one batch: a compiled graph is for one size
    of map.
    """
    points = data[0].points
    where = points.points.device
    plain, distilled = objectives(pair, weights, where)
    network = build(zoo.pair(pair).student).to(where).eval()
    change = setting.on if state == "on" else setting.off
    if change is not None:
        for detector in (plain.student, distilled.teacher.model, network):
            change(detector)
    precision = setting.precision if state == "on" else None

    @torch.inference_mode()
    def infer() -> None:
        with mixed_precision(where, precision):
            network(points)

    return {
        "student step": training_step(plain, data, precision),
        "teacher pass": teacher_pass(distilled, data, precision),
        "student inference": infer,
    }
