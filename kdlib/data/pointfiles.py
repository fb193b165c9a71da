"""Point clouds of other programs: a .pcd or .ply file enters, its columns by name leave; damage is one sentence.

PCD: ascii, binary and binary_compressed, as PCL and open3d write. PLY: ascii and binary of either byte order. Read here, not
by open3d, which fills a truncated file up with zeros and may be absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdlib.errors import DataError

Columns = dict[str, NDArray[np.float64]]
"""A column (N,) for every name, names in lower case."""

_HEADER_LIMIT = 65_536  # bytes; a longer header is no header
_PCD_KINDS = {"F": "f", "I": "i", "U": "u"}
_PLY_KINDS = {
    **{"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2"},
    **{"int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8"},
}
_LZF_REACH = 132  # one LZF instruction of two or three bytes gives at most 264


def read_pcd(path: Path) -> Columns:
    """Return the columns of a PCD file that hold one number a point.

    Raises:
        DataError: If the file is truncated or no PCD file; the message says what was expected.
    """
    content = path.read_bytes()
    lines, body = _header(path, content, "PCD", lambda line: line.upper().startswith("DATA"))
    values = {words[0].upper(): words[1:] for words in (line.split() for line in lines) if words and not words[0].startswith("#")}
    table = _pcd_table(path, values)
    points = _count(path, "POINTS", values.get("POINTS") or [str(_product(path, values))])
    storage = next(iter(values.get("DATA", [])), "").lower()
    if storage == "ascii":
        return _from_text(path, body, points, table)
    if storage == "binary":
        return _from_rows(path, body, points, np.dtype([(f.name, f.kind, (f.count,)) for f in table]))
    if storage == "binary_compressed":
        return _from_columns(path, _inflated(path, body), points, table)
    raise DataError(f"{path}: DATA is '{storage}', a PCD file has ascii, binary or binary_compressed")


def read_ply(path: Path) -> Columns:
    """Return the vertex properties of a PLY file that hold one number a point; faces are not read.

    Raises:
        DataError: If the file is truncated or no PLY file; the message says what was expected.
    """
    content = path.read_bytes()
    if not content.startswith(b"ply"):
        raise DataError(f"{path} is no PLY file: it does not begin with 'ply'")
    lines, body = _header(path, content, "PLY", lambda line: line == "end_header")
    storage, points, table = _ply_table(path, lines)
    if storage == "ascii":
        return _from_text(path, body, points, table)
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(storage)
    if order is None:
        raise DataError(f"{path}: format is '{storage}', a PLY file has ascii, binary_little_endian or binary_big_endian")
    return _from_rows(path, body, points, np.dtype([(f.name, order + f.kind, (1,)) for f in table]))


@dataclass(frozen=True)
class _Field:
    name: str
    kind: str  # of NumPy, without byte order in PLY
    count: int = 1  # numbers a point


def _header(path: Path, content: bytes, kind: str, is_last: Callable[[str], bool]) -> tuple[list[str], bytes]:
    """Return the header's lines and what follows them."""
    lines, place = [], 0
    while place < min(len(content), _HEADER_LIMIT):
        end = content.find(b"\n", place)
        end = len(content) if end < 0 else end
        line = content[place:end].decode("ascii", "replace").strip()
        lines.append(line)
        place = end + 1
        if is_last(line):
            return lines, content[place:]
    raise DataError(f"{path} is no {kind} file, or its header is cut off")


def _count(path: Path, name: str, words: Sequence[str]) -> int:
    """Return the number a header line holds."""
    text = words[0] if words else ""
    if not text.isdecimal() or len(text) > 12:
        raise DataError(f"{path}: {name} is '{text}' where a number of points belongs")
    return int(text)


def _product(path: Path, values: Mapping[str, list[str]]) -> int:
    return _count(path, "WIDTH", values.get("WIDTH", [])) * _count(path, "HEIGHT", values.get("HEIGHT", ["1"]))


def _pcd_table(path: Path, values: Mapping[str, list[str]]) -> list[_Field]:
    names, sizes, kinds = (values.get(key, []) for key in ("FIELDS", "SIZE", "TYPE"))
    counts = values.get("COUNT", ["1"] * len(names))
    if not names or not len(names) == len(sizes) == len(kinds) == len(counts):
        raise DataError(f"{path}: FIELDS, SIZE, TYPE and COUNT of a PCD header must have one entry per column")
    table: list[_Field] = []
    for number, (name, size, kind, count) in enumerate(zip(names, sizes, kinds, counts)):
        known = kind.upper() in _PCD_KINDS and size in ("4", "8", *(("1", "2") if kind.upper() in "IU" else ()))
        if not known or not count.isdecimal() or not 0 < int(count) < 10_000:
            raise DataError(f"{path}: column '{name}' of TYPE {kind}, SIZE {size}, COUNT {count} is none a PCD file can have")
        table.append(_Field(_free(name, number, table), f"<{_PCD_KINDS[kind.upper()]}{size}", int(count)))
    return table


