"""The same boxes for kdlib's metric and for Waymo's, each in a process of its own: scores, times and memory side by side."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdlib.errors import KdlibError
from kdlib.metric.objects import EvalBoxes, Predictions, Truth
from kdlib.metric.waymo_metrics import evaluate_boxes
from kdlib.tools.judge.official import official_scores

AGREEMENT = 1e-6  # the two must not differ by more, in AP and APH between 0 and 1


@dataclass(frozen=True)
class Side:
    """One metric's numbers and what they took."""

    metrics: Mapping[str, float]  # official names, AP and APH in [0, 1]
    seconds: float  # from boxes in memory to numbers
    peak_bytes: int  # most memory of the process, libraries included; all processes of it together


@dataclass(frozen=True)
class Comparison:
    """kdlib's metric beside the official one on the same boxes."""

    frames: int
    predictions: int
    ground_truth: int
    ours: Side
    official: Side
    version: str  # of the official side

    @property
    def difference(self) -> float:
        """Return the largest difference of any AP or APH."""
        ours = self.ours.metrics
        return max(abs(ours[name] - value) for name, value in self.official.metrics.items())

    @property
    def agrees(self) -> bool:
        """Say whether the two agree to 1e-6."""
        return self.difference <= AGREEMENT

    @property
    def speedup(self) -> float:
        """Return how many times faster kdlib's is."""
        return self.official.seconds / self.ours.seconds

    def table(self) -> str:
        """Return both side by side as text: a line for each breakdown and level, then agreement, times and memory."""
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
        verdict = "they agree" if self.agrees else f"THEY DISAGREE: more than {AGREEMENT:.0e}; please report it with both files"
        rows = (
            f"{self.frames:,} frames, {self.predictions:,} predictions, {self.ground_truth:,} ground-truth boxes",
            f"largest difference {self.difference:.1e}: {verdict}",
            f"kdlib    {self.ours.seconds:9.2f} s {self.ours.peak_bytes / 1e9:7.2f} GB",
            f"official {self.official.seconds:9.2f} s {self.official.peak_bytes / 1e9:7.2f} GB ({self.version})",
            f"kdlib is {self.speedup:.1f} times as fast with {self.ours.peak_bytes / self.official.peak_bytes:.2f} of the memory",
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
            "version": self.version,
            "kdlib": {**vars(self.ours), "metrics": dict(self.ours.metrics)},
            "official": {**vars(self.official), "metrics": dict(self.official.metrics)},
        }


def compare_with_official(
    scene: EvalBoxes, *, ranges: bool = True, workers: int = 1, python: str | Path | None = None
) -> Comparison:
    """Return kdlib's and Waymo's scores of the same boxes, one after the other, each in a fresh process.

    Args:
        scene: Boxes by frame, as both metrics take them: nothing more is checked or dropped.
        ranges: Also break every class down by distance.
        workers: Processes of kdlib's metric; the official one uses all cores.
        python: A Python with the official package; see :func:`kdlib.tools.judge.official.find_python`.

    Raises:
        OfficialError: If there is no such Python, or the official tool fails.
    """
    (judged,) = official_scores([scene], ranges=ranges, python=python)
    official = Side(judged.metrics, judged.seconds, judged.peak_bytes)
    boxes = len(scene.predictions.frame), len(scene.truth.frame)
    return Comparison(scene.frames, *boxes, _ours(scene, ranges, workers), official, judged.version)


