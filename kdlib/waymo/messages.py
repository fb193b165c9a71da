"""Builds protobuf message classes from a compact description, in a descriptor pool of their own.

The official Waymo package registers the same messages in the shared pool, and may so be loaded in
the same process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def message_classes(package: str, schema: Mapping[str, str]) -> dict[str, Any]:
    """Return message classes by name.

    Args:
        package: Of the messages, ``waymo.open_dataset``.
        schema: The fields ``name=number:type`` of every message, apart by spaces. A type is one of
            Protocol Buffers' or a message of the schema, ``Outer.Inner`` being nested and after its
            outer one; ``*`` behind it is repeated (floats are packed), ``?`` a number that is NaN
            where absent.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name=f"kdlib/{package}.proto", package=package, syntax="proto2"
    )
    described: dict[str, Any] = {}
    for name, fields in schema.items():
        outer, _, inner = name.rpartition(".")
        described[name] = (
            described[outer].nested_type.add(name=inner)
            if outer
            else file.message_type.add(name=name)
        )
        for text in fields.split():
            _declare(described[name].field.add(), text, package, schema)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    if hasattr(message_factory, "GetMessageClass"):
        make = message_factory.GetMessageClass
    else:  # protobuf 3
        make = message_factory.MessageFactory(pool).GetPrototype
    return {name: make(pool.FindMessageTypeByName(f"{package}.{name}")) for name in schema}


def _declare(field: Any, text: str, package: str, schema: Mapping[str, str]) -> None:
    field.name, _, rest = text.partition("=")
    number, _, kind = rest.partition(":")
    field.number = int(number)
    field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
    if kind.endswith("?"):
        field.default_value = "nan"
    kind = kind.rstrip("*?")
    if kind in schema:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{package}.{kind}"
    else:
        field.type = getattr(field, f"TYPE_{kind.upper()}")
        if kind == "float" and field.label == field.LABEL_REPEATED:
            field.options.packed = True
