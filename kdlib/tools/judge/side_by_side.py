"""kdlib's metric and Waymo's on the same boxes, each in a process of its own: scores, times and
memory side by side.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdlib.metric.objects import EvalBoxes
from kdlib.metric.waymo_metrics import evaluate_boxes
from kdlib.tools.judge.official import MetricRun, official_scores
from kdlib.tools.own_process import in_own_process, peak_bytes

METRIC_AGREEMENT = 1e-6  # the two must not differ by more, in AP and APH between 0 and 1


@dataclass(frozen=True)
class SideBySide:
    """kdlib's metric beside the official one on the same boxes."""

    frames: int
    predictions: int
    ground_truth: int
    ours: MetricRun
    official: MetricRun

    @property
    def difference(self) -> float:
        """Return the largest difference of any AP or APH; NaN where one of them is NaN."""
        ours = self.ours.metrics
        apart = [abs(ours[name] - value) for name, value in self.official.metrics.items()]
        return float(np.max(apart))  # unlike Python's own, it does not pass over NaN

    @property
    def agrees(self) -> bool:
        """Say whether the two agree to 1e-6."""
        return self.difference <= METRIC_AGREEMENT

    @property
    def speedup(self) -> float:
        """Return how many times faster kdlib's is."""
        return self.official.seconds / self.ours.seconds

    def table(self) -> str:
        """Return both side by side as text: a line for each breakdown and level, then agreement,
        times and memory.
        """
        head = ("AP", "official", "difference", "APH", "official", "difference")
        lines = ["".join([f"{'percent':44}", *(f"{word:>11}" for word in head)])]
        for name in dict.fromkeys(name.rsplit("/", 1)[0] for name in self.official.metrics):
            cells = []
            for kind in ("AP", "APH"):
                a, b = self.ours.metrics[f"{name}/{kind}"], self.official.metrics[f"{name}/{kind}"]
                cells += [f"{100 * a:11.3f}", f"{100 * b:11.3f}", f"{a - b:11.1e}"]
            lines.append(f"{name:44}" + "".join(cells))
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """Return the agreement, the times and the memory as text."""
        wrong = f"THEY DISAGREE: more than {METRIC_AGREEMENT:.0e}; please report it with both files"
        rows = (
            f"{self.frames:,} frames, {self.predictions:,} predictions, {self.ground_truth:,} "
            "ground-truth boxes",
            f"largest difference {self.difference:.1e}: {'they agree' if self.agrees else wrong}",
            f"kdlib    {self.ours.seconds:9.2f} s {self.ours.peak_bytes / 1e9:7.2f} GB",
            f"official {self.official.seconds:9.2f} s {self.official.peak_bytes / 1e9:7.2f} GB "
            f"({self.official.version})",
            f"kdlib is {self.speedup:.1f} times as fast with "
            f"{self.ours.peak_bytes / self.official.peak_bytes:.2f} of the memory",
        )
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "frames": self.frames,
            "predictions": self.predictions,
            "ground_truth": self.ground_truth,
            "largest_difference": self.difference,
            "agrees": self.agrees,
            "speedup": self.speedup,
            "version": self.official.version,
            **{
                name: {
                    "metrics": dict(run.metrics),
                    "seconds": run.seconds,
                    "peak_bytes": run.peak_bytes,
                }
                for name, run in (("kdlib", self.ours), ("official", self.official))
            },
        }


def compare_with_official(
    boxes: EvalBoxes, *, workers: int = 1, python: str | Path | None = None
) -> SideBySide:
    """Return kdlib's and Waymo's scores of the same boxes, one after the other, each in a fresh
    process.

    Nothing more is checked or dropped. ``workers`` are processes of kdlib's metric, the official
    one uses all cores of its Python (:func:`kdlib.tools.judge.official.find_python`).

    Raises:
        OfficialError: If there is no such Python, or the official tool fails.
    """
    (official,) = official_scores([boxes], python=python)
    ours = in_own_process(_run_ours, boxes, workers)
    return SideBySide(
        boxes.frames, len(boxes.predictions.frame), len(boxes.truth.frame), ours, official
    )


def _run_ours(boxes: EvalBoxes, workers: int) -> MetricRun:
    start = time.perf_counter()
    result = evaluate_boxes(boxes, tuple(range(boxes.frames)), workers=workers, keep_frames=False)
    seconds = time.perf_counter() - start
    peak = peak_bytes()
    if workers > 1:  # as if each of them had held as much as the largest
        peak += workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return MetricRun(result.to_dict(), seconds, peak, "kdlib")
