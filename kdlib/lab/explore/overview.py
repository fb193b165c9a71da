"""Tables of what a prepared store holds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kdlib.data.store import Store
from kdlib.waymo.annotations import difficulty_level


def data_overview(store: Store) -> pd.DataFrame:
    """Return segments, frames, points and boxes of each split."""
    rows = []
    for name in store.contents:
        split = store.split(name)
        names = split.learned_classes
        boxes = {
            name: int((split.types == kind).sum())
            for name, kind in zip(names, split.class_types(names))
        }
        points = int(
            np.mean([len(split.points(i)) for i in np.linspace(0, len(split) - 1, 10).astype(int)])
        )
        counts = {"split": name, "segments": len(split.segments), "frames": len(split)}
        rows.append({**counts, "points per frame": points, **boxes})
    return pd.DataFrame(rows)


def difficulty_table(store: Store, split_name: str = "validation") -> pd.DataFrame:
    """Return the number of boxes of each class and effective difficulty level in a split."""
    split = store.split(split_name)
    level = difficulty_level(split.difficulty, split.num_points)
    names = {1: "LEVEL_1", 2: "LEVEL_2", 0: "without points (not scored)"}
    rows = []
    classes = split.learned_classes
    for name, kind in zip(classes, split.class_types(classes)):
        own = split.types == kind
        rows.append(
            {
                "class": name,
                **{title: int((own & (level == number)).sum()) for number, title in names.items()},
            }
        )
    return pd.DataFrame(rows)


def data_reading(overview: pd.DataFrame, difficulty: pd.DataFrame, split: str) -> str:
    """Say in words what the tables show of the split that models are judged on."""
    own = overview.set_index("split").loc[split]
    kinds = difficulty.set_index("class")
    one, two, unseen = (int(kinds[name].sum()) for name in kinds.columns)
    listed = ", ".join(f"{int(own[kind]):,} {kind}" for kind in kinds.index)
    share = f"{two / (one + two):.0%} of them" if one + two else "none of them"
    return (
        f"Models are judged on {int(own['frames']):,} frames of {int(own['segments']):,} segments "
        f"with {one + two:,} boxes that hold a point ({listed} in all, {unseen:,} without a "
        f"point). {share[0].upper()}{share[1:]} are LEVEL_2."
    )
