"""Two tables of boxes to the arrays the metric computes on: checked, the ground truth normalised,
42 bytes a box kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.metric import box_tables
from kdlib.metric.box_tables import PREDICTION_COLUMNS, TRUTH_COLUMNS, BoxTable
from kdlib.metric.objects import EvalBoxes, FrameBoxes, Predictions, Truth
from kdlib.metric.shards import WAYMO, Classes
from kdlib.types import IntArray
from kdlib.waymo.annotations import difficulty_level

TABLE_NAMES = ("the predictions table", "the ground-truth table")
MOST_PAIRS = 50_000_000  # pairs of boxes in one frame

_Boxes = TypeVar("_Boxes", bound=FrameBoxes)
_Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Loaded:
    """Two tables as the metric wants them, and what was left out."""

    boxes: EvalBoxes
    frame_ids: tuple[Any, ...]  # ascending; frames of the boxes are positions in it
    without_points: int  # ground-truth boxes dropped because num_points <= 0
    classes: Classes = WAYMO


def load_boxes(
    predictions: BoxTable,
    truth: BoxTable,
    *,
    strict: bool = True,
    names: tuple[str, str] = TABLE_NAMES,
) -> Loaded:
    """Check two tables and return their boxes by frame, the ground truth normalised (metric spec
    section 1.3).

    Args:
        predictions: Columns ``frame_id, x, y, z, length, width, height, heading, type, score`` and
            optionally ``overlap_nlz``.
        truth: Columns ``frame_id, x, ..., heading, type, difficulty, num_points``. A frame without
            boxes is named in the schema's metadata ``frame_ids`` (a JSON list) or is one row with
            null in all other columns. A null num_points counts as 0, a null difficulty as unset.
        strict: Refuse an empty ground truth and predictions for frames it does not have; else count
            them as the official op does.
        names: What to call the two tables in messages.

    Raises:
        DataError: If anything in the tables makes the metric meaningless.
    """
    box_tables.check_columns(predictions.schema, PREDICTION_COLUMNS, names[0])
    box_tables.check_columns(truth.schema, TRUTH_COLUMNS, names[1])
    box_tables.check_same_kind_of_id(predictions.schema, truth.schema, names)
    types = _type_names(predictions.schema, truth.schema, names)
    predicted_ids, predicted = _read(predictions, names[0], types, labels=False)
    truth_ids, labelled = _read(truth, names[1], types, labels=True)
    evaluated = set(truth_ids) | set(box_tables.stated(truth.schema, "frame_ids"))
    if strict:
        _check_labels(truth.num_rows, names[1])
        _check_origin(predictions.schema, truth.schema, names)
        covered = set(box_tables.stated(predictions.schema, "frame_ids"))
        _check_frames(
            set(predicted_ids),
            covered,
            evaluated,
            {truth_ids[i] for i in np.unique(labelled["frame"])},
            names,
        )
    ids = tuple(sorted(set(predicted_ids) | evaluated))
    points = labelled.pop("num_points")
    if strict:
        _check_levels(labelled["difficulty"], points, names[1])
    labelled["difficulty"] = difficulty_level(labelled["difficulty"], points).astype(np.int8)
    ours = _placed(Predictions(**predicted), predicted_ids, ids)
    theirs = _placed(Truth(**labelled).take(points > 0), truth_ids, ids)
    pairs = np.bincount(ours.frame, minlength=len(ids)) * np.bincount(
        theirs.frame, minlength=len(ids)
    )
    if len(pairs) and pairs.max() > MOST_PAIRS:
        raise DataError(
            f"{names[0]}: frame {ids[pairs.argmax()]!r} has {pairs.max():,} pairs of boxes; keep "
            "the best few hundred "
            "predictions of a frame"
        )
    classes = WAYMO
    if types:
        evaluated_classes = box_tables.stated(predictions.schema, "class_names")
        classes = Classes.of(
            types, evaluated_classes or box_tables.stated(truth.schema, "class_names")
        )
    return Loaded(EvalBoxes(ours, theirs, len(ids)), ids, int((points <= 0).sum()), classes)


def _type_names(predictions: pa.Schema, truth: pa.Schema, names: tuple[str, str]) -> list[str]:
    """Return what the types are if both tables say that they are not Waymo's, else nothing."""
    ours, theirs = (box_tables.stated(schema, "type_names") for schema in (predictions, truth))
    if ours != theirs:
        first, second = (", ".join(types) or "Waymo's" for types in (ours, theirs))
        raise DataError(
            f"{names[0]}: types 1, 2, ... are {first}, but in {names[1]} {second}; take both from "
            "one store, or state the same 'type_names' (a JSON list) in both schemas' metadata"
        )
    return ours


