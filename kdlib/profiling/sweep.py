"""Simulates single sweeps, for measuring a cost on real geometry."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kdlib.data.store import Store
from kdlib.types import Sample


def simulated_sweeps(count: int, seed: int = 0, scale: str = "full") -> list[Sample]:
    """Return one sweep from each of ``count`` simulated segments, at Waymo's resolution by default.

    They take the way of all data: simulated into files, prepared, read from the store.
    """
    from kdlib.data.prepare import prepare
    from kdlib.simulate import simulate

    with tempfile.TemporaryDirectory(prefix="kdlib-sweeps-") as folder:
        source, store = Path(folder, "waymo"), Path(folder, "store")
        simulate(source, segments=count, frames=1, seed=seed, scale=scale, split="validation", workers=1, progress=False)
        prepare(source, store, splits=("validation",), workers=1, progress=False)
        split = Store.open(store).split("validation")
        return [Sample.unlabelled(split.frame_id(number), split.points(number)[:, :5]) for number in range(len(split))]
