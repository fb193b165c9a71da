"""Parquet files or pyarrow tables of boxes in, checked and normalised arrays out; and the way back for predictions."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.metric import checks
from kdlib.metric.checks import BOX_COLUMNS, PREDICTION_COLUMNS, TRUTH_COLUMNS
from kdlib.metric.columns import Columns, Source, head, read_predictions, read_truth
from kdlib.metric.objects import Predictions, Scene, Truth

TIMESTAMPS = "frame_timestamps"  # schema metadata: a JSON list of microseconds beside the list of frame_ids
NAMES = ("the predictions table", "the ground-truth table")
FEW_POINTS = 5  # a box with at most this many points is LEVEL_2 if nobody set its level

_Side = TypeVar("_Side", Predictions, Truth)

_PREDICTION_SCHEMA = pa.schema(
    [("frame_id", pa.string())]
    + [(column, pa.float32()) for column in BOX_COLUMNS]
    + [("type", pa.int8()), ("score", pa.float32()), ("overlap_nlz", pa.bool_())]
)


@dataclass(frozen=True)
class Loaded:
    """Two tables as the metric wants them, and what was left out."""

    scene: Scene
    frame_ids: tuple[Any, ...]  # ascending; scene frames are positions in it
    without_points: int  # ground-truth boxes dropped because num_points <= 0
    too_far: tuple[int, int]  # predictions and ground-truth boxes beyond the largest distance


def load(
    predictions: Source,
    truth: Source,
    *,
    strict: bool = True,
    max_distance: float = np.inf,
    names: tuple[str, str] = NAMES,
) -> Loaded:
    """Check two tables and return their boxes by frame, the ground truth normalised (metric spec section 1.3).

    Args:
        predictions: Columns ``frame_id, x, y, z, length, width, height, heading, type, score`` and optionally ``overlap_nlz``.
        truth: Columns ``frame_id, x, ..., heading, type, difficulty, num_points``. A frame without boxes is named in the
            schema's metadata ``frame_ids`` (a JSON list) or is one row with null in all other columns. A null num_points counts
            as 0, a null difficulty as unset.
        strict: Refuse an empty ground truth and predictions for frames it does not have; else count them as the official op
            does.
        max_distance: Boxes with hypot(x, y) above this are left out on both sides, metres.
        names: What to call the two tables in messages.

    Raises:
        DataError: If anything in the tables makes the metric meaningless.
    """
    _check_columns(predictions, truth, names)
    found, labelled = read_predictions(predictions, names[0]), read_truth(truth, names[1])
    evaluated = set(labelled.ids) | listed_frames(truth)
    if strict:
        _check_origin(predictions, truth, names)
        checks.check_frames_known(sorted(set(found.ids) - evaluated), names)
        predicted = listed_frames(predictions)
        if predicted:
            checks.check_frames_predicted(sorted(evaluated - predicted), len(evaluated), names)
        else:
            checks.check_frames_covered(len(labelled.labelled & set(found.ids)), len(labelled.labelled), names)
    ids = sorted(set(found.ids) | evaluated)
    boxes_p = Predictions(_positions(found, ids), found.box, found.kind, found.more["score"], found.more["overlap_nlz"])
    boxes_g, without_points = _normalised(labelled, ids, names[1], strict)
    boxes_p, far_p = _tidy(boxes_p, max_distance)
    boxes_g, far_g = _tidy(boxes_g, max_distance)
    pairs = np.bincount(boxes_p.frame, minlength=len(ids)) * np.bincount(boxes_g.frame, minlength=len(ids))
    checks.check_pairs(pairs, ids, names[0])
    return Loaded(Scene(boxes_p, boxes_g, len(ids)), tuple(ids), without_points, (far_p, far_g))


def _check_columns(predictions: Source, truth: Source, names: tuple[str, str]) -> None:
    found, labelled = head(predictions), head(truth)
    checks.check_columns(found, PREDICTION_COLUMNS, names[0])
    checks.check_columns(labelled, TRUTH_COLUMNS, names[1])
    checks.check_same_kind_of_id(found, labelled, names)


def _positions(columns: Columns, ids: Sequence[Any]) -> NDArray[np.int32]:
    place = {value: i for i, value in enumerate(ids)}
    return np.array([place[value] for value in columns.ids], np.int32)[columns.frame]


def _normalised(columns: Columns, ids: Sequence[Any], name: str, strict: bool) -> tuple[Truth, int]:
    """Return the boxes that count and the number of those dropped for want of points."""
    difficulty, points = columns.more["difficulty"], columns.more["num_points"]
    if strict:
        checks.check_levels_known(difficulty, points, name)
    kept = points > 0
    if strict:
        checks.check_truth_not_empty(len(kept), int(kept.sum()), name)
    level = np.where(difficulty > 0, difficulty, np.where(points <= FEW_POINTS, 2, 1)).astype(np.int8)
    return Truth(_positions(columns, ids), columns.box, columns.kind, level).take(kept), int((~kept).sum())


def _tidy(side: _Side, max_distance: float) -> tuple[_Side, int]:
    """Return the boxes that are near enough, sorted by frame, and the number of the others."""
    near = np.hypot(side.box[:, 0], side.box[:, 1]) <= max_distance
    far = int((~near).sum())
    if far:
        side = side.take(near)
    if (np.diff(side.frame) < 0).any():
        side = side.take(np.argsort(side.frame, kind="stable"))
    return side, far


def listed_frames(table: Source) -> set[Any]:
    """Return the frames that a table's metadata names (key ``frame_ids``, a JSON list): those without boxes have no row."""
    return set(_stated(table, "frame_ids"))


