"""A seed and a number in, one simulated segment on disk out; knows a finished one when it sees it."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from kdlib.errors import DataError
from kdlib.simulate.labels import label_frame, seen_once
from kdlib.simulate.lasers import mount_lasers
from kdlib.simulate.lidar import Scanner
from kdlib.simulate.scene import build_scene
from kdlib.simulate.writer import SegmentWriter, segment_files
from kdlib.simulate.writer_v1 import RecordWriter
from kdlib.simulate.writer_v1 import segment_file as record_file
from kdlib.waymo.simulated import PARAMETERS, written_frames

VERSION = 1
"""Counts up whenever the same seed would give other files."""
FORMATS = ("v2", "v1")
REACH = {"demo": 45.0, "full": 80.0}
"""How far the street goes on around the measuring vehicle, metres."""
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
    version: int = VERSION

    @property
    def name(self) -> str:
        """Context name, unique per seed, split and number; looks like ``1024360143612057520_3580_000_3600_000``."""
        digest = int.from_bytes(hashlib.sha256(f"{self.seed}/{self.split}/{self.number}".encode()).digest(), "big")
        start = 20 * (digest % 300)
        return f"{10**18 + (digest >> 16) % (9 * 10**18)}_{start}_000_{start + 20}_000"

    @property
    def parameters(self) -> str:
        """What the files carry in their metadata."""
        return json.dumps(asdict(self), sort_keys=True)

    def rng(self, stream: int) -> np.random.Generator:
        """Return the generator of one part of the segment: 0 for the scene, 1 + frame for the sweeps."""
        return np.random.default_rng([self.seed, zlib.crc32(self.split.encode()), self.number, stream])


def is_written(folder: Path, job: SegmentJob, format: str = "v2") -> bool:
    """Tell whether all files of a segment exist, end where they should and were written with the same parameters."""
    if format == "v1":
        try:
            return written_frames(record_file(folder, job.name)) == (job.frames, job.parameters)
        except DataError:  # absent or damaged
            return False
    for path in segment_files(folder, job.name).values():
        try:
            metadata = pq.read_metadata(path).metadata or {}
        except (OSError, ValueError):  # absent, or not a Parquet file: pyarrow's ArrowInvalid is a ValueError
            return False
        if metadata.get(PARAMETERS) != job.parameters.encode():
            return False
    return True


def write_segment(folder: Path, job: SegmentJob, format: str = "v2") -> str:
    """Simulate one segment and return its name.

    Args:
        folder: ``<root>/<split>``.
        job: What to simulate.
        format: "v2" for ``<folder>/<component>/<name>.parquet``, "v1" for one TFRecord file; both hold the same frames.

    Raises:
        DataError: If the files cannot be written; nothing half-written stays.
    """
    rng = job.rng(0)
    lasers = mount_lasers(job.scale, rng)
    scene = build_scene(rng, job.frames, REACH[job.scale])
    surroundings = (str(rng.choice(["Day", "Dawn/Dusk", "Night"], p=[0.8, 0.1, 0.1])), "location_other", "sunny")
    start = _EPOCH + int(rng.integers(10**12)) * 10
    timestamps = [start + frame * _FRAME_MICROS for frame in range(job.frames)]
    scanner, labels = Scanner(scene, lasers), []
    try:
        with (RecordWriter if format == "v1" else SegmentWriter)(folder, job.name, lasers, job.parameters) as writer:
            for frame, timestamp in enumerate(timestamps):
                sweep = scanner.sweep(frame, job.rng(1 + frame))
                writer.add(timestamp, sweep)
                labels.append(label_frame(scene, frame, sweep, lasers[0].height * lasers[0].width))
            writer.finish(timestamps, seen_once(labels), surroundings)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"cannot write segment {job.name} below {folder}: {reason}; make room or choose another folder"
        ) from error
    return job.name
