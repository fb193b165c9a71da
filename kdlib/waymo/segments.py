"""Lists the segments of a split and reads their frames, whichever of Waymo's two formats lies
there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from kdlib.errors import DataError
from kdlib.types import Frame
from kdlib.waymo.components import LABELS, REQUIRED, complete_segments, component_files
from kdlib.waymo.reader_v1 import frames_v1, segment_name
from kdlib.waymo.reader_v2 import frames_v2


def detect_format(folder: Path) -> str:
    """Return "v1" if TFRecord files, one a segment, lie in ``<root>/<split>``, "v2" if folders of
    components do.

    Raises:
        DataError: If there is neither, or both.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is no folder; point to the one that holds training/ and validation/"
        )
    record = next(_tfrecords(folder), None)
    components = (*REQUIRED, LABELS)
    table = next(
        (
            path
            for name in components
            for path in (folder / name).glob("*.parquet")
            if path.name[0] != "."
        ),
        None,
    )
    if record and table:
        raise DataError(
            f"{folder} holds both {record.name} (v1) and {table.relative_to(folder)} "
            "(v2); move one format elsewhere"
        )
    if record:
        return "v1"
    if table:
        return "v2"
    raise DataError(
        f"{folder} holds no Waymo segments; expected SEGMENT.tfrecord (v1) or "
        "lidar/SEGMENT.parquet (v2) in it"
    )


def list_segments(folder: Path) -> list[str]:
    """Return the names of all segments of a split, sorted.

    Raises:
        DataError: If there is none, a component is missing for one (v2), or two files are of the
            same segment (v1).
    """
    if detect_format(folder) == "v2":
        return complete_segments(folder)
    return sorted(_files_by_name(folder))


def segment_files(folder: Path, segment: str) -> dict[str, Path]:
    """Return the files a segment is read from: by component (v2), or the one called "tfrecord"
    (v1).

    Raises:
        DataError: If one is missing.
    """
    if detect_format(folder) == "v2":
        return component_files(folder, segment)
    files = _files_by_name(folder)
    if segment not in files:
        raise DataError(
            f"{folder}: none of its {len(files)} .tfrecord files is of segment "
            f"{segment}; download it"
        )
    return {"tfrecord": files[segment]}


def read_segment(folder: Path, segment: str) -> Iterator[Frame]:
    """Stream the frames of a segment in time order, the same ones from either format.

    Points are ordered by ascending laser, inside a laser return 1 before return 2, inside a return
    by row and column of the range image.

    Raises:
        DataError: If a file is missing, damaged or contradicts itself; the message names file,
            frame and laser.
    """
    if detect_format(folder) == "v2":
        return frames_v2(folder, segment)
    return frames_v1(segment_files(folder, segment)["tfrecord"], segment)


def _tfrecords(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*.tfrecord") if not path.name.startswith("."))


def _files_by_name(folder: Path) -> dict[str, Path]:
    """Return the v1 files by the context name in their first record; file names differ between
    releases.
    """
    files: dict[str, Path] = {}
    for path in sorted(_tfrecords(folder)):
        # reading a link to nothing says what is wrong with it
        state = path.stat() if path.exists() else None
        name = _name(path, state and (state.st_size, state.st_mtime_ns))
        if name in files:
            raise DataError(
                f"{files[name]} and {path} are both of segment {name}; remove one of them"
            )
        files[name] = path
    return files


@lru_cache(maxsize=4096)
def _name(path: Path, state: tuple[int, int] | None) -> str:
    """Remember the name in a file for as long as the file is the same one."""
    return segment_name(path)
