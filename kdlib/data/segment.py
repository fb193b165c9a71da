"""Writes the frames of one segment into its folder of the store, and reads and checks such a
folder.

A folder holds points.npy, frames.parquet, boxes.parquet and manifest.json.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdlib import records
from kdlib.data.points import POINT, StoredPoints, encode_points
from kdlib.errors import DataError
from kdlib.types import WAYMO_TYPES, Frame, FrameLabels, Json

STORE_VERSION = 1
POINTS, FRAMES, BOXES, MANIFEST = "points.npy", "frames.parquet", "boxes.parquet", "manifest.json"
OWN = "own frames"
"""The source that manifests of frames of one's own state."""
BOX_NUMBERS = ("x", "y", "z", "length", "width", "height", "heading")
_FRAME_SCHEMA = pa.schema(
    {
        "frame": pa.int32(),
        **dict.fromkeys(("timestamp", "offset", "count"), pa.int64()),
        "pose": pa.list_(pa.float64(), 16),
    }
)
_BOX_SCHEMA = pa.schema(
    {
        "frame": pa.int32(),
        "id": pa.string(),
        "type": pa.int8(),
        **dict.fromkeys(BOX_NUMBERS, pa.float64()),
        "difficulty": pa.int8(),
        "num_points": pa.int32(),
        **dict.fromkeys(("speed_x", "speed_y"), pa.float64()),
    }
)
_HEADER = 192  # bytes; fixed, so that the number of points can be filled in at the end


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full or forbidden disk into one sentence naming the place."""
    try:
        yield
    except OSError as error:
        # the last is numpy's
        if (
            error.errno == errno.ENOSPC
            or "No space left" in str(error)
            or " requested and " in str(error)
        ):
            reason = (
                "the disk is full; free some space and run the same command again, finished "
                "segments are kept"
            )
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "may not be written by this user; choose another folder"
        else:
            reason = f"cannot be written ({error.strerror or error})"
        raise DataError(f"{path}: {reason}") from error


def source_fingerprint(files: Iterable[Path]) -> str:
    """Return a hash of the size and 16 spread blocks of each file, footer included; reading all of
    200 GB would take an hour.
    """
    digest = hashlib.sha256()
    block = 1 << 16
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.parent.name}/{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            for start in sorted(
                {int(position) for position in np.linspace(0, max(size - block, 0), 16)}
            ):
                stream.seek(start)
                digest.update(stream.read(block))
    return digest.hexdigest()


def _box_table(labels: Sequence[tuple[int, FrameLabels]]) -> pa.Table:
    """Return the boxes of all frames, frame after frame, from frame numbers and labels."""
    parts = [
        (
            np.full(len(boxes.ids), number),
            np.array(boxes.ids, dtype=object),
            boxes.types,
            *np.asarray(boxes.boxes, np.float64).T,
            boxes.difficulty,
            boxes.num_points,
            *np.asarray(boxes.velocity, np.float64).T,
        )
        for number, boxes in labels
    ]
    columns = [np.concatenate(column) for column in zip(*parts)] or [np.zeros(0)] * len(_BOX_SCHEMA)
    return pa.table(dict(zip(_BOX_SCHEMA.names, map(pa.array, columns)))).cast(_BOX_SCHEMA)


def write_segment(
    frames: Iterable[Frame],
    folder: Path,
    source: str,
    simulated: bool = False,
    expected: int | None = None,
) -> Json:
    """Write the folder of one segment and return its manifest; an interrupted call leaves nothing
    under the folder's name.

    Args:
        frames: In time order.
        folder: ``<store>/<split>/<segment>``; replaced if it exists.
        source: Fingerprint of the files the frames come from.
        simulated: Whether they were simulated; the manifest says so.
        expected: Number of frames there must be, if it is known.

    Raises:
        DataError: If a frame cannot be read or is missing, or the disk is full or read-only.
    """
    temporary = folder.with_name(f".{folder.name}.{_process()}.tmp")
    try:
        with writing(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            manifest = _fill(
                frames,
                temporary,
                {"segment": folder.name, "simulated": simulated, "source": source},
            )
            if expected is not None and manifest["frames"] != expected:
                counts = f"{manifest['frames']} of {expected} frames were read"
                raise DataError(f"segment {folder.name}: {counts}; download its files again")
            _put_in_place(temporary, folder, manifest)
        return manifest
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _process() -> str:
    """Return what tells apart all processes that share a file system."""
    return f"{platform.node()}.{os.getpid()}"


def _fill(frames: Iterable[Frame], folder: Path, facts: Mapping[str, Any]) -> Json:
    """Write the files of a segment, the manifest last, frame by frame: the points of a whole
    segment are never in memory.
    """
    digest, offset, seen, classes = hashlib.sha256(), 0, 0, tuple(WAYMO_TYPES)
    rows = []
    labels = []
    with (folder / POINTS).open("wb") as stream:
        stream.write(_npy_header(0))
        for frame in frames:
            try:
                stored = encode_points(frame.points)
            except DataError as error:
                raise DataError(f"frame {frame.frame_id}: {error}") from error
            stream.write(stored.tobytes())
            digest.update(stored.tobytes())
            place = {
                "offset": offset,
                "count": len(stored),
                "pose": np.asarray(frame.pose, np.float64).ravel(),
            }
            rows.append({"frame": frame.index, "timestamp": frame.timestamp_micros, **place})
            classes = frame.labels.class_names
            labels.append((frame.index, frame.labels))
            offset, seen = offset + len(stored), seen + len(frame.points)
        stream.seek(0)
        stream.write(_npy_header(offset))
        stream.flush()
        os.fsync(stream.fileno())
    tables = {FRAMES: pa.Table.from_pylist(rows, _FRAME_SCHEMA), BOXES: _box_table(labels)}
    for name, table in tables.items():
        digest.update(repr(table.to_pydict()).encode())
        pq.write_table(table, folder / name, compression="zstd")
    own = {} if classes == tuple(WAYMO_TYPES) else {"classes": list(classes)}
    if own:  # the numbers of types mean nothing without them
        digest.update(json.dumps(own).encode())
    types = tables[BOXES].column("type").to_numpy()
    paths = [folder / name for name in (POINTS, FRAMES, BOXES)]
    manifest = {
        "format": "kdlib-segment",
        "version": STORE_VERSION,
        **facts,
        **own,
        "frames": len(rows),
        "points": offset,
        "points_out_of_reach": seen - offset,
        "boxes": {name: int((types == number).sum()) for number, name in enumerate(classes, 1)},
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": records.sha256(path)}
            for path in paths
        },
        "content": digest.hexdigest(),
    }
    manifest["checksum"] = _checksum(manifest)
    records.write_json(folder / MANIFEST, manifest)
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> str:
    values = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _npy_header(count: int) -> bytes:
    text = repr({"descr": POINT.descr, "fortran_order": False, "shape": (count,)})
    return (
        b"\x93NUMPY\x01\x00"
        + (_HEADER - 10).to_bytes(2, "little")
        + text.ljust(_HEADER - 11).encode()
        + b"\n"
    )


def _put_in_place(temporary: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Rename; a directory cannot replace a full one, so an older version steps aside first.

    Somebody else may have written the same by now: a worker whose caller was killed works on for a
    moment.
    """
    try:
        os.replace(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
        with suppress(DataError):
            if read_manifest(folder) == manifest:
                return
        aside = folder.with_name(f".{folder.name}.{_process()}.old.tmp")
        os.replace(folder, aside)
        os.replace(temporary, folder)
        shutil.rmtree(aside, ignore_errors=True)


def read_manifest(folder: Path) -> Json:
    """Return a segment's manifest after checking version, and that every file is there at its full
    length.

    Raises:
        DataError: If the folder is missing, incomplete or of another version.
    """
    remedy = "run 'python -m kdlib prepare' again, or store_frames on frames of your own"
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} is missing or incomplete; {remedy}")
    manifest = records.read_json(folder / MANIFEST)
    if manifest.get("version") != STORE_VERSION:
        written = (
            f"{folder} was written as version {manifest.get('version')}, this is {STORE_VERSION}"
        )
        raise DataError(f"{written}; delete the store and {remedy}")
    if manifest.get("checksum", _checksum(manifest)) != _checksum(manifest):
        raise DataError(
            f"{folder / MANIFEST} is not what was written; delete {folder} and {remedy}"
        )
    for name, record in manifest["files"].items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if size != record["bytes"]:
            what = "is missing" if size < 0 else f"has {size} bytes instead of {record['bytes']}"
            raise DataError(f"{folder / name} {what}; delete {folder} and {remedy}")
    return manifest


def is_own(manifest: Mapping[str, Any]) -> bool:
    """Return whether a segment holds frames of one's own."""
    return bool(manifest.get("source") == OWN)


def classes_in(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes that a manifest states: Waymo's, unless it names others."""
    return tuple(values.get("classes", WAYMO_TYPES))


def read_points(folder: Path, offset: int, count: int) -> StoredPoints:
    """Return a frame's stored points (count,) of ``POINT``.

    One seek and one read: 800 open memory maps would use up a process's file handles, and a cut
    file would be a bus error.

    Raises:
        DataError: If the file is missing or ends before the frame does.
    """
    path = folder / POINTS
    try:
        stored = np.fromfile(path, POINT, count, offset=_HEADER + offset * POINT.itemsize)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}); run 'python -m "
            "kdlib prepare' again"
        ) from error
    if len(stored) < count:
        raise DataError(
            f"{path} ends after {len(stored)} of {count} points of a frame; delete "
            f"{folder} and prepare again"
        )
    return stored
