"""A tiny segment in both formats, and mutants of it by number: the same number is the same mutant everywhere.

Run as a program it feeds a range of mutants to the readers, in a process that may not allocate more than a file can justify, and
writes one line per mutant before it is read (its number) and one after (what came of it).
"""

from __future__ import annotations

import io
import json
import random
import resource
import signal
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import thrift_tree as thrift

from kdlib.errors import KdlibError
from kdlib.types import Frame
from kdlib.waymo import parquet, records, tfrecord
from kdlib.waymo.frame_proto import matrix, pack_matrix, parse_frame

SEGMENT = "1234567890123456789_1000_000_1020_000"
COMPONENTS = ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box")
ROWS, COLUMNS = 4, 6  # of every range image
ALLOWANCE, PER_BYTE = 64 << 20, 50
"""A reader may take so many bytes, and so many more per byte of the files."""
SECONDS = 20.0  # for one mutant

WAYS_TO_WRITE: tuple[dict[str, Any], ...] = (
    {"compression": "none", "use_dictionary": False, "row_group_size": 8},
    {"compression": "none", "use_dictionary": True, "row_group_size": 100},
    {"compression": "snappy", "use_dictionary": True, "row_group_size": 5, "write_page_checksum": True},
    {"compression": "zstd", "use_dictionary": False, "row_group_size": 100},
    {"compression": "gzip", "use_dictionary": True, "row_group_size": 9},
    {"compression": "brotli", "use_dictionary": False, "row_group_size": 100, "data_page_version": "2.0"},
    {"compression": "none", "use_dictionary": False, "row_group_size": 100, "data_page_size": 64, "data_page_version": "2.0"},
)
"""Released files differ in these; every one makes other bytes for a mutation to hit."""


def write_table(table: pa.Table, way: dict[str, Any]) -> bytes:
    """Return a Parquet file; page checksums only where this pyarrow can write them."""
    sink = io.BytesIO()
    try:
        pq.write_table(table, sink, **way)
    except TypeError:  # before pyarrow 14
        sink.seek(0)
        pq.write_table(table, sink, **{key: value for key, value in way.items() if key != "write_page_checksum"})
    return sink.getvalue()


def tiny_frames(golden: Path) -> list[Any]:
    """Return the golden frames as messages, every range image cut to a few pixels, nothing of the cameras left."""
    frames = [parse_frame(payload) for payload in tfrecord.iter_records(golden)]
    for frame in frames:
        frame.DiscardUnknownFields()
        for laser in frame.lasers:
            for echo in (laser.ri_return1, laser.ri_return2):
                echo.ClearField("camera_projection_compressed")
                echo.range_image_compressed = pack_matrix(matrix(echo.range_image_compressed, 4)[:ROWS, :COLUMNS])
                if echo.range_image_pose_compressed:
                    pose = matrix(echo.range_image_pose_compressed, 6)[:ROWS, :COLUMNS]
                    echo.range_image_pose_compressed = pack_matrix(pose)
        for row in frame.context.laser_calibrations:
            del row.beam_inclinations[ROWS:]
    return frames


def tiny_tables(folder: Path) -> dict[str, pa.Table]:
    """Return the golden components of v2, cut in the same way, without what is not read."""
    tables = {}
    for component in COMPONENTS:
        table = pq.read_table(folder / component / f"{SEGMENT}.parquet")
        rows = table.to_pylist()
        for row in rows:
            for name in [name[: -len(".shape")] for name in row if name.endswith(".shape")]:
                image = np.reshape(np.array(row[f"{name}.values"], np.float32), row[f"{name}.shape"])[:ROWS, :COLUMNS]
                row[f"{name}.values"], row[f"{name}.shape"] = image.ravel(), image.shape
            name = "[LiDARCalibrationComponent].beam_inclination.values"
            if row.get(name):
                row[name] = row[name][:ROWS]
        tables[component] = pa.Table.from_pylist(rows, schema=table.schema).replace_schema_metadata(None)
    return tables


