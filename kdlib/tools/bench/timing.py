"""Times pieces of work in turns, after a warm-up: medians, and how many times faster one is than
another.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from kdlib.profiling.latency import Clock
from kdlib.tools.bench.measurements import Measurement, times_faster

Work = Callable[[], Any]


def median_times(
    works: Mapping[str, Work], rounds: int, warmup: int = 1, device: torch.device | None = None
) -> dict[str, float]:
    """Time each piece of work in turns, so that whatever else the machine does meets all of them
    alike; return medians in ms.

    Each has ``warmup`` turns before; the work is done on ``device``, by default the host.
    """
    watch = Clock(device or torch.device("cpu"))
    times: dict[str, list[float]] = {title: [] for title in works}
    for _ in range(warmup + rounds):
        for title, work in works.items():
            watch.settle()
            start = watch.mark()
            work()
            end = watch.mark()
            watch.settle()
            times[title].append(watch.milliseconds(start, end))
    return {title: statistics.median(values[warmup:]) for title, values in times.items()}


def compare_ways(
    key: str,
    ours: tuple[str, Work],
    theirs: tuple[str, Work | None],
    rounds: int,
    at_least: float | None = None,
) -> list[Measurement]:
    """Time two ways of doing one thing on the host; the second one's work is None where it is not
    installed.
    """
    times = median_times(
        {title: work for title, work in (ours, theirs) if work is not None}, rounds
    )
    first = Measurement(f"{key}_ms", ours[0], times[ours[0]], "ms")
    return times_faster(
        key,
        first,
        Measurement(f"{key}_reference_ms", theirs[0], times.get(theirs[0]), "ms"),
        at_least,
    )


def device_peak(work: Work, device: torch.device) -> int | None:
    """Do some work and return the most memory (bytes) its device held; None for the host, which
    does not count.
    """
    backend: Any = getattr(torch, device.type)
    if not hasattr(backend, "max_memory_allocated"):
        work()
        return None
    backend.reset_peak_memory_stats(device)
    work()
    return int(backend.max_memory_allocated(device))