def _ply_table(path: Path, lines: Sequence[str]) -> tuple[str, int, list[_Field]]:
    """Return storage, number of points and columns; the vertices must be the file's first element, as everybody writes them."""
    storage, element, points = "", "", -1
    table: list[_Field] = []
    for words in (line.split() for line in lines):
        if words[:1] == ["format"] and len(words) > 1:
            storage = words[1]
        elif words[:1] == ["element"] and len(words) == 3:
            element = words[1]
            if points < 0 and element != "vertex":
                raise DataError(f"{path}: its first element is '{element}'; points are read where 'element vertex' comes first")
            points = _count(path, "element vertex", words[2:]) if element == "vertex" else points
        elif words[:1] == ["property"] and element == "vertex":
            if len(words) != 3 or words[1] not in _PLY_KINDS:
                raise DataError(f"{path}: vertex property '{' '.join(words[1:])}' is not one number; write the points without it")
            table.append(_Field(_free(words[2], len(table), table), _PLY_KINDS[words[1]]))
    if points < 0 or not table:
        raise DataError(f"{path} has no 'element vertex' with properties")
    return storage, points, table


def _free(name: str, number: int, table: Sequence[_Field]) -> str:
    """Return a name none of the columns has yet; padding columns of PCL are all called '_'."""
    name = name.lower()
    return f"{name} {number}" if name in {field.name for field in table} else name


def _from_text(path: Path, body: bytes, points: int, table: Sequence[_Field]) -> Columns:
    width = sum(field.count for field in table)
    words = body.split(maxsplit=points * width)[: points * width] if points else []
    if len(words) < points * width:
        raise DataError(f"{path} is cut off: {points} points of {width} numbers are announced, {len(words)} numbers are there")
    try:
        rows = np.array(words, dtype="S32").astype(np.float64).reshape(points, width)
    except ValueError as error:
        raise DataError(f"{path} holds something that is no number ({error})") from error
    starts = np.cumsum([0] + [field.count for field in table])
    return {field.name: rows[:, start] for field, start in zip(table, starts) if field.count == 1}


def _from_rows(path: Path, body: bytes, points: int, row: np.dtype[np.void]) -> Columns:
    _check_length(path, len(body), points, row.itemsize)
    rows = np.frombuffer(body, row, points)
    return {name: rows[name][:, 0].astype(np.float64) for name in row.names or () if rows[name].shape[1] == 1}


def _from_columns(path: Path, body: bytes, points: int, table: Sequence[_Field]) -> Columns:
    """Read binary_compressed data, in which a column's numbers follow each other."""
    sizes = [np.dtype(field.kind).itemsize * field.count for field in table]
    _check_length(path, len(body), points, sum(sizes))
    found, place = {}, 0
    for field, size in zip(table, sizes):
        if field.count == 1:
            found[field.name] = np.frombuffer(body, field.kind, points, place).astype(np.float64)
        place += points * size
    return found


def _check_length(path: Path, length: int, points: int, size: int) -> None:
    if length < points * size:
        raise DataError(f"{path} is cut off: {points} points of {size} bytes are announced, {length} bytes are there")


def _inflated(path: Path, body: bytes) -> bytes:
    if len(body) < 8:
        raise DataError(f"{path} is cut off: its compressed part has no length")
    packed, size = (int(number) for number in np.frombuffer(body, "<u4", 2))
    if len(body) - 8 < packed or size > _LZF_REACH * packed:
        raise DataError(f"{path} is cut off: {packed} compressed bytes are announced, {len(body) - 8} are there")
    try:
        inflated = _lzf(body[8 : 8 + packed], size)
    except IndexError:
        inflated = b""
    if len(inflated) != size:
        raise DataError(f"{path} is damaged: its compressed part does not unpack to the {size} bytes announced")
    return inflated


def _lzf(packed: bytes, size: int) -> bytes:
    """Undo Marc Lehmann's LZF: literal runs, and copies of what came up to 8 KiB before.

    Raises:
        IndexError: If the data ends too early, or a copy begins before the first byte.
    """
    out, place = bytearray(), 0
    while place < len(packed) and len(out) <= size:
        control = packed[place]
        place += 1
        if control < 32:
            out += packed[place : place + control + 1]
            place += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += packed[place]
            place += 1
        back = ((control & 31) << 8 | packed[place]) + 1
        place += 1
        if back > len(out):
            raise IndexError
        source = bytes(out[len(out) - back :][: length + 2])
        out += (source * (-(-(length + 2) // len(source))))[: length + 2]
    return bytes(out)
