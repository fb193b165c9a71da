"""Finds the Parquet files of a Waymo v2 folder and reads columns out of them; a damaged file is one
clear error.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdlib.errors import DataError
from kdlib.waymo.column_types import Converters, check_lists, texts
from kdlib.waymo.lasers import naming

SEGMENT, TIME = "key.segment_context_name", "key.frame_timestamp_micros"
LASER, OBJECT = "key.laser_name", "key.laser_object_id"
"""The columns by which rows of several components belong together."""
RETURNS = ("[LiDARComponent].range_image_return1", "[LiDARComponent].range_image_return2")
PIXEL_POSE = "[LiDARPoseComponent].range_image_return1"
"""Range images: each has a column ``.values`` and a column ``.shape``."""
POSE = "[VehiclePoseComponent].world_from_vehicle.transform"
_CALIBRATION = (
    "extrinsic.transform",
    "beam_inclination.min",
    "beam_inclination.max",
    "beam_inclination.values",
)
CALIBRATION = tuple(f"[LiDARCalibrationComponent].{name}" for name in _CALIBRATION)
REQUIRED = ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose")
LABELS = "lidar_box"
_CHECKED = "page_checksum_verification"
# since pyarrow 14
_CHECKSUMS = {_CHECKED: True} if _CHECKED in inspect.signature(pq.ParquetFile).parameters else {}


def component_file(folder: Path, component: str, segment: str) -> Path:
    """Return ``<root>/<split>/<component>/<segment>.parquet``."""
    return folder / component / f"{segment}.parquet"


def component_files(folder: Path, segment: str) -> dict[str, Path]:
    """Return the files a segment is read from, by component; raises DataError if one is missing;
    the message lists them.
    """
    files = {
        component: component_file(folder, component, segment) for component in (*REQUIRED, LABELS)
    }
    missing = [component for component in _needed(folder) if not files[component].is_file()]
    if missing:
        raise DataError(
            f"{folder}: segment {segment} has no {', '.join(missing)} file; download "
            "the missing components"
        )
    if not files[LABELS].is_file():
        del files[LABELS]
    return files


def complete_segments(folder: Path) -> list[str]:
    """Return the names of all segments of a split, sorted.

    Raises:
        DataError: If there is no segment, or a component is missing for one.
    """
    names = {
        component: {
            path.stem
            for path in (folder / component).glob("*.parquet")
            if not path.name.startswith(".")
        }
        for component in _needed(folder)
    }
    segments = sorted(set().union(*names.values()))
    if not segments:
        example = component_file(folder, "lidar", "SEGMENT")
        raise DataError(f"{folder} holds no Waymo v2 segments; expected files such as {example}")
    incomplete = [
        segment for segment in segments if not all(segment in there for there in names.values())
    ]
    if incomplete:
        gaps = [component for component, there in names.items() if incomplete[0] not in there]
        more = (
            f" (and {len(incomplete) - 1} more segments are incomplete)"
            if len(incomplete) > 1
            else ""
        )
        raise DataError(
            f"{folder}: segment {incomplete[0]} has no {', '.join(gaps)} file{more}; "
            "download the missing components"
        )
    return segments


def _needed(folder: Path) -> tuple[str, ...]:
    """Return the components a split must have; the testing splits are published without boxes."""
    return REQUIRED if folder.name.startswith("testing") else (*REQUIRED, LABELS)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into one sentence naming it; a missing or
    forbidden file likewise.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; download it") from error
    except PermissionError as error:
        raise DataError(
            f"{path} may not be read by this user; give it that right, or copy or download it again"
        ) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        # a damaged file may claim any size, and Arrow believes it
        if isinstance(error, MemoryError):
            reason += ", more than this machine has free"
        raise DataError(
            f"{path} is damaged or no Parquet file ({reason}); copy or download it again"
        ) from error


def read_columns(path: Path, columns: Converters, segment: str) -> dict[str, Any]:
    """Read and convert some columns of a small component and check that every row is of the
    segment.

    Raises:
        DataError: If the file is damaged, a column is missing or holds something else, or a row
            names another segment.
    """
    names = [SEGMENT, *columns]
    file = _open_file(path, names)
    with reading(path):
        arrays = [
            pa.chunked_array(list(_chunks(file, name)), file.schema_arrow.field(name).type)
            for name in names
        ]
        for name, array in zip(names, arrays):
            if len(array) != len(arrays[0]):
                raise pa.ArrowInvalid(
                    f"'{name}' has {len(array)} rows, '{SEGMENT}' has {len(arrays[0])}"
                )
        table = pa.Table.from_arrays(arrays, names)
        table.validate(full=True)
    values = {}
    for name, converter in {SEGMENT: texts, **columns}.items():
        with naming(path, f"column '{name}' "):
            values[name] = converter(table.column(name))
    for other in sorted(set(values[SEGMENT]) - {segment}):
        raise DataError(
            f"{path} holds rows of segment {other[:80]!r}, not of the segment it is "
            "named after; download it again"
        )
    return values


def iter_rows(
    path: Path, columns: Sequence[str], batch_size: int
) -> Iterator[dict[str, pa.Scalar]]:
    """Stream keys and range images in file order, never holding more than a few; they stay Arrow
    scalars (no copy of the images).

    Raises:
        DataError: If the file is damaged or a column is missing or, unless a key, holds no lists of
            numbers.
    """
    file = _open_file(path, columns)
    for name in columns:
        if not name.startswith("key."):
            with naming(path, f"column '{name}' "):
                check_lists(file.schema_arrow.field(name).type)
    cells = {name: _cells(file, path, name, batch_size) for name in columns}
    while True:
        row = {
            name: cell for name, stream in cells.items() if (cell := next(stream, None)) is not None
        }
        if not row:
            return
        with reading(path):
            if len(row) < len(cells):
                raise pa.ArrowInvalid(
                    f"'{min(set(cells) - set(row))}' has fewer rows than '{min(row)}'"
                )
        yield row


def _open_file(path: Path, columns: Sequence[str]) -> pq.ParquetFile:
    """Open a Parquet file and check that it has some columns once each."""
    with reading(path):
        size = max(1, path.stat().st_size)  # no text and no list in the metadata can be longer
        limits = {"thrift_string_size_limit": size, "thrift_container_size_limit": size}
        file = pq.ParquetFile(path, pre_buffer=False, **limits, **_CHECKSUMS)
        there = file.schema_arrow.names
    missing = [name for name in columns if name not in there]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(map(repr, missing[:3]))}; is it "
            "another component or release?"
        )
    for name in columns:
        if there.count(name) > 1:
            raise DataError(f"{path} has more than one column '{name}'; download it again")
    return file


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

    A page with too few levels makes a column shorter than its neighbours; asked for several at
    once, pyarrow 10 does not see it and ends the process. In batches, because ``read()`` sizes its
    buffers by columns not asked for.
    """
    for batch in file.iter_batches(batch_size=batch_size, columns=[name]):
        yield batch.column(0)