def _read(
    source: BoxTable, name: str, types: Sequence[str], *, labels: bool
) -> tuple[list[Any], _Arrays]:
    """Return the distinct frame ids in order of appearance, and the boxes' columns: ``frame`` is a
    position in the ids.
    """
    flag = ["overlap_nlz"] if "overlap_nlz" in source.schema.names else []
    place: dict[Any, int] = {}
    parts = []
    for table in box_tables.row_batches(
        source, TRUTH_COLUMNS if labels else (*PREDICTION_COLUMNS, *flag)
    ):
        frame = _codes(table.column("frame_id"), place, name)
        if labels:  # a row without a type only names its frame
            holds_box = table.column("type").is_valid()
            table, frame = table.filter(holds_box), frame[holds_box.to_numpy()]
        box, kind = box_tables.boxes_of(table, name), box_tables.types_of(table, name, types)
        part = {"frame": frame, "box": box.astype(np.float32), "kind": kind.astype(np.int8)}
        if labels:
            difficulty, points = (
                table.column(column).cast(pa.int64()).fill_null(0).to_numpy()
                for column in ("difficulty", "num_points")
            )
            unknown = np.setdiff1d(difficulty, np.arange(3))
            if len(unknown):
                raise DataError(
                    f"{name}: difficulty {unknown[0]} is none of 0 (unset), 1 "
                    "(LEVEL_1), 2 (LEVEL_2)"
                )
            part["difficulty"] = difficulty.astype(np.int8)
            part["num_points"] = np.clip(points, -1, 2**31 - 1).astype(np.int32)
        else:
            part["score"] = box_tables.scores_of(table, name).astype(np.float32)
            part["overlap_nlz"] = box_tables.flags_of(table, name)
        parts.append(part)
    return list(place), {
        column: np.concatenate([part[column] for part in parts]) for column in parts[0]
    }


def _codes(column: pa.ChunkedArray, place: dict[Any, int], name: str) -> NDArray[np.int32]:
    """Return each row's position in ``place``, which learns the ids it does not know."""
    if column.null_count:
        raise DataError(
            f"{name}: {column.null_count} rows have no frame_id; every box needs the "
            "frame it belongs to"
        )
    codes = [np.zeros(0, np.int32)]
    for chunk in column.chunks:
        encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        index = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        # A dictionary may hold values of other rows too: only those in use become frames.
        used, compact = np.unique(index, return_inverse=True)
        values = encoded.dictionary.take(pa.array(used)).to_pylist()
        codes.append(
            np.array([place.setdefault(value, len(place)) for value in values], np.int32)[compact]
        )
    return np.concatenate(codes)


def _placed(boxes: _Boxes, own_ids: Sequence[Any], ids: Sequence[Any]) -> _Boxes:
    """Return the boxes with the places of their frames in ``ids``, sorted by them."""
    place = {value: i for i, value in enumerate(ids)}
    frame = np.array([place[value] for value in own_ids], np.int32)[boxes.frame]
    return replace(boxes, frame=frame).take(np.argsort(frame, kind="stable"))


