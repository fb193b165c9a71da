"""A TFRecord file enters, checked payloads leave, and the other way round (format spec section 1); no TensorFlow."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kdlib.errors import DataError
from kdlib.waymo.crc32c import crc32c, masked

_LENGTH, _CRC = struct.Struct("<Q"), struct.Struct("<I")
_HEADER = _LENGTH.size + _CRC.size
_FRAMING = _HEADER + _CRC.size
_REMEDY = "copy or download it again"


@dataclass(frozen=True)
class Record:
    """Where one record lies in its file."""

    start: int  # of the 12 header bytes
    length: int  # of the payload

    @property
    def end(self) -> int:
        """First byte after the record."""
        return self.start + _FRAMING + self.length


def index(path: Path) -> tuple[Record, ...]:
    """Return where the records of a file lie, hopping from header to header; an empty file has none.

    A record that was cut off whole leaves no trace: only a count from elsewhere tells.

    Raises:
        DataError: If the file cannot be read, ends inside a record, or a header does not fit its checksum.
    """
    with opening(path) as file:
        return tuple(_hop(path, file))


def first(path: Path) -> Record:
    """Return the first record without looking at the others.

    Raises:
        DataError: As :func:`index`, and if there is no record.
    """
    with opening(path) as file:
        record = next(_hop(path, file), None)
    if record is None:
        raise DataError(f"{path} is empty; {_REMEDY}")
    return record


def read(path: Path, file: BinaryIO, record: Record, limit: int | None = None) -> bytes:
    """Return the payload of a record, or only its first bytes, which no checksum covers.

    Args:
        path: For messages.
        file: What :func:`opening` gave.
        record: From :func:`index`; its length is known to fit the file.
        limit: So many bytes at most, unchecked; None for the whole payload, checked.

    Raises:
        DataError: If the payload does not fit its checksum, or the file was cut since.
    """
    file.seek(record.start + _HEADER)
    if limit is not None:
        return file.read(min(limit, record.length))
    payload, crc = file.read(record.length), file.read(_CRC.size)
    if len(payload) + len(crc) < record.length + _CRC.size:
        raise _truncated(path, record.start)
    if _CRC.unpack(crc)[0] != masked(crc32c(payload)):
        raise DataError(f"{path}: corrupted record at {record.start + _HEADER} (its checksum does not fit); {_REMEDY}")
    return payload


def iter_records(path: Path) -> Iterator[bytes]:
    """Yield the payloads of a file; a truncated file is an error before the first of them.

    Raises:
        DataError: As :func:`index` and :func:`read`.
    """
    records = index(path)
    with opening(path) as file:
        for record in records:
            yield read(path, file, record)


def write_record(file: BinaryIO, payload: bytes) -> None:
    """Append one record, byte for byte as TensorFlow's own writer does."""
    length = _LENGTH.pack(len(payload))
    file.write(length + _CRC.pack(masked(crc32c(length))))
    file.write(payload)
    file.write(_CRC.pack(masked(crc32c(payload))))


@contextmanager
def opening(path: Path) -> Iterator[BinaryIO]:
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


def _hop(path: Path, file: BinaryIO) -> Iterator[Record]:
    size, start = os.fstat(file.fileno()).st_size, 0
    while start < size:
        file.seek(start)
        header = file.read(_HEADER)
        if len(header) < _HEADER:
            raise DataError(f"{path}: truncated at byte {start + len(header)}, inside the header of a record; {_REMEDY}")
        length, crc = header[: _LENGTH.size], header[_LENGTH.size :]
        if _CRC.unpack(crc)[0] != masked(crc32c(length)):
            raise DataError(f"{path}: corrupted record at {start} (is this even a TFRecord file?); {_REMEDY}")
        record = Record(start, _LENGTH.unpack(length)[0])
        if record.end > size:
            raise _truncated(path, start)
        yield record
        start = record.end


def _truncated(path: Path, start: int) -> DataError:
    return DataError(f"{path}: truncated record at {start}; {_REMEDY}")
