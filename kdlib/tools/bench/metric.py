"""``bench metric``: time and memory of kdlib's metric and of Waymo's own op on random boxes, and
how far they differ.
"""

from __future__ import annotations

from pathlib import Path

from kdlib.tools.bench.crowd import crowd
from kdlib.tools.bench.measurements import Benchmark, Measurement
from kdlib.tools.judge.side_by_side import METRIC_AGREEMENT, compare_with_official


def bench_metric(
    frames: int, labels: int, predictions: int, workers: int = 1, python: str | Path | None = None
) -> Benchmark:
    """Score one set of random boxes (so many in each frame) with both metrics, ranges included,
    each in a fresh process.

    ``workers`` are processes of kdlib's metric, the official op uses all cores; ``python`` is for
    :func:`kdlib.tools.judge.official.find_python`.

    Raises:
        OfficialError: If there is no such Python, or the op fails.
    """
    from kdlib.profiling.hardware import hardware_card

    both = compare_with_official(crowd(frames, labels, predictions), workers=workers, python=python)
    ours, official = both.ours, both.official
    lines = (
        Measurement("official_s", "official op", official.seconds, "s"),
        Measurement("kdlib_s", "kdlib", ours.seconds, "s"),
        Measurement("ratio", "times faster", both.speedup, "x", at_least=1.5),
        Measurement("official_mb", "official op, peak memory", official.peak_bytes / 1e6, "MB"),
        Measurement(
            "kdlib_mb",
            "kdlib, peak memory",
            ours.peak_bytes / 1e6,
            "MB",
            at_most=official.peak_bytes / 1e6,
        ),
        Measurement(
            "difference",
            "largest difference of an AP or APH",
            both.difference,
            "",
            at_most=METRIC_AGREEMENT,
        ),
    )
    facts = {
        "frames": frames,
        "labels": labels,
        "predictions": predictions,
        "ranges": True,
        "workers": workers,
    }
    return Benchmark(
        "metric", lines, facts, (f"official: {official.version}, all cores",), hardware_card()
    )
