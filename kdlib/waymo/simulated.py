"""Tells simulated Waymo files from recorded ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from kdlib.waymo import tfrecord
from kdlib.waymo.components import reading
from kdlib.waymo.frame_proto import parse_frame

PARAMETERS = b"kdlib.simulate"
"""Key of a Parquet file's metadata that tells which simulation wrote it."""


def written_frames(path: Path) -> tuple[int, str]:
    """Return the number of frames of a TFRecord file and the parameters it was simulated with,
    empty if it was not.

    Raises:
        DataError: If the file is absent or damaged.
    """
    frames = len(tfrecord.index(path))
    if not frames:
        return 0, ""
    return frames, parse_frame(tfrecord.first_payload(path)).simulation.decode(errors="replace")


def is_simulated(files: Mapping[str, Path]) -> bool:
    """Return whether the files of a segment, by component (``tfrecord`` in v1), were simulated.

    Raises:
        DataError: If a file is absent or damaged.
    """
    if "tfrecord" in files:
        return bool(written_frames(files["tfrecord"])[1])
    with reading(files["lidar"]):
        return PARAMETERS in (pq.read_metadata(files["lidar"]).metadata or {})
