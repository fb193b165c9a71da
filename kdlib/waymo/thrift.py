"""Bytes in Thrift's compact encoding enter, dictionaries leave: the metadata and page headers of a Parquet file."""

from __future__ import annotations

from typing import Any

Struct = dict[int, Any]
"""Values by field number: integers, bytes, lists, structs; None for truth values and reals, which nobody asks for."""

_BYTE, _INTEGERS, _REAL, _TEXT, _LISTS, _STRUCT = 3, (4, 5, 6), 7, 8, (9, 10), 12
_DEEPEST = 16


class ThriftError(Exception):
    """Bytes that are no such encoding; those that end too early are an IndexError."""


def read_struct(data: bytes, at: int = 0, depth: int = 0) -> tuple[Struct, int]:
    """Return a struct and the place after it.

    Raises:
        ThriftError: If a field is of a type that is not used in Parquet files.
        IndexError: If the bytes end inside the struct.
    """
    fields: Struct = {}
    number = 0
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        if step:
            number += step
        else:
            number, at = _signed(data, at)
        if kind in (1, 2):  # true, false
            fields[number] = None
        else:
            fields[number], at = _value(data, at, kind, depth)
    return fields, at + 1


def number(fields: Struct, field: int) -> int:
    """Return an integer, -1 if it is absent or something else."""
    value = fields.get(field)
    return value if isinstance(value, int) else -1


def structs(fields: Struct, field: int) -> list[Struct]:
    """Return a list of structs, empty if it is absent or something else."""
    value = fields.get(field)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in _INTEGERS:
        return _signed(data, at)
    if kind == _TEXT:
        size, at = _varint(data, at)
        return data[at : at + size], _inside(data, at + size)
    if kind in _LISTS:
        return _list(data, at, depth)
    if kind == _STRUCT and depth < _DEEPEST:
        return read_struct(data, at, depth + 1)
    if kind in (_BYTE, _REAL):
        return None, _inside(data, at + (1 if kind == _BYTE else 8))
    raise ThriftError(f"a field is of type {kind}")


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    size, kind = data[at] >> 4, data[at] & 15
    at += 1
    if size == 15:
        size, at = _varint(data, at)
    _inside(data, at + size)  # every element has at least a byte
    items = []
    for _ in range(size):
        item, at = _value(data, at, _BYTE if kind in (1, 2) else kind, depth + 1)
        items.append(item)
    return items, at


def _inside(data: bytes, at: int) -> int:
    if at > len(data):
        raise IndexError(at)
    return at


def _signed(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ThriftError("a number has more than ten bytes")
