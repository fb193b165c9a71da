"""Reads and writes TFRecord files, every checksum verified (format spec section 1); no
TensorFlow.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import google_crc32c

from kdlib.errors import DataError

_LENGTH, _CRC = struct.Struct("<Q"), struct.Struct("<I")
_HEADER = _LENGTH.size + _CRC.size
_FRAMING = _HEADER + _CRC.size
_REMEDY = "copy or download it again"


class Record(NamedTuple):
    """Where one record lies in its file."""

    start: int  # of the 12 header bytes
    length: int  # of the payload


def index(path: Path) -> tuple[Record, ...]:
    """Return where the records of a file lie, hopping from header to header; an empty file has
    none.

    A record that was cut off whole leaves no trace: only a count from elsewhere tells.

    Raises:
        DataError: If the file cannot be read, ends inside a record, or a header does not fit its
            checksum.
    """
    with _opening(path) as file:
        return tuple(_hop(path, file))


def first_payload(path: Path, limit: int | None = None) -> bytes:
    """Return the payload of the first record, or its first ``limit`` bytes, which no checksum
    covers, and look at no other.

    Raises:
        DataError: As :func:`index` and :func:`iter_payloads`, and if there is no record.
    """
    with _opening(path) as file:
        record = next(_hop(path, file), None)
        if record is None:
            raise DataError(f"{path} is empty; {_REMEDY}")
        if limit is None:
            return _read(path, file, record)
        file.seek(record.start + _HEADER)
        return file.read(min(limit, record.length))


def iter_payloads(path: Path) -> Iterator[bytes]:
    """Yield the payloads of a file; a truncated file is an error before the first of them.

    Raises:
        DataError: As :func:`index`, and if a payload does not fit its checksum or the file was cut
            since.
    """
    records = index(path)
    with _opening(path) as file:
        for record in records:
            yield _read(path, file, record)


def write_record(file: BinaryIO, payload: bytes) -> None:
    """Append one record, byte for byte as TensorFlow's own writer does."""
    length = _LENGTH.pack(len(payload))
    file.write(length + _masked_crc(length))
    file.write(payload)
    file.write(_masked_crc(payload))


@contextmanager
def _opening(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; what the system says against it becomes one sentence.

    Raises:
        DataError: If it is absent, forbidden, or the disk fails.
    """
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read by this user") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); {_REMEDY}") from error


def _read(path: Path, file: BinaryIO, record: Record) -> bytes:
    file.seek(record.start + _HEADER)
    payload, crc = file.read(record.length), file.read(_CRC.size)
    if len(payload) + len(crc) < record.length + _CRC.size:
        raise _truncated(path, record.start)
    if crc != _masked_crc(payload):
        raise DataError(
            f"{path}: corrupted record at {record.start + _HEADER} (its checksum "
            f"does not fit); {_REMEDY}"
        )
    return payload


def _hop(path: Path, file: BinaryIO) -> Iterator[Record]:
    size, start = os.fstat(file.fileno()).st_size, 0
    while start < size:
        file.seek(start)
        header = file.read(_HEADER)
        if len(header) < _HEADER:
            raise DataError(
                f"{path}: truncated at byte {start + len(header)}, inside the header "
                f"of a record; {_REMEDY}"
            )
        length, crc = header[: _LENGTH.size], header[_LENGTH.size :]
        if crc != _masked_crc(length):
            raise DataError(
                f"{path}: corrupted record at {start} (is this even a TFRecord file?); {_REMEDY}"
            )
        record = Record(start, _LENGTH.unpack(length)[0])
        start += _FRAMING + record.length
        if start > size:
            raise _truncated(path, record.start)
        yield record


def _truncated(path: Path, start: int) -> DataError:
    return DataError(f"{path}: truncated record at {start}; {_REMEDY}")


def _masked_crc(data: bytes) -> bytes:
    """Return the CRC-32C of some bytes as TFRecord stores it: turned by 15 bits plus a constant
    (format spec section 1).
    """
    crc = google_crc32c.value(data)
    return _CRC.pack((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
