"""Mutants of a tiny segment by number, one number being the same mutant every time, and what became
of the reader of each.

Run as a program it feeds a range of mutants to the readers, in a process that may not allocate more
than a file can justify, and writes one line per mutant before it is read (its number) and one after
(what came of it).
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pyarrow as pa
from mutations import COLUMNS, COMPONENTS, ROWS, SEGMENT, WAYS_TO_WRITE

from kdlib.errors import KdlibError
from kdlib.types import Frame
from kdlib.waymo import reader_v1, reader_v2
from kdlib.waymo.frame_proto import parse_frame

ALLOWANCE, PER_BYTE = 64 << 20, 50
"""A reader may take so many bytes, and so many more per byte of the files."""
SECONDS = 20.0  # for one mutant

TABLE_KINDS = (
    "bytes",
    "bytes",
    "footer",
    "footer",
    "footer",
    "pages",
    "pages",
    "pages",
    "cells",
    "cells",
    "schema",
    "rows",
    "order",
    "swap",
)


class Mutants:
    """The tiny segment below a folder, and its mutants."""

    def __init__(self, goldens: Path, folder: Path) -> None:
        self._frames = [
            frame.SerializeToString()
            for frame in mutations.tiny_frames(next(goldens.glob("*.tfrecord")))
        ]
        self._tables = mutations.tiny_tables(goldens / "v2" / "training")
        self._folder, self._record = folder / "training", folder / "segment.tfrecord"
        self._whole = mutations.framed(self._frames)
        self._written = {
            name: [mutations.write_table(table, way) for way in WAYS_TO_WRITE]
            for name, table in self._tables.items()
        }
        for component in COMPONENTS:
            (self._folder / component).mkdir(parents=True, exist_ok=True)
            self._path(component).write_bytes(self._written[component][0])
        self._record.write_bytes(self._whole)
        self.frames = list(reader_v1.frames_v1(self._record, SEGMENT))
        same = [
            outcome([one], list(other))
            for one, other in zip(self.frames, zip(reader_v2.frames_v2(self._folder, SEGMENT)))
        ]
        assert same == ["equal", "equal"], "the tiny segment is not one segment"

    def _path(self, component: str) -> Path:
        return self._folder / component / f"{SEGMENT}.parquet"

    def feed(self, number: int, before: Callable[[str, int], None]) -> tuple[str, str]:
        """Make a mutant, read it, and return its kind and what came of it; ``before(kind, size)``
        is called in between.
        """
        rng = random.Random(number)
        if number % 2:
            kind = rng.choice(("bytes", "payload", "payload", "matrix", "field", "field"))
            content, allowed = self._record_mutant(kind, rng)
            self._record.write_bytes(content)
            before(f"v1 {kind}", len(content))
            return f"v1 {kind}", self._read(self._read_record, allowed)
        component = rng.choice(COMPONENTS)
        kind = rng.choice(TABLE_KINDS)
        content, allowed = self._table_mutant(component, kind, rng)
        path = self._path(component)
        path.write_bytes(content)
        before(f"v2 {kind}", sum(self._path(name).stat().st_size for name in COMPONENTS))
        try:
            return f"v2 {kind}", self._read(
                lambda: list(reader_v2.frames_v2(self._folder, SEGMENT)), allowed
            )
        finally:
            path.write_bytes(self._written[component][number % len(WAYS_TO_WRITE)])

    def _read_record(self) -> list[Frame]:
        reader_v1.segment_name(self._record)
        return list(reader_v1.frames_v1(self._record, SEGMENT))

    def _read(self, read: Callable[[], list[Frame]], allowed: str) -> str:
        try:
            frames = read()
        except KdlibError as error:
            text = str(error)
            bad = "\n" in text or not text or len(text) > 1000
            if bad or "error" not in allowed.split():
                return f"FAULT: {text[:300]!r} ({len(text)} characters), allowed: {allowed}"
            return f"error {text}"
        found = outcome(self.frames, frames)
        if found == "changed" and "times" in allowed:  # they are in several files
            times = [[frame.timestamp_micros for frame in some] for some in (self.frames, frames)]
            found = "changed" if times[0] == times[1] else f"times {times[1]}"
        return found if found in allowed.split() else f"FAULT: {found}, allowed: {allowed}"

    def _record_mutant(self, kind: str, rng: random.Random) -> tuple[bytes, str]:
        which = rng.randrange(len(self._frames))
        payloads = list(self._frames)
        if kind == "bytes":
            content = mutations.damage(self._whole, rng)
            ends = [len(mutations.framed(payloads[:count])) for count in range(1, len(payloads))]
            # cut on a boundary: nothing tells
            undetectable = any(content == self._whole[:end] for end in ends)
            return content, "error equal prefix" if undetectable else "error equal"
        if kind == "payload":
            payloads[which] = mutations.damage(payloads[which], rng)
        else:
            frame = parse_frame(payloads[which])
            (mutations.change_matrix if kind == "matrix" else mutations.change_field)(frame, rng)
            payloads[which] = frame.SerializeToString()
        return mutations.framed(payloads), "error equal changed"

    def _table_mutant(self, component: str, kind: str, rng: random.Random) -> tuple[bytes, str]:
        way = rng.randrange(len(WAYS_TO_WRITE))
        content, table = self._written[component][way], self._tables[component]
        # where the metadata begin
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        if kind == "bytes":
            return mutations.damage(content, rng), "error equal changed times"
        if kind == "footer":
            return mutations.damage(content, rng, footer), "error equal changed times"
        if kind == "pages":
            return mutations.damage(content, rng, 4, footer), "error equal changed times"
        if kind == "swap":
            other = rng.choice([name for name in COMPONENTS if name != component])
            return rng.choice(
                (self._written[other][way], self._whole, b"", b"PAR1", b"PAR1PAR1PAR1", bytes(5000))
            ), "error"
        if kind == "order":
            return mutations.write_table(
                mutations.shuffled(table, rng), WAYS_TO_WRITE[way]
            ), "equal"
        change = {
            "cells": mutations.change_cells,
            "schema": mutations.change_schema,
            "rows": mutations.change_rows,
        }[kind]
        allowed = (
            "error equal"
            if kind == "rows" and component != "lidar_box"
            else "error equal changed times"
        )
        changed = change(table, rng)
        try:
            return mutations.write_table(changed, WAYS_TO_WRITE[way]), allowed
        except pa.ArrowNotImplementedError:  # nulls in lists of a fixed size, before pyarrow 15
            return content, "equal"


def outcome(expected: list[Frame], frames: list[Frame]) -> str:
    """Return "equal", "prefix" (equal, but fewer), "changed" (other numbers, but proper frames), or
    what is wrong with them.
    """
    if len(frames) < len(expected):
        same = all(map(_equal, frames, expected))
        return "prefix" if frames and same else f"{len(frames)} frames"
    if all(map(_equal, frames, expected)) and len(frames) == len(expected):
        return "equal"
    return (
        next(filter(None, map(_wrong, frames, expected)), "changed")
        if len(frames) == len(expected)
        else "too many frames"
    )


def _arrays(frame: Frame) -> list[Any]:
    labels = frame.labels
    columns = (labels.boxes, labels.types, labels.difficulty, labels.num_points, labels.velocity)
    return [frame.points, frame.pose, *columns]


def _equal(one: Frame, other: Frame) -> bool:
    keys = [
        (frame.segment, frame.index, frame.timestamp_micros, frame.labels.ids)
        for frame in (one, other)
    ]
    return keys[0] == keys[1] and all(
        a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
        for a, b in zip(_arrays(one), _arrays(other))
    )


def _wrong(frame: Frame, expected: Frame) -> str | None:
    """Return what no file may make of a frame."""
    labels = frame.labels
    rotation = frame.pose[:3, :3]
    checks = {
        "names": (frame.segment, frame.index) == (expected.segment, expected.index),
        "number of points": len(frame.points) <= 10 * ROWS * COLUMNS,
        "shape of the points": frame.points.dtype == np.float32
        and frame.points.ndim == 2
        and frame.points.shape[1] == 6,
        "finite": all(np.isfinite(array).all() for array in _arrays(frame)),
        "rotation": np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3),
        "sizes": bool((labels.boxes[:, 3:6] > 0).all()),
        "types": set(labels.types.tolist()) <= {1, 2, 3, 4},
        "difficulty": set(labels.difficulty.tolist()) <= {0, 1, 2},
        "counts": bool((labels.num_points >= 0).all()),
        "ids": len(set(labels.ids)) == len(labels.ids),
    }
    return next((f"wrong {name}" for name, holds in checks.items() if not holds), None)


def _status(name: str) -> int:
    """Return bytes from the process's own books."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))


