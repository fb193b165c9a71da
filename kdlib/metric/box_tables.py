"""Boxes as a table in memory or a Parquet file: its columns, read batch by batch with every value
checked, and written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdlib import records
from kdlib.data.segment import BOX_NUMBERS
from kdlib.errors import DataError
from kdlib.types import Bool, Float64, FloatArray, Int64, IntArray
from kdlib.waymo.column_types import is_text

PREDICTION_COLUMNS = ("frame_id", *BOX_NUMBERS, "type", "score")
TRUTH_COLUMNS = ("frame_id", *BOX_NUMBERS, "type", "difficulty", "num_points")
# schema metadata: a JSON list of microseconds beside the list of frame_ids
TIMESTAMPS = "frame_timestamps"
_INTEGERS = ("type", "difficulty", "num_points")
_ROWS = 65_536  # of a batch

_PREDICTION_SCHEMA = pa.schema(
    [("frame_id", pa.string())]
    + [(column, pa.float32()) for column in BOX_NUMBERS]
    + [("type", pa.int8()), ("score", pa.float32()), ("overlap_nlz", pa.bool_())]
)


@dataclass(frozen=True)
class TableFile:
    """A Parquet file of boxes, to be read in batches wherever a table in memory will do."""

    path: Path
    what: str  # for messages: 'predictions', 'ground-truth'
    schema: pa.Schema
    num_rows: int

    @staticmethod
    def open(path: str | Path, what: str) -> TableFile:
        """Read what the file says of itself; raises DataError if it is missing, truncated or no
        Parquet.
        """
        if not Path(path).is_file():
            raise DataError(f"{what} file '{path}' does not exist; check the path")
        with Path(path).open("rb") as start:
            begin = start.read(24)
        if not b"PAR1".startswith(begin[:4]):
            raise DataError(
                f"{what} file '{path}' is no Parquet, it begins with {begin!r}; write the table as "
                "Parquet, a .csv with pandas: read_csv(...).to_parquet(...)"
            )
        with _reading(path, what):
            file = pq.ParquetFile(path)
        return TableFile(Path(path), what, file.schema_arrow, file.metadata.num_rows)


BoxTable: TypeAlias = pa.Table | TableFile


@contextmanager
def _reading(path: str | Path, what: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{what} file '{path}' is no readable Parquet ({reason}); it may be cut short, so "
            "write it again"
        ) from error


def read_table(path: str | Path, what: str) -> pa.Table:
    """Return a Parquet file's table; ``what`` it holds is for messages.

    Raises:
        DataError: If it is missing, truncated or no Parquet.
    """
    TableFile.open(path, what)
    with _reading(path, what):
        return pq.read_table(path)


def row_batches(source: BoxTable, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield some columns, a few rows at a time, after a first table without rows; raises DataError
    if a file cannot be read.
    """
    yield source.schema.empty_table().select(columns)
    if isinstance(source, pa.Table):
        yield from (
            source.select(columns).slice(start, _ROWS) for start in range(0, source.num_rows, _ROWS)
        )
        return
    # One string a frame instead of one a box.
    texts = ["frame_id"] if is_text(source.schema.field("frame_id").type) else []
    with _reading(source.path, source.what):
        file = pq.ParquetFile(source.path, read_dictionary=texts)
        for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
            yield pa.Table.from_batches([batch])


def check_columns(schema: pa.Schema, required: Sequence[str], name: str) -> None:
    """Check that a table has the columns, once each and of a usable type; raises DataError if
    not.
    """
    missing = [column for column in required if column not in schema.names]
    if missing:
        listed = ", ".join(f"'{column}'" for column in missing)
        raise DataError(
            f"{name}: no column {listed}; needed are {', '.join(required)}, found {schema.names}"
        )
    for column in required:
        if schema.names.count(column) > 1:
            raise DataError(f"{name}: column '{column}' occurs twice; keep one of them")
        kind = schema.field(column).type
        usable, needed = pa.types.is_integer(kind) or pa.types.is_null(kind), "an integer"
        if column == "frame_id":
            usable, needed = is_text(kind) or pa.types.is_integer(kind), "a string or an integer"
        elif column not in _INTEGERS:
            usable, needed = usable or pa.types.is_floating(kind), "a number"
        if not usable:
            raise DataError(
                f"{name}: column '{column}' is of type {kind}, not {needed}; cast it "
                "before writing the table"
            )


def check_same_kind_of_id(predictions: pa.Schema, truth: pa.Schema, names: tuple[str, str]) -> None:
    """Check that both tables name frames by strings, or both by integers; raises DataError if they
    differ.
    """
    first, second = predictions.field("frame_id").type, truth.field("frame_id").type
    if is_text(first) != is_text(second):
        raise DataError(
            f"{names[0]}: frame_id is of type {first}, but {second} in {names[1]}; write the "
            "same ids into both, they are how "
            "boxes find their frame"
        )


def stated(schema: pa.Schema, key: str) -> list[Any]:
    """Return a JSON list of the schema's metadata, empty where it is absent; raises DataError if it
    is something else.
    """
    text = (schema.metadata or {}).get(key.encode(), b"[]")
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, list):
        raise DataError(
            f"the schema's metadata '{key}' is {text[:60]!r}, not a JSON list; write "
            "it with json.dumps"
        )
    return values


