"""The private messages: wire forms that are legal, bytes that are not, and no more memory than a
range image needs.
"""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.errors import DataError
from kdlib.waymo.frame_proto import (
    FRAME_MESSAGES,
    context_name,
    pack_matrix,
    pack_no_projection,
    parse_frame,
    peek_context_name,
    unpack_matrix,
)

NAME = b"1024360143612057520_3580_000_3600_000"


def varint(number: int) -> bytes:
    out, number = bytearray(), number % (1 << 64)
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def image(height=3, width=5, channels=4):
    return (
        np.arange(height * width * channels, dtype=np.float32).reshape(height, width, channels)
        - 7.5
    )


def shape_of(*dims: int) -> bytes:
    return field(2, b"".join(b"\x08" + varint(dim) for dim in dims))


def test_a_matrix_comes_back_in_the_official_bytes():
    values = image()
    inside = field(1, values.tobytes()) + shape_of(3, 5, 4)
    assert zlib.decompress(pack_matrix(values)) == inside
    back = unpack_matrix(pack_matrix(values), 4)
    np.testing.assert_array_equal(back, values)
    assert back.dtype == np.float32
    broadcast = np.broadcast_to(image(1), (3, 5, 4))  # as the simulator's pixel poses
    np.testing.assert_array_equal(unpack_matrix(pack_matrix(broadcast), 4), broadcast)


def test_floats_may_be_packed_split_or_one_by_one():
    values = image()
    flat = values.tobytes()
    single = b"".join(b"\x0d" + struct.pack("<f", value) for value in values.ravel())
    packed_dims = field(2, field(1, varint(3) + varint(5) + varint(4)))
    for data in (
        field(1, flat),
        field(1, flat[:20]) + field(1, flat[20:]),
        single,
        field(1, flat[:8]) + single[10:],
    ):
        for dims in (shape_of(3, 5, 4), packed_dims):
            for content in (data + dims, dims + data):
                np.testing.assert_array_equal(unpack_matrix(zlib.compress(content), 4), values)


def test_an_image_without_pixels_is_one():
    assert unpack_matrix(zlib.compress(shape_of(0, 5, 4)), 4).shape == (0, 5, 4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            field(1, image().tobytes()) + shape_of(3, 6, 4),
            (r"shape \(3, 6, 4\) needs 72 values, " r"the file holds 60"),
        ),
        (
            field(1, image().tobytes()[:-4]) + shape_of(3, 5, 4),
            ("needs 60 values, the file holds 59"),
        ),
        (field(1, image().tobytes()[:-1]) + shape_of(3, 5, 4), "no matrix"),
        (field(1, image().tobytes()) + shape_of(15, 4), "expected .rows, columns"),
        (field(1, image().tobytes()) + shape_of(-3, -5, 4), "expected .rows, columns"),
        (field(1, image().tobytes()) + shape_of(4, 5, 3), "at least 4 channels"),
        # the product is 60 modulo 2^64
        (field(1, image().tobytes()) + shape_of(1 << 30, 1 << 30, 1 << 30), "the file holds 60"),
        (field(1, image().tobytes()), "expected .rows, columns"),
        (b"", "expected .rows, columns"),
        (b"\x0a\xff", "no matrix"),
        (b"\xff" * 40, "no matrix"),
    ],
)
def test_a_matrix_that_contradicts_itself_is_an_error(content, said):
    with pytest.raises(DataError, match=said):
        unpack_matrix(zlib.compress(content), 4)


