"""Tables and arrays in, nothing out: each function stops a wrong number with one sentence and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdlib.errors import DataError

BOX_COLUMNS = ("x", "y", "z", "length", "width", "height", "heading")
PREDICTION_COLUMNS = ("frame_id", *BOX_COLUMNS, "type", "score")
TRUTH_COLUMNS = ("frame_id", *BOX_COLUMNS, "type", "difficulty", "num_points")
MOST_PAIRS = 50_000_000  # pairs of boxes in one frame


def check_columns(table: pa.Table, required: Sequence[str], name: str) -> None:
    """Check that a table has the columns, once each and of a usable type.

    Raises:
        DataError: If not.
    """
    missing = [column for column in required if column not in table.column_names]
    if missing:
        raise DataError(f"{name}: no column {_listed(missing)}; needed are {', '.join(required)}, found {table.column_names}")
    for column in required:
        if table.column_names.count(column) > 1:
            raise DataError(f"{name}: column '{column}' occurs twice; keep one of them")
        kind = table.schema.field(column).type
        if column == "frame_id":
            usable = is_text(kind) or pa.types.is_integer(kind)
            wanted = "a string or an integer"
        elif column in ("type", "difficulty", "num_points"):
            usable, wanted = pa.types.is_integer(kind) or pa.types.is_null(kind), "an integer"
        else:
            usable, wanted = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind), "a number"
        if not usable:
            raise DataError(f"{name}: column '{column}' is of type {kind}, not {wanted}; cast it before writing the table")
    empty = table.column("frame_id").null_count
    if empty:
        raise DataError(f"{name}: {empty} rows have no frame_id; every box needs the frame it belongs to")


def check_same_kind_of_id(predictions: pa.Table, truth: pa.Table, names: tuple[str, str]) -> None:
    """Check that both tables name frames by strings, or both by integers.

    Raises:
        DataError: If they differ.
    """
    first, second = (table.schema.field("frame_id").type for table in (predictions, truth))
    if is_text(first) != is_text(second):
        raise DataError(
            f"{names[0]}: frame_id is of type {first}, but {second} in {names[1]}; write the same ids into both, they are how "
            "boxes find their frame"
        )


def is_text(kind: Any) -> bool:
    """Say whether a column type holds strings, dictionary-encoded ones included."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def check_boxes(box: NDArray[np.floating], ids: Sequence[Any], frame: NDArray[np.integer], name: str) -> None:
    """Check that all boxes (N, 7) are finite as float32; frame ``ids[frame[i]]`` is named in the message.

    Raises:
        DataError: At the first box that is not.
    """
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(box.astype(np.float32))
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"{name}: a box of frame {ids[frame[row]]!r} has {BOX_COLUMNS[column]} = {box[row, column]}; every box needs seven "
            "finite numbers, so leave out boxes that have none"
        )


def check_types(kind: NDArray[np.integer], name: str) -> None:
    """Check that object types are Waymo's.

    Raises:
        DataError: If one is not in 0 to 4.
    """
    unknown = np.setdiff1d(kind, np.arange(5))
    if len(unknown):
        raise DataError(
            f"{name}: type {int(unknown[0])} is none of Waymo's (1 vehicle, 2 pedestrian, 3 sign, 4 cyclist); types are no "
            "positions in a class list"
        )


def check_scores(score: NDArray[np.floating], ids: Sequence[Any], frame: NDArray[np.integer], name: str) -> None:
    """Check that scores are probabilities.

    Raises:
        DataError: If one is NaN or outside [0, 1].
    """
    # One float32 rounding above 1 is let pass: a sigmoid or a product of scores may end there.
    bad = np.flatnonzero(~((score >= 0.0) & (score <= 1.0 + 2e-7)))
    if len(bad):
        value = score[bad[0]]
        raise DataError(
            f"{name}: frame {ids[frame[bad[0]]]!r} has the score {value}; scores lie in [0, 1], so apply the "
            "sigmoid to logits first"
        )


def check_difficulty(difficulty: NDArray[np.integer], name: str) -> None:
    """Check that difficulties are 0 (unset), 1 or 2.

    Raises:
        DataError: If one is not.
    """
    unknown = np.setdiff1d(difficulty, np.arange(3))
    if len(unknown):
        raise DataError(f"{name}: difficulty {int(unknown[0])} is none of 0 (unset), 1 (LEVEL_1), 2 (LEVEL_2)")