def crowd(frames: int = 1000, labels: int = 100, predictions: int = 200, seed: int = 0) -> EvalBoxes:
    """Return random boxes of three classes, as before non-maximum suppression.

    A third of the labels stands within a metre of another one, two thirds of the predictions lie on a label, several on some, and
    the others anywhere within 75 m: the matching has chains to resolve, not just pairs.
    """
    rng = np.random.default_rng(seed)
    sizes, types = np.array(((4.6, 2.0, 1.7), (0.9, 0.9, 1.75), (1.8, 0.8, 1.7))), np.array((1, 2, 4))
    kind = rng.integers(0, 3, (frames, labels))
    parts = (
        rng.uniform(-75.0, 75.0, (frames, labels, 2)),
        rng.normal(1.0, 0.3, (frames, labels, 1)),
        sizes[kind] * rng.uniform(0.8, 1.2, (frames, labels, 3)),
        rng.uniform(-np.pi, np.pi, (frames, labels, 1)),
    )
    truth = np.concatenate(parts, axis=-1)
    close = labels // 3
    truth[:, :close, :2] = truth[:, close : 2 * close, :2] + rng.uniform(-1.0, 1.0, (frames, close, 2))
    near = rng.integers(0, labels, (frames, predictions))
    row = np.arange(frames)[:, None]
    found = truth[row, near] + rng.normal(size=(frames, predictions, 7)) * (0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.1)
    lost = rng.random((frames, predictions)) < 1 / 3
    found[lost, :2] = rng.uniform(-75.0, 75.0, (int(lost.sum()), 2))
    score = np.clip(rng.beta(2, 3, (frames, predictions)) + np.where(lost, -0.1, 0.2), 0.0, 1.0)
    flag = np.zeros(frames * predictions, np.bool_)
    return EvalBoxes(
        Predictions(
            np.repeat(np.arange(frames), predictions),
            found.reshape(-1, 7).astype(np.float32),
            types[kind[row, near]].ravel(),
            score.ravel().astype(np.float32),
            flag,
        ),
        Truth(
            np.repeat(np.arange(frames), labels),
            truth.reshape(-1, 7).astype(np.float32),
            types[kind].ravel(),
            rng.integers(1, 3, frames * labels),
        ),
        frames,
    )


def _ours(scene: EvalBoxes, ranges: bool, workers: int) -> Side:
    """Run kdlib's metric in a fresh interpreter, so that its memory is its own."""
    with tempfile.TemporaryDirectory(prefix="kdlib-metric-") as folder:
        boxes, scores = Path(folder) / "boxes.npz", Path(folder) / "scores.json"
        np.savez(boxes, **_flat(scene), frames=scene.frames, ranges=ranges, workers=workers)
        command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, str(boxes), str(scores)]
        child = subprocess.run(command, check=False, capture_output=True, text=True)
        if child.returncode:
            raise KdlibError(f"kdlib's metric failed in its own process: {(child.stderr.splitlines() or ['no message'])[-1]}")
        found = json.loads(scores.read_text())
    return Side(found["metrics"], found["seconds"], found["peak_bytes"])


def _flat(scene: EvalBoxes) -> dict[str, Any]:
    sides = {"predictions": scene.predictions, "truth": scene.truth}
    return {f"{side}/{name}": column for side, boxes in sides.items() for name, column in vars(boxes).items()}


def _child(boxes: str, scores: str) -> None:
    with np.load(boxes, allow_pickle=False) as stored:
        found = Predictions(*(stored[f"predictions/{name}"] for name in Predictions.__dataclass_fields__))
        truth = Truth(*(stored[f"truth/{name}"] for name in Truth.__dataclass_fields__))
        frames, ranges, workers = int(stored["frames"]), bool(stored["ranges"]), int(stored["workers"])
    start = time.perf_counter()
    result = evaluate_boxes(
        EvalBoxes(found, truth, frames), tuple(range(frames)), ranges=ranges, workers=workers, keep_frames=False
    )
    seconds = time.perf_counter() - start
    peak = peak_bytes() + (workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 if workers > 1 else 0)
    Path(scores).write_text(json.dumps({"metrics": result.to_dict(), "seconds": seconds, "peak_bytes": peak}))


def peak_bytes() -> int:
    """Return the most memory this process has held; ru_maxrss, elsewhere than on Linux, may count what its parent held."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    _child(*sys.argv[1:])
