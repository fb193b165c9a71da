"""Predictions and ground truth in, an EvalResult out: Waymo's AP and APH per class, range and
level, with curves and a card.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kdlib.data.processes import process_pool
from kdlib.metric.ap import Curve, average_precision, precision_recall
from kdlib.metric.box_tables import BoxTable
from kdlib.metric.counts import COUNTED, CUTOFFS, Counts, count_frames
from kdlib.metric.loading import Loaded, load_boxes
from kdlib.metric.objects import EvalBoxes, Truth
from kdlib.metric.shards import (
    LEVELS,
    MEAN_TYPES,
    WAYMO,
    Classes,
    Generator,
    by_range,
    by_type,
    type_breakdown,
)
from kdlib.types import Json


@dataclass(frozen=True)
class FrameCounts:
    """The counts of every single frame, from which any resampling of frames can be scored again."""

    frame_ids: tuple[Any, ...]  # F, ascending
    breakdowns: tuple[str, ...]  # S official names without the level
    counts: Counts  # (F, S, C)


@dataclass(frozen=True)
class EvalResult:
    """One evaluation: the numbers, the curves behind them and what they were computed on."""

    # 'OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2/APH', ..., 'LEVEL_2/mAPH', in [0, 1]
    metrics: Mapping[str, float]
    # 'OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2' -> (C,) each, at the cutoffs of counts.py
    curves: Mapping[str, Curve]
    card: Mapping[str, Any]  # frames, boxes per class and level, settings: plain JSON values
    frames: FrameCounts | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, float]:
        """Return the metrics as one flat JSON object under the official names."""
        return {name: float(value) for name, value in self.metrics.items()}

    @property
    def mean_over(self) -> tuple[str, ...]:
        """The classes over which mAP and mAPH are taken."""
        return tuple(self.card.get("settings", {}).get("mean_over", MEAN_TYPES))

    def table(self) -> str:
        """Return the metrics as text, in percent: one line per breakdown, AP and APH at both
        levels.
        """
        columns = [(level, kind) for level in LEVELS for kind in ("AP", "APH")]
        breakdowns = dict.fromkeys(name.rsplit("_LEVEL_", 1)[0] for name in self.curves)
        names = {
            name: [f"{name}_LEVEL_{level}/{kind}" for level, kind in columns] for name in breakdowns
        }
        names[f"mean of {', '.join(self.mean_over).lower()}"] = [
            f"LEVEL_{level}/m{kind}" for level, kind in columns
        ]
        head = "".join(f"{f'LEVEL_{level} {kind}':>13}" for level, kind in columns)
        rows = [
            f"{title:40}" + "".join(f"{100 * self.metrics[name]:13.2f}" for name in row)
            for title, row in names.items()
        ]
        return "\n".join([f"{'':40}{head}", *rows, *self._thresholds()])

    def _thresholds(self) -> list[str]:
        """Say at which IoU classes of one's own were matched."""
        used = self.card.get("settings", {}).get("iou_thresholds", {})
        if not set(used) - set(WAYMO.names):
            return []
        pairs = ", ".join(f"{name.lower()} {value:g}" for name, value in used.items())
        return [f"A box counts from this IoU on: {pairs}"]


def evaluate_tables(
    predictions: BoxTable,
    truth: BoxTable,
    *,
    ranges: bool = True,
    workers: int = 1,
    strict: bool = True,
    all_classes: bool = False,
) -> EvalResult:
    """Return Waymo's detection metrics of a predictions table; see
    :func:`~kdlib.metric.loading.load_boxes` for the columns.

    Args:
        predictions: Boxes with scores: a table, or a :class:`~kdlib.metric.box_tables.TableFile`.
        truth: Labelled boxes, likewise.
        ranges: Also break every class down by distance.
        workers: Processes; one does some thousand frames a second, so more only pay for very many.
        strict: Refuse an empty ground truth and predictions for frames it does not have.
        all_classes: Also average over classes without a label, as 0.

    Raises:
        DataError: If anything in the tables makes the metric meaningless.
    """
    loaded = load_boxes(predictions, truth, strict=strict)
    return evaluate_loaded(loaded, ranges=ranges, workers=workers, all_classes=all_classes)


def evaluate_loaded(loaded: Loaded, **options: Any) -> EvalResult:
    """Return the metrics of checked tables; ``options`` are those of :func:`evaluate_boxes`."""
    result = evaluate_boxes(loaded.boxes, loaded.frame_ids, classes=loaded.classes, **options)
    return replace(
        result, card={**result.card, "ground_truth_without_points": loaded.without_points}
    )


