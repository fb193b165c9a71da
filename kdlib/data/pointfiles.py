"""Reads the points of .pcd and .ply files as columns by name; what is damaged is said in one
sentence.

PCD: ascii, binary and binary_compressed, as PCL and open3d write. PLY: ascii and binary of either
byte order. Read here, not by open3d, which fills a truncated file up with zeros and may be absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.types import Float64

PointColumns = dict[str, Float64]
"""A column (N,) for every name, names in lower case."""

_HEADER_LIMIT = 65_536  # bytes; a longer header is no header
_PCD_SIZES = {"F": "48", "I": "1248", "U": "1248"}
_PLY_KINDS = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
_LZF_REACH = 132  # one LZF instruction of two or three bytes gives at most 264

_Rows = NDArray[np.void]


def read_pcd(path: Path) -> PointColumns:
    """Return the columns of a PCD file that hold one number a point.

    Raises:
        DataError: If the file is truncated or no PCD file; the message says what was expected.
    """
    lines, body = _header(path, path.read_bytes(), "PCD", rb"^[ \t]*DATA.*\n?")
    header = {words[0].upper(): words[1:] for words in lines if not words[0].startswith("#")}
    row = _pcd_row(path, header)
    if "POINTS" in header:
        points = _count(path, "POINTS", header["POINTS"])
    else:
        points = _count(path, "WIDTH", header.get("WIDTH", [])) * _count(
            path, "HEIGHT", header.get("HEIGHT", ["1"])
        )
    storage = " ".join(header.get("DATA", [])).lower()
    if storage not in ("ascii", "binary", "binary_compressed"):
        raise DataError(
            f"{path}: DATA is '{storage}', a PCD file has ascii, binary or binary_compressed"
        )
    return _columns(path, storage, body, points, row)


def read_ply(path: Path) -> PointColumns:
    """Return the vertex properties of a PLY file that hold one number a point; faces are not read.

    Raises:
        DataError: If the file is truncated or no PLY file; the message says what was expected.
    """
    content = path.read_bytes()
    if not content.startswith(b"ply"):
        raise DataError(f"{path} is no PLY file: it does not begin with 'ply'")
    lines, body = _header(path, content, "PLY", rb"^[ \t]*end_header[ \t\r]*(\n|$)")
    storage, points, row = _ply_table(path, lines)
    if storage not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise DataError(
            f"{path}: format is '{storage}', a PLY file has ascii, "
            "binary_little_endian or binary_big_endian"
        )
    return _columns(
        path,
        storage,
        body,
        points,
        row.newbyteorder(">" if storage == "binary_big_endian" else "<"),
    )


def _header(path: Path, content: bytes, kind: str, last: bytes) -> tuple[list[list[str]], bytes]:
    """Return the words of the header's lines, and what follows the line that ends it."""
    if b"\n" not in content[:_HEADER_LIMIT]:  # lines end as on old Macs
        content = content.replace(b"\r", b"\n")
    end = re.search(last, content[:_HEADER_LIMIT], re.MULTILINE | re.IGNORECASE)
    if end is None:
        raise DataError(f"{path} is no {kind} file, or its header is cut off")
    lines = (line.split() for line in content[: end.end()].decode("ascii", "replace").split("\n"))
    return [words for words in lines if words], content[end.end() :]


def _count(path: Path, name: str, words: Sequence[str]) -> int:
    """Return the number a header line holds."""
    text = words[0] if words else ""
    if not text.isdecimal() or len(text) > 12:
        raise DataError(f"{path}: {name} is '{text}' where a number of points belongs")
    return int(text)


def _row(fields: Iterable[tuple[str, str, int]]) -> np.dtype[np.void]:
    """Return the type of one point from names, kinds and numbers a point; PCL calls all its padding
    columns '_'.
    """
    columns = {}
    for number, (name, kind, count) in enumerate(fields):
        free = f"{name} {number}" if name.lower() in columns else name
        columns[free.lower()] = kind, (count,)
    return np.dtype([(name, *column) for name, column in columns.items()])


def _pcd_row(path: Path, header: Mapping[str, list[str]]) -> np.dtype[np.void]:
    names, sizes, kinds = (header.get(key, []) for key in ("FIELDS", "SIZE", "TYPE"))
    counts = header.get("COUNT", ["1"] * len(names))
    if not names or not len(names) == len(sizes) == len(kinds) == len(counts):
        raise DataError(
            f"{path}: FIELDS, SIZE, TYPE and COUNT of a PCD header must have one entry per column"
        )
    fields = []
    for name, size, kind, count in zip(names, sizes, kinds, counts):
        known = len(size) == 1 and size in _PCD_SIZES.get(kind.upper(), "")
        if not known or not count.isdecimal() or not 0 < int(count) < 10_000:
            raise DataError(
                f"{path}: column '{name}' of TYPE {kind}, SIZE {size}, COUNT {count} "
                "is none a PCD file can have"
            )
        fields.append((name, f"<{kind.lower()}{size}", int(count)))
    return _row(fields)


