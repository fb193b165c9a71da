"""One sweep enters, from a file of any LiDAR or from the simulator; the points a network takes leave.

For measuring a cost on real geometry, and for looking: detectors trained on Waymo know its five lasers, not these sensors.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from kdlib.data.scans import read_scan
from kdlib.data.store import Store
from kdlib.types import Sample


def read_sweep(path: Path) -> Sample:
    """Return the points (N, 5) x, y, z, tanh(intensity), elongation of one sweep, without boxes.

    Args:
        path: ``.npy`` as OpenPCDet writes Waymo's, ``.pcd.bin`` of nuScenes, ``.bin`` of KITTI, ``.pcd`` or ``.ply``; layout and
            height of the sensor are found as :func:`kdlib.data.scans.read_scan` says.

    Raises:
        DataError: If the file is missing, of another kind, or damaged.
    """
    return read_scan(path).sample()


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
