"""Predictions and ground truth in, an EvalResult out: Waymo's AP and APH per class, range and level, with curves and a card."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdlib.metric.ap import Curve, average_precision, precision_recall
from kdlib.metric.box_tables import BoxTable, TableFile
from kdlib.metric.counts import CUTOFFS, IOU_THRESHOLDS, Counts, count_frames
from kdlib.metric.loading import TABLE_NAMES, Loaded, load_boxes
from kdlib.metric.objects import EvalBoxes
from kdlib.metric.shards import LEVELS, MEAN_TYPES, OBJECT_TYPE, RANGE, TYPE_NAMES, Generator, type_breakdown


@dataclass(frozen=True)
class FrameCounts:
    """The counts of every single frame, from which any resampling of frames can be scored again."""

    frame_ids: tuple[Any, ...]  # F, ascending
    breakdowns: tuple[str, ...]  # S official names without the level
    counts: Counts  # (F, S, C)


@dataclass(frozen=True)
class EvalResult:
    """One evaluation: the numbers, the curves behind them and what they were computed on."""

    metrics: Mapping[str, float]  # 'OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2/APH', ..., 'LEVEL_2/mAPH', in [0, 1]
    curves: Mapping[str, Curve]  # 'OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2' -> (C,) each
    cutoffs: NDArray[np.float32]  # (C,) ascending scores
    card: Mapping[str, Any]  # frames, boxes per class and level, settings: plain JSON values
    frames: FrameCounts | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, float]:
        """Return the metrics as one flat JSON object under the official names."""
        return {name: float(value) for name, value in self.metrics.items()}

    def table(self) -> str:
        """Return the metrics as text, in percent: one line per breakdown, AP and APH at both levels."""
        columns = [f"LEVEL_{level} {kind}" for level in LEVELS for kind in ("AP", "APH")]
        lines = ["".join([f"{'':40}", *(f"{column:>13}" for column in columns)])]
        for breakdown in dict.fromkeys(name.rsplit("_LEVEL_", 1)[0] for name in self.curves):
            values = [self.metrics[f"{breakdown}_LEVEL_{level}/{kind}"] for level in LEVELS for kind in ("AP", "APH")]
            lines.append("".join([f"{breakdown:40}", *(f"{100 * value:13.2f}" for value in values)]))
        means = [self.metrics[f"LEVEL_{level}/m{kind}"] for level in LEVELS for kind in ("AP", "APH")]
        lines.append("".join([f"{'mean of ' + ', '.join(MEAN_TYPES).lower():40}", *(f"{100 * value:13.2f}" for value in means)]))
        return "\n".join(lines)


def evaluate_files(predictions: str | Path, truth: str | Path, **options: Any) -> EvalResult:
    """Evaluate two Parquet files, read batch by batch; ``options`` are those of :func:`evaluate_tables`.

    Raises:
        DataError: If a file cannot be read or its content makes no sense; the message names the file.
    """
    names = (f"predictions file '{predictions}'", f"ground-truth file '{truth}'")
    found, labelled = TableFile.open(predictions, "predictions"), TableFile.open(truth, "ground-truth")
    return evaluate_tables(found, labelled, names=names, **options)


def evaluate_tables(
    predictions: BoxTable,
    truth: BoxTable,
    *,
    ranges: bool = True,
    workers: int = 1,
    strict: bool = True,
    max_distance: float = np.inf,
    keep_frames: bool = True,
    names: tuple[str, str] = TABLE_NAMES,
) -> EvalResult:
    """Return Waymo's detection metrics of a predictions table; see :func:`~kdlib.metric.loading.load_boxes` for the columns.

    Args:
        predictions: Boxes with scores: a table, or a :class:`~kdlib.metric.box_tables.TableFile`.
        truth: Labelled boxes, likewise.
        ranges: Also break every class down by distance.
        workers: Processes; one does some thousand frames a second, so more only pay for very many.
        strict: Refuse an empty ground truth and predictions for frames it does not have.
        max_distance: Boxes farther away in BEV are left out on both sides, metres; the card says how many.
        keep_frames: Keep every frame's counts for the bootstrap (about 4 kB a frame, 20 kB with ranges).
        names: What to call the two tables in messages.

    Raises:
        DataError: If anything in the tables makes the metric meaningless.
    """
    loaded = load_boxes(predictions, truth, strict=strict, max_distance=max_distance, names=names)
    card = {"max_distance": float(max_distance) if np.isfinite(max_distance) else None}
    return evaluate_loaded(loaded, ranges=ranges, workers=workers, keep_frames=keep_frames, card=card)


def evaluate_loaded(loaded: Loaded, *, card: Mapping[str, Any] | None = None, **options: Any) -> EvalResult:
    """Return the metrics of checked tables; ``options`` are those of :func:`evaluate_scene`."""
    far_p, far_g = loaded.too_far
    left_out = {
        "ground_truth_without_points": loaded.without_points,
        "predictions_too_far": far_p,
        "ground_truth_too_far": far_g,
    }
    return evaluate_boxes(loaded.boxes, loaded.frame_ids, card={"max_distance": None, **left_out, **(card or {})}, **options)


def evaluate_boxes(
    scene: EvalBoxes,
    frame_ids: tuple[Any, ...],
    *,
    ranges: bool = True,
    workers: int = 1,
    keep_frames: bool = True,
    card: Mapping[str, Any] | None = None,
) -> EvalResult:
    """Return the metrics of boxes already sorted by frame, with the official op's own leniency: nothing is checked or dropped.

    Args:
        scene: The boxes.
        frame_ids: The frames' ids, ascending.
        ranges: Also break every class down by distance.
        workers: Processes.
        keep_frames: Keep every frame's counts.
        card: Entries to add to the result's card.
    """
    generators = (OBJECT_TYPE, RANGE) if ranges else (OBJECT_TYPE,)
    breakdowns = tuple(name for generator in generators for name in generator.names)
    total = _Total(len(breakdowns), len(CUTOFFS))
    kept: list[Counts] = []
    for counts in _count(scene, generators, workers):
        total.add(counts)
        if keep_frames:
            kept.append(counts.narrow())
    curves, metrics = _score(total, breakdowns)
    frames = FrameCounts(frame_ids, breakdowns, _join(kept, len(breakdowns))) if keep_frames else None
    return EvalResult(metrics, curves, CUTOFFS.copy(), {**_card(scene, frame_ids, ranges), **(card or {})}, frames)


def _count(scene: EvalBoxes, generators: tuple[Generator, ...], workers: int) -> Iterator[Counts]:
    """Yield the counts of consecutive frames, in order whatever the number of processes."""
    if workers <= 1:
        for chunk in scene.chunks():
            yield count_frames(chunk, generators)
        return
    # Spawned, not forked: the caller may hold threads (torch, a notebook's kernel) that a fork would leave locked.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        chunks = scene.chunks(most_frames=256)
        waiting: list[Future[Counts]] = []
        for chunk in islice(chunks, 2 * workers):
            waiting.append(pool.submit(count_frames, chunk, generators))
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(count_frames, chunk, generators) for chunk in islice(chunks, 1)]


class _Total:
    """Counts summed over frames; heading accuracies frame by frame in float32, as the official tool does."""

    def __init__(self, breakdowns: int, cutoffs: int) -> None:
        self.tp, self.fp, self.fn1, self.fn2 = (np.zeros((breakdowns, cutoffs), np.int64) for _ in range(4))
        self.sum_ha = np.zeros((breakdowns, cutoffs), np.float32)

    def add(self, counts: Counts) -> None:
        for name in ("tp", "fp", "fn1", "fn2"):
            getattr(self, name)[...] += getattr(counts, name).sum(axis=0, dtype=np.int64)
        for frame in counts.sum_ha:
            self.sum_ha += frame


def _score(total: _Total, breakdowns: tuple[str, ...]) -> tuple[dict[str, Curve], dict[str, float]]:
    curves: dict[str, Curve] = {}
    metrics: dict[str, float] = {}
    for i, breakdown in enumerate(breakdowns):
        for level, misses in zip(LEVELS, (total.fn1, total.fn2)):
            name = f"{breakdown}_LEVEL_{level}"
            curve = precision_recall(total.tp[i], total.fp[i], misses[i], total.sum_ha[i])
            curves[name] = curve
            metrics[f"{name}/AP"] = float(average_precision(curve.precision, curve.recall))
            metrics[f"{name}/APH"] = float(average_precision(curve.precision_heading, curve.recall))
    for level in LEVELS:
        for kind in ("AP", "APH"):
            values = [metrics[f"{type_breakdown(name)}_LEVEL_{level}/{kind}"] for name in MEAN_TYPES]
            metrics[f"LEVEL_{level}/m{kind}"] = sum(values) / len(values)
    return curves, metrics


def _join(parts: list[Counts], breakdowns: int) -> Counts:
    if not parts:
        none = np.zeros((0, breakdowns, len(CUTOFFS)), np.int16)
        return Counts(none, none, none, none, none.astype(np.float32))
    return Counts(*(np.concatenate([getattr(part, name) for part in parts]) for name in Counts.__dataclass_fields__))


def _card(scene: EvalBoxes, frame_ids: tuple[Any, ...], ranges: bool) -> dict[str, Any]:
    truth, found = scene.truth, scene.predictions
    labelled = {
        name: {
            "LEVEL_1": int(((truth.kind == kind) & (truth.difficulty <= 1)).sum()),
            "LEVEL_2": int(((truth.kind == kind) & (truth.difficulty == 2)).sum()),
        }
        for kind, name in enumerate(TYPE_NAMES, 1)
    }
    return {
        "frames": len(frame_ids),
        "ground_truth": labelled,
        "predictions": {name: int((found.kind == kind).sum()) for kind, name in enumerate(TYPE_NAMES, 1)},
        "truth_fingerprint": _fingerprint(scene, frame_ids),
        "settings": {
            "matcher": "HUNGARIAN",
            "box_type": "3D",
            "iou_thresholds": {name: round(float(IOU_THRESHOLDS[kind]), 3) for kind, name in enumerate(TYPE_NAMES, 1)},
            "score_cutoffs": len(CUTOFFS),
            "breakdowns": ["OBJECT_TYPE", "RANGE"] if ranges else ["OBJECT_TYPE"],
            "mean_over": list(MEAN_TYPES),
        },
    }


def _fingerprint(scene: EvalBoxes, frame_ids: tuple[Any, ...]) -> str:
    """Twelve hexadecimal digits that change with any frame id or ground-truth box: equal ones may be compared."""
    digest = hashlib.sha256("\n".join(map(str, frame_ids)).encode())
    truth = scene.truth
    for column in (truth.frame.astype(np.int64), truth.box, truth.kind.astype(np.int64), truth.difficulty.astype(np.int64)):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:12]
