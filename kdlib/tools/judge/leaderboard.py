"""Predictions as the leaderboard's ``Objects`` file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from kdlib import records
from kdlib.errors import DataError
from kdlib.metric import box_tables
from kdlib.metric.box_tables import PREDICTION_COLUMNS, TIMESTAMPS, BoxTable
from kdlib.waymo.messages import message_classes

# Field numbers of Waymo's metrics.proto and label.proto; enumerations (type, difficulty, camera)
# are int32: the same bytes.
_SCHEMA = {
    "Objects": "objects=1:Object*",
    "Object": "object=1:Label score=2:float overlap_with_nlz=3:bool context_name=4:string "
    "frame_timestamp_micros=5:int64 "
    "camera_name=6:int32",
    "Label": "box=1:Label.Box type=3:int32 detection_difficulty_level=5:int32 "
    "num_lidar_points_in_box=7:int32",
    "Label.Box": "center_x=1:double center_y=2:double center_z=3:double width=4:double "
    "length=5:double height=6:double "
    "heading=7:double",
}
PROTO_NAMES = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")
_PLACE = ("context_name", "frame_timestamp_micros")


@lru_cache(maxsize=1)
def objects_message() -> Any:
    """Return the class of the message ``waymo.open_dataset.Objects`` with the fields detection
    needs; others are kept aside.
    """
    return message_classes("waymo.open_dataset", _SCHEMA)["Objects"]


def export_objects(
    predictions: BoxTable, path: str | Path, name: str = "the predictions table"
) -> int:
    """Write predictions as a serialised ``waymo.open_dataset.Objects``, whole or not at all; return
    the number of boxes.

    The table has the columns ``frame_id, x, y, z, length, width, height, heading, type, score``
    and, where wanted, ``overlap_nlz``; it is called ``name`` in messages. A box needs its frame's
    context name and timestamp. They come from the columns ``context_name`` and
    ``frame_timestamp_micros``, or from the schema's metadata ``frame_ids`` and ``frame_timestamps``
    (JSON lists, which :func:`kdlib.metric.predict.predict` writes) with the context name being the
    frame id without its last ``_NNN``.

    Raises:
        DataError: If a frame's time or segment is unknown, or a box makes no sense.
    """
    box_tables.check_columns(predictions.schema, PREDICTION_COLUMNS, name)
    box_tables.check_waymo_types(predictions.schema, name)
    present = set(predictions.schema.names)
    frames = None if present.issuperset(_PLACE) else _frames(predictions.schema, name)
    columns = [
        *PREDICTION_COLUMNS,
        *(column for column in ("overlap_nlz", *_PLACE) if column in present),
    ]
    with records.replacing(Path(path)) as temporary, temporary.open("wb") as file:
        # Messages written one after the other are one message with all their repeated fields.
        for table in box_tables.row_batches(predictions, columns):
            file.write(_objects(table, frames, name))
    return int(predictions.num_rows)


def _frames(schema: pa.Schema, name: str) -> Mapping[Any, tuple[str, int]]:
    """Return (context name, microseconds) of every frame id a table's metadata names."""
    ids, times = box_tables.stated(schema, "frame_ids"), box_tables.stated(schema, TIMESTAMPS)
    if not times or len(ids) != len(times):
        raise DataError(
            f"{name}: the leaderboard wants the time of every frame, but this table states "
            f"{len(times)} for {len(ids)} frames; "
            "predict again with this version, or add the columns context_name and "
            "frame_timestamp_micros"
        )
    return {frame: (str(frame).rpartition("_")[0], int(time)) for frame, time in zip(ids, times)}


def _objects(table: pa.Table, frames: Mapping[Any, tuple[str, int]] | None, name: str) -> bytes:
    readers = (box_tables.boxes_of, box_tables.types_of, box_tables.scores_of, box_tables.flags_of)
    columns = (read(table, name).tolist() for read in readers)
    objects = objects_message()()
    for (context, time), box, kind, score, flag in zip(_places(table, frames, name), *columns):
        item = objects.objects.add(context_name=context, frame_timestamp_micros=time, score=score)
        item.object.type = kind
        for field, value in zip(PROTO_NAMES, box):
            setattr(item.object.box, field, value)
        if "overlap_nlz" in table.column_names:
            item.overlap_with_nlz = flag
    return bytes(objects.SerializeToString())


def _places(
    table: pa.Table, frames: Mapping[Any, tuple[str, int]] | None, name: str
) -> Iterator[tuple[str, int]]:
    if frames is None:
        for context, time in zip(*(table.column(column).to_pylist() for column in _PLACE)):
            if not context or time is None:
                raise DataError(
                    f"{name}: a box has no context_name or no frame_timestamp_micros; every box "
                    f"needs both"
                )
            yield context, int(time)
        return
    for frame in table.column("frame_id").to_pylist():
        if frame not in frames:
            raise DataError(
                f"{name}: frame {frame!r} is not among the frame_ids of its metadata, so its time "
                f"is unknown"
            )
        yield frames[frame]
