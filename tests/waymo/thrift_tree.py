"""Thrift's compact encoding as a tree that can be changed and written again: the metadata and the page headers of Parquet files.

A struct is ``[(field number, type, value), ...]``, a list ``(type, [value, ...])``; numbers are integers, the rest is bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

TRUE, FALSE, BYTE, I64, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 6, 7, 8, 9, 10, 12


class Struct(list):
    """Fields of a message, each a mutable ``[number, type, value]``."""

    def field(self, number: int) -> list[Any] | None:
        return next((item for item in self if item[0] == number), None)

    def get(self, number: int) -> Any:
        found = self.field(number)
        return None if found is None else found[2]


class Items(list):
    """Elements of a list of one type."""

    kind = 0


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def write_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def read(data: bytes, at: int = 0, kind: int = STRUCT) -> tuple[Any, int]:
    """Return a value and the first byte after it."""
    if kind in (TRUE, FALSE, BYTE):
        return data[at], at + 1
    if kind < DOUBLE:
        value, at = varint(data, at)
        return (value >> 1) ^ -(value & 1), at
    if kind == DOUBLE:
        return data[at : at + 8], at + 8
    if kind == BINARY:
        size, at = varint(data, at)
        return data[at : at + size], at + size
    if kind in (LIST, SET):
        size, items = data[at] >> 4, Items()
        items.kind, at = data[at] & 15, at + 1
        if size == 15:
            size, at = varint(data, at)
        for _ in range(size):
            value, at = read(data, at, items.kind)
            items.append(value)
        return items, at
    assert kind == STRUCT
    fields, number = Struct(), 0
    while True:
        head, at = data[at], at + 1
        if head == 0:
            return fields, at
        kind, number = head & 15, number + (head >> 4)
        if head < 16:
            number, at = varint(data, at)
            number = (number >> 1) ^ -(number & 1)
        value: Any = None
        if kind not in (TRUE, FALSE):
            value, at = read(data, at, kind)
        fields.append([number, kind, value])


def write(value: Any, kind: int = STRUCT) -> bytes:
    """Return the bytes of a value."""
    if kind in (TRUE, FALSE, BYTE):
        return bytes([value & 0xFF])
    if kind < DOUBLE:
        return write_varint((value << 1 ^ value >> 63) & (1 << 64) - 1)
    if kind == DOUBLE:
        return value
    if kind == BINARY:
        return write_varint(len(value)) + value
    if kind in (LIST, SET):
        size = len(value)
        head = bytes([size << 4 | value.kind]) if size < 15 else bytes([0xF0 | value.kind]) + write_varint(size)
        return head + b"".join(write(item, value.kind) for item in value)
    parts, last = [], 0
    for number, kind, item in value:
        step = number - last
        parts.append(bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + write_varint((number << 1) & 0xFFFF))
        parts.append(b"" if kind in (TRUE, FALSE) else write(item, kind))
        last = number
    return b"".join((*parts, b"\0"))


def _places(value: Any, kind: int = STRUCT) -> Iterator[tuple[Any, int, int]]:
    """Yield (container, index, type) of every number and string, and of every struct in a list."""
    if kind == STRUCT:
        for item in value:
            yield item, 2, item[1]
            yield from _places(item[2], item[1])
    elif kind in (LIST, SET):
        for number, item in enumerate(value):
            yield value, number, value.kind
            yield from _places(item, value.kind)


def change(tree: Struct, rng: random.Random, damage: Callable[[bytes, random.Random], bytes], numbers: tuple[int, ...]) -> None:
    """Change one place somewhere in a tree: another number, another string, a field or an element more or less."""
    holder, place, kind = rng.choice(list(_places(tree)))
    value = holder[place]
    if kind in (TRUE, FALSE) and isinstance(holder, list) and not isinstance(holder, Items):
        holder[1] = TRUE + FALSE - kind
    elif kind < DOUBLE:
        holder[place] = rng.choice((*numbers, value + 1, value - 1, value * 2, value // 2, value * 1000, -value))
    elif kind == BINARY:
        holder[place] = damage(value, rng) if value else b"x"
    elif kind == STRUCT and value and rng.random() < 0.5:
        del value[rng.randrange(len(value))]
    elif isinstance(holder, Items):
        if rng.random() < 0.5:
            del holder[place]
        else:
            holder.insert(place, holder[rng.randrange(len(holder))])
    elif kind in (LIST, SET) and value:
        value[:] = value * rng.choice((0, 2, 50))
