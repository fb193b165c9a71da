"""Two ways of doing the same thing in, the times of both and their ratio out: warmed up, taken in turns, medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kdlib.profiling.latency import Clock, clock_for
from kdlib.tools.bench.table import Line

Work = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """The times of one piece of work, in milliseconds, round by round; none if it could not be done."""

    title: str
    rounds_ms: tuple[float, ...]

    @property
    def median(self) -> float | None:
        """Median, ms."""
        return statistics.median(self.rounds_ms) if self.rounds_ms else None


@dataclass(frozen=True)
class Duel:
    """One thing done in two ways: how many times faster the first is."""

    key: str
    ours: Times
    theirs: Times
    at_least: float | None = None

    @property
    def ratio(self) -> float | None:
        """Median of theirs over median of ours."""
        ours, theirs = self.ours.median, self.theirs.median
        return None if not ours or theirs is None else theirs / ours

    @property
    def lines(self) -> tuple[Line, ...]:
        """Both times, then their ratio, with the target."""
        return (
            Line(f"{self.key}_ms", self.ours.title, self.ours.median, "ms"),
            Line(f"{self.key}_reference_ms", self.theirs.title, self.theirs.median, "ms"),
            Line(f"{self.key}_times", "times faster", self.ratio, "x", at_least=self.at_least),
        )


def interleaved(
    works: Mapping[str, Work], rounds: int, warmup: int = 1, device: torch.device | None = None, clock: Clock | None = None
) -> dict[str, Times]:
    """Time each piece of work ``rounds`` times, in turns, so that whatever else the machine does meets all of them alike.

    Args:
        works: By title.
        rounds: Timed turns.
        warmup: Turns before, of each.
        device: Where the work is done; default the host.
        clock: Default: the one of the device.
    """
    watch = clock or clock_for(device or torch.device("cpu"))
    found: dict[str, list[float]] = {title: [] for title in works}
    for turn in range(warmup + rounds):
        for title, work in works.items():
            watch.settle()
            start = watch.mark()
            work()
            end = watch.mark()
            watch.settle()
            if turn >= warmup:
                found[title].append(watch.milliseconds(start, end))
    return {title: Times(title, tuple(times)) for title, times in found.items()}


def duel(key: str, ours: tuple[str, Work], theirs: tuple[str, Work], rounds: int, at_least: float | None = None) -> Duel:
    """Time two ways, in turns on the host, and compare them."""
    times = interleaved(dict((ours, theirs)), rounds)
    return Duel(key, times[ours[0]], times[theirs[0]], at_least)


def missing(key: str, ours: tuple[str, Work], theirs: str, rounds: int) -> Duel:
    """Time our way alone, because the other one is not installed."""
    return Duel(key, interleaved(dict((ours,)), rounds)[ours[0]], Times(theirs, ()))
