"""A tiny segment in both formats, and the ways to damage it: bytes, messages, matrices, cells, rows
and columns.
"""

from __future__ import annotations

import io
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdlib.waymo import tfrecord
from kdlib.waymo.frame_proto import pack_matrix, parse_frame, unpack_matrix

SEGMENT = "1234567890123456789_1000_000_1020_000"
COMPONENTS = ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box")
ROWS, COLUMNS = 4, 6  # of every range image

WAYS_TO_WRITE: tuple[dict[str, Any], ...] = (
    {"compression": "none", "use_dictionary": False, "row_group_size": 8},
    {"compression": "none", "use_dictionary": True, "row_group_size": 100},
    {
        "compression": "snappy",
        "use_dictionary": True,
        "row_group_size": 5,
        "write_page_checksum": True,
    },
    {"compression": "zstd", "use_dictionary": False, "row_group_size": 100},
    {"compression": "gzip", "use_dictionary": True, "row_group_size": 9},
    {
        "compression": "brotli",
        "use_dictionary": False,
        "row_group_size": 100,
        "data_page_version": "2.0",
    },
    {
        "compression": "none",
        "use_dictionary": False,
        "row_group_size": 100,
        "data_page_size": 64,
        "data_page_version": "2.0",
    },
)
"""Released files differ in these; every one makes other bytes for a mutation to hit."""


def write_table(table: pa.Table, way: dict[str, Any]) -> bytes:
    """Return a Parquet file; page checksums only where this pyarrow can write them."""
    sink = io.BytesIO()
    try:
        pq.write_table(table, sink, **way)
    except TypeError:  # before pyarrow 14
        sink.seek(0)
        pq.write_table(
            table,
            sink,
            **{key: value for key, value in way.items() if key != "write_page_checksum"},
        )
    return sink.getvalue()


def tiny_frames(golden: Path) -> list[Any]:
    """Return the golden frames as messages, every range image cut to a few pixels, nothing of the
    cameras left.
    """
    frames = [parse_frame(payload) for payload in tfrecord.iter_payloads(golden)]
    for frame in frames:
        frame.DiscardUnknownFields()
        for laser in frame.lasers:
            for echo in (laser.ri_return1, laser.ri_return2):
                echo.ClearField("camera_projection_compressed")
                echo.range_image_compressed = pack_matrix(
                    unpack_matrix(echo.range_image_compressed, 4)[:ROWS, :COLUMNS]
                )
                if echo.range_image_pose_compressed:
                    pose = unpack_matrix(echo.range_image_pose_compressed, 6)[:ROWS, :COLUMNS]
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
                image = np.reshape(
                    np.array(row[f"{name}.values"], np.float32), row[f"{name}.shape"]
                )[:ROWS, :COLUMNS]
                row[f"{name}.values"], row[f"{name}.shape"] = image.ravel(), image.shape
            name = "[LiDARCalibrationComponent].beam_inclination.values"
            if row.get(name):
                row[name] = row[name][:ROWS]
        tables[component] = pa.Table.from_pylist(rows, schema=table.schema).replace_schema_metadata(
            None
        )
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
        data[place : place + length] = rng.choice(
            (bytes(length), b"\xff" * length, rng.randbytes(length))
        )
    elif how == 7:
        other = rng.randrange(begin, end)
        data[place : place + length] = data[other : other + length]
    elif how == 8:
        # a varint that claims a lot, as lengths and sizes are written in both formats
        data[place : place + rng.randrange(1, 6)] = b"\xff" * rng.randrange(1, 9) + bytes(
            [rng.randrange(128)]
        )
    else:
        del data[place:]
    return bytes(data)


NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    5,
    127,
    128,
    -128,
    32767,
    65536,
    2**31 - 1,
    -(2**31),
    2**31,
    2**62,
    2**63 - 1,
    -(2**63),
)
REALS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-300,
    1e-40,
    1e7,
    3.4e38,
    1e300,
    float("nan"),
    float("inf"),
    float("-inf"),
)


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
    part = (
        "range_image_pose_compressed"
        if echo.range_image_pose_compressed and rng.random() < 0.5
        else "range_image_compressed"
    )
    raw = zlib.decompress(getattr(echo, part))
    if rng.random() < 0.3:
        dims = [
            rng.choice((*NUMBERS[:10], ROWS, COLUMNS, 4))
            for _ in range(rng.choice((0, 1, 3, 3, 3, 5)))
        ]
        image = pack_matrix(np.zeros((*[abs(size) % 8 for size in dims[:3]],), np.float32))
        head = zlib.decompress(image)
        raw = (
            head[: head.rfind(b"\x12")]
            + b"\x12"
            + bytes([2 * len(dims)])
            + b"".join(b"\x08" + bytes([d & 0x7F]) for d in dims)
        )
    elif rng.random() < 0.1:
        # a bomb of zeros
        raw = b"\x0a" + b"\xff\xff\xff\x7f" + bytes(rng.choice((1 << 20, 40 << 20)))
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
            return float(
                np.dtype(kind.to_pandas_dtype()).type(rng.choice((*REALS, -(value or 0.0))))
            )
    if pa.types.is_integer(kind):
        info = np.iinfo(kind.to_pandas_dtype())
        return rng.choice(
            [number for number in (*NUMBERS, (value or 0) + 1) if info.min <= number <= info.max]
        )
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
        new = rng.choice(
            (name + "x", name.upper(), name.split(".")[0], "", table.column_names[place - 1])
        )
        return table.rename_columns(
            [*table.column_names[:place], new, *table.column_names[place + 1 :]]
        )
    if how == 2:
        return table.append_column(name, column)
    flat = (
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.int8(),
        pa.int64(),
        pa.float32(),
        pa.float64(),
        pa.bool_(),
        pa.null(),
    )
    lists = (
        pa.list_(pa.float64()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float32(), 3),
        pa.list_(pa.int8()),
    )
    odd = (
        pa.timestamp("us"),
        pa.list_(pa.list_(pa.float32())),
        pa.list_(pa.string()),
        pa.struct([("values", lists[0])]),
    )
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