def framed(payloads: list[bytes]) -> bytes:
    """Return a TFRecord file with fitting checksums."""
    sink = io.BytesIO()
    for payload in payloads:
        tfrecord.write_record(sink, payload)
    return sink.getvalue()


def damage(content: bytes, rng: random.Random, begin: int = 0, end: int | None = None) -> bytes:
    """Return bytes changed in one of ten ways, somewhere between two places."""
    data, end = bytearray(content), len(content) if end is None else end
    if begin >= end:
        return bytes(data)
    place = rng.randrange(begin, end)
    length = min(end - place, rng.choice((1, 2, 4, 8, 16, 64, 300)))
    how = rng.randrange(10)
    if how <= 2:
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            data[rng.randrange(begin, end)] ^= 1 << rng.randrange(8)
    elif how == 3:
        data[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
    elif how == 4:
        del data[place : place + length]
    elif how == 5:
        data[place:place] = rng.choice((bytes(length), rng.randbytes(length), b"\xff" * length))
    elif how == 6:
        data[place : place + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    elif how == 7:
        other = rng.randrange(begin, end)
        data[place : place + length] = data[other : other + length]
    elif how == 8:
        # a varint that claims a lot, as lengths and sizes are written in both formats
        data[place : place + rng.randrange(1, 6)] = b"\xff" * rng.randrange(1, 9) + bytes([rng.randrange(128)])
    else:
        del data[place:]
    return bytes(data)


NUMBERS = (0, 1, -1, 2, 3, 5, 127, 128, -128, 32767, 65536, 2**31 - 1, -(2**31), 2**31, 2**62, 2**63 - 1, -(2**63))
REALS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e-40, 1e7, 3.4e38, 1e300, float("nan"), float("inf"), float("-inf"))


def change_field(message: Any, rng: random.Random) -> None:
    """Set, clear, double or drop one field somewhere in a message."""
    fields = message.DESCRIPTOR.fields
    filled = [field for field, _ in message.ListFields()]
    field = rng.choice(filled) if filled and rng.random() < 0.9 else rng.choice(fields)
    value = getattr(message, field.name)
    repeated = not isinstance(value, (int, float, bytes)) and hasattr(value, "__len__")
    if field.message_type and rng.random() < 0.85:
        if not repeated:
            change_field(value, rng)
        elif len(value):
            change_field(rng.choice(value), rng)
    elif rng.random() < 0.2:
        message.ClearField(field.name)
    elif repeated:
        _change_list(value, field, rng)
    elif field.message_type:
        value.Clear()
    else:
        setattr(message, field.name, _leaf(field, value, rng))


def _change_list(values: Any, field: Any, rng: random.Random) -> None:
    place = rng.randrange(len(values)) if len(values) else None
    if place is not None and rng.random() < 0.4:
        del values[place]
    elif field.message_type:
        added = values.add()
        if place is not None:
            added.CopyFrom(values[place])
    elif place is None or rng.random() < 0.3:
        values.append(_leaf(field, 0, rng))
    else:
        values[place] = _leaf(field, values[place], rng)


def _leaf(field: Any, value: Any, rng: random.Random) -> Any:
    if field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT):
        return rng.choice((*REALS, -float(value), float(value) + 1))
    if field.type == field.TYPE_BYTES:
        return damage(value, rng) if value else rng.choice((b"", b"x", b"\xff"))
    limit = 31 if field.type == field.TYPE_INT32 else 63
    return rng.choice([number for number in NUMBERS if -(1 << limit) <= number < 1 << limit])


