"""A Waymo v2 folder enters, checked segment names and tables of named columns leave; a damaged file is one clear error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kdlib.errors import DataError

SEGMENT = "key.segment_context_name"
REQUIRED = ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose")
LABELS = "lidar_box"


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
        raise DataError(f"{path} does not exist") from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read by this user") from error
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged or no Parquet file ({reason}); copy or download it again") from error


def open_file(path: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """Open a Parquet file and check that it has the wanted columns.

    Raises:
        DataError: If the file is damaged or a column is missing.
    """
    with reading(path):
        file = pq.ParquetFile(path)
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise DataError(f"{path} has no column {', '.join(repr(name) for name in missing)}; is it another component or release?")
    return file


def read_columns(path: Path, columns: Sequence[str], segment: str) -> pa.Table:
    """Read some columns of a small component and check that every row is of the segment.

    Raises:
        DataError: If the file is damaged, a column is missing or a row names another segment.
    """
    wanted = list(dict.fromkeys((SEGMENT, *columns)))
    file = open_file(path, wanted)
    with reading(path):
        table = file.read(columns=wanted)
    names = set(table.column(SEGMENT).unique().to_pylist()) - {segment}
    if names:
        raise DataError(f"{path} holds rows of segment {names.pop()!r}, not of the segment it is named after")
    return table


def iter_rows(path: Path, columns: Sequence[str], batch_size: int) -> Iterator[dict[str, pa.Scalar]]:
    """Stream rows in file order, never holding more than a few; values stay Arrow scalars (no copy of the images).

    Raises:
        DataError: If the file is damaged or a column is missing.
    """
    batches = open_file(path, columns).iter_batches(batch_size=batch_size, columns=list(columns))
    while True:
        with reading(path):
            batch = next(batches, None)
        if batch is None:
            return
        arrays = {name: batch.column(batch.schema.get_field_index(name)) for name in columns}
        for row in range(batch.num_rows):
            yield {name: array[row] for name, array in arrays.items()}
