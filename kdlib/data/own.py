"""Makes a store that training, evaluation and notebooks read from frames of any dataset, with boxes
or without.

A folder with that ``store/`` inside, and no ``waymo/`` beside it, is the ``data`` of a profile of
one's own, or the ``DATA_ROOT`` of any profile of real data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from kdlib.data import own_checks
from kdlib.data.containment import owner_of_points
from kdlib.data.doubts import Doubts
from kdlib.data.object_bank import build_bank
from kdlib.data.points import within_reach
from kdlib.data.prepare import OBJECT_SPLITS, only_writer, write_index
from kdlib.data.segment import OWN, classes_in, write_segment
from kdlib.data.store import Store, first_manifests
from kdlib.errors import DataError
from kdlib.types import WAYMO_TYPES, Frame, FrameLabels

_SWEEP = 100_000  # microseconds between sweeps, as Waymo's
_LEAST_STEP = 1_000  # microseconds between sweeps that are none: seconds or milliseconds


def own_frame(
    segment: str,
    index: int,
    points: ArrayLike,
    boxes: ArrayLike = (),
    names: Sequence[str] = (),
    *,
    ids: Sequence[str | int] | None = None,
    velocity: ArrayLike | None = None,
    timestamp_micros: int | None = None,
    pose: ArrayLike | None = None,
    class_names: Sequence[str] = tuple(WAYMO_TYPES),
) -> Frame:
    """Return one frame of a dataset of your own, in the vehicle frame: x forward, y left, z up, the
    road at z = 0.

    Args:
        segment: Name of the drive; a folder will have it.
        index: Position in the drive, from 0 on.
        points: (N, 3 to 5) x, y, z in metres, tanh of the intensity, elongation, as
            :func:`~kdlib.data.scans.read_scan` gives; columns that are missing count as 0.
        boxes: (M, 7) x, y, z of the geometric centre, length, width, height, heading; metres and
            radians.
        names: M classes, each one of ``class_names``.
        ids: M object ids, stable over the drive; None numbers the boxes of the frame.
        velocity: (M, 2) metres a second; None for standing objects.
        timestamp_micros: Of the sweep; None for ten sweeps a second.
        pose: (4, 4) world from vehicle; None for a vehicle that stands still.
        class_names: All classes of the dataset, the same ones in every frame of a store; a model of
            some of them states those in its ``ModelConfig.class_names``.

    Raises:
        DataError: If a value cannot be meant; the message names frame, column, value and remedy.
    """
    where = f"frame {index} of '{segment}'"
    number = own_checks.integer(index, f"{where}: index", "number the frames of a drive from 0 on")
    classes = own_checks.class_list(class_names)
    columns = own_checks.point_columns(points, where)
    own, types = own_checks.labelled_boxes(boxes, names, classes, where)
    # those that are left out when the frame is stored do not count
    inside = owner_of_points(columns[within_reach(columns)], own.astype(np.float32))
    labels = FrameLabels(
        boxes=own,
        types=types,
        ids=own_checks.object_ids(ids, number, len(own), where),
        difficulty=np.zeros(len(own), np.int64),  # unset: the metric then goes by number of points
        num_points=np.bincount(inside[inside >= 0], minlength=len(own)),
        velocity=own_checks.speeds(velocity, len(own), where),
        class_names=classes,
    )
    time = number * _SWEEP
    if timestamp_micros is not None:
        time = own_checks.micros(timestamp_micros, where)
    return Frame(segment, number, time, columns, own_checks.pose_matrix(pose, where), labels)


def store_frames(
    frames: Iterable[Frame], out: Path, split: str = "training", *, simulated: bool = False
) -> Store:
    """Write a split of a store from frames, drive after drive, and return the store; other splits
    and drives in it stay.

    A training split's objects are collected too, for pasting them into other frames. What was left
    out, and what may not be meant, is warned of with counts.

    Args:
        frames: Those of a drive one after the other, numbered from 0; one at a time is held in
            memory.
        out: Folder of the store, made if missing. A drive it has already is replaced.
        split: ``training`` or ``validation``, unless a profile names others.
        simulated: Whether the frames were simulated; every result made from them will say so.

    Raises:
        DataError: If there is no frame, a drive's frames are not in order, or the disk is full;
            finished drives are kept.
    """
    out, written, doubts = Path(out), {}, Doubts()
    own_checks.folder_name(split, "split")
    with only_writer(out):
        classes = next(map(classes_in, first_manifests(out).values()), None)
        every = frames if isinstance(frames, Iterable) else [frames]
        for segment, of_segment in groupby(every, key=_drive):
            if segment in written:
                raise DataError(
                    f"the frames of '{segment}' do not follow each other; sort the frames by drive"
                )
            folder = out / split / own_checks.folder_name(segment, "drive")
            written[segment] = write_segment(
                doubts.watch(_in_order(of_segment, out, classes)),
                folder,
                source=OWN,
                simulated=simulated,
            )
            classes = classes_in(written[segment])
        if not written:
            raise DataError(f"there is no frame to store in {out / split}")
        write_index(out, {split: written})
        store = Store.open(out)
        if split in OBJECT_SPLITS:
            build_bank(store.split(split), progress=False)
    doubts.warn(f"{out / split}", stacklevel=3)
    return store


def _drive(frame: Frame) -> str:
    if not isinstance(frame, Frame):
        raise DataError(f"a {type(frame).__name__} is no frame; make one of it with own_frame")
    return frame.segment


def _in_order(
    frames: Iterable[Frame], out: Path, classes: tuple[str, ...] | None
) -> Iterator[Frame]:
    before = None
    for expected, frame in enumerate(frames):
        if frame.index != expected:
            raise DataError(
                f"frame {frame.index} of '{frame.segment}' came where {expected} was "
                "due; number them from 0 on"
            )
        if before is not None and frame.timestamp_micros - before < _LEAST_STEP:
            raise DataError(
                f"frame {frame.index} of '{frame.segment}': timestamp_micros is "
                f"{frame.timestamp_micros}, in the frame before {before}; give ascending "
                "microseconds (seconds times 1,000,000), or leave it out for ten sweeps a second"
            )
        before, classes = frame.timestamp_micros, classes or frame.labels.class_names
        if frame.labels.class_names != classes:
            raise DataError(
                f"frame {frame.index} of '{frame.segment}' has the classes "
                f"{', '.join(frame.labels.class_names)}, but {out} has {', '.join(classes)}; give "
                "all frames the same class_names, or take another folder"
            )
        yield frame
