"""A training split enters, its object bank leaves: every annotated object's points, in one memory-mapped file (spec 2.3).

    path = build_bank(split)                               # <store>/<split>/objects.safetensors; kept if it is there and fits
    bank = ObjectBank.open(bank_path(split), split.fingerprint)
    bank.boxes[rows], bank.types[rows], bank.points(rows)

The published banks keep points relative to the centre of their box, without rotation, and add that centre back when an object is
pasted. So objects always return to the place they were seen at, and this bank keeps the frame's own 8-byte points instead: the
same points without a rounding, in less than half the room.
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

from kdlib.config import CLASS_NAMES
from kdlib.data import points as codec
from kdlib.data.containment import owner_of_points
from kdlib.data.progress import watched
from kdlib.data.segment import read_points, writing
from kdlib.data.store import StoreSplit, class_types
from kdlib.errors import DataError
from kdlib.types import WAYMO_TYPES, frame_id

BANK_VERSION = 1
EVERY = {"Vehicle": 4, "Pedestrian": 2, "Sign": 1, "Cyclist": 1}
"""Objects of a class are taken from every n-th frame of the concatenated segments."""

_FILE, _FORMAT = "objects.safetensors", "kdlib-objects"
_HEADER = 4096  # bytes; fixed, so that it can be filled in at the end
_KINDS = {np.dtype(t): name for name, t in (("U8", "u1"), ("I8", "i1"), ("I32", "<i4"), ("I64", "<i8"), ("F32", "<f4"))}
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


def remedy(store: Path) -> str:
    """Return what makes a bank for a store."""
    return f"make it with 'python -m kdlib prepare SRC {store}'"


@dataclass(frozen=True, eq=False)
class ObjectBank:
    """Objects of a training split; all arrays are views of the file, read when they are looked at and shared by all processes."""

    path: Path
    fingerprint: str  # of the split
    class_names: tuple[str, ...]  # whose objects were collected
    segments: tuple[str, ...]
    offsets: NDArray[np.int64]  # (n + 1,) first point of each object
    boxes: NDArray[np.float32]  # (n, 7)
    types: NDArray[np.int8]  # (n,) Waymo's numbers
    difficulty: NDArray[np.int8]  # (n,) as annotated
    segment_of: NDArray[np.int32]  # (n,) position in segments
    index: NDArray[np.int32]  # (n,) of the frame in its segment
    stored: np.ndarray[Any, np.dtype[np.void]]  # (points of all objects,) of codec.POINT

    @staticmethod
    def open(path: Path, split_fingerprint: str) -> ObjectBank:
        """Map a bank; only its index is read, to check it.

        Raises:
            DataError: If the file is missing, damaged, of another version, or made from other frames.
        """
        path = Path(path)
        store = path.parent.parent
        if not path.is_file():
            raise DataError(f"{path.parent} has no object bank ({path.name}); {remedy(store)}")
        try:
            notes, arrays = _read(path)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(f"{path} cannot be used ({error}); delete it and {remedy(store)}") from error
        if notes["fingerprint"] != split_fingerprint:
            raise DataError(
                f"{path} was made from other frames (fingerprint {notes['fingerprint']}, the split has {split_fingerprint}); "
                f"{remedy(store)}"
            )
        return ObjectBank(
            path=path,
            fingerprint=split_fingerprint,
            class_names=tuple(notes["classes"].split(",")),
            segments=tuple(arrays["segments"].tobytes().decode().split("\n")),
            offsets=arrays["offsets"],
            boxes=arrays["boxes"],
            types=arrays["type"],
            difficulty=arrays["difficulty"],
            segment_of=arrays["segment"],
            index=arrays["index"],
            stored=arrays["points"].reshape(-1).view(codec.POINT),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as a path, not as gigabytes."""
        return ObjectBank.open, (self.path, self.fingerprint)

    def __len__(self) -> int:
        return len(self.types)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Points (n,) of each object."""
        return np.diff(self.offsets)

    def frame_id(self, row: int) -> str:
        """Return the name of the frame an object was seen in."""
        return frame_id(self.segments[self.segment_of[row]], int(self.index[row]))

    def points(self, rows: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the points (N, 5) of some objects, one after the other, where they were seen: features as in a sample."""
        parts = [self.stored[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        stored = np.concatenate(parts) if parts else np.zeros(0, codec.POINT)
        return np.ascontiguousarray(codec.decode(stored)[:, :5])


def build_bank(split: StoreSplit, class_names: Sequence[str] = CLASS_NAMES, progress: bool = True) -> Path:
    """Write the object bank of a split in one pass over its frames, and return its path; one that fits is kept.

    Vehicles come from every 4th frame, pedestrians from every 2nd, cyclists from all. A point in two boxes belongs to the first.
    In memory are one frame and the index, some 150 bytes an object.

    Args:
        split: The training split; all of its frames are looked at, whatever the interval training uses later.
        class_names: Whose objects to collect.
        progress: Show a progress bar.

    Raises:
        ConfigError: If a class is unknown.
        DataError: If a frame cannot be read, or the disk is full or read-only; an older bank is left as it was.
    """
    types = class_types(class_names)
    path = bank_path(split)
    if is_current(split, class_names):
        return path
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            with temporary.open("wb") as stream:
                _write(stream, split, types, class_names, progress)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def is_current(split: StoreSplit, class_names: Sequence[str] = CLASS_NAMES) -> bool:
    """Return whether the split has a sound bank of its present frames that holds these classes."""
    try:
        return set(class_names) <= set(ObjectBank.open(bank_path(split), split.fingerprint).class_names)
    except DataError:
        return False


def verify_bank(path: Path) -> list[str]:
    """Recompute the checksum of a whole bank; return one sentence if it is damaged, none if it is sound."""
    try:
        notes, _ = _read(path)
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            stream.seek(_HEADER)
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
        sound = digest.hexdigest() == notes["sha256"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        return [f"{path} cannot be used ({error}); delete it and {remedy(path.parent.parent)}"]
    return [] if sound else [f"{path} is not what was written; delete it and {remedy(path.parent.parent)}"]


def _write(stream: BinaryIO, split: StoreSplit, types: tuple[int, ...], class_names: Sequence[str], progress: bool) -> None:
    digest, seen, parts = hashlib.sha256(), 0, []
    stream.write(bytes(_HEADER))
    for index, stored in _objects(split, types, progress):
        parts.append({name: np.asarray(values, _INDEX[name][0]) for name, values in index.items()})
        digest.update(stored.tobytes())
        stream.write(stored.tobytes())
        seen += len(stored)
    empty = {name: np.zeros((0, *shape), kind) for name, (kind, shape) in _INDEX.items()}
    arrays = {name: np.concatenate([empty[name], *(part[name] for part in parts)]) for name in _INDEX if name != "segments"}
    arrays["offsets"] = np.concatenate(([0], np.cumsum(arrays["offsets"]))).astype("<i8")  # _objects gives counts
    arrays["segments"] = np.frombuffer("\n".join(split.segments).encode(), np.uint8)
    index_bytes = b"".join(np.ascontiguousarray(arrays[name], kind).tobytes() for name, (kind, _) in _INDEX.items())
    stream.write(index_bytes)
    digest.update(index_bytes)
    notes = {
        "format": _FORMAT,
        "version": str(BANK_VERSION),
        "fingerprint": split.fingerprint,
        "classes": ",".join(class_names),
        "sha256": digest.hexdigest(),
    }
    notes["checksum"] = _checksum(notes, index_bytes)
    stream.seek(0)
    stream.write(_header(notes, seen, arrays))
    stream.flush()
    os.fsync(stream.fileno())


def _objects(split: StoreSplit, types: tuple[int, ...], progress: bool) -> Iterator[tuple[_Arrays, np.ndarray[Any, Any]]]:
    """Yield, frame by frame, the index of the objects (``offsets`` holds counts) and their points."""
    every = np.ones(256, np.int64)
    every[[WAYMO_TYPES[name] for name in EVERY]] = list(EVERY.values())
    for number in watched(len(split), "object bank", "frame", progress):
        rows = split.box_rows(number)
        kinds = split.types[rows]
        kept = np.flatnonzero(number % every[kinds] == 0)
        if not np.isin(kinds[kept], types).any():
            continue
        folder = split.path / split.name / split.segments[split.segment_of[number]]
        stored = read_points(folder, int(split.offsets[number]), int(split.counts[number]))
        boxes = split.boxes[rows][kept]
        owner = owner_of_points(codec.decode(stored), boxes)
        counts = np.bincount(owner[owner >= 0], minlength=len(boxes))
        wanted = np.isin(kinds[kept], types) & (counts > 0)
        inside = np.flatnonzero((owner >= 0) & wanted[owner])
        inside = inside[np.argsort(owner[inside], kind="stable")]
        index: _Arrays = {
            "offsets": counts[wanted],
            "boxes": boxes[wanted],
            "segment": np.full(wanted.sum(), split.segment_of[number]),
            "index": np.full(wanted.sum(), split.index[number]),
            "type": kinds[kept][wanted],
            "difficulty": split.difficulty[rows][kept][wanted],
        }
        yield index, stored[inside]


def _header(notes: dict[str, str], points: int, arrays: _Arrays) -> bytes:
    """Return a safetensors header of fixed length: 8 bytes of length, JSON, spaces."""
    text: dict[str, Any] = {"__metadata__": notes}
    end = points * codec.POINT.itemsize
    text["points"] = {"dtype": "U8", "shape": [points, codec.POINT.itemsize], "data_offsets": [0, end]}
    for name, (kind, _) in _INDEX.items():
        begin, end = end, end + arrays[name].size * np.dtype(kind).itemsize
        text[name] = {"dtype": _KINDS[np.dtype(kind)], "shape": list(arrays[name].shape), "data_offsets": [begin, end]}
    return (_HEADER - 8).to_bytes(8, "little") + json.dumps(text).encode().ljust(_HEADER - 8)


def _checksum(notes: dict[str, str], index: Any) -> str:
    """Return a checksum over everything but the points; those are too many to look at whenever a bank is opened."""
    known = json.dumps({name: value for name, value in notes.items() if name != "checksum"})
    return f"{zlib.crc32(index, zlib.crc32(known.encode())):08x}"


def _read(path: Path) -> tuple[dict[str, str], _Arrays]:
    """Map the file and check header, sizes and index.

    Raises:
        ValueError: If something does not fit.
        LookupError: If something is missing from the header.
    """
    whole = np.memmap(path, np.uint8, "r")
    if len(whole) < _HEADER or int.from_bytes(whole[:8].tobytes(), "little") != _HEADER - 8:
        raise ValueError("its header is not one of an object bank")
    header = json.loads(whole[8:_HEADER].tobytes())
    notes = header["__metadata__"]
    if (notes["format"], notes["version"]) != (_FORMAT, str(BANK_VERSION)):
        raise ValueError(f"it is {notes['format']} of version {notes['version']}, this is version {BANK_VERSION}")
    arrays, end = {}, 0
    for name, (kind, shape) in {"points": ("u1", (codec.POINT.itemsize,)), **_INDEX}.items():
        begin, end = end, header[name]["data_offsets"][1]
        if _HEADER + end > len(whole):
            raise ValueError(f"it has {len(whole)} bytes, {name} ends at {_HEADER + end}")
        arrays[name] = np.asarray(whole[_HEADER + begin : _HEADER + end]).view(kind).reshape(-1, *shape)
    if _HEADER + end != len(whole):
        raise ValueError(f"it has {len(whole)} bytes instead of {_HEADER + end}")
    if _header(notes, len(arrays["points"]), arrays) != whole[:_HEADER].tobytes():
        raise ValueError("its header contradicts itself")
    if _checksum(notes, whole[_HEADER + arrays["points"].size :]) != notes["checksum"]:
        raise ValueError("the checksum of its index is wrong")
    return notes, arrays
