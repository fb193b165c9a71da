"""A Parquet file enters and passes, or is refused, before Arrow allocates what its metadata and page headers claim.

Arrow believes the sizes a file states: a few flipped bits make it ask for gigabytes, and end the process in some releases. Here
every claim is held against the bytes that are there. What is inside the pages is Arrow's to check; only page checksums, where a
writer has put them, tell other numbers from the right ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from kdlib.waymo.thrift import Struct, ThriftError, number, read_struct, structs

_MAGIC = b"PAR1"
_MOST_VALUES = 4 << 20
"""Numbers one cell may hold; Waymo's largest is 64 x 2650 x 6, a quarter of that."""
_MOST_ROWS = 1 << 20
"""Rows of one component; a segment has 1,000 range images and at most some 50,000 boxes."""
_SLACK = 64 << 10
_RATIOS = {0: 1, 1: 32, 2: 1100, 4: 100_000, 5: 300, 6: 40_000, 7: 300}
"""What one byte can become at the very most, by codec: none, snappy, gzip, brotli, lz4, zstd, lz4 raw."""
_DATA, _INDEX, _DICTIONARY, _DATA_V2 = range(4)
_SPECIFIC = {_DATA: 5, _INDEX: 6, _DICTIONARY: 7, _DATA_V2: 8}
"""Field of a page header that holds what is specific to a type of page."""
_REPEATED = 2


class PageError(Exception):
    """Metadata that contradict the file they are in."""


def check(file: BinaryIO, columns: Sequence[str]) -> int:
    """Hold the claims of the metadata, and of the page headers of some columns, against the file.

    Args:
        file: Open for reading.
        columns: Names of the columns that will be read; those the file has not are passed over.

    Returns:
        The bytes of the metadata, more than which nothing in them can have.

    Raises:
        PageError: If it is no Parquet file, was cut, or claims what it cannot hold.
    """
    end, data = _footer(file)
    try:
        metadata, _ = read_struct(data)
    except (ThriftError, IndexError) as error:
        raise PageError(f"its metadata cannot be read ({error})") from error
    groups = structs(metadata, 4)
    rows = [number(group, 3) for group in groups]
    if min(rows, default=0) < 0 or sum(rows) != number(metadata, 3) or sum(rows) > _MOST_ROWS:
        raise PageError(f"it claims {number(metadata, 3)} rows in groups of {rows[:5]}")
    leaves = _leaves(structs(metadata, 2))
    wanted = [any(f"{path}.".startswith(f"{name}.") for name in columns) for path, _ in leaves]
    for count, group in zip(rows, groups):
        chunks = [chunk.get(3) for chunk in structs(group, 1)]
        if len(chunks) != len(leaves):
            raise PageError(f"a row group has {len(chunks)} columns instead of {len(leaves)}")
        for (path, repeated), chunk, read in zip(leaves, chunks, wanted):
            if not isinstance(chunk, dict):
                raise PageError(f"'{path}' has no metadata")
            if not count <= number(chunk, 5) <= count * (_MOST_VALUES if repeated else 1):
                raise PageError(f"'{path}' claims {number(chunk, 5)} values in {count} rows")
            if read and count:  # a group without rows need not have pages
                _check_chunk(file, end, path, chunk)
    return len(data)


def _footer(file: BinaryIO) -> tuple[int, bytes]:
    """Return where the pages end and the metadata after them."""
    size = os.fstat(file.fileno()).st_size
    if size < 12:
        raise PageError(f"it has {size} bytes")
    if file.read(len(_MAGIC)) != _MAGIC:
        raise PageError("it does not begin as a Parquet file does")
    file.seek(size - 8)
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or not 0 < length <= size - 12:
        raise PageError("it does not end as a Parquet file does: it was cut or written over")
    file.seek(size - 8 - length)
    return size - 8 - length, file.read(length)


def _leaves(elements: list[Struct]) -> list[tuple[str, bool]]:
    """Return path and "is inside a list" of every column that has pages, from the schema written depth first."""
    found: list[tuple[str, bool]] = []
    waiting: list[tuple[int, tuple[str, ...], bool]] = [(number(element, 5), (), False) for element in elements[:1]]
    for element in elements[1:]:
        while waiting and waiting[-1][0] <= 0:
            waiting.pop()
        if not waiting:
            raise PageError("its schema has more elements than it says")
        left, path, repeated = waiting.pop()
        waiting.append((left - 1, path, repeated))
        name, children = element.get(4), number(element, 5)
        path = (*path, name.decode(errors="replace") if isinstance(name, bytes) else "")
        repeated = repeated or number(element, 3) == _REPEATED
        if children > 0:
            waiting.append((children, path, repeated))
        else:
            found.append((".".join(path), repeated))
    return found


def _check_chunk(file: BinaryIO, end: int, name: str, chunk: Struct) -> None:
    values, inflated, size, start = (number(chunk, field) for field in (5, 6, 7, 9))
    if number(chunk, 11) > 0:  # a dictionary page; 0 is how some writers say that there is none
        start = min(start, number(chunk, 11))
    if min(size, inflated) < 0 or start < len(_MAGIC) or start + size > end:
        raise PageError(f"'{name}' claims bytes {start} to {start + size} of {end}")
    ratio, counted, seen = _RATIOS.get(number(chunk, 4), 1), 0, 0
    for kind, deflated, length, header in _pages(file, start, start + size, name):
        seen += length
        if length > deflated * ratio + (_SLACK if ratio > 1 else 0) or seen > inflated:
            raise PageError(f"a page of '{name}' claims to inflate from {deflated} to {length} bytes")
        held = number(header, 1)
        if held < 0 or (kind == _DICTIONARY and held > length):
            raise PageError(f"a page of '{name}' claims {held} values")
        if kind == _DATA_V2:
            levels, rows = [number(header, field) for field in (5, 6)], number(header, 3)
            if min(levels) < 0 or sum(levels) > min(deflated, length) or not 0 <= rows <= held:
                raise PageError(f"a page of '{name}' claims levels of {levels} bytes")
        counted += held if kind != _DICTIONARY else 0
        if counted >= values:
            break
    if counted != values:
        raise PageError(f"the pages of '{name}' hold {counted} values instead of {values}")


def _pages(file: BinaryIO, start: int, end: int, name: str) -> Iterator[tuple[int, int, int, Struct]]:
    """Yield type, compressed and uncompressed bytes, and the specific part of the header of every page."""
    while start < end:
        header, length = _header(file, start, end, name)
        kind, inflated, deflated = (number(header, field) for field in (1, 2, 3))
        specific = header.get(_SPECIFIC.get(kind, 0))
        start += length + deflated
        if min(inflated, deflated) < 0 or start > end or not isinstance(specific, dict):
            raise PageError(f"'{name}' has a page of type {kind} with {deflated} bytes")
        if kind != _INDEX:
            yield kind, deflated, inflated, specific


def _header(file: BinaryIO, start: int, end: int, name: str) -> tuple[Struct, int]:
    """Read a page header; statistics make some long, so ever more bytes are tried."""
    for size in (128, 4 << 10, 1 << 20):
        file.seek(start)
        data = file.read(min(size, end - start))
        try:
            return read_struct(data)
        except IndexError:
            if len(data) < size:
                break
        except ThriftError as error:
            raise PageError(f"'{name}' has a broken page header ({error})") from error
    raise PageError(f"'{name}' has a page header that does not end")
