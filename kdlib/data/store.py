"""Opens a prepared store: frames, points and boxes of a split, and its ground-truth table."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kdlib import records
from kdlib.config import CLASS_NAMES
from kdlib.data.points import StoredPoints, decode_points
from kdlib.data.segment import (
    BOX_NUMBERS,
    BOXES,
    FRAMES,
    MANIFEST,
    STORE_VERSION,
    classes_in,
    is_own,
    read_manifest,
    read_points,
)
from kdlib.errors import ConfigError, DataError
from kdlib.types import WAYMO_TYPES, Float32, FrameLabels, Int64, Json, frame_id

INDEX = "store.json"


def fingerprint(contents: Mapping[str, Mapping[str, str]]) -> str:
    """Return 16 hexadecimal digits over split -> segment -> content hash; the same frames give the
    same on every machine.
    """
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]


def class_types(
    class_names: Sequence[str], known: Sequence[str] = tuple(WAYMO_TYPES)
) -> tuple[int, ...]:
    """Return the type number of every class among a dataset's, Waymo's by default; raises
    ConfigError if a class is none of them.
    """
    unknown = [name for name in class_names if name not in known]
    if unknown or not class_names:
        whose = "Waymo's classes" if tuple(known) == tuple(WAYMO_TYPES) else "the dataset's classes"
        raise ConfigError(
            f"unknown class {unknown}; {whose} are {', '.join(known)}: name some of these in the "
            "model's class_names and its head"
        )
    return tuple(known.index(name) + 1 for name in class_names)


def read_index(path: Path) -> dict[str, dict[str, str]]:
    """Return the hash of every segment's content, by split and segment, without looking at the
    segments.

    Raises:
        DataError: If there is no store, or it is damaged or of another version.
    """
    if not (path / INDEX).is_file():
        raise DataError(
            f"{path} holds no finished store ({INDEX} is missing); run 'python -m "
            f"kdlib prepare SRC {path}'"
        )
    index = records.read_json(path / INDEX)
    if index.get("format") != "kdlib-store" or index.get("version") != STORE_VERSION:
        raise DataError(
            f"{path} is a store of version {index.get('version')}, this is version "
            f"{STORE_VERSION}; delete it and prepare again"
        )
    if index.get("fingerprint") not in (None, fingerprint(index["splits"])):
        raise DataError(
            f"{path / INDEX} is not what was written; delete it and run 'python -m "
            "kdlib prepare' again"
        )
    return index["splits"]


def first_manifests(path: Path) -> dict[str, Json]:
    """Return by split the manifest of its first segment: kind and classes are those of all. Nothing
    is checked, and where there is no store, none is returned.
    """
    splits = records.read_json(path / INDEX).get("splits", {}) if (path / INDEX).is_file() else {}
    files = {
        split: path / split / min(names) / MANIFEST for split, names in splits.items() if names
    }
    return {split: records.read_json(file) for split, file in files.items() if file.is_file()}


@dataclass(frozen=True)
class Store:
    """All splits of a prepared store."""

    path: Path
    contents: Mapping[str, Mapping[str, str]]  # split -> segment -> content hash
    class_names: tuple[str, ...] = tuple(WAYMO_TYPES)  # type n is the n-th

    @staticmethod
    def open(path: Path | str) -> Store:
        """Open a store after checking that every segment is there, whole and of this version.

        Sizes are compared; :mod:`~kdlib.tools.server.verify` computes checksums.

        Raises:
            DataError: If there is no store, it is of another version, or a segment is missing,
                changed or truncated.
        """
        path = Path(path)
        contents = read_index(path)
        manifest: Json = {}
        for split, segments in contents.items():
            for name, content in segments.items():
                folder = path / split / name
                manifest = read_manifest(folder)
                if manifest["content"] != content:
                    raise DataError(
                        f"{folder} changed after the store was finished; run 'python "
                        "-m kdlib prepare' again"
                    )
        return Store(path, contents, classes_in(manifest))

    @property
    def fingerprint(self) -> str:
        """Hash of everything in the store."""
        return fingerprint(self.contents)

    def split(self, name: str) -> StoreSplit:
        """Load the tables of a split; raises DataError if the store has no such split, or a table
        is damaged.
        """
        if name not in self.contents:
            raise DataError(
                f"{self.path} has no split '{name}', it has: {', '.join(self.contents) or 'none'}"
            )
        segments = tuple(sorted(self.contents[name]))
        columns = ["frame", "type", *BOX_NUMBERS, "difficulty", "num_points", "speed_x", "speed_y"]
        frame_tables, box_tables = (
            [_read_table(self.path / name / segment / file, read) for segment in segments]
            for file, read in (
                (FRAMES, ["frame", "timestamp", "offset", "count"]),
                (BOXES, columns),
            )
        )
        lengths = [len(table) for table in frame_tables]
        frames, boxes = (
            {column: table.column(column).to_numpy() for column in table.column_names}
            for table in map(pa.concat_tables, (frame_tables, box_tables))
        )
        # frame numbers of the split, from frame numbers of each segment; the rows of a frame are
        # contiguous and in order
        owner = boxes["frame"] + np.repeat(
            np.cumsum([0, *lengths[:-1]]), [len(table) for table in box_tables]
        )
        return StoreSplit(
            path=self.path,
            name=name,
            segments=segments,
            fingerprint=fingerprint({name: self.contents[name]}),
            class_names=self.class_names,
            own=is_own(first_manifests(self.path).get(name, {})),
            segment_of=np.repeat(np.arange(len(segments), dtype=np.int32), lengths),
            index=frames["frame"],
            timestamps=frames["timestamp"],
            offsets=frames["offset"],
            counts=frames["count"],
            first_box=np.searchsorted(owner, np.arange(sum(lengths) + 1)),
            boxes=np.stack([boxes[number] for number in BOX_NUMBERS], axis=1).astype(np.float32),
            types=boxes["type"],
            difficulty=boxes["difficulty"],
            num_points=boxes["num_points"],
            velocity=np.stack([boxes["speed_x"], boxes["speed_y"]], axis=1).astype(np.float32),
        )


@dataclass(frozen=True)
class StoreSplit:
    """The frames of a split: all segments, sorted by name, one after the other."""

    path: Path
    name: str
    segments: tuple[str, ...]
    fingerprint: str
    segment_of: NDArray[np.int32]  # (F,) position in segments
    index: NDArray[np.int32]  # (F,) position in the segment
    timestamps: Int64  # (F,) microseconds
    offsets: Int64  # (F,) first point in the segment's points.npy
    counts: Int64  # (F,) number of points
    first_box: Int64  # (F + 1,) rows of the following
    boxes: Float32  # (all, 7)
    types: NDArray[np.int8]
    difficulty: NDArray[np.int8]
    num_points: NDArray[np.int32]
    velocity: Float32  # (all, 2) vehicle frame, m/s
    class_names: tuple[str, ...] = tuple(WAYMO_TYPES)  # type n is the n-th
    own: bool = False  # frames of one's own, not read from Waymo's files

    def __len__(self) -> int:
        return len(self.index)

    def frames(self, interval: int = 1) -> Int64:
        """Return every ``interval``-th frame number of the concatenated segments, beginning with 0
        (spec 2.1).
        """
        if interval < 1:
            raise ConfigError(f"the sampling interval must be at least 1, not {interval}")
        return np.arange(0, len(self), interval, dtype=np.int64)

    @property
    def learned_classes(self) -> tuple[str, ...]:
        """The classes that models learn unless they name others: three of Waymo's, or all of one's
        own.
        """
        return CLASS_NAMES if self.class_names == tuple(WAYMO_TYPES) else self.class_names

    def class_types(self, class_names: Sequence[str]) -> tuple[int, ...]:
        """Return the type number of every class; raises ConfigError if the dataset has no such
        class.
        """
        return class_types(class_names, self.class_names)

    def frame_id(self, number: int) -> str:
        """Return the name a frame has in every table."""
        return frame_id(self.segments[self.segment_of[number]], self.index[number])

    def frame_ids(self, interval: int = 1) -> list[str]:
        """Return the names of every ``interval``-th frame."""
        return [self.frame_id(number) for number in self.frames(interval)]

    def stored_points(self, number: int) -> StoredPoints:
        """Return a frame's points as they are stored; raises DataError if the points cannot be read
        whole.
        """
        folder = self.path / self.name / self.segments[self.segment_of[number]]
        return read_points(folder, self.offsets[number], self.counts[number])

    def points(self, number: int) -> Float32:
        """Return a frame's points (N, 6) x, y, z, tanh(intensity), elongation, no-label-zone flag
        (+1 inside, -1 outside).
        """
        return decode_points(self.stored_points(number))

    def box_rows(self, number: int) -> slice:
        """Return where a frame's boxes lie in ``boxes``, ``types``, ``difficulty``, ``num_points``
        and ``velocity``.
        """
        return slice(self.first_box[number], self.first_box[number + 1])

    def labels(self, number: int) -> FrameLabels:
        """Return a frame's annotations, object ids included (read from disk)."""
        table = _read_table(
            self.path / self.name / self.segments[self.segment_of[number]] / BOXES, ["frame", "id"]
        )
        ids = (
            table.filter(pc.equal(table.column("frame"), int(self.index[number])))
            .column("id")
            .to_pylist()
        )
        rows = self.box_rows(number)
        types, difficulty, num_points = (
            a[rows].astype(np.int64) for a in (self.types, self.difficulty, self.num_points)
        )
        return FrameLabels(
            self.boxes[rows],
            types,
            tuple(ids),
            difficulty,
            num_points,
            self.velocity[rows],
            self.class_names,
        )


