"""The framing of records, and every row of the damage table in section 1 of the format spec."""

from __future__ import annotations

import gzip
import io
import os
import re
import struct
import tracemalloc

import google_crc32c
import pytest

from kdlib.errors import DataError
from kdlib.waymo import tfrecord

PAYLOADS = [b"first record", b"", bytes(range(256)), b"last"]
STARTS = [0, 28, 44, 316]
SIZE = 336


def framed(payloads) -> bytes:
    out = io.BytesIO()
    for payload in payloads:
        tfrecord.write_record(out, payload)
    return out.getvalue()


@pytest.fixture
def write(tmp_path):
    """Put bytes into a file."""

    def put(content: bytes):
        path = tmp_path / "some.tfrecord"
        path.write_bytes(content)
        return path

    return put


def read(path):
    return list(tfrecord.iter_payloads(path))


def broken(path, message):
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")) as error:
        read(path)
    assert "download it again" in str(error.value) and "\n" not in str(error.value)


def test_records_come_back(write):
    path = write(framed(PAYLOADS))
    assert read(path) == PAYLOADS
    assert [
        record.start for record in tfrecord.index(path)
    ] == STARTS and path.stat().st_size == SIZE
    assert tfrecord.first_payload(path) == PAYLOADS[0]
    assert tfrecord.first_payload(path, limit=5) == PAYLOADS[0][:5]
    assert tfrecord.first_payload(path, limit=5000) == PAYLOADS[0]


def test_the_writer_gives_tensorflows_bytes(goldens, write):
    golden = next((goldens / "waymo_format").glob("*.tfrecord"))
    assert [record.length for record in tfrecord.index(golden)] == [72010, 56810]
    assert framed(tfrecord.iter_payloads(golden)) == golden.read_bytes()


def test_an_empty_file_has_no_records(write):
    path = write(b"")
    assert read(path) == [] and tfrecord.index(path) == ()
    with pytest.raises(DataError, match="is empty"):
        tfrecord.first_payload(path)


def test_a_file_may_end_wherever_a_record_does(write):
    for count in range(len(PAYLOADS) + 1):
        assert read(write(framed(PAYLOADS[:count]))) == PAYLOADS[:count]


def test_every_other_end_is_an_error_before_the_first_record(write):
    whole = framed(PAYLOADS)
    for size in sorted(set(range(SIZE)) - set(STARTS)):
        path = write(whole[:size])
        start = max(start for start in STARTS if start <= size)
        if size - start < 12:
            broken(path, f"truncated at byte {size}")
        else:
            broken(path, f"truncated record at {start};")
        with pytest.raises(DataError):
            tfrecord.index(path)  # not only when the damaged record is read


def test_every_flipped_bit_is_found(write):
    whole = framed(PAYLOADS)
    for position in range(SIZE):
        for bit in (0, 7):
            content = bytearray(whole)
            content[position] ^= 1 << bit
            start = max(start for start in STARTS if start <= position)
            if position - start < 12:
                broken(
                    write(content), (f"corrupted record at {start} (is this even a TFRecord file?)")
                )
            else:
                broken(write(content), f"corrupted record at {start + 12} (")


def test_records_before_the_damage_are_not_lost_to_a_careful_caller(write):
    content = bytearray(framed(PAYLOADS))
    content[-1] ^= 1
    records = tfrecord.iter_payloads(write(content))
    assert [next(records) for _ in range(3)] == PAYLOADS[:3]
    with pytest.raises(DataError, match="corrupted record at 328"):
        next(records)


@pytest.mark.parametrize("zeros", [12, 16, 1000])
def test_appended_zeros_are_corruption(write, zeros):
    broken(write(framed(PAYLOADS) + bytes(zeros)), f"corrupted record at {SIZE} (")


def test_other_files_are_named_as_such(write):
    broken(
        write(gzip.compress(framed(PAYLOADS))),
        ("corrupted record at 0 (is this even a TFRecord file?)"),
    )
    broken(write(b"PAR1" + bytes(100)), "corrupted record at 0 (is this even a TFRecord file?)")


@pytest.mark.parametrize("claimed", [1 << 40, (1 << 64) - 1, SIZE + 1])
@pytest.mark.parametrize("honest", [True, False])
def test_nothing_is_allocated_for_a_length_the_file_has_not(write, claimed, honest):
    length = struct.pack("<Q", claimed)
    crc = google_crc32c.value(length)
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    path = write(length + struct.pack("<I", masked if honest else 1) + bytes(SIZE))
    tracemalloc.start()
    broken(path, "truncated record at 0;" if honest else "corrupted record at 0 (")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_file_cut_while_it_is_read_is_an_error(write):
    path = write(framed([b"first record", bytes(1 << 20)]))  # more than is read ahead
    payloads = tfrecord.iter_payloads(path)
    assert next(payloads) == b"first record"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match="truncated record at 28"):
        next(payloads)


def test_what_cannot_be_opened_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"absent\.tfrecord does not exist"):
        tfrecord.index(tmp_path / "absent.tfrecord")
    with pytest.raises(DataError, match="cannot be read"):
        tfrecord.index(tmp_path)
