"""Tables of what a prepared store holds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdlib.config import CLASS_NAMES
from kdlib.data.store import Store
from kdlib.types import WAYMO_TYPES
from kdlib.waymo.annotations import difficulty_level


def data_overview(store: Store) -> pd.DataFrame:
    """Return segments, frames, points and boxes of each split."""
    rows = []
    for name in store.contents:
        split = store.split(name)
        boxes = {kind: int((split.types == WAYMO_TYPES[kind]).sum()) for kind in CLASS_NAMES}
        points = int(
            np.mean([len(split.points(i)) for i in np.linspace(0, len(split) - 1, 10).astype(int)])
        )
        counts = {"split": name, "segments": len(split.segments), "frames": len(split)}
        rows.append({**counts, "points per frame": points, **boxes})
    return pd.DataFrame(rows)


def difficulty_table(store: Store) -> pd.DataFrame:
    """Return the number of boxes of each class and effective difficulty level in the validation
    split.
    """
    split = store.split("validation")
    level = difficulty_level(split.difficulty, split.num_points)
    names = {1: "LEVEL_1", 2: "LEVEL_2", 0: "without points (not scored)"}
    rows = []
    for kind in CLASS_NAMES:
        own = split.types == WAYMO_TYPES[kind]
        rows.append(
            {
                "class": kind,
                **{title: int((own & (level == number)).sum()) for number, title in names.items()},
            }
        )
    return pd.DataFrame(rows)