def _read_table(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(
            f"{path} is damaged ({str(error).splitlines()[0]}); delete its folder and prepare again"
        ) from error


def ground_truth_table(
    split: StoreSplit, interval: int = 1, class_names: Sequence[str] = CLASS_NAMES
) -> pa.Table:
    """Return all annotated boxes of some classes, as annotated: boxes without points and unset
    difficulties included.

    Columns: frame_id, x, y, z, length, width, height, heading, type, difficulty, num_points,
    speed_x, speed_y (vehicle frame). Frames without any box have no row; the schema's metadata
    ``frame_ids`` (JSON) names all frames, ``class_names`` (JSON) the classes and ``dataset`` the
    split's fingerprint, ``type_names`` (JSON) what type 1, 2, ... are where they are not Waymo's;
    it survives Parquet.

    Raises:
        ConfigError: If a class is unknown or the interval is below 1.
    """
    numbers, names = split.frames(interval), split.frame_ids(interval)
    owner = np.repeat(np.arange(len(split)), np.diff(split.first_box))
    of_classes = np.isin(split.types, split.class_types(class_names))
    rows = np.flatnonzero(np.isin(owner, numbers) & of_classes)
    columns = {
        "frame_id": pa.array(
            [names[number] for number in np.searchsorted(numbers, owner[rows])], pa.string()
        ),
        **dict(zip(BOX_NUMBERS, split.boxes[rows].astype(np.float64).T)),
        "type": split.types[rows],
        "difficulty": split.difficulty[rows],
        "num_points": split.num_points[rows].astype(np.int64),
        **dict(zip(("speed_x", "speed_y"), split.velocity[rows].astype(np.float64).T)),
    }
    facts = {
        "frame_ids": json.dumps(names),
        "class_names": json.dumps(class_names),
        "dataset": split.fingerprint,
        **type_facts(split.class_names),
    }
    return pa.table(columns).replace_schema_metadata(facts)


def type_facts(class_names: Sequence[str]) -> dict[str, str]:
    """Return what a table says of its types in the schema's metadata: nothing if they are
    Waymo's.
    """
    own = tuple(class_names) != tuple(WAYMO_TYPES)
    return {"type_names": json.dumps(class_names)} if own else {}


def limit_table(table: pa.Table, half_width: float = math.inf) -> pa.Table:
    """Keep the boxes whose centre a model can see, |x| and |y| at most ``half_width`` metres.

    Apply it to predictions and ground truth alike, and say so beside the number.
    """
    x, y = (np.abs(table.column(name).to_numpy()) for name in ("x", "y"))
    return table.filter(pa.array(np.maximum(x, y) <= half_width))
