"""Writes folders of simulated Waymo segments, many at a time; knows a finished one when it sees
it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from kdlib import records
from kdlib.data.processes import process_pool
from kdlib.errors import ConfigError, DataError
from kdlib.simulate.box_labels import LabelledFrame, label_frame
from kdlib.simulate.lidar import Scanner
from kdlib.simulate.mesh import Rng
from kdlib.simulate.scene import build_scene
from kdlib.simulate.sensors import mount_lasers
from kdlib.simulate.writer_v1 import record_file, write_v1
from kdlib.simulate.writer_v2 import SCHEMAS, write_v2
from kdlib.waymo.components import component_file
from kdlib.waymo.simulated import PARAMETERS, written_frames

_VERSION = 1  # counts up whenever the same seed would give other files
# how far the street goes on around the measuring vehicle, metres
_REACH = {"demo": 45.0, "full": 80.0}
_SPLITS = ("training", "validation", "testing")
_WRITERS = {"v2": write_v2, "v1": write_v1}
_EPOCH = 1_550_000_000_000_000
_FRAME_MICROS = 100_000


@dataclass(frozen=True)
class SegmentJob:
    """Everything the content of a segment depends on."""

    seed: int
    split: str
    number: int
    frames: int
    scale: str
    version: int = _VERSION

    @property
    def name(self) -> str:
        """Context name, unique per seed, split and number; looks like
        ``1024360143612057520_3580_000_3600_000``.
        """
        digest = int.from_bytes(
            hashlib.sha256(f"{self.seed}/{self.split}/{self.number}".encode()).digest(), "big"
        )
        start = 20 * (digest % 300)
        return f"{10**18 + (digest >> 16) % (9 * 10**18)}_{start}_000_{start + 20}_000"

    @property
    def parameters(self) -> str:
        """What the files carry in their metadata."""
        return json.dumps(asdict(self), sort_keys=True)

    def rng(self, stream: int) -> Rng:
        """Return the generator of one part of the segment: 0 for the scene, 1 + frame for the
        sweeps.
        """
        return np.random.default_rng(
            [self.seed, zlib.crc32(self.split.encode()), self.number, stream]
        )


def simulate(
    out: Path,
    segments: int,
    frames: int,
    seed: int,
    scale: str,
    split: str = "training",
    workers: int = 0,
    progress: bool = True,
    format: str = "v2",
) -> list[str]:
    """Write simulated segments in one of Waymo's formats and return their names.

    v2 is ``<out>/<split>/<component>/<segment>.parquet``, v1
    ``<out>/<split>/segment-<segment>_with_camera_labels.tfrecord``; the frames in them are the
    same. They depend on seed, split ("training", "validation" or "testing"), number, frames (at 10
    Hz) and scale alone, never on the number of workers (0: one per core). "demo" has coarse lasers
    and 45 m of street, "full" Waymo's resolution and 80 m. Segments that are there already with the
    same parameters are kept.

    Raises:
        ConfigError: If an argument is out of range, or the folder holds segments of the other
            format.
        DataError: If a file cannot be written or a worker dies.
    """
    folder = Path(out) / split
    for name, value, least in (
        ("segments", segments, 1),
        ("frames", frames, 1),
        ("seed", seed, 0),
        ("workers", workers, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}, it must be at least {least}")
    for name, chosen, known in (
        ("scale", scale, _REACH),
        ("split", split, _SPLITS),
        ("format", format, _WRITERS),
    ):
        if chosen not in known:
            raise ConfigError(f"unknown {name} '{chosen}', choose one of {', '.join(known)}")
    other = next(folder.glob("lidar/*.parquet" if format == "v1" else "*.tfrecord"), None)
    if other is not None:
        raise ConfigError(
            f"{folder} holds {other.relative_to(folder)}, which is not {format}; "
            "choose another folder"
        )
    jobs = [SegmentJob(seed, split, number, frames, scale) for number in range(segments)]
    missing = [job for job in jobs if not _is_written(folder, job, format)]
    # mininterval keeps logs short where the bar is not on a terminal.
    options = {"unit": "segment", "mininterval": 2.0, "disable": not progress}
    with tqdm(
        total=segments, initial=segments - len(missing), desc=f"simulate {split}", **options
    ) as bar:
        for _ in _simulate_all(
            folder, missing, format, min(workers or records.cores(), len(missing))
        ):
            bar.update()
    return [job.name for job in jobs]


def segment_names(segments: int, seed: int, split: str) -> list[str]:
    """Return the names that :func:`simulate` gives segments."""
    return [SegmentJob(seed, split, number, frames=0, scale="").name for number in range(segments)]


def _is_written(folder: Path, job: SegmentJob, format: str) -> bool:
    """Tell whether all files of a segment exist, end where they should and were written with the
    same parameters.
    """
    try:
        if format == "v1":
            return written_frames(record_file(folder, job.name)) == (job.frames, job.parameters)
        files = [component_file(folder, component, job.name) for component in SCHEMAS]
        written = {(pq.read_metadata(path).metadata or {}).get(PARAMETERS) for path in files}
        return written == {job.parameters.encode()}
    # absent, damaged or another file: pyarrow's ArrowInvalid is a ValueError
    except (DataError, OSError, ValueError):
        return False


def _simulate_all(
    folder: Path, jobs: Sequence[SegmentJob], format: str, workers: int
) -> Iterator[None]:
    if workers <= 1:
        for job in jobs:
            _simulate_segment(folder, job, format)
            yield
        return
    # Fresh processes: open3d brings threads along, which a fork would not survive.
    words = "was killed, perhaps for want of memory; run again with fewer workers"
    with process_pool(workers, f"a simulating process {words}") as pool:
        for future in as_completed(
            [pool.submit(_simulate_segment, folder, job, format) for job in jobs]
        ):
            future.result()
            yield


def _simulate_segment(folder: Path, job: SegmentJob, format: str) -> None:
    """Simulate one segment into files; both formats hold the same frames, and nothing half-written
    stays.
    """
    rng = job.rng(0)
    lasers = mount_lasers(job.scale, rng)
    scene = build_scene(rng, job.frames, _REACH[job.scale])
    conditions = (
        str(rng.choice(["Day", "Dawn/Dusk", "Night"], p=[0.8, 0.1, 0.1])),
        "location_other",
        "sunny",
    )
    start = _EPOCH + int(rng.integers(10**12)) * 10
    scanner = Scanner(scene, lasers)

    def frames() -> Iterator[LabelledFrame]:
        for frame in range(job.frames):
            sweep = scanner.sweep(frame, job.rng(1 + frame))
            yield (
                start + frame * _FRAME_MICROS,
                sweep,
                label_frame(scene, frame, sweep, lasers[0].height * lasers[0].width),
            )

    try:
        _WRITERS[format](folder, job.name, lasers, job.parameters, frames(), conditions)
    except OSError as error:
        words = (
            f"cannot write segment {job.name} below {folder}: {error.strerror or error}; "
            "make room or choose another folder"
        )
        raise DataError(words) from error