def change_matrix(frame: Any, rng: random.Random) -> None:
    """Damage what is inside one zlib stream, or what its shape says."""
    laser = rng.choice(frame.lasers)
    echo = rng.choice((laser.ri_return1, laser.ri_return2))
    part = "range_image_pose_compressed" if echo.range_image_pose_compressed and rng.random() < 0.5 else "range_image_compressed"
    raw = zlib.decompress(getattr(echo, part))
    if rng.random() < 0.3:
        dims = [rng.choice((*NUMBERS[:10], ROWS, COLUMNS, 4)) for _ in range(rng.choice((0, 1, 3, 3, 3, 5)))]
        image = pack_matrix(np.zeros((*[abs(size) % 8 for size in dims[:3]],), np.float32))
        head = zlib.decompress(image)
        raw = head[: head.rfind(b"\x12")] + b"\x12" + bytes([2 * len(dims)]) + b"".join(b"\x08" + bytes([d & 0x7F]) for d in dims)
    elif rng.random() < 0.1:
        raw = b"\x0a" + b"\xff\xff\xff\x7f" + bytes(rng.choice((1 << 20, 40 << 20)))  # a bomb of zeros
    else:
        raw = damage(raw, rng)
    setattr(echo, part, zlib.compress(raw, 9))


def change_cells(table: pa.Table, rng: random.Random) -> pa.Table:
    """Replace one cell, or every cell of a column, by something else of the same type."""
    rows, name = table.to_pylist(), rng.choice(table.column_names)
    kind = table.schema.field(name).type
    chosen = rows if rng.random() < 0.1 else [rng.choice(rows)]
    for row in chosen:
        row[name] = _cell(row[name], kind, rng)
    return pa.Table.from_pylist(rows, schema=table.schema)


def _cell(value: Any, kind: pa.DataType, rng: random.Random) -> Any:
    if rng.random() < 0.15:
        return None
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        items = list(value or ())
        if pa.types.is_list(kind) and rng.random() < 0.4:
            return rng.choice((items[:-1], [*items, *items], [], items[:1], [*items, None]))
        for _ in range(rng.choice((1, 1, 5, len(items)))):
            if items:
                place = rng.randrange(len(items))
                items[place] = _cell(items[place], kind.value_type, rng)
        return items
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):
            return float(np.dtype(kind.to_pandas_dtype()).type(rng.choice((*REALS, -(value or 0.0)))))
    if pa.types.is_integer(kind):
        info = np.iinfo(kind.to_pandas_dtype())
        return rng.choice([number for number in (*NUMBERS, (value or 0) + 1) if info.min <= number <= info.max])
    return rng.choice(("", "x", "\0", "é" * 9, (value or "") + "a", "0" * 5000))


def change_rows(table: pa.Table, rng: random.Random) -> pa.Table:
    """Drop, double or repeat rows."""
    order = list(range(table.num_rows))
    how = rng.randrange(4)
    if how == 0:
        del order[rng.randrange(len(order))]
    elif how == 1:
        order.insert(rng.randrange(len(order)), rng.choice(order))
    elif how == 2:
        order = []
    else:
        order[rng.randrange(len(order))] = rng.choice(order)
    return table.take(pa.array(order, pa.int64()))


def change_schema(table: pa.Table, rng: random.Random) -> pa.Table:
    """Drop, rename, double or retype one column."""
    place = rng.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place)
    how = rng.randrange(5)
    if how == 0:
        return table.remove_column(place)
    if how == 1:
        new = rng.choice((name + "x", name.upper(), name.split(".")[0], "", table.column_names[place - 1]))
        return table.rename_columns([*table.column_names[:place], new, *table.column_names[place + 1 :]])
    if how == 2:
        return table.append_column(name, column)
    flat = (pa.string(), pa.large_string(), pa.binary(), pa.int8(), pa.int64(), pa.float32(), pa.float64(), pa.bool_(), pa.null())
    lists = (pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 3), pa.list_(pa.int8()))
    odd = (pa.timestamp("us"), pa.list_(pa.list_(pa.float32())), pa.list_(pa.string()), pa.struct([("values", lists[0])]))
    kinds: list[Any] = [*flat, *lists, *odd]
    kind = rng.choice(kinds)
    try:
        new = column.cast(kind, safe=False)
    except (pa.ArrowException, ValueError):
        new = pa.nulls(table.num_rows, kind)
    return table.set_column(place, name, new)


