"""Nothing in, the leaderboard's message classes out: ``waymo.open_dataset.Objects`` with the fields detection needs.

The classes live in a descriptor pool of their own, so that the official package, which registers the same names, can be loaded
beside them. Field numbers are those of its ``metrics.proto`` and ``label.proto``; unknown fields of a file are kept aside.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "waymo.open_dataset"
_FIELD = descriptor_pb2.FieldDescriptorProto
_DOUBLE, _FLOAT, _INT64, _INT32 = _FIELD.TYPE_DOUBLE, _FIELD.TYPE_FLOAT, _FIELD.TYPE_INT64, _FIELD.TYPE_INT32
_BOOL, _STRING = _FIELD.TYPE_BOOL, _FIELD.TYPE_STRING

# Enumerations (type, difficulty, camera) are read and written as int32: the same bytes.
_FIELDS: dict[str, tuple[tuple[str, int, Any], ...]] = {
    "Objects": (("objects", 1, "Object*"),),
    "Object": (
        ("object", 1, "Label"),
        ("score", 2, _FLOAT),
        ("overlap_with_nlz", 3, _BOOL),
        ("context_name", 4, _STRING),
        ("frame_timestamp_micros", 5, _INT64),
        ("camera_name", 6, _INT32),
    ),
    "Label": (
        ("box", 1, "Label.Box"),
        ("metadata", 2, "Label.Metadata"),
        ("type", 3, _INT32),
        ("id", 4, _STRING),
        ("detection_difficulty_level", 5, _INT32),
        ("num_lidar_points_in_box", 7, _INT32),
    ),
    "Label.Box": (
        ("center_x", 1, _DOUBLE),
        ("center_y", 2, _DOUBLE),
        ("center_z", 3, _DOUBLE),
        ("width", 4, _DOUBLE),
        ("length", 5, _DOUBLE),
        ("height", 6, _DOUBLE),
        ("heading", 7, _DOUBLE),
    ),
    "Label.Metadata": (("speed_x", 1, _DOUBLE), ("speed_y", 2, _DOUBLE)),
}


def message(name: str) -> Any:
    """Return the class of a message, ``Objects`` or ``Object``."""
    return _classes()[name]


@lru_cache(maxsize=1)
def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="kdlib/metric/objects.proto", package=_PACKAGE, syntax="proto2")
    described: dict[str, Any] = {}
    for name, fields in _FIELDS.items():
        outer, _, inner = name.rpartition(".")
        described[name] = described[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
        for field, number, kind in fields:
            _add_field(described[name], field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    if hasattr(message_factory, "GetMessageClass"):
        make = message_factory.GetMessageClass
    else:  # protobuf 3
        make = message_factory.MessageFactory(pool).GetPrototype
    return {name: make(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in ("Objects", "Object")}


def _add_field(message: Any, name: str, number: int, kind: Any) -> None:
    if isinstance(kind, str):
        label = _FIELD.LABEL_REPEATED if kind.endswith("*") else _FIELD.LABEL_OPTIONAL
        type_name = f".{_PACKAGE}.{kind.rstrip('*')}"
        message.field.add(name=name, number=number, label=label, type=_FIELD.TYPE_MESSAGE, type_name=type_name)
    else:
        message.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL, type=kind)
