"""Makes a store that training, evaluation and notebooks read from frames of any dataset, with boxes
or without.

``DATA_ROOT`` with that ``store/`` inside, and no ``waymo/`` beside it, gives any profile of real
data these frames instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from kdlib.data.containment import owner_of_points
from kdlib.data.object_bank import build_bank
from kdlib.data.prepare import OBJECT_SPLITS, only_writer, write_index
from kdlib.data.segment import write_segment
from kdlib.data.store import Store
from kdlib.errors import DataError
from kdlib.types import WAYMO_TYPES, Frame, FrameLabels

_SWEEP = 100_000  # microseconds between sweeps, as Waymo's


def own_frame(
    segment: str,
    index: int,
    points: ArrayLike,
    boxes: ArrayLike = (),
    names: Sequence[str] = (),
    *,
    ids: Sequence[str] | None = None,
    velocity: ArrayLike | None = None,
    timestamp_micros: int | None = None,
    pose: ArrayLike | None = None,
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
        names: M classes, each Vehicle, Pedestrian, Sign or Cyclist.
        ids: M object ids, stable over the drive; None numbers the boxes of the frame.
        velocity: (M, 2) metres a second; None for standing objects.
        timestamp_micros: Of the sweep; None for ten sweeps a second.
        pose: (4, 4) world from vehicle; None for a vehicle that stands still.

    Raises:
        DataError: If shapes do not fit, a class is unknown, or a box has no volume.
    """
    where = f"frame {index} of '{segment}'"
    given, count = np.atleast_2d(np.asarray(points, np.float32)), len(names)
    if given.ndim != 2 or not 3 <= given.shape[1] <= 5:
        raise DataError(f"{where}: points of shape {np.shape(points)}; needed are (N, 3 to 5)")
    if np.size(boxes) != 7 * count:
        raise DataError(
            f"{where}: boxes of shape {np.shape(boxes)} and {count} classes; needed "
            "are (M, 7) and M"
        )
    unknown = sorted(set(names) - set(WAYMO_TYPES))
    if unknown:
        raise DataError(
            f"{where}: class '{unknown[0]}' is none of {', '.join(WAYMO_TYPES)}; "
            "leave the box out, or rename it"
        )
    own = np.asarray(boxes, np.float64).reshape(-1, 7)
    if not np.isfinite(own).all() or (own[:, 3:6] <= 0).any():
        raise DataError(
            f"{where}: every box needs finite numbers and a length, width and height above 0"
        )
    columns = np.zeros((len(given), 6), np.float32)
    columns[:, : given.shape[1]] = given
    # stores keep the tanh of raw intensities
    columns[:, 3] = np.arctanh(np.clip(columns[:, 3].astype(np.float64), 0, 1 - 1e-7))
    columns[:, 5] = -1  # in no no-label zone
    inside = owner_of_points(columns, own.astype(np.float32))
    labels = FrameLabels(
        boxes=own,
        types=np.array([WAYMO_TYPES[name] for name in names], np.int64),
        ids=tuple(ids)
        if ids is not None
        else tuple(f"{index}_{number}" for number in range(count)),
        difficulty=np.zeros(count, np.int64),  # unset: the metric then goes by the number of points
        num_points=np.bincount(inside[inside >= 0], minlength=count),
        velocity=np.zeros((count, 2)) if velocity is None else np.asarray(velocity, np.float64),
    )
    time = index * _SWEEP if timestamp_micros is None else timestamp_micros
    return Frame(
        segment,
        index,
        time,
        columns,
        np.eye(4) if pose is None else np.asarray(pose, np.float64),
        labels,
    )


def store_frames(
    frames: Iterable[Frame], out: Path, split: str = "training", *, simulated: bool = False
) -> Store:
    """Write a split of a store from frames, drive after drive, and return the store; other splits
    and drives in it stay.

    A training split's objects are collected too, for pasting them into other frames.

    Args:
        frames: Those of a drive one after the other, numbered from 0; one at a time is held in
            memory.
        out: Folder of the store, made if missing. A drive it has already is replaced.
        split: ``training`` or ``validation``, as profiles name them.
        simulated: Whether the frames were simulated; every result made from them will say so.

    Raises:
        DataError: If there is no frame, a drive's frames are not in order, or the disk is full;
            finished drives are kept.
    """
    out, written = Path(out), {}
    with only_writer(out):
        for segment, of_segment in groupby(frames, key=lambda frame: frame.segment):
            if segment in written:
                raise DataError(
                    f"the frames of '{segment}' do not follow each other; sort the frames by drive"
                )
            if not segment or segment.startswith(".") or set(segment) & set("/\\\0"):
                raise DataError(
                    f"'{segment}' cannot name a folder; name the drive without "
                    "slashes and leading dots"
                )
            folder = out / split / segment
            written[segment] = write_segment(
                _in_order(of_segment), folder, source="own frames", simulated=simulated
            )
        if not written:
            raise DataError(f"there is no frame to store in {out / split}")
        write_index(out, {split: written})
        store = Store.open(out)
        if split in OBJECT_SPLITS:
            build_bank(store.split(split), progress=False)
    return store


def _in_order(frames: Iterable[Frame]) -> Iterator[Frame]:
    for expected, frame in enumerate(frames):
        if frame.index != expected:
            raise DataError(
                f"frame {frame.index} of '{frame.segment}' came where {expected} was "
                "due; number them from 0 on"
            )
        yield frame
