"""Frames of one segment enter, its folder in the store leaves: points.npy, frames.parquet, boxes.parquet, manifest.json."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdlib import records
from kdlib.data import points as codec
from kdlib.errors import DataError
from kdlib.types import WAYMO_TYPES, Frame

STORE_VERSION = 1
POINTS, FRAMES, BOXES, MANIFEST = "points.npy", "frames.parquet", "boxes.parquet", "manifest.json"
BOX_NUMBERS = ("x", "y", "z", "length", "width", "height", "heading")
FRAME_COLUMNS = ("frame", "timestamp", "offset", "count", "pose")
BOX_COLUMNS = ("frame", "id", "type", *BOX_NUMBERS, "difficulty", "num_points", "speed_x", "speed_y")
_HEADER = 192  # bytes; fixed, so that the number of points can be filled in at the end


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full or forbidden disk into one sentence naming the place."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error) or " requested and " in str(error):  # the last is numpy's
            reason = "the disk is full; free some space and run the same command again, finished segments are kept"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "may not be written by this user; choose another folder"
        else:
            reason = f"cannot be written ({error.strerror or error})"
        raise DataError(f"{path}: {reason}") from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def source_fingerprint(files: Iterable[Path]) -> str:
    """Return a hash of the size and 16 spread blocks of each file, footer included; reading all of 200 GB would take an hour."""
    digest = hashlib.sha256()
    block = 1 << 16
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.parent.name}/{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            for start in sorted({int(position) for position in np.linspace(0, max(size - block, 0), 16)}):
                stream.seek(start)
                digest.update(stream.read(block))
    return digest.hexdigest()


@dataclass
class _Rows:
    """Columns of the two tables while they grow."""

    frames: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in FRAME_COLUMNS})
    boxes: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in BOX_COLUMNS})

    def add(self, frame: Frame, offset: int, count: int) -> None:
        row = (frame.index, frame.timestamp_micros, offset, count, np.asarray(frame.pose, np.float64).ravel())
        for name, value in zip(self.frames, row):
            self.frames[name].append(value)
        labels = frame.labels
        columns = (
            np.full(len(labels.ids), frame.index),
            np.array(labels.ids, dtype=object),
            labels.types,
            *np.asarray(labels.boxes, np.float64).T,
            labels.difficulty,
            labels.num_points,
            *np.asarray(labels.velocity, np.float64).T,
        )
        for name, values in zip(self.boxes, columns):
            self.boxes[name].append(values)

    def tables(self) -> tuple[pa.Table, pa.Table]:
        frames = self.frames
        poses = pa.array(np.concatenate(frames["pose"]) if frames["pose"] else np.zeros(0))
        frame_table = pa.table(
            {
                "frame": pa.array(frames["frame"], pa.int32()),
                **{name: pa.array(frames[name], pa.int64()) for name in ("timestamp", "offset", "count")},
                "pose": pa.FixedSizeListArray.from_arrays(poses, 16),
            }
        )
        kinds = {"frame": pa.int32(), "id": pa.string(), "type": pa.int8(), "difficulty": pa.int8(), "num_points": pa.int32()}
        columns = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in self.boxes.items()}
        box_table = pa.table({name: pa.array(values).cast(kinds.get(name, pa.float64())) for name, values in columns.items()})
        return frame_table, box_table

    def box_counts(self) -> dict[str, int]:
        types = np.concatenate(self.boxes["type"]) if self.boxes["type"] else np.zeros(0)
        return {name: int((types == number).sum()) for name, number in WAYMO_TYPES.items()}


def write_segment(
    frames: Iterable[Frame], folder: Path, source: str, simulated: bool = False, expected: int | None = None
) -> dict[str, Any]:
    """Write the folder of one segment and return its manifest; an interrupted call leaves nothing under the folder's name.

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
            manifest = _fill(frames, temporary, {"segment": folder.name, "simulated": simulated, "source": source})
            if expected is not None and manifest["frames"] != expected:
                found = manifest["frames"]
                raise DataError(f"segment {folder.name}: {found} of {expected} frames were read; download its files again")
            _put_in_place(temporary, folder, manifest)
        return manifest
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _process() -> str:
    """Return what tells apart all processes that share a file system."""
    return f"{platform.node()}.{os.getpid()}"