def check_levels_known(difficulty: NDArray[np.integer], num_points: NDArray[np.integer], name: str) -> None:
    """Check that labels say how hard they are: at least one difficulty or one number of points is set.

    Raises:
        DataError: If there are boxes and neither is set on any of them.
    """
    if len(difficulty) and not (difficulty > 0).any() and not (num_points > 0).any():
        raise DataError(
            f"{name}: none of the {len(difficulty)} boxes has a difficulty or a number of points: no Waymo release the "
            "metric is made for; use labels of v1.2 or later (or v2), and prepare them again"
        )


def check_truth_not_empty(labelled: int, kept: int, name: str) -> None:
    """Check that ground truth is left after normalisation; every metric would be 0 without.

    Raises:
        DataError: If none is.
    """
    if labelled == 0:
        raise DataError(f"{name}: no ground-truth box at all; evaluate on a split that has labels (testing has none)")
    if kept == 0:
        raise DataError(
            f"{name}: all {labelled} ground-truth boxes have num_points <= 0 and are left out as Waymo does; fill num_points in"
        )


def check_same_dataset(predicted: str, labelled: str, names: tuple[str, str]) -> None:
    """Check the fingerprints of the split predicted on and of the split labelled; an empty one is unknown and passes.

    Raises:
        DataError: If they differ.
    """
    if predicted and labelled and predicted != labelled:
        raise DataError(
            f"{names[0]}: predicted on dataset {predicted}, but {names[1]} is of dataset {labelled}; take both from one split of "
            "one store"
        )


def check_trained_on(trained: str, present: str, name: str) -> None:
    """Check the training split's fingerprint in the card of a run's weights against the run's store; an empty one passes.

    Raises:
        DataError: If they differ: scores would be reported beside data the weights never saw.
    """
    if trained and present and trained != present:
        raise DataError(
            f"{name}: trained on dataset {trained}, but the run's store now holds {present}; train again, or put that store back"
        )


def check_same_classes(predicted: Sequence[str], labelled: Sequence[str], names: tuple[str, str]) -> None:
    """Check the classes a model knows against those the ground truth was made of; an empty list is unknown and passes.

    Raises:
        DataError: If they differ; order does not matter.
    """
    if predicted and labelled and set(predicted) != set(labelled):
        raise DataError(
            f"{names[0]}: the model knows {', '.join(predicted)}, but {names[1]} holds {', '.join(labelled)}; make the ground "
            "truth of the model's classes"
        )


def check_frames_known(unknown: Sequence[Any], names: tuple[str, str]) -> None:
    """Check that no prediction belongs to a frame the ground truth does not have.

    Raises:
        DataError: If there is one; the message names a frame.
    """
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise DataError(
            f"{names[0]}: frame {unknown[0]!r}{more} is not in {names[1]}; predict and label the same frames (a labelled frame "
            "without boxes is one row with null in every other column)"
        )


def check_frames_predicted(missing: Sequence[Any], total: int, names: tuple[str, str]) -> None:
    """Check that the predictions, where they say which frames they cover, cover all ``total`` frames of the ground truth.

    Raises:
        DataError: If a frame is missing; the message names it and the counts.
    """
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"{names[0]}: frame {missing[0]!r}{more} of {names[1]} was never predicted on, {total - len(missing)} of its {total} "
            "frames were; use one split and interval for both"
        )


def check_frames_covered(found: int, labelled: int, names: tuple[str, str]) -> None:
    """Check predictions that do not say which frames they cover: half of the labelled frames without any box is an omission.

    Predictions without any row are let pass: a detector that finds nothing scores 0 for everybody to see.

    Raises:
        DataError: If at most half of the frames with ground truth have a prediction.
    """
    if 0 < found <= labelled / 2:
        raise DataError(
            f"{names[0]}: only {found} of the {labelled} frames with boxes in {names[1]} have a prediction; predict on all of "
            f"them, or, if the detector found nothing there, name all frames in the schema's metadata 'frame_ids' (a JSON list)"
        )


def check_pairs(pairs: NDArray[np.integer], ids: Sequence[Any], name: str) -> None:
    """Check that no frame has so many boxes (pairs (F,) of prediction and truth) that matching would exhaust the memory.

    Raises:
        DataError: If one has.
    """
    if len(pairs) and pairs.max() > MOST_PAIRS:
        worst = int(pairs.argmax())
        raise DataError(
            f"{name}: frame {ids[worst]!r} has {int(pairs[worst]):,} pairs of boxes; keep the best few "
            "hundred predictions of a frame"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
