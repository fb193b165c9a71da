"""Parquet files or pyarrow tables of boxes in, checked and normalised arrays out; and the way back for predictions."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.evaluation import preflight
from kdlib.evaluation.objects import Predictions, Scene, Truth
from kdlib.evaluation.preflight import BOX_COLUMNS, PREDICTION_COLUMNS, TRUTH_COLUMNS

NAMES = ("the predictions table", "the ground-truth table")
FEW_POINTS = 5  # a box with at most this many points is LEVEL_2 if nobody set its level

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
    predictions: pa.Table,
    truth: pa.Table,
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
    preflight.check_columns(predictions, PREDICTION_COLUMNS, names[0])
    preflight.check_columns(truth, TRUTH_COLUMNS, names[1])
    preflight.check_same_kind_of_id(predictions, truth, names)
    code_p, ids_p = _encode(predictions.column("frame_id"))
    code_g, ids_g = _encode(truth.column("frame_id"))
    evaluated = set(ids_g) | listed_frames(truth)
    if strict:
        preflight.check_frames_known(sorted(set(ids_p) - evaluated), names)
        predicted = listed_frames(predictions)
        if predicted:
            preflight.check_frames_predicted(sorted(evaluated - predicted), names)
    ids = sorted(set(ids_p) | evaluated)
    found = _predictions(predictions, _positions(code_p, ids_p, ids), ids, names[0])
    labelled, without_points = _truth(truth, _positions(code_g, ids_g, ids), ids, names[1])
    if strict:
        kept = len(labelled.frame)
        preflight.check_truth_not_empty(kept + without_points, kept, names[1])
    near_p, near_g = (np.hypot(side.box[:, 0], side.box[:, 1]) <= max_distance for side in (found, labelled))
    found, labelled = found.take(near_p), labelled.take(near_g)
    pairs = np.bincount(found.frame, minlength=len(ids)) * np.bincount(labelled.frame, minlength=len(ids))
    preflight.check_pairs(pairs, ids, names[0])
    too_far = (int((~near_p).sum()), int((~near_g).sum()))
    return Loaded(Scene(found, labelled, len(ids)), tuple(ids), without_points, too_far)


def listed_frames(table: pa.Table) -> set[Any]:
    """Return the frames that a table's metadata names (key ``frame_ids``, a JSON list): those without boxes have no row."""
    text = (table.schema.metadata or {}).get(b"frame_ids")
    return set(json.loads(text)) if text else set()


def _encode(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[Any]]:
    """Return each row's position in the distinct values, and these values in order of appearance."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # pyarrow keeps the chunks of an empty column
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], column.type).dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def _positions(code: NDArray[np.int64], own: list[Any], ids: Sequence[Any]) -> NDArray[np.int64]:
    place = {value: i for i, value in enumerate(ids)}
    return np.array([place[value] for value in own], np.int64)[code] if own else np.zeros(0, np.int64)


def _predictions(table: pa.Table, frame: NDArray[np.int64], ids: Sequence[Any], name: str) -> Predictions:
    box, kind = _boxes(table, name), _integers(table, "type", name)
    score = _numbers(table, "score", name)
    preflight.check_boxes(box, ids, frame, name)
    preflight.check_types(kind, name)
    preflight.check_scores(score, ids, frame, name)
    flag = np.zeros(len(frame), np.bool_)
    if "overlap_nlz" in table.column_names:
        column = table.column("overlap_nlz")
        if not pa.types.is_boolean(column.type):
            raise DataError(
                f"{name}: column 'overlap_nlz' is of type {column.type}, not boolean; cast it before writing the table"
            )
        flag = column.fill_null(False).to_numpy().astype(np.bool_)
    order = np.argsort(frame, kind="stable")
    return Predictions(frame, box.astype(np.float32), kind, score.astype(np.float32), flag).take(order)


def _truth(table: pa.Table, frame: NDArray[np.int64], ids: Sequence[Any], name: str) -> tuple[Truth, int]:
    """Return the boxes that count and the number of those dropped for want of points."""
    holds_box = table.column("type").is_valid().to_numpy()
    if not holds_box.all():
        table, frame = table.filter(pa.array(holds_box)), frame[holds_box]
    box, kind = _boxes(table, name), _integers(table, "type", name)
    points = _integers(table, "num_points", name, null=0)
    difficulty = _integers(table, "difficulty", name, null=0)
    preflight.check_boxes(box, ids, frame, name)
    preflight.check_types(kind, name)
    preflight.check_difficulty(difficulty, name)
    difficulty = np.where(difficulty > 0, difficulty, np.where(points <= FEW_POINTS, 2, 1))
    kept = points > 0
    order = np.flatnonzero(kept)[np.argsort(frame[kept], kind="stable")]
    return Truth(frame, box.astype(np.float32), kind, difficulty).take(order), int((~kept).sum())


def _boxes(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.stack([_numbers(table, column, name) for column in BOX_COLUMNS], axis=1)


def _numbers(table: pa.Table, column: str, name: str) -> NDArray[np.float64]:
    values = table.column(column)
    if values.null_count:
        raise DataError(f"{name}: {values.null_count} rows have no '{column}'; every box needs seven numbers and its score")
    return values.cast(pa.float64()).to_numpy().astype(np.float64)


def _integers(table: pa.Table, column: str, name: str, null: int | None = None) -> NDArray[np.int64]:
    values = table.column(column)
    if pa.types.is_null(values.type):
        values = values.cast(pa.int64())
    if values.null_count and null is None:
        raise DataError(f"{name}: {values.null_count} rows have no '{column}'; every box needs one")
    return (values.fill_null(null) if values.null_count else values).to_numpy().astype(np.int64)


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