def evaluate_boxes(
    boxes: EvalBoxes,
    frame_ids: tuple[Any, ...],
    *,
    classes: Classes = WAYMO,
    ranges: bool = True,
    workers: int = 1,
    keep_frames: bool = True,
    all_classes: bool = False,
) -> EvalResult:
    """Return the metrics of boxes already sorted by frame, with the official op's own leniency:
    nothing is checked or dropped.

    Args:
        boxes: Of both sides.
        frame_ids: The frames' ids, ascending.
        classes: What the boxes' type numbers mean.
        ranges: Also break every class down by distance.
        workers: Processes.
        keep_frames: Keep every frame's counts for the bootstrap (about 4 kB a frame, 20 kB with
            ranges).
        all_classes: Also average over classes without a label, as 0.
    """
    if not all_classes:
        classes = replace(classes, mean=_labelled(boxes.truth, classes))
    generators = (by_type(classes), by_range(classes)) if ranges else (by_type(classes),)
    breakdowns = tuple(name for generator in generators for name in generator.names)
    shape = (len(breakdowns), len(CUTOFFS))
    total = Counts(
        sum_ha=np.zeros(shape, np.float32), **{name: np.zeros(shape, np.int64) for name in COUNTED}
    )
    nothing = EvalBoxes(boxes.predictions.take(slice(0)), boxes.truth.take(slice(0)), 0)
    kept = [count_frames(nothing, generators).narrow()]  # so that there are counts of no frame too
    for counts in _count(boxes, generators, classes.thresholds, workers):
        _add(total, counts)
        if keep_frames:
            kept.append(counts.narrow())
    curves, metrics = _score(total, breakdowns, classes.mean)
    frames = FrameCounts(frame_ids, breakdowns, Counts.joined(kept)) if keep_frames else None
    return EvalResult(metrics, curves, _card(boxes, frame_ids, classes, ranges), frames)


def _labelled(truth: Truth, classes: Classes) -> tuple[str, ...]:
    """Return the classes of the mean that have a label of any level; all, where none has."""
    present = np.bincount(truth.kind, minlength=len(classes.names) + 1)[1:] > 0
    labelled = {name for name, there in zip(classes.names, present) if there}
    return tuple(name for name in classes.mean if name in labelled) or classes.mean


def _count(
    boxes: EvalBoxes,
    generators: tuple[Generator, ...],
    thresholds: tuple[float, ...],
    workers: int,
) -> Iterator[Counts]:
    """Yield the counts of consecutive frames, in order whatever the number of processes."""
    if workers <= 1:
        yield from (count_frames(chunk, generators, thresholds) for chunk in boxes.chunks())
        return
    words = "a counting process was killed, perhaps for want of memory; give fewer workers"
    with process_pool(workers, words) as pool:
        # A few chunks at a time, so that not all boxes are held twice.
        waiting: deque[Future[Counts]] = deque()
        for chunk in boxes.chunks(most_frames=256):
            waiting.append(pool.submit(count_frames, chunk, generators, thresholds))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def _add(total: Counts, counts: Counts) -> None:
    """Add the counts of some frames (F, S, C) to those of all (S, C)."""
    for name in COUNTED:
        column = vars(total)[name]
        column += vars(counts)[name].sum(axis=0, dtype=np.int64)
    sum_ha = total.sum_ha
    for frame in counts.sum_ha:  # one after the other in float32, as the official tool does
        sum_ha += frame


def _score(
    total: Counts, breakdowns: tuple[str, ...], mean: tuple[str, ...]
) -> tuple[dict[str, Curve], dict[str, float]]:
    curves = {}
    metrics = {}
    for i, breakdown in enumerate(breakdowns):
        for level in LEVELS:
            name = f"{breakdown}_LEVEL_{level}"
            curve = curves[name] = precision_recall(
                total.tp[i], total.fp[i], total.fn(level)[i], total.sum_ha[i]
            )
            metrics[f"{name}/AP"] = float(average_precision(curve.precision, curve.recall))
            metrics[f"{name}/APH"] = float(average_precision(curve.precision_heading, curve.recall))
    for level in LEVELS:
        for kind in ("AP", "APH"):
            values = [metrics[f"{type_breakdown(name)}_LEVEL_{level}/{kind}"] for name in mean]
            metrics[f"LEVEL_{level}/m{kind}"] = sum(values) / len(values)
    return curves, metrics


def _card(boxes: EvalBoxes, frame_ids: tuple[Any, ...], classes: Classes, ranges: bool) -> Json:
    kinds, truth = list(enumerate(classes.names, 1)), boxes.truth
    levels = {"LEVEL_1": truth.difficulty <= 1, "LEVEL_2": truth.difficulty == 2}
    labelled = {
        name: {
            level: int((of_level & (truth.kind == kind)).sum())
            for level, of_level in levels.items()
        }
        for kind, name in kinds
    }
    return {
        "frames": len(frame_ids),
        "ground_truth": labelled,
        "predictions": {name: int((boxes.predictions.kind == kind).sum()) for kind, name in kinds},
        "truth_fingerprint": _fingerprint(truth, frame_ids),
        "settings": {
            "matcher": "HUNGARIAN",
            "box_type": "3D",
            "iou_thresholds": dict(zip(classes.names, classes.thresholds)),
            "score_cutoffs": len(CUTOFFS),
            "breakdowns": ["OBJECT_TYPE", "RANGE"] if ranges else ["OBJECT_TYPE"],
            "mean_over": list(classes.mean),
        },
    }


def _fingerprint(truth: Truth, frame_ids: tuple[Any, ...]) -> str:
    """Twelve hexadecimal digits that change with any frame id or ground-truth box: equal ones may
    be compared.
    """
    digest = hashlib.sha256("\n".join(map(str, frame_ids)).encode())
    for column in (
        truth.frame.astype(np.int64),
        truth.box,
        truth.kind.astype(np.int64),
        truth.difficulty.astype(np.int64),
    ):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:12]