def shuffled(table: pa.Table, rng: random.Random) -> pa.Table:
    """Return rows and columns in another order, which means the same."""
    rows = rng.sample(range(table.num_rows), table.num_rows)
    return table.take(pa.array(rows)).select(rng.sample(table.column_names, table.num_columns))


def footer_of(content: bytes) -> int:
    """Return where the metadata of a Parquet file begins."""
    return len(content) - 8 - struct.unpack("<I", content[-8:-4])[0]


def change_footer(content: bytes, rng: random.Random) -> bytes:
    """Change one number, string or list in the metadata of a Parquet file; its length is put right."""
    begin = footer_of(content)
    tree, _ = thrift.read(content, begin)
    for _ in range(rng.choice((1, 1, 1, 2))):
        thrift.change(tree, rng, damage, NUMBERS)
    return with_footer(content[:begin], tree)


def with_footer(pages: bytes, tree: thrift.Struct) -> bytes:
    """Return a whole file."""
    footer = thrift.write(tree)
    return pages + footer + struct.pack("<I", len(footer)) + b"PAR1"


def change_page_header(content: bytes, rng: random.Random) -> bytes:
    """Change one number in the header of one page; all offsets behind it are put right."""
    begin = footer_of(content)
    tree, _ = thrift.read(content, begin)
    chunks = [chunk.get(3) for group in tree.get(4) for chunk in group.get(1)]  # ColumnMetaData: 9 data, 11 dictionary page
    chunk = rng.choice(chunks)
    start = rng.choice([chunk.get(number) for number in (9, 11) if chunk.get(number)])
    header, end = thrift.read(content, start)
    thrift.change(header, rng, damage, NUMBERS)
    new = thrift.write(header)
    grown = len(new) - (end - start)
    chunk.field(7)[2] += grown
    for field in (field for some in chunks for field in some if field[0] in (9, 10, 11) and field[2] > start):
        field[2] += grown
    return with_footer(content[:start] + new + content[end:begin], tree)


_BYTE_KINDS = ("bytes", "footer", "metadata", "metadata", "pages", "header", "header")
TABLE_KINDS = (*_BYTE_KINDS, "cells", "cells", "schema", "rows", "order", "swap")