def _check_origin(predictions: pa.Schema, truth: pa.Schema, names: tuple[str, str]) -> None:
    """Compare what both say of their making, where both say it: ``dataset`` (a fingerprint),
    ``class_names`` in any order.
    """
    ours, theirs = (
        (schema.metadata or {}).get(b"dataset", b"").decode() for schema in (predictions, truth)
    )
    if ours and theirs and ours != theirs:
        raise DataError(
            f"{names[0]}: predicted on dataset {ours}, but {names[1]} is of dataset {theirs}; "
            "take both from one split of "
            "one store"
        )
    known, labelled = (
        box_tables.stated(predictions, "class_names"),
        box_tables.stated(truth, "class_names"),
    )
    if known and labelled and set(known) != set(labelled):
        raise DataError(
            f"{names[0]}: the model knows {', '.join(known)}, but {names[1]} holds "
            f"{', '.join(labelled)}; make the ground "
            "truth of the model's classes"
        )


def _check_frames(
    predicted: set[Any],
    covered: set[Any],
    evaluated: set[Any],
    with_boxes: set[Any],
    names: tuple[str, str],
) -> None:
    """Refuse predictions for unknown frames and predictions that leave frames out.

    Predictions that do not say which frames they cover are trusted if more than half of the frames
    with boxes have one, or none has any: a detector that finds nothing scores 0 for everybody to
    see.
    """
    unknown = sorted(predicted - evaluated)
    if unknown:
        raise DataError(
            f"{names[0]}: frame {_first(unknown)} is not in {names[1]}, whose ids are like "
            f"{min(evaluated, default=None)!r}; {len(predicted & evaluated)} of {len(predicted)} "
            "predicted frames are: predict and label the same frames under the same ids (a "
            "labelled frame without boxes is one row with null in every other column)"
        )
    missing = sorted(evaluated - covered) if covered else []
    if missing:
        raise DataError(
            f"{names[0]}: frame {_first(missing)} of {names[1]} was never predicted on, "
            f"{len(evaluated) - len(missing)} of its "
            f"{len(evaluated)} frames were; use one split and interval for both"
        )
    count = len(with_boxes & predicted)
    if not covered and 0 < count <= len(with_boxes) / 2:
        raise DataError(
            f"{names[0]}: only {count} of the {len(with_boxes)} frames with boxes in {names[1]} "
            "have a prediction; predict on "
            "all of them, or, if the detector found nothing there, name all frames in the "
            "schema's metadata 'frame_ids' (a JSON "
            "list)"
        )


def _first(frames: Sequence[Any]) -> str:
    more = f" (and {len(frames) - 1} more)" if len(frames) > 1 else ""
    return f"{frames[0]!r}{more}"


def _check_labels(count: int, name: str) -> None:
    """Refuse ground truth without a box."""
    if count == 0:
        raise DataError(
            f"{name}: no ground-truth box at all; evaluate on a split that has "
            "labels (testing has none)"
        )


def _check_levels(difficulty: IntArray, points: IntArray, name: str) -> None:
    """Refuse ground truth that cannot be divided into levels, or of which normalisation leaves
    nothing: all would be 0.
    """
    if (points > 0).any():
        return
    if not (difficulty > 0).any():
        raise DataError(
            f"{name}: none of the {len(difficulty)} boxes has a difficulty or a number of points, "
            "so all would be left out; Waymo's labels have them from v1.2 on (prepare those), "
            "boxes of one's own where points lie inside"
        )
    raise DataError(
        f"{name}: all {len(points)} ground-truth boxes have num_points <= 0 and are left out as "
        "Waymo does; fill num_points in"
    )


def check_trained_on(trained: str, present: str, name: str) -> None:
    """Check the training split's fingerprint in the card of a run's weights against the run's
    store; an empty one passes.

    Raises:
        DataError: If they differ: scores would be reported beside data the weights never saw.
    """
    if trained and present and trained != present:
        raise DataError(
            f"{name}: trained on dataset {trained}, but the run's store now holds {present}; "
            "train again, or put that store back"
        )