def _values_of(table: pa.Table, column: str, kind: pa.DataType, name: str) -> Any:
    values = table.column(column)
    if values.null_count:
        raise DataError(f"{name}: {values.null_count} rows have no '{column}'; every box needs one")
    return values.cast(kind).to_numpy()


def boxes_of(table: pa.Table, name: str) -> Float64:
    """Return the boxes (N, 7); raises DataError if a number is missing or not finite as float32;
    the message names its frame.
    """
    box = np.stack(
        [_values_of(table, column, pa.float64(), name) for column in BOX_NUMBERS], axis=1
    )
    with np.errstate(over="ignore"):
        bad = np.argwhere(~np.isfinite(box.astype(np.float32)))
    if len(bad):
        row, axis = bad[0]
        raise DataError(
            f"{name}: a box of frame {_frame_of(table, row)!r} has {BOX_NUMBERS[axis]} = "
            f"{box[row, axis]}; every box needs seven "
            "finite numbers, so leave out boxes that have none"
        )
    return box


def types_of(table: pa.Table, name: str, type_names: Sequence[str] = ()) -> Int64:
    """Return the object types (N,); raises DataError if one is missing or none of Waymo's, or of
    those named.
    """
    kind = _values_of(table, "type", pa.int64(), name)
    unknown = np.setdiff1d(kind, np.arange(1 + (len(type_names) or 4)))
    if len(unknown) and type_names:
        listed = ", ".join(f"{number} {own}" for number, own in enumerate(type_names, 1))
        raise DataError(f"{name}: type {unknown[0]} is none of the dataset's ({listed})")
    if len(unknown):
        raise DataError(
            f"{name}: type {unknown[0]} is none of Waymo's (1 vehicle, 2 pedestrian, 3 sign, 4 "
            "cyclist); types are no "
            "positions in a class list"
        )
    return kind


def check_waymo_types(schema: pa.Schema, name: str) -> None:
    """Check that a table's types are Waymo's, which is all that Waymo's own tools know; raises
    DataError if they are a dataset's own.
    """
    if own := stated(schema, "type_names"):
        raise DataError(
            f"{name}: its types are {', '.join(own)}; Waymo's op and leaderboard know Waymo's "
            "classes only, so evaluate without them"
        )


def scores_of(table: pa.Table, name: str) -> Float64:
    """Return the scores (N,); raises DataError if one is missing, NaN or outside [0, 1]."""
    score = _values_of(table, "score", pa.float64(), name)
    # One float32 rounding above 1 is let pass: a sigmoid or a product of scores may end there.
    bad = np.flatnonzero(~((score >= 0.0) & (score <= 1.0 + 2e-7)))
    if len(bad):
        raise DataError(
            f"{name}: frame {_frame_of(table, bad[0])!r} has the score {score[bad[0]]}; scores "
            "lie in [0, 1], so apply the "
            "sigmoid to logits first"
        )
    return score


def flags_of(table: pa.Table, name: str) -> Bool:
    """Return the column ``overlap_nlz`` (N,), False where a value or the column is missing.

    Raises:
        DataError: If it is not boolean.
    """
    if "overlap_nlz" not in table.column_names:
        return np.zeros(table.num_rows, np.bool_)
    column = table.column("overlap_nlz")
    if not pa.types.is_boolean(column.type):
        raise DataError(
            f"{name}: column 'overlap_nlz' is of type {column.type}, not boolean; "
            "cast it before writing the table"
        )
    return column.fill_null(False).to_numpy()


def _frame_of(table: pa.Table, row: int) -> Any:
    return table.column("frame_id")[int(row)].as_py()


def predictions_table(
    frame_ids: Sequence[Any],
    boxes: FloatArray,
    types: IntArray,
    scores: FloatArray,
    overlap_nlz: Bool | None = None,
    frames: Sequence[str] | None = None,
) -> pa.Table:
    """Return a predictions table of N boxes (N, 7) with their frames' ids, Waymo's type numbers and
    scores.

    ``overlap_nlz`` None stands for all False; ``frames``, every frame predicted on, those without
    boxes included, goes into the schema's metadata.
    """
    flags = np.zeros(len(boxes), np.bool_) if overlap_nlz is None else overlap_nlz
    box = np.asarray(boxes, np.float32).reshape(-1, len(BOX_NUMBERS))
    columns = [
        list(frame_ids),
        *box.T,
        np.asarray(types, np.int8),
        np.asarray(scores, np.float32),
        flags,
    ]
    arrays = [
        pa.array(values, field.type, from_pandas=False)
        for values, field in zip(columns, _PREDICTION_SCHEMA)
    ]
    table = pa.table(arrays, schema=_PREDICTION_SCHEMA)
    return (
        table
        if frames is None
        else table.replace_schema_metadata({"frame_ids": json.dumps(list(frames))})
    )


def write_predictions(path: str | Path, table: pa.Table) -> None:
    """Write a table as Parquet, whole or not at all."""
    with records.replacing(Path(path)) as temporary:
        pq.write_table(table, temporary)