def test_a_damaged_zlib_stream_is_an_error():
    whole = pack_matrix(np.random.default_rng(0).normal(size=(8, 16, 4)))
    for size in (1, 2, 10, len(whole) // 2, len(whole) - 1):
        # TensorFlow's decoder returns what it got
        with pytest.raises(DataError, match="cut short"):
            unpack_matrix(whole[:size], 4)
    with pytest.raises(DataError, match="cannot be inflated"):
        unpack_matrix(b"no zlib at all", 4)
    for position in (0, 20, len(whole) // 2, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[position] ^= 0x10
        with pytest.raises(DataError):
            unpack_matrix(bytes(flipped), 4)


def test_a_bomb_is_not_inflated():
    bomb = zlib.compress(field(1, bytes(200 << 20)), 9)
    tracemalloc.start()
    with pytest.raises(DataError, match="inflates to more than 16 MiB"):
        unpack_matrix(bomb, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20


def test_unknown_fields_are_passed_over():
    camera = field(4, field(2, bytes(1000)) + b"\x08\x01")
    label = (
        FRAME_MESSAGES["Label"](type=1, id=b"x").SerializeToString()
        + field(10, b"\x08\x05")
        + field(11, b"FRONT")
    )
    frame = parse_frame(
        camera
        + field(1, field(1, NAME) + field(2, b"\x21" + bytes(8)))
        + camera
        + field(6, label)
        + b"\x10\x07"
    )
    assert context_name(frame) == NAME.decode() and frame.timestamp_micros == 7
    assert [(label.type, label.id) for label in frame.laser_labels] == [(1, b"x")]


def test_numbers_may_be_packed_and_negative():
    transform = struct.pack("<16d", *range(16))
    single = b"".join(b"\x09" + transform[at : at + 8] for at in range(0, 128, 8))
    for content in (field(1, transform), single):
        assert list(parse_frame(field(3, content)).pose.transform) == list(range(16))
    assert parse_frame(b"\x10" + varint(-5)).timestamp_micros == -5
    # an enum value from the future
    assert FRAME_MESSAGES["Label"].FromString(b"\x18\x63").type == 99


def test_what_is_absent_is_nan_or_zero():
    label = FRAME_MESSAGES["Label"]()
    assert math.isnan(label.box.heading) and math.isnan(
        FRAME_MESSAGES["LaserCalibration"]().beam_inclination_min
    )
    assert (
        label.metadata.speed_x == 0.0 and label.type == 0 and label.detection_difficulty_level == 0
    )
    assert not label.HasField("num_lidar_points_in_box")


@pytest.mark.parametrize(
    "payload", [b"\xff\xff\xff", field(1, b"\x0a\x7f"), b"\x0b", b"hello world"]
)
def test_other_payloads_are_no_frames(payload):
    with pytest.raises(DataError, match="no Waymo frame"):
        parse_frame(payload)


@pytest.mark.parametrize(
    "name", [b"", b"../../etc", b"a/b", b".hidden", b"a b", b"\xff\xfe", b"x" * 300, b"name\n"]
)
def test_a_name_that_could_not_be_a_file_is_an_error(name):
    frame = FRAME_MESSAGES["Frame"](context=FRAME_MESSAGES["Context"](name=name))
    with pytest.raises(DataError, match="its context name is"):
        context_name(frame)
    if len(name) > 127:  # longer than any name: left to the parser
        assert peek_context_name(frame.SerializeToString()) is None
        return
    with pytest.raises(DataError, match="its context name is"):
        peek_context_name(frame.SerializeToString())


def test_the_name_is_found_in_the_first_bytes():
    calibrations = [
        FRAME_MESSAGES["LaserCalibration"](name=n, beam_inclinations=range(64)) for n in range(1, 6)
    ]
    frame = FRAME_MESSAGES["Frame"](
        context=FRAME_MESSAGES["Context"](name=NAME, laser_calibrations=calibrations),
        timestamp_micros=1,
    )
    payload = frame.SerializeToString()
    assert peek_context_name(payload[:4096]) == peek_context_name(payload[:50]) == NAME.decode()
    assert peek_context_name(payload[:30]) is None  # not all of it
    assert peek_context_name(b"\x10\x07" + payload) is None  # another field first: to be parsed
    assert peek_context_name(field(1, field(3, b"") + field(1, NAME))) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=20))
def test_any_bytes_are_a_value_or_a_typed_error(some, tail):
    for payload in (some, b"\x0a" + some, field(1, field(1, NAME) + some) + tail):
        for call in (
            parse_frame,
            peek_context_name,
            lambda raw: unpack_matrix(zlib.compress(raw), 4),
            lambda raw: unpack_matrix(raw, 4),
        ):
            try:
                call(payload)
            except DataError:
                continue


def test_the_messages_stay_out_of_the_shared_pool():
    code = (
        "from google.protobuf import descriptor_pool, descriptor_pb2\n"
        "from kdlib.waymo.frame_proto import FRAME_MESSAGES\n"
        "FRAME_MESSAGES['Frame']()\n"
        "pool = descriptor_pool.Default()\n"
        "for name in ('kdlib.waymo.frame.Frame', 'waymo.open_dataset.Frame'):\n"
        "    try:\n"
        "        pool.FindMessageTypeByName(name)\n"
        "    except KeyError:\n"
        "        continue\n"
        "    raise SystemExit(name)\n"
        # what the official package does on import: the same names and numbers, in the shared pool
        "file = descriptor_pb2.FileDescriptorProto(name='waymo_open_dataset/dataset.proto', "
        "package='waymo.open_dataset')\n"
        "file.message_type.add(name='Frame')\n"
        "pool.AddSerializedFile(file.SerializeToString())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_projection_of_no_camera_is_zeros():
    raw = zlib.decompress(pack_no_projection(3, 5))
    assert raw == field(1, bytes(90)) + shape_of(3, 5, 6)
