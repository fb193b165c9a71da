"""Reads and writes the payload of a v1 record: a ``Frame`` message with the LiDAR's fields (format
spec section 2).

Three kinds of fields are declared by their wire type instead of their official type: enums as int32
(unknown values survive), strings as bytes (nothing is decoded before it is looked at), and the
packed floats of a matrix as one block of bytes.
"""

from __future__ import annotations

import math
import re
import warnings
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from kdlib.errors import DataError
from kdlib.types import FloatArray
from kdlib.waymo.messages import message_classes
from kdlib.waymo.range_image import as_image

_LARGEST_MATRIX = 16 << 20
"""Bytes a range image may have; Waymo's largest is 64 x 2650 x 6 floats, 4.1 MB."""

BOX_FIELDS = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")
"""Of a ``Box``, in the order of kdlib's boxes."""
_SCHEMA = {  # of :func:`kdlib.waymo.messages.message_classes`
    "Frame": "context=1:Context timestamp_micros=2:int64 pose=3:Transform lasers=5:Laser* "
    "laser_labels=6:Label* "
    "no_label_zones=7:Polygon2d* simulation=20350:bytes",
    "Context": "name=1:bytes laser_calibrations=3:LaserCalibration* stats=4:Stats",
    "Stats": "laser_object_counts=1:ObjectCount* time_of_day=2:bytes location=3:bytes "
    "weather=4:bytes",
    "ObjectCount": "type=1:int32 count=2:int32",
    "LaserCalibration": "name=1:int32 beam_inclinations=2:double* beam_inclination_min=3:double? "
    "beam_inclination_max=4:double? "
    "extrinsic=5:Transform",
    "Transform": "transform=1:double*",
    "Laser": "name=1:int32 ri_return1=2:RangeImage ri_return2=3:RangeImage",
    "RangeImage": "range_image_compressed=2:bytes camera_projection_compressed=3:bytes "
    "range_image_pose_compressed=4:bytes",
    "Matrix": "data=1:bytes shape=2:MatrixShape",
    "MatrixFloat": "data=1:float* shape=2:MatrixShape",
    "MatrixShape": "dims=1:int32*",
    "Label": "box=1:Box metadata=2:Metadata type=3:int32 id=4:bytes "
    "detection_difficulty_level=5:int32 "
    "num_lidar_points_in_box=7:int32 num_top_lidar_points_in_box=13:int32",
    "Box": "center_x=1:double? center_y=2:double? center_z=3:double? width=4:double? "
    "length=5:double? height=6:double? "
    "heading=7:double?",
    "Metadata": "speed_x=1:double speed_y=2:double accel_x=3:double accel_y=4:double "
    "speed_z=5:double accel_z=6:double",
    "Polygon2d": "x=1:double* y=2:double* id=3:bytes",
}

FRAME_MESSAGES = message_classes("kdlib.waymo.frame", _SCHEMA)
"""The message classes by name: ``Frame``, ``Context``, ``Label`` ..."""


def parse_frame(payload: bytes) -> Any:
    """Return the ``Frame`` in a record; fields that are not declared (images, maps) are passed
    over.

    Raises:
        DataError: If the bytes are no such message.
    """
    try:
        return _parse("Frame", payload)
    except DecodeError as error:
        raise DataError(
            f"holds no Waymo frame ({error}); is it another kind of TFRecord file?"
        ) from error


def context_name(frame: Any) -> str:
    """Return the name of the segment a frame is of; raises DataError if there is none, or it could
    not be the name of a file.
    """
    return _checked_name(frame.context.name)


def peek_context_name(head: bytes) -> str | None:
    """Return the segment's name from the first bytes of a record: field 1 (context) comes first,
    its field 1 (name) first in it.

    Returns:
        None if the bytes are arranged in another way; then the record must be parsed.

    Raises:
        DataError: As :func:`context_name`.
    """
    # two tags, each with a length
    start = re.match(rb"\x0a[\x80-\xff]{0,4}[\x00-\x7f]\x0a([\x00-\x7f])", head, re.DOTALL)
    if start is None or len(head) < start.end() + start[1][0]:
        return None
    return _checked_name(head[start.end() : start.end() + start[1][0]])


def unpack_matrix(compressed: bytes, channels: int) -> FloatArray:
    """Inflate a range image, zlib of a ``MatrixFloat``: (H, W, C) float32, read-only, C at least
    ``channels``.

    Raises:
        DataError: If the stream is damaged, cut short or far too long, or shape and values
            disagree.
    """
    raw = _inflate(compressed)
    try:
        block = _parse("Matrix", raw)
        shape = tuple(block.shape.dims)
        packed = len(block.data) == 4 * math.prod(shape)  # in one run; several are legal too
        values = (
            np.frombuffer(block.data, "<f4")
            if packed
            else np.array(_parse("MatrixFloat", raw).data, np.float32)
        )
    except DecodeError as error:
        raise DataError(f"a range image holds no matrix ({error})") from error
    return as_image(values, shape, channels)


def pack_matrix(image: FloatArray) -> bytes:
    """Deflate an image into what :func:`unpack_matrix` reads; the bytes inside are those of an
    official ``MatrixFloat``.
    """
    block = FRAME_MESSAGES["Matrix"](data=np.ascontiguousarray(image, "<f4").tobytes())
    block.shape.dims.extend(image.shape)
    return zlib.compress(block.SerializeToString(), 1)


@lru_cache(maxsize=8)
def pack_no_projection(height: int, width: int) -> bytes:
    """Return a camera projection (H, W, 6) of no camera, which official code wants beside every
    range image: varints of 0.
    """
    block = FRAME_MESSAGES["Matrix"](data=bytes(height * width * 6))
    block.shape.dims.extend((height, width, 6))
    return zlib.compress(block.SerializeToString(), 9)


def _parse(name: str, raw: bytes) -> Any:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        parsed = FRAME_MESSAGES[name].FromString(raw)
    for warning in seen:  # a stray end of a group stops protobuf 3, which only warns
        if issubclass(warning.category, RuntimeWarning):
            raise DecodeError(str(warning.message))
    return parsed


def _inflate(compressed: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(compressed, _LARGEST_MATRIX)
    except zlib.error as error:
        raise DataError(f"a range image cannot be inflated ({error})") from error
    if stream.eof:
        return raw
    if len(raw) >= _LARGEST_MATRIX:
        raise DataError(
            f"a range image inflates to more than {_LARGEST_MATRIX >> 20} MiB, four times Waymo's "
            f"largest"
        )
    raise DataError(f"a range image's zlib stream of {len(compressed)} bytes is cut short")


def _checked_name(name: bytes) -> str:
    if not re.fullmatch(rb"\w[\w-]{0,199}", name, re.ASCII):
        raise DataError(
            f"its context name is {name[:40]!r}, expected one such as "
            f"'1024360143612057520_3580_000_3600_000'"
        )
    return name.decode()