def _stated(table: Source, key: str) -> list[Any]:
    """Return a JSON list of the schema's metadata, empty where it is absent."""
    text = (table.schema.metadata or {}).get(key.encode(), b"[]")
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, list):
        raise DataError(f"the schema's metadata '{key}' is {text[:60]!r}, not a JSON list; write it with json.dumps")
    return values


def _check_origin(predictions: Source, truth: Source, names: tuple[str, str]) -> None:
    """Compare what both tables' metadata says of their making: ``dataset`` (a fingerprint) and ``class_names`` (a JSON list)."""
    ours, theirs = ((table.schema.metadata or {}).get(b"dataset", b"").decode() for table in (predictions, truth))
    checks.check_same_dataset(ours, theirs, names)
    checks.check_same_classes(_stated(predictions, "class_names"), _stated(truth, "class_names"), names)


def read_table(path: str | Path, name: str) -> pa.Table:
    """Return a Parquet file's table.

    Args:
        path: The file.
        name: What it holds, for messages.

    Raises:
        DataError: If it is missing, truncated or no Parquet.
    """
    if not Path(path).is_file():
        raise DataError(f"{name} file '{path}' does not exist; check the path")
    try:
        return pq.read_table(str(path))
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{name} file '{path}' is no readable Parquet ({reason}); it may be cut short, so write it again"
        ) from error


def predictions_table(
    frame_ids: Sequence[Any],
    boxes: NDArray[np.floating],
    types: NDArray[np.integer],
    scores: NDArray[np.floating],
    overlap_nlz: NDArray[np.bool_] | None = None,
    frames: Sequence[str] | None = None,
) -> pa.Table:
    """Return a predictions table of N boxes.

    Args:
        frame_ids: (N,) one id per box.
        boxes: (N, 7).
        types: (N,) Waymo's type numbers.
        scores: (N,).
        overlap_nlz: (N,) or None for all False.
        frames: Every frame predicted on, those without boxes included; goes into the schema's metadata.
    """
    flags = np.zeros(len(boxes), np.bool_) if overlap_nlz is None else overlap_nlz
    boxes = np.asarray(boxes).reshape(-1, len(BOX_COLUMNS))
    columns = [list(frame_ids), *boxes.T, np.asarray(types), np.asarray(scores), flags]
    arrays = {f.name: pa.array(c, f.type, from_pandas=False) for f, c in zip(_PREDICTION_SCHEMA, _cast(columns))}
    table = pa.table(arrays, schema=_PREDICTION_SCHEMA)
    return table if frames is None else table.replace_schema_metadata({"frame_ids": json.dumps(list(frames))})


def _cast(columns: list[Any]) -> list[Any]:
    kinds = [None, *[np.float32] * len(BOX_COLUMNS), np.int8, np.float32, np.bool_]
    return [c if kind is None else np.ascontiguousarray(c).astype(kind) for c, kind in zip(columns, kinds)]


def write_predictions(path: str | Path, table: pa.Table) -> None:
    """Write a table as Parquet, whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, str(unfinished))
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