def main(goldens: str, folder: str, first: str, count: str) -> None:
    """Feed some mutants; whatever is no typed error ends the process, and the last line names the
    mutant.
    """
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*95 to 105 ms")
    mutants = Mutants(Path(goldens), Path(folder))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in range(int(first), int(first) + int(count)):
        print(json.dumps(_watched(mutants, number)), flush=True)


def _watched(mutants: Mutants, number: int) -> dict[str, Any]:
    """Feed one mutant under a limit of time and of address space, and measure what memory it
    took.
    """
    bounds = [0, 0]

    def before(kind: str, size: int) -> None:
        print(number, kind, flush=True)
        limit = ALLOWANCE + PER_BYTE * size
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + limit, resource.RLIM_INFINITY))
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        bounds[:] = [limit, _status("VmRSS")]
        signal.setitimer(signal.ITIMER_REAL, SECONDS)

    kind, result = mutants.feed(number, before)
    signal.setitimer(signal.ITIMER_REAL, 0)
    peak = _status("VmHWM") - bounds[1]
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if peak > bounds[0]:
        result = f"FAULT: took {peak >> 20} MiB, may take {bounds[0] >> 20}"
    return {"number": number, "kind": kind, "result": result, "peak": peak}


if __name__ == "__main__":
    main(*sys.argv[1:])
