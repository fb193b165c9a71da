"""Objects in, the breakdown each belongs to out: by class, and by class and distance (metric spec
section 2); Waymo's classes, or those of a dataset of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdlib.types import Float32, Float64, Int64, IntArray

# Waymo's types 1 to 4; 0 is UNKNOWN and in no breakdown
TYPE_NAMES = ("VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST")
RANGE_NAMES = ("[0, 30)", "[30, 50)", "[50, +inf)")
RANGE_BORDERS = np.array((30.0, 50.0))
MEAN_TYPES = ("VEHICLE", "PEDESTRIAN", "CYCLIST")  # over which mAP and mAPH are taken
LEVELS = (1, 2)
_OTHER_IOU = 0.5  # that pairs of a class must reach whose name is none of Waymo's


@dataclass(frozen=True)
class Classes:
    """The classes that an evaluation is of; type n is the n-th."""

    names: tuple[str, ...]  # as in the names of metrics
    thresholds: tuple[float, ...]  # IoU a pair must reach
    mean: tuple[str, ...]  # over which mAP and mAPH are taken

    @staticmethod
    def of(type_names: Sequence[str], class_names: Sequence[str] = ()) -> Classes:
        """Return the classes of a dataset of one's own, with the mean over some of them or, where
        none is named, over all.

        A class of Waymo's name must reach Waymo's IoU, any other 0.5.
        """
        names = tuple(name.upper() for name in type_names)
        known = dict(zip(WAYMO.names, WAYMO.thresholds))
        mean = tuple(name.upper() for name in type_names if name in (class_names or type_names))
        return Classes(names, tuple(known.get(name, _OTHER_IOU) for name in names), mean)


WAYMO = Classes(TYPE_NAMES, (0.7, 0.5, 0.5, 0.5), MEAN_TYPES)


@dataclass(frozen=True)
class Generator:
    """One way of dividing all objects into shards; only objects of one shard are matched with each
    other.
    """

    name: str
    names: tuple[str, ...]  # official names of its shards, without the level

    def shard(self, kind: IntArray, box: Float32) -> Int64:
        """Return each object's shard (N,), -1 for none; an object is placed by its own centre."""
        index = kind.astype(np.int64) - 1
        if self.name == "RANGE":
            bins = np.searchsorted(RANGE_BORDERS, centre_distance(box), side="right")
            return np.where(index < 0, -1, index * len(RANGE_NAMES) + bins)
        return index


def type_breakdown(kind: str) -> str:
    """Return the official name of a class's breakdown, without the level."""
    return f"OBJECT_TYPE_TYPE_{kind}"


def by_type(classes: Classes) -> Generator:
    """Return the breakdown by class."""
    return Generator("OBJECT_TYPE", tuple(map(type_breakdown, classes.names)))


def by_range(classes: Classes) -> Generator:
    """Return the breakdown by class and distance."""
    names = (f"RANGE_TYPE_{kind}_{part}" for kind in classes.names for part in RANGE_NAMES)
    return Generator("RANGE", tuple(names))


OBJECT_TYPE, RANGE = by_type(WAYMO), by_range(WAYMO)


def centre_distance(box: Float32) -> Float64:
    """Return the distances (N,) of box centres from the vehicle's origin, height included, in
    metres.
    """
    centre = box[:, :3].astype(np.float64)
    return np.sqrt(centre[:, 0] ** 2 + centre[:, 1] ** 2 + centre[:, 2] ** 2)