def _ply_table(path: Path, lines: Sequence[list[str]]) -> tuple[str, int, np.dtype[np.void]]:
    """Return storage, number of points and type of one; the vertices must be the first element, as
    everybody writes them.
    """
    storage, element, points, fields = "", "", -1, []
    for words in lines:
        if words[0] == "format" and len(words) > 1:
            storage = words[1]
        elif words[0] == "element" and len(words) == 3:
            element = words[1]
            if points < 0 and element != "vertex":
                raise DataError(
                    f"{path}: its first element is '{element}'; points are read "
                    "where 'element vertex' comes first"
                )
            points = _count(path, "element vertex", words[2:]) if element == "vertex" else points
        elif words[0] == "property" and element == "vertex":
            if len(words) != 3 or words[1] not in _PLY_KINDS:
                raise DataError(
                    f"{path}: vertex property '{' '.join(words[1:])}' is not one "
                    "number; write the points without it"
                )
            fields.append((words[2], _PLY_KINDS[words[1]], 1))
    if points < 0 or not fields:
        raise DataError(f"{path} has no 'element vertex' with properties")
    return storage, points, _row(fields)


def _columns(
    path: Path, storage: str, body: bytes, points: int, row: np.dtype[np.void]
) -> PointColumns:
    """Return the columns of one number a point."""
    if storage == "ascii":
        rows = _from_text(path, body, points, row)
    elif storage == "binary_compressed":
        rows = _from_columns(path, _inflated(path, body), points, row)
    else:
        rows = _from_rows(path, body, points, row)
    return {
        name: rows[name][:, 0].astype(np.float64)
        for name in row.names or ()
        if rows[name].shape[1] == 1
    }


def _from_text(path: Path, body: bytes, points: int, row: np.dtype[np.void]) -> _Rows:
    wide = np.dtype([(name, "f8", row[name].shape) for name in row.names or ()])
    width = wide.itemsize // 8
    words = body.split(maxsplit=points * width)[: points * width] if points else []
    if len(words) < points * width:
        raise DataError(
            f"{path} is cut off: {points} points of {width} numbers are announced, "
            f"{len(words)} numbers are there"
        )
    try:
        return np.array(words, dtype="S32").astype(np.float64).view(wide)
    except ValueError as error:
        raise DataError(f"{path} holds something that is no number ({error})") from error


def _from_rows(path: Path, body: bytes, points: int, row: np.dtype[np.void]) -> _Rows:
    if len(body) < points * row.itemsize:
        raise DataError(
            f"{path} is cut off: {points} points of {row.itemsize} bytes are "
            f"announced, {len(body)} bytes are there"
        )
    return np.frombuffer(body, row, points)


def _from_columns(path: Path, body: bytes, points: int, row: np.dtype[np.void]) -> _Rows:
    """Return the rows of binary_compressed data, in which a column's numbers follow each other."""
    rows, place = _from_rows(path, body, points, row).copy(), 0
    for name in row.names or ():
        kind, shape = row[name].base, (points, *row[name].shape)
        rows[name] = np.frombuffer(body, kind, points * shape[1], place).reshape(shape)
        place += rows[name].nbytes
    return rows


def _inflated(path: Path, body: bytes) -> bytes:
    if len(body) < 8:
        raise DataError(f"{path} is cut off: its compressed part has no length")
    packed, size = (int(number) for number in np.frombuffer(body, "<u4", 2))
    if len(body) - 8 < packed or size > _LZF_REACH * packed:
        raise DataError(
            f"{path} is cut off: {packed} compressed bytes are announced, {len(body) - 8} are there"
        )
    inflated = _lzf(body[8 : 8 + packed], size)
    if len(inflated) != size:
        raise DataError(
            f"{path} is damaged: its compressed part does not unpack to the {size} bytes announced"
        )
    return inflated


def _lzf(packed: bytes, size: int) -> bytes:
    """Undo Marc Lehmann's LZF: literal runs, and copies of what came up to 8 KiB before; empty
    where that is not possible.
    """
    out, stream = bytearray(), iter(packed)
    try:
        for control in stream:
            if control < 32:  # so many bytes, and one more, as they are
                out += bytes(islice(stream, control + 1))
                continue
            length = (control >> 5) + 2
            if length == 9:
                length += next(stream)
            back = ((control & 31) << 8 | next(stream)) + 1
            if back > len(out) or len(out) > size:
                return b""
            source = bytes(out[len(out) - back :][:length])
            out += (source * (-(-length // len(source))))[:length]
    except StopIteration:  # the data end too early
        return b""
    return bytes(out)
