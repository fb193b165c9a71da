"""A detector's dense part with and without mixed precision, channels_last and compilation in, what each of them wins out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import zoo
from kdlib.models.build import build
from kdlib.tools.bench.duel import Times, Work, interleaved
from kdlib.tools.bench.steps import mixed, objectives, teacher_pass, training_step
from kdlib.tools.bench.table import Line
from kdlib.types import Batch

WINS = 1.05  # times faster, at least, for a setting to be worth having
DENSE = ("backbone_2d", "dense_head")


@dataclass(frozen=True)
class Setting:
    """One thing switched on and off."""

    key: str
    title: str
    on: Callable[[nn.Module], None] | None = None  # done to a detector; it is off in a fresh one
    off: Callable[[nn.Module], None] | None = None  # done to a detector; it is on in a fresh one
    precision: torch.dtype | None = None


def contiguous(detector: nn.Module) -> None:
    """Lay weights and maps out channel by channel, as torch does by default and :func:`build` does not."""
    for parameter in detector.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.contiguous_format)
    backbone = detector.get_submodule("backbone_2d")
    backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))


def compile_dense(detector: nn.Module) -> None:
    """Compile backbone and heads; what comes before depends on the number of points and would be compiled again and again."""
    for name in DENSE:
        detector.get_submodule(name).compile(dynamic=False)


SETTINGS = (
    Setting("bf16", "bf16 mixed precision", precision=torch.bfloat16),
    Setting("channels_last", "channels_last", off=contiguous),
    Setting("compile", "torch.compile", on=compile_dense),
)


@dataclass(frozen=True)
class Switched:
    """The times of one piece of work with a setting on and off."""

    key: str
    title: str
    on: Times
    off: Times

    @property
    def ratio(self) -> float | None:
        """How many times faster the setting makes it."""
        return None if not self.on.median or self.off.median is None else self.off.median / self.on.median

    @property
    def lines(self) -> tuple[Line, ...]:
        """Both times and their ratio."""
        return (
            Line(f"{self.key}_on_ms", f"{self.title} on", self.on.median, "ms"),
            Line(f"{self.key}_off_ms", f"{self.title} off", self.off.median, "ms"),
            Line(f"{self.key}_times", "times faster", self.ratio, "x"),
        )


def bench_settings(
    pair: str, data: Sequence[Batch], rounds: int, weights: Path | None = None, settings: Sequence[Setting] = SETTINGS
) -> tuple[list[Switched], list[str]]:
    """Time training step and inference of a pair's student and the teacher's forward pass, every setting on and off.

    What fails (compilation without a C++ compiler) is left out with a sentence.
    """
    found, notes = [], []
    for setting in settings:
        try:
            on, off = ({**_works(pair, data, weights, setting, state)} for state in (True, False))
            times = interleaved({**{f"{n} on": w for n, w in on.items()}, **{f"{n} off": w for n, w in off.items()}}, rounds, 2)
        except RuntimeError as error:  # what torch's compiler raises, also where there is no C++ compiler
            first = (str(error).splitlines() or [""])[0]
            notes.append(f"{setting.title} could not be measured: {type(error).__name__} {first}")
            continue
        for name in on:
            key = f"{setting.key}_{name.replace(' ', '_')}"
            found.append(Switched(key, f"{name}: {setting.title}", times[f"{name} on"], times[f"{name} off"]))
    return found, notes


def _works(pair: str, data: Sequence[Batch], weights: Path | None, setting: Setting, on: bool) -> dict[str, Work]:
    where = data[0].points.points.device
    plain, distilled = objectives(pair, weights, where)
    network = build(zoo.pair(pair).student).to(where).eval()
    change = setting.on if on else setting.off
    if change is not None:
        for detector in (plain.student, distilled.teacher.model, network):
            change(detector)
    precision = setting.precision if on else None
    one = data[:1]  # a compiled graph is for one size of map

    @torch.inference_mode()
    def infer() -> Any:
        with mixed(where, precision):
            prediction = network(one[0].points)
        maps: Tensor = prediction.heads[0].heatmap
        return maps

    return {
        "student step": training_step(plain, one, precision),
        "teacher pass": teacher_pass(distilled, one, precision),
        "student inference": infer,
    }
