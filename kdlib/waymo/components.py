"""A Waymo v2 folder enters, checked segment names and tables of named columns leave; a damaged file is one clear error."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kdlib.errors import DataError
from kdlib.waymo.columns import check_lists, texts
from kdlib.waymo.lasers import naming
from kdlib.waymo.pages import PageError, check

SEGMENT = "key.segment_context_name"
REQUIRED = ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose")
LABELS = "lidar_box"
_CHECKED = "page_checksum_verification"
_CHECKSUMS = {_CHECKED: True} if _CHECKED in inspect.signature(pq.ParquetFile).parameters else {}  # since pyarrow 14


def needs_labels(folder: Path) -> bool:
    """Return whether a split must have boxes; the testing splits are published without."""
    return not Path(folder).name.startswith("testing")


def segment_file(folder: Path, component: str, segment: str) -> Path:
    """Return ``<root>/<split>/<component>/<segment>.parquet``."""
    return Path(folder) / component / f"{segment}.parquet"


def segment_files(folder: Path, segment: str) -> dict[str, Path]:
    """Return the files a segment is read from, by component.

    Raises:
        DataError: If one is missing; the message lists them.
    """
    files = {component: segment_file(folder, component, segment) for component in (*REQUIRED, LABELS)}
    if not needs_labels(folder) and not files[LABELS].is_file():
        del files[LABELS]
    missing = [component for component, path in files.items() if not path.is_file()]
    if missing:
        raise DataError(f"{folder}: segment {segment} has no {', '.join(missing)} file; download the missing components")
    return files


def list_segments(folder: Path) -> list[str]:
    """Return the names of all segments of a split, sorted.

    Args:
        folder: ``<root>/<split>`` with one folder per component.

    Raises:
        DataError: If there is no segment, or a component is missing for one.
    """
    folder = Path(folder)
    wanted = (*REQUIRED, LABELS) if needs_labels(folder) else REQUIRED
    found = {
        component: {path.stem for path in (folder / component).glob("*.parquet") if not path.name.startswith(".")}
        for component in wanted
    }
    segments = sorted(set().union(*found.values()))
    if not segments:
        raise DataError(f"{folder} holds no Waymo v2 segments; expected files such as {segment_file(folder, 'lidar', 'SEGMENT')}")
    gaps = {name: [part for part in wanted if name not in found[part]] for name in segments}
    gaps = {name: parts for name, parts in gaps.items() if parts}
    if gaps:
        name, parts = next(iter(gaps.items()))
        more = f" (and {len(gaps) - 1} more segments are incomplete)" if len(gaps) > 1 else ""
        raise DataError(f"{folder}: segment {name} has no {', '.join(parts)} file{more}; download the missing components")
    return segments


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into one sentence naming it; a missing or forbidden file likewise."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; download it") from error
    except PermissionError as error:
        raise DataError(
            f"{path} may not be read by this user; give it the right to read, or copy or download it again"
        ) from error
    except pa.ArrowMemoryError:
        raise  # the pages were checked: it is this machine that has too little
    except (pa.ArrowException, OSError, UnicodeDecodeError, PageError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged or no Parquet file ({reason}); copy or download it again") from error


def open_file(path: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """Open a Parquet file, check that it has the wanted columns once each, and hold what it claims against its size.

    Raises:
        DataError: If the file is damaged or a column is missing.
    """
    with reading(path):
        with open(path, "rb") as file:
            footer = check(file, columns)
        limits = {"thrift_string_size_limit": footer, "thrift_container_size_limit": footer}
        opened = pq.ParquetFile(path, pre_buffer=False, **limits, **_CHECKSUMS)
        there = opened.schema_arrow.names
    missing = [name for name in columns if name not in there]
    if missing:
        names = ", ".join(map(repr, missing[:3])) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise DataError(f"{path} has no column {names}; is it another component or release?")
    twice = [name for name in columns if there.count(name) > 1]
    if twice:
        raise DataError(f"{path} has more than one column '{twice[0]}'; download it again")
    return opened


def read_columns(path: Path, columns: Sequence[str], segment: str) -> pa.Table:
    """Read some columns of a small component and check that every row is of the segment.

    Raises:
        DataError: If the file is damaged, a column is missing or a row names another segment.
    """
    wanted = list(dict.fromkeys((SEGMENT, *columns)))
    file = open_file(path, wanted)
    schema = pa.schema([file.schema_arrow.field(name) for name in wanted])
    with reading(path):
        arrays = [pa.chunked_array(list(_chunks(file, field.name)), field.type) for field in schema]
        for field, array in zip(schema, arrays):
            if len(array) != len(arrays[0]):
                raise PageError(f"'{field.name}' has {len(array)} rows, '{wanted[0]}' has {len(arrays[0])}")
        table = pa.Table.from_arrays(arrays, schema=schema)
        table.validate(full=True)
    with naming(path):
        others = sorted(set(texts(table, SEGMENT)) - {segment})
    if others:
        raise DataError(
            f"{path} holds rows of segment {others[0][:80]!r}, not of the segment it is named after; download it again"
        )
    return table


def iter_rows(path: Path, columns: Sequence[str], batch_size: int) -> Iterator[dict[str, pa.Scalar]]:
    """Stream keys and range images in file order, never holding more than a few; they stay Arrow scalars (no copy of the images).

    Raises:
        DataError: If the file is damaged or a column is missing or, unless a key, holds no lists of numbers.
    """
    file = open_file(path, columns)
    with naming(path):
        for name in columns:
            if not name.startswith("key."):
                check_lists(file.schema_arrow, name)
    cells = {name: _cells(file, path, name, batch_size) for name in columns}
    while True:
        row = {name: cell for name, some in cells.items() if (cell := next(some, None)) is not None}
        if not row:
            return
        with reading(path):
            if len(row) < len(cells):
                raise PageError(f"'{min(set(cells) - set(row))}' has fewer rows than '{min(row)}'")
        yield row


def _cells(file: pq.ParquetFile, path: Path, name: str, batch_size: int) -> Iterator[pa.Scalar]:
    """Stream the cells of one column, a null being a scalar too."""
    chunks = _chunks(file, name, batch_size)
    while True:
        with reading(path):
            chunk = next(chunks, None)
            if chunk is not None:
                chunk.validate()
        if chunk is None:
            return
        yield from chunk


def _chunks(file: pq.ParquetFile, name: str, batch_size: int = 65_536) -> Iterator[pa.Array]:
    """Stream one column by itself.

    A page with too few levels makes a column shorter than its neighbours; asked for several at once, pyarrow 10 does not see it
    and ends the process. In batches, because ``read()`` sizes its buffers by columns not asked for.
    """
    for batch in file.iter_batches(batch_size=batch_size, columns=[name]):
        yield batch.column(0)
