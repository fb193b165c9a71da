"""Writes the TFRecord file of a simulated Waymo v1 segment (format spec sections 1 and 2), complete
or not at all.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.simulate.box_labels import BoxLabel, Conditions, LabelledFrame, seen_once
from kdlib.simulate.lidar import Sweep
from kdlib.simulate.sensors import Laser
from kdlib.waymo import tfrecord
from kdlib.waymo.frame_proto import BOX_FIELDS, FRAME_MESSAGES, pack_matrix, pack_no_projection
from kdlib.waymo.lasers import TOP, laser_name

_MOTION_FIELDS = ("speed_x", "speed_y", "speed_z", "accel_x", "accel_y", "accel_z")


def record_file(folder: Path, segment: str) -> Path:
    """Return where a segment lies below ``<root>/<split>``."""
    return folder / f"segment-{segment}_with_camera_labels.tfrecord"


def write_v1(
    folder: Path,
    segment: str,
    lasers: Sequence[Laser],
    parameters: str,
    frames: Iterable[LabelledFrame],
    conditions: Conditions,
) -> None:
    """Write one segment (a context name) below ``folder``, which is ``<root>/<split>``; OSError
    leaves nothing behind.

    Which boxes a frame has is known at the end of a segment only: until then the other fields of
    the frames wait in a nameless file beside it, which vanishes with the process. TOP is the first
    of the lasers; ``parameters`` go into a field of every frame outside the official ones, where
    other readers pass over it.
    """
    path = record_file(folder, segment)
    lengths = []
    labels = []
    records.remove_leftovers(path.parent)
    with records.replacing(path) as part, tempfile.TemporaryFile(dir=path.parent) as waiting:
        for timestamp, sweep, boxes in frames:
            lengths.append(waiting.write(_images(lasers, timestamp, sweep)))
            labels.append(boxes)
        waiting.seek(0)
        with open(part, "wb") as out:
            for length, boxes in zip(lengths, seen_once(labels)):
                # Messages concatenate: the bytes of the parts are the bytes of the whole, here in
                # the order of field numbers.
                before = FRAME_MESSAGES["Frame"](
                    context=_context(segment, lasers, boxes, conditions)
                ).SerializeToString()
                after = FRAME_MESSAGES["Frame"](
                    laser_labels=map(_label, boxes), simulation=parameters.encode()
                )
                tfrecord.write_record(
                    out, before + waiting.read(length) + after.SerializeToString()
                )


def _images(lasers: Sequence[Laser], timestamp: int, sweep: Sweep) -> bytes:
    frame = FRAME_MESSAGES["Frame"](timestamp_micros=timestamp)
    frame.pose.transform.extend(sweep.pose.ravel().tolist())
    for laser, pair in zip(lasers, sweep.images):
        entry = frame.lasers.add(name=laser.name)
        for image, echo in zip(pair, (entry.ri_return1, entry.ri_return2)):
            echo.range_image_compressed = pack_matrix(image)
            echo.camera_projection_compressed = pack_no_projection(laser.height, laser.width)
        if laser.name == TOP:
            entry.ri_return1.range_image_pose_compressed = pack_matrix(sweep.pixel_pose)
    return frame.SerializeToString()


def _context(
    segment: str, lasers: Sequence[Laser], boxes: Sequence[BoxLabel], conditions: Conditions
) -> Any:
    context = FRAME_MESSAGES["Context"](name=segment.encode())
    # alphabetical, as in real files
    for laser in sorted(lasers, key=lambda laser: laser_name(laser.name)):
        entry = context.laser_calibrations.add(
            name=laser.name, beam_inclination_min=laser.lowest, beam_inclination_max=laser.highest
        )
        entry.beam_inclinations.extend([] if laser.table is None else laser.table.tolist())
        entry.extrinsic.transform.extend(laser.extrinsic.ravel().tolist())
    stats = context.stats
    for kind, count in sorted(Counter(box.type for box in boxes).items()):
        stats.laser_object_counts.add(type=kind, count=count)
    stats.time_of_day, stats.location, stats.weather = (word.encode() for word in conditions)
    return context


def _label(box: BoxLabel) -> Any:
    label = FRAME_MESSAGES["Label"](
        type=box.type,
        id=box.id.encode(),
        num_lidar_points_in_box=box.points,
        num_top_lidar_points_in_box=box.top_points,
    )
    for name, value in zip(BOX_FIELDS, box.box.tolist()):
        setattr(label.box, name, value)
    for name, value in zip(_MOTION_FIELDS, () if box.motion is None else box.motion.tolist()):
        setattr(label.metadata, name, value)
    if box.hard:
        label.detection_difficulty_level = 2
    return label
