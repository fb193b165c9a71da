"""The ways to damage what only a Parquet file has: its metadata, the headers of its pages, the levels in them."""

from __future__ import annotations

import random
import struct
import zlib

import pyarrow as pa
import thrift_tree as thrift
from mutations import NUMBERS, damage

CODECS = {0: None, 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd"}
"""As Parquet's metadata number them."""


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
    tree, chunk, start = _a_page(content, rng, (9, 11))
    header, end = thrift.read(content, start)
    thrift.change(header, rng, damage, NUMBERS)
    return _with_page(content, tree, chunk, start, end, thrift.write(header))


def change_levels(content: bytes, rng: random.Random) -> bytes:
    """Damage the first bytes of one page, mostly levels, as they are before compression; length and checksum are put right."""
    tree, chunk, start = _a_page(content, rng, (9,))
    header, begin = thrift.read(content, start)
    end = begin + header.get(3)
    page = content[begin:end]
    levels = header.get(8)
    if levels is not None:  # a page of version 2 begins with its levels, never compressed
        page = _of_one_length(page, rng, levels.get(5) + levels.get(6))
    else:
        codec = CODECS[chunk.get(4)]
        raw = page if codec is None else pa.Codec(codec).decompress(page, header.get(2), asbytes=True)
        raw = _of_one_length(raw, rng, rng.choice((8, 16, 40)))
        page = raw if codec is None else pa.Codec(codec).compress(raw, asbytes=True)
    header.field(3)[2] = len(page)
    if header.get(4) is not None:
        header.field(4)[2] = struct.unpack("<i", struct.pack("<I", zlib.crc32(page)))[0]
    return _with_page(content, tree, chunk, start, end, thrift.write(header) + page)


def _of_one_length(data: bytes, rng: random.Random, size: int) -> bytes:
    head = data[:size]
    return damage(head, rng)[: len(head)].ljust(len(head), b"\0") + data[size:]


def _a_page(content: bytes, rng: random.Random, kinds: tuple[int, ...]) -> tuple[thrift.Struct, thrift.Struct, int]:
    """Return the metadata, one column chunk and where its first page of a kind begins: 9 data, 11 dictionary."""
    tree, _ = thrift.read(content, footer_of(content))
    chunk = rng.choice([chunk.get(3) for group in tree.get(4) for chunk in group.get(1)])
    return tree, chunk, rng.choice([chunk.get(number) for number in kinds if chunk.get(number)])


def _with_page(content: bytes, tree: thrift.Struct, chunk: thrift.Struct, start: int, end: int, new: bytes) -> bytes:
    """Return a file with other bytes between two places inside one column chunk."""
    grown = len(new) - (end - start)
    chunk.field(7)[2] += grown
    chunks = [other.get(3) for group in tree.get(4) for other in group.get(1)]
    for field in (field for some in chunks for field in some if field[0] in (9, 10, 11) and field[2] > start):
        field[2] += grown
    return with_footer(content[:start] + new + content[end : footer_of(content)], tree)