def _fill(frames: Iterable[Frame], folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    rows, digest, offset, seen = _Rows(), hashlib.sha256(), 0, 0
    with (folder / POINTS).open("wb") as stream:
        stream.write(_npy_header(0))
        for frame in frames:
            stored = _encode(frame)
            content = stored.tobytes()
            stream.write(content)
            digest.update(content)
            rows.add(frame, offset, len(stored))
            offset, seen = offset + len(stored), seen + len(frame.points)
        _finish_npy(stream, offset)
    tables = rows.tables()
    for name, table in zip((FRAMES, BOXES), tables):
        digest.update(repr(table.to_pydict()).encode())
        pq.write_table(table, folder / name, compression="zstd")
    paths = [folder / name for name in (POINTS, FRAMES, BOXES)]
    files = {path.name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in paths}
    manifest = {
        "format": "kdlib-segment",
        "version": STORE_VERSION,
        **facts,
        "frames": tables[0].num_rows,
        "points": offset,
        "points_out_of_reach": seen - offset,
        "boxes": rows.box_counts(),
        "files": files,
        "content": digest.hexdigest(),
    }
    manifest["checksum"] = _checksum(manifest)
    records.write_json(folder / MANIFEST, manifest)
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> str:
    values = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _encode(frame: Frame) -> np.ndarray[Any, np.dtype[np.void]]:
    try:
        return codec.encode(frame.points)
    except DataError as error:
        raise DataError(f"frame {frame.frame_id}: {error}") from error


def _npy_header(count: int) -> bytes:
    text = repr({"descr": codec.POINT.descr, "fortran_order": False, "shape": (count,)})
    return b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + text.ljust(_HEADER - 11).encode() + b"\n"


def _finish_npy(stream: BinaryIO, count: int) -> None:
    stream.seek(0)
    stream.write(_npy_header(count))
    stream.flush()
    os.fsync(stream.fileno())


def _put_in_place(temporary: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Rename; a directory cannot replace a full one, so an older version steps aside first.

    Somebody else may have written the same by now: a worker whose caller was killed works on for a moment.
    """
    try:
        os.replace(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
        if _is_written(folder, manifest):
            return
        aside = folder.with_name(f".{folder.name}.{_process()}.old.tmp")
        os.replace(folder, aside)
        os.replace(temporary, folder)
        shutil.rmtree(aside, ignore_errors=True)


def _is_written(folder: Path, manifest: Mapping[str, Any]) -> bool:
    try:
        return read_manifest(folder) == manifest
    except DataError:
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a segment's manifest after checking version, and that every file is there at its full length.

    Raises:
        DataError: If the folder is missing, incomplete or of another version.
    """
    remedy = "run 'python -m kdlib prepare' again"
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} is missing or incomplete; {remedy}")
    manifest = records.read_json(folder / MANIFEST)
    if manifest.get("version") != STORE_VERSION:
        found = manifest.get("version")
        raise DataError(f"{folder} was written as version {found}, this is {STORE_VERSION}; delete the store and {remedy}")
    if manifest.get("checksum", _checksum(manifest)) != _checksum(manifest):
        raise DataError(f"{folder / MANIFEST} is not what was written; delete {folder} and {remedy}")
    for name, record in manifest["files"].items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if size != record["bytes"]:
            what = "is missing" if size < 0 else f"has {size} bytes instead of {record['bytes']}"
            raise DataError(f"{folder / name} {what}; delete {folder} and {remedy}")
    return manifest


def is_outdated(manifest: Mapping[str, Any]) -> bool:
    """Return whether a manifest is of the time before manifests had a checksum; one that lost it still has what came with it."""
    return "checksum" not in manifest and "simulated" not in manifest


def damage(folder: Path, content: str) -> list[str]:
    """Read a whole segment; return one sentence for each thing that is not as it was written, none for a sound one.

    Args:
        folder: ``<store>/<split>/<segment>``.
        content: Its hash, as the index of the store has it.
    """
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return [str(error)]
    remedy = f"delete {folder} and prepare again"
    if manifest["content"] != content or ("checksum" not in manifest and not is_outdated(manifest)):
        return [f"{folder / MANIFEST} is not what was written; {remedy}"]
    try:
        changed = [name for name, record in manifest["files"].items() if file_hash(folder / name) != record["sha256"]]
    except OSError as error:
        return [f"{error.filename or folder} cannot be read ({error.strerror or error}); {remedy}"]
    return [f"{folder / name} is not what was written; {remedy}" for name in changed]


def read_points(folder: Path, offset: int, count: int) -> np.ndarray[Any, np.dtype[np.void]]:
    """Return a frame's stored points (count,) of ``POINT``.

    One seek and one read: 800 open memory maps would use up a process's file handles, and a cut file would be a bus error.

    Raises:
        DataError: If the file is missing or ends before the frame does.
    """
    path = folder / POINTS
    try:
        stored = np.fromfile(path, codec.POINT, count, offset=_HEADER + offset * codec.POINT.itemsize)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); run 'python -m kdlib prepare' again") from error
    if len(stored) < count:
        raise DataError(f"{path} ends after {len(stored)} of {count} points of a frame; delete {folder} and prepare again")
    return stored
