"""Random boxes in; time and memory of kdlib's metric and of Waymo's own op on them, and how far their numbers differ, out."""

from __future__ import annotations

from pathlib import Path

from kdlib.tools.bench.official import AGREEMENT, compare_with_official, crowd
from kdlib.tools.bench.table import Line, Outcome


def bench_metric(
    frames: int = 1000, labels: int = 100, predictions: int = 200, workers: int = 1, python: str | Path | None = None
) -> Outcome:
    """Score one set of boxes with both metrics, ranges included, each in a fresh process.

    Args:
        frames: Frames.
        labels: Labelled boxes of each frame.
        predictions: Predicted boxes of each frame.
        workers: Processes of kdlib's metric; the official op uses all cores.
        python: A Python with the official package; see :func:`kdlib.tools.judge.official.find_python`.

    Raises:
        OfficialError: If there is no such Python, or the op fails.
    """
    from kdlib.profiling.hardware import hardware_card

    found = compare_with_official(crowd(frames, labels, predictions), workers=workers, python=python)
    ours, official = found.ours, found.official
    lines = (
        Line("official_s", "official op", official.seconds, "s"),
        Line("kdlib_s", "kdlib", ours.seconds, "s"),
        Line("ratio", "times faster", found.speedup, "x", at_least=1.5),
        Line("official_mb", "official op, peak memory", official.peak_bytes / 1e6, "MB"),
        Line("kdlib_mb", "kdlib, peak memory", ours.peak_bytes / 1e6, "MB", at_most=official.peak_bytes / 1e6),
        Line("difference", "largest difference of an AP or APH", found.difference, "", at_most=AGREEMENT),
    )
    facts = {"frames": frames, "labels": labels, "predictions": predictions, "ranges": True, "workers": workers}
    return Outcome("metric", lines, facts, (f"official: {found.version}, all cores",), hardware_card().to_dict())
