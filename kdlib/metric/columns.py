"""A table in memory or a Parquet file in, its boxes as checked arrays out: read batch by batch, 42 bytes a box are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.metric import checks
from kdlib.metric.checks import BOX_COLUMNS

_ROWS = 65_536  # of a batch


@dataclass(frozen=True)
class TableFile:
    """A Parquet file of boxes, to be read in batches wherever a table in memory will do."""

    path: Path
    what: str  # for messages: 'predictions', 'ground-truth'
    schema: pa.Schema
    num_rows: int

    @staticmethod
    def open(path: str | Path, what: str) -> TableFile:
        """Read what the file says of itself.

        Raises:
            DataError: If it is missing, truncated or no Parquet.
        """
        if not Path(path).is_file():
            raise DataError(f"{what} file '{path}' does not exist; check the path")
        try:
            file = pq.ParquetFile(str(path))
        except (pa.ArrowException, OSError, EOFError) as error:
            raise _unreadable(path, what, error) from error
        return TableFile(Path(path), what, file.schema_arrow, file.metadata.num_rows)

    def batches(self, columns: list[str]) -> Iterator[pa.Table]:
        """Yield a few rows at a time.

        Raises:
            DataError: If a part cannot be read.
        """
        texts = [name for name in columns if name == "frame_id" and checks.is_text(self.schema.field(name).type)]
        try:
            # One string a frame instead of one a box.
            file = pq.ParquetFile(str(self.path), read_dictionary=texts)
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError, EOFError) as error:
            raise _unreadable(self.path, self.what, error) from error


Source: TypeAlias = pa.Table | TableFile


@dataclass(frozen=True)
class Columns:
    """The boxes of one side, in the order of the rows."""

    ids: list[Any]  # distinct frame ids, in order of appearance
    frame: NDArray[np.int32]  # (N,) position in ids
    box: NDArray[np.float32]  # (N, 7)
    kind: NDArray[np.int8]  # (N,) Waymo's type numbers
    more: dict[str, NDArray[Any]]  # score, overlap_nlz; or difficulty, num_points
    labelled: frozenset[Any]  # ids of frames with a box


def head(source: Source) -> pa.Table:
    """Return the source's columns without its rows, or a table as it is: what can be checked before reading."""
    return source.schema.empty_table() if isinstance(source, TableFile) else source


def read_predictions(source: Source, name: str) -> Columns:
    """Return predicted boxes with ``score`` and ``overlap_nlz``.

    Raises:
        DataError: If a value is missing or makes no sense.
    """
    flagged = "overlap_nlz" in source.schema.names

    def rest(table: pa.Table, ids: list[Any], frame: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        score = _numbers(table, "score", name)
        checks.check_scores(score, ids, frame, name)
        flag = _flags(table, name) if flagged else np.zeros(len(score), np.bool_)
        return {"score": score.astype(np.float32), "overlap_nlz": flag}

    wanted = ["frame_id", *BOX_COLUMNS, "type", "score", *(["overlap_nlz"] if flagged else [])]
    return _read(source, wanted, name, rest, {"score": np.float32, "overlap_nlz": np.bool_}, may_lack_box=False)


def read_truth(source: Source, name: str) -> Columns:
    """Return labelled boxes with ``difficulty`` and ``num_points``, 0 where null; rows without a type only name their frame.

    Raises:
        DataError: If a value is missing or makes no sense.
    """

    def rest(table: pa.Table, ids: list[Any], frame: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        difficulty = _integers(table, "difficulty", name, null=0)
        checks.check_difficulty(difficulty, name)
        points = np.clip(_integers(table, "num_points", name, null=0), -1, 2**31 - 1)
        return {"difficulty": difficulty.astype(np.int8), "num_points": points.astype(np.int32)}

    wanted = ["frame_id", *BOX_COLUMNS, "type", "difficulty", "num_points"]
    return _read(source, wanted, name, rest, {"difficulty": np.int8, "num_points": np.int32}, may_lack_box=True)


_Rest = Callable[[pa.Table, list[Any], NDArray[np.int32]], dict[str, NDArray[Any]]]


def _read(source: Source, wanted: list[str], name: str, rest: _Rest, kinds: dict[str, Any], *, may_lack_box: bool) -> Columns:
    count = source.num_rows
    place: dict[Any, int] = {}
    frame, kind = np.zeros(count, np.int32), np.zeros(count, np.int8)
    box = np.zeros((count, len(BOX_COLUMNS)), np.float32)
    more = {column: np.zeros(count, dtype) for column, dtype in kinds.items()}
    end = 0
    for table in batches(source, wanted):
        code = _codes(table.column("frame_id"), place, name)
        if may_lack_box:
            holds_box = table.column("type").is_valid().to_numpy()
            table, code = table.filter(pa.array(holds_box)), code[holds_box]
        ids, part = list(place), slice(end, end + len(code))
        end = part.stop
        numbers = np.stack([_numbers(table, column, name) for column in BOX_COLUMNS], axis=1)
        types = _integers(table, "type", name)
        checks.check_boxes(numbers, ids, code, name)
        checks.check_types(types, name)
        frame[part], box[part], kind[part] = code, numbers, types
        for column, values in rest(table, ids, code).items():
            more[column][part] = values
    ids = list(place)
    labelled = frozenset(ids[i] for i in np.unique(frame[:end]))
    return Columns(ids, frame[:end], box[:end], kind[:end], {key: values[:end] for key, values in more.items()}, labelled)


def batches(source: Source, columns: list[str]) -> Iterator[pa.Table]:
    """Yield some columns, a few rows at a time.

    Raises:
        DataError: If a file cannot be read.
    """
    if isinstance(source, TableFile):
        yield from source.batches(columns)
    else:
        yield from (source.select(columns).slice(start, _ROWS) for start in range(0, source.num_rows, _ROWS))


def _codes(column: pa.ChunkedArray, place: dict[Any, int], name: str) -> NDArray[np.int32]:
    """Return each row's position in ``place``, which learns the ids it does not know."""
    if column.null_count:
        raise DataError(f"{name}: {column.null_count} rows have no frame_id; every box needs the frame it belongs to")
    codes = [np.zeros(0, np.int32)]
    for chunk in column.chunks:
        encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        index = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        # A dictionary may hold values of other rows too: only those in use become frames.
        used, compact = np.unique(index, return_inverse=True)
        values = encoded.dictionary.take(pa.array(used)).to_pylist()
        codes.append(np.array([place.setdefault(value, len(place)) for value in values], np.int32)[compact])
    return np.concatenate(codes)


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


def _flags(table: pa.Table, name: str) -> NDArray[np.bool_]:
    column = table.column("overlap_nlz")
    if not pa.types.is_boolean(column.type):
        raise DataError(f"{name}: column 'overlap_nlz' is of type {column.type}, not boolean; cast it before writing the table")
    return column.fill_null(False).to_numpy().astype(np.bool_)


def _unreadable(path: str | Path, what: str, error: Exception) -> DataError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(f"{what} file '{path}' is no readable Parquet ({reason}); it may be cut short, so write it again")
