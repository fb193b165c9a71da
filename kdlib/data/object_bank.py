"""Collects every annotated object's points of a training split in one memory-mapped file (spec
2.3).

The published banks keep points relative to the centre of their box, without rotation, and add that
centre back when an object is pasted. So objects always return to the place they were seen at, and
this bank keeps the frame's own 8-byte points instead: the same points without a rounding, in less
than half the room.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kdlib import records
from kdlib.data.containment import owner_of_points
from kdlib.data.points import POINT, StoredPoints, decode_points
from kdlib.data.progress import watched
from kdlib.data.segment import writing
from kdlib.data.store import StoreSplit
from kdlib.errors import DataError
from kdlib.types import WAYMO_TYPES, Float32, Int64, IntArray

BANK_VERSION = 1
EVERY = {"Vehicle": 4, "Pedestrian": 2, "Sign": 1, "Cyclist": 1}
"""Objects of a class are taken from every n-th frame of the concatenated segments."""

_FILE, _FORMAT = "objects.safetensors", "kdlib-objects"
_HEADER = 4096  # bytes; fixed, so that it can be filled in at the end
_KINDS = {"u1": "U8", "i1": "I8", "<i4": "I32", "<i8": "I64", "<f4": "F32"}
_INDEX = {
    "offsets": ("<i8", ()),  # one more than objects
    "boxes": ("<f4", (7,)),
    "segment": ("<i4", ()),  # position in segments
    "index": ("<i4", ()),  # of the frame in its segment
    "type": ("i1", ()),
    "difficulty": ("i1", ()),
    "segments": ("u1", ()),  # names, one a line
}
_Arrays = dict[str, NDArray[Any]]


def bank_path(split: StoreSplit) -> Path:
    """Return where the object bank of a split is, or belongs."""
    return split.path / split.name / _FILE


def remedy(bank: Path) -> str:
    """Return what makes the bank of a path."""
    return (
        f"make it with 'python -m kdlib prepare SRC {bank.parent.parent}' (store_frames makes that "
        "of frames of one's own)"
    )


@dataclass(frozen=True, eq=False)
class ObjectBank:
    """Objects of a training split; all arrays are views of the file, read when they are looked at
    and shared by all processes.
    """

    path: Path
    fingerprint: str  # of the split
    class_names: tuple[str, ...]  # whose objects were collected
    offsets: Int64  # (n + 1,) first point of each object
    boxes: Float32  # (n, 7)
    types: NDArray[np.int8]  # (n,) as in the store
    difficulty: NDArray[np.int8]  # (n,) as annotated
    stored: StoredPoints  # of all objects

    @staticmethod
    def open(path: Path, split_fingerprint: str) -> ObjectBank:
        """Map a bank; only its index is read, to check it.

        Raises:
            DataError: If the file is missing, damaged, of another version, or made from other
                frames.
        """
        if not path.is_file():
            raise DataError(f"{path.parent} has no object bank ({path.name}); {remedy(path)}")
        notes, arrays = _read(path)
        if notes["fingerprint"] != split_fingerprint:
            theirs = f"fingerprint {notes['fingerprint']}, the split has {split_fingerprint}"
            raise DataError(f"{path} was made from other frames ({theirs}); {remedy(path)}")
        return ObjectBank(
            path=path,
            fingerprint=split_fingerprint,
            class_names=tuple(notes["classes"].split(",")),
            offsets=arrays["offsets"],
            boxes=arrays["boxes"],
            types=arrays["type"],
            difficulty=arrays["difficulty"],
            stored=arrays["points"].reshape(-1).view(POINT),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as a path, not as gigabytes."""
        return ObjectBank.open, (self.path, self.fingerprint)

    def __len__(self) -> int:
        return len(self.types)

    @property
    def counts(self) -> Int64:
        """Points (n,) of each object."""
        return np.diff(self.offsets)

    def points(self, rows: Sequence[int] | IntArray) -> Float32:
        """Return the points (N, 5) of some objects, one after the other, where they were seen:
        features as in a sample.
        """
        parts = [self.stored[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        stored = np.concatenate(parts) if parts else np.zeros(0, POINT)
        return np.ascontiguousarray(decode_points(stored)[:, :5])


def build_bank(split: StoreSplit, progress: bool = True) -> Path:
    """Write the object bank of a split in one pass over all of its frames, and return its path; one
    that fits is kept.

    Vehicles come from every 4th frame, pedestrians from every 2nd, cyclists and classes of one's
    own from all. A point in two boxes belongs to the first. In memory are one frame and the index,
    some 150 bytes an object.

    Raises:
        DataError: If a frame cannot be read, or the disk is full or read-only; an older bank is
            left as it was.
    """
    path = bank_path(split)
    if not is_current(split):
        with writing(path), records.replacing(path) as temporary, temporary.open("wb") as stream:
            _write(stream, split, progress)
    return path


def is_current(split: StoreSplit) -> bool:
    """Return whether the split has a sound bank of its present frames."""
    try:
        return set(split.learned_classes) <= set(
            ObjectBank.open(bank_path(split), split.fingerprint).class_names
        )
    except DataError:
        return False


def verify_bank(path: Path, split_fingerprint: str) -> list[str]:
    """Recompute the checksum of a whole bank; return one sentence if it is damaged or of other
    frames, none if it is sound.
    """
    try:
        ObjectBank.open(path, split_fingerprint)
        notes, _ = _read(path)
        digest = hashlib.sha256(np.memmap(path, np.uint8, "r", _HEADER).data).hexdigest()
    except (DataError, OSError) as error:
        return [str(error)]
    return (
        []
        if digest == notes["sha256"]
        else [(f"{path} is not what was written; delete it and {remedy(path)}")]
    )


def _write(stream: BinaryIO, split: StoreSplit, progress: bool) -> None:
    digest, points = hashlib.sha256(), 0
    parts = {name: [np.zeros((0, *shape), kind)] for name, (kind, shape) in _INDEX.items()}
    stream.write(bytes(_HEADER))
    for index, stored in _objects(split, progress):
        for name, values in index.items():
            parts[name].append(np.asarray(values, _INDEX[name][0]))
        digest.update(stored.tobytes())
        stream.write(stored.tobytes())
        points += len(stored)
    parts["segments"].append(np.frombuffer("\n".join(split.segments).encode(), np.uint8))
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    # _objects gives counts
    arrays["offsets"] = np.concatenate(([0], np.cumsum(arrays["offsets"]))).astype("<i8")
    content = b"".join(array.tobytes() for array in arrays.values())
    stream.write(content)
    digest.update(content)
    notes = {
        "format": _FORMAT,
        "version": str(BANK_VERSION),
        "fingerprint": split.fingerprint,
        "classes": ",".join(split.learned_classes),
        "sha256": digest.hexdigest(),
    }
    notes["checksum"] = _checksum(notes, content)
    stream.seek(0)
    stream.write(_header(notes, points, arrays))
    stream.flush()
    os.fsync(stream.fileno())


def _objects(split: StoreSplit, progress: bool) -> Iterator[tuple[_Arrays, StoredPoints]]:
    """Yield, frame by frame, the index of the objects (``offsets`` holds counts) and their
    points.
    """
    every, types = np.ones(256, np.int64), split.class_types(split.learned_classes)
    if split.class_names == tuple(WAYMO_TYPES):
        every[[WAYMO_TYPES[name] for name in EVERY]] = list(EVERY.values())
    for number in watched(range(len(split)), len(split), "object bank", "frame", progress):
        rows = split.box_rows(number)
        # boxes of other classes, too: they own their points
        due = number % every[split.types[rows]] == 0
        boxes, kinds = split.boxes[rows][due], split.types[rows][due]
        collected = np.isin(kinds, types)
        if not collected.any():
            continue
        stored = split.stored_points(number)
        owner = owner_of_points(decode_points(stored), boxes)
        counts = np.bincount(owner[owner >= 0], minlength=len(boxes))
        taken = collected & (counts > 0)
        inside = np.flatnonzero((owner >= 0) & taken[owner])
        inside = inside[np.argsort(owner[inside], kind="stable")]
        index = {
            "offsets": counts[taken],
            "boxes": boxes[taken],
            "segment": np.full(taken.sum(), split.segment_of[number]),
            "index": np.full(taken.sum(), split.index[number]),
            "type": kinds[taken],
            "difficulty": split.difficulty[rows][due][taken],
        }
        yield index, stored[inside]


def _header(notes: dict[str, str], points: int, arrays: _Arrays) -> bytes:
    """Return a safetensors header of fixed length: 8 bytes of length, JSON, spaces."""
    end = points * POINT.itemsize
    text: dict[str, Any] = {"__metadata__": notes}
    text["points"] = {"dtype": "U8", "shape": [points, POINT.itemsize], "data_offsets": [0, end]}
    for name, (kind, _) in _INDEX.items():
        begin, end = end, end + arrays[name].nbytes
        text[name] = {
            "dtype": _KINDS[kind],
            "shape": list(arrays[name].shape),
            "data_offsets": [begin, end],
        }
    return (_HEADER - 8).to_bytes(8, "little") + json.dumps(text).encode().ljust(_HEADER - 8)


def _checksum(notes: dict[str, str], index: Any) -> str:
    """Return a checksum over everything but the points; those are too many to look at whenever a
    bank is opened.
    """
    known = json.dumps({name: value for name, value in notes.items() if name != "checksum"})
    return f"{zlib.crc32(index, zlib.crc32(known.encode())):08x}"


def _read(path: Path) -> tuple[dict[str, str], _Arrays]:
    """Map the file and check header, sizes and index."""
    try:
        whole = np.memmap(path, np.uint8, "r")
        header = json.loads(whole[8:_HEADER].tobytes())
        notes, arrays, end = header["__metadata__"], {}, _HEADER
        if (notes["format"], notes["version"]) != (_FORMAT, str(BANK_VERSION)):
            raise ValueError(
                f"it is {notes['format']} of version {notes['version']}, this is "
                f"version {BANK_VERSION}"
            )
        for name, (kind, shape) in {"points": ("u1", (POINT.itemsize,)), **_INDEX}.items():
            begin, end = end, _HEADER + header[name]["data_offsets"][1]
            arrays[name] = np.asarray(whole[begin:end]).view(kind).reshape(-1, *shape)
        if end != len(whole):
            raise ValueError(f"it has {len(whole)} bytes instead of {end}")
        if _header(notes, len(arrays["points"]), arrays) != whole[:_HEADER].tobytes():
            raise ValueError("its header contradicts itself")
        if _checksum(notes, whole[_HEADER + arrays["points"].size :]) != notes["checksum"]:
            raise ValueError("the checksum of its index is wrong")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} cannot be used ({error}); delete it and {remedy(path)}") from error
    return notes, arrays
