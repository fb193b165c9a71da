"""Objects in, the breakdown each belongs to out: by class, and by class and distance (metric spec
section 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlib.types import Float32, Float64, Int64, IntArray

# Waymo's types 1 to 4; 0 is UNKNOWN and in no breakdown
TYPE_NAMES = ("VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST")
RANGE_NAMES = ("[0, 30)", "[30, 50)", "[50, +inf)")
RANGE_BORDERS = np.array((30.0, 50.0))
MEAN_TYPES = ("VEHICLE", "PEDESTRIAN", "CYCLIST")  # over which mAP and mAPH are taken
LEVELS = (1, 2)


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


OBJECT_TYPE = Generator("OBJECT_TYPE", tuple(map(type_breakdown, TYPE_NAMES)))
RANGE = Generator(
    "RANGE", tuple(f"RANGE_TYPE_{kind}_{part}" for kind in TYPE_NAMES for part in RANGE_NAMES)
)


def centre_distance(box: Float32) -> Float64:
    """Return the distances (N,) of box centres from the vehicle's origin, height included, in
    metres.
    """
    centre = box[:, :3].astype(np.float64)
    return np.sqrt(centre[:, 0] ** 2 + centre[:, 1] ** 2 + centre[:, 2] ** 2)
