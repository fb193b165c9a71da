"""Simulates single sweeps, for measuring a cost on real geometry."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdlib.data.store import Store
from kdlib.types import Sample


@contextmanager
def simulated_store(
    segments: int, frames: int, seed: int, scale: str, split: str
) -> Iterator[Store]:
    """Simulate segments of one split into Waymo files, prepare them, and open the store; all is
    deleted afterwards.
    """
    from kdlib.data.prepare import prepare
    from kdlib.simulate import simulate

    with tempfile.TemporaryDirectory(prefix="kdlib-sweeps-") as folder:
        source, store = Path(folder, "waymo"), Path(folder, "store")
        simulate(source, segments, frames, seed, scale, split=split, workers=1, progress=False)
        prepare(source, store, splits=(split,), workers=1, progress=False, objects=False)
        yield Store.open(store)


def simulated_sweeps(count: int, seed: int = 0, scale: str = "full") -> list[Sample]:
    """Return one sweep from each of ``count`` simulated segments, at Waymo's resolution by default.

    They take the way of all data: simulated into files, prepared, read from the store.
    """
    with simulated_store(count, 1, seed, scale, "validation") as store:
        split = store.split("validation")
        return [
            Sample.unlabelled(split.frame_id(number), split.points(number)[:, :5])
            for number in range(len(split))
        ]