class Mutants:
    """The tiny segment below a folder, and its mutants."""

    def __init__(self, goldens: Path, folder: Path) -> None:
        self._frames = [frame.SerializeToString() for frame in tiny_frames(next(goldens.glob("*.tfrecord")))]
        self._tables = tiny_tables(goldens / "v2" / "training")
        self._folder, self._record = folder / "training", folder / "segment.tfrecord"
        self._whole = framed(self._frames)
        self._written = {name: [write_table(table, way) for way in WAYS_TO_WRITE] for name, table in self._tables.items()}
        for component in COMPONENTS:
            (self._folder / component).mkdir(parents=True, exist_ok=True)
            self._path(component).write_bytes(self._written[component][0])
        self._record.write_bytes(self._whole)
        self.frames = list(records.read_segment(self._record, SEGMENT))
        same = [outcome([one], list(other)) for one, other in zip(self.frames, zip(parquet.read_segment(self._folder, SEGMENT)))]
        assert same == ["equal", "equal"], "the tiny segment is not one segment"

    def _path(self, component: str) -> Path:
        return self._folder / component / f"{SEGMENT}.parquet"

    def feed(self, number: int, before: Callable[[str, int], None]) -> tuple[str, str]:
        """Make a mutant, read it, and return its kind and what came of it; ``before(kind, size)`` is called in between."""
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
            return f"v2 {kind}", self._read(lambda: list(parquet.read_segment(self._folder, SEGMENT)), allowed)
        finally:
            path.write_bytes(self._written[component][number % len(WAYS_TO_WRITE)])

    def _read_record(self) -> list[Frame]:
        records.segment_name(self._record)
        return list(records.read_segment(self._record, SEGMENT))

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
            content = damage(self._whole, rng)
            ends = [len(framed(payloads[:count])) for count in range(1, len(payloads))]
            undetectable = any(content == self._whole[:end] for end in ends)  # cut on a boundary: nothing tells
            return content, "error equal prefix" if undetectable else "error equal"
        if kind == "payload":
            payloads[which] = damage(payloads[which], rng)
        else:
            frame = parse_frame(payloads[which])
            (change_matrix if kind == "matrix" else change_field)(frame, rng)
            payloads[which] = frame.SerializeToString()
        return framed(payloads), "error equal changed"

    def _table_mutant(self, component: str, kind: str, rng: random.Random) -> tuple[bytes, str]:
        way = rng.randrange(len(WAYS_TO_WRITE))
        content, table = self._written[component][way], self._tables[component]
        footer = footer_of(content)
        if kind == "bytes":
            return damage(content, rng), "error equal changed times"
        if kind == "footer":
            return damage(content, rng, footer), "error equal changed times"
        if kind == "pages":
            return damage(content, rng, 4, footer), "error equal changed times"
        if kind == "metadata":
            return change_footer(content, rng), "error equal changed times"
        if kind == "header":
            return change_page_header(content, rng), "error equal changed times"
        if kind == "swap":
            other = rng.choice([name for name in COMPONENTS if name != component])
            return rng.choice((self._written[other][way], self._whole, b"", b"PAR1", b"PAR1PAR1PAR1", bytes(5000))), "error"
        if kind == "order":
            return write_table(shuffled(table, rng), WAYS_TO_WRITE[way]), "equal"
        change = {"cells": change_cells, "schema": change_schema, "rows": change_rows}[kind]
        allowed = "error equal" if kind == "rows" and component != "lidar_box" else "error equal changed times"
        changed = change(table, rng)
        try:
            return write_table(changed, WAYS_TO_WRITE[way]), allowed
        except pa.ArrowNotImplementedError:  # nulls in lists of a fixed size, before pyarrow 15
            return content, "equal"


def outcome(expected: list[Frame], frames: list[Frame]) -> str:
    """Return "equal", "prefix" (equal, but fewer), "changed" (other numbers, but proper frames), or what is wrong with them."""
    if len(frames) < len(expected):
        same = all(map(_equal, frames, expected))
        return "prefix" if frames and same else f"{len(frames)} frames"
    if all(map(_equal, frames, expected)) and len(frames) == len(expected):
        return "equal"
    return next(filter(None, map(_wrong, frames, expected)), "changed") if len(frames) == len(expected) else "too many frames"


def _arrays(frame: Frame) -> list[Any]:
    labels = frame.labels
    columns = (labels.boxes, labels.types, labels.difficulty, labels.num_points, labels.velocity)
    return [frame.points, frame.pose, *columns]


def _equal(one: Frame, other: Frame) -> bool:
    keys = [(frame.segment, frame.index, frame.timestamp_micros, frame.labels.ids) for frame in (one, other)]
    return keys[0] == keys[1] and all(
        a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b) for a, b in zip(_arrays(one), _arrays(other))
    )


def _wrong(frame: Frame, expected: Frame) -> str | None:
    """Return what no file may make of a frame."""
    labels = frame.labels
    rotation = frame.pose[:3, :3]
    checks = {
        "names": (frame.segment, frame.index) == (expected.segment, expected.index),
        "number of points": len(frame.points) <= 10 * ROWS * COLUMNS,
        "shape of the points": frame.points.dtype == np.float32 and frame.points.ndim == 2 and frame.points.shape[1] == 6,
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
    """Feed some mutants; whatever is no typed error ends the process, and the last line names the mutant."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*95 to 105 ms")
    mutants = Mutants(Path(goldens), Path(folder))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in range(int(first), int(first) + int(count)):
        print(json.dumps(_watched(mutants, number)), flush=True)


def _watched(mutants: Mutants, number: int) -> dict[str, Any]:
    """Feed one mutant under a limit of time and of address space, and measure what memory it took."""
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
