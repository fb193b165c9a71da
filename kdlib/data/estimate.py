"""Lists the segments to prepare, and reckons from a few samples what preparing all will take: disk,
memory and time.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq

from kdlib import records
from kdlib.data.cluster import WORKER_MEMORY
from kdlib.data.object_bank import EVERY
from kdlib.data.points import POINT
from kdlib.data.segment import MANIFEST, write_segment, writing
from kdlib.errors import DataError
from kdlib.types import WAYMO_TYPES, Frame, Json
from kdlib.waymo import tfrecord
from kdlib.waymo.components import component_files, reading
from kdlib.waymo.segments import detect_format, list_segments, read_segment, segment_files

_SAMPLE_FRAMES = 3
_TYPICAL = {
    "frames": "mean",  # of the whole segment
    "sampled": "sum",
    **dict.fromkeys(("seconds_opening", "seconds_a_frame"), "median"),
    **dict.fromkeys(("bytes_a_frame", "object_bytes_a_frame"), "max"),
}
"""What is measured on a sampled segment, and what is made of several."""
_READERS = 16  # threads that look at small files; a network disk answers many at once


@dataclass(frozen=True)
class SegmentTask:
    """One segment to prepare."""

    source: Path  # <root>/<split>
    segment: str
    folder: Path  # <store>/<split>/<segment>
    frames: int | None  # as its vehicle_pose says; v1 files do not tell
    source_bytes: int


@dataclass(frozen=True)
class PrepareEstimate:
    """What preparing will take; figures per frame are measured on samples of the source, on this
    machine.
    """

    segments: Mapping[str, int]  # by split
    frames: Mapping[str, int]  # by split; for v1 reckoned from the samples
    source_bytes: int
    finished: int  # of all segments, those an earlier call seems to have finished
    frames_to_do: int
    sampled_frames: int
    store_bytes: int  # to be written yet
    free_bytes: int
    workers: int
    memory_bytes: int  # all workers together, at most
    available_memory: int
    seconds: float  # object bank included

    @property
    def fits(self) -> bool:
        """Whether the disk has room."""
        return self.store_bytes <= self.free_bytes

    @property
    def shortage(self) -> str:
        """What to say where it has not."""
        return (
            f"about {_bytes(self.store_bytes)} are to be written, the disk has "
            f"{_bytes(self.free_bytes)} free"
        )

    def to_dict(self) -> Json:
        """Return plain JSON values."""
        return {**asdict(self), "fits": self.fits}

    def __str__(self) -> str:
        parts = [
            f"{name} {count:,} segments, {self.frames[name]:,} frames"
            for name, count in self.segments.items()
        ]
        lines = [f"source: {'; '.join(parts)}; {_bytes(self.source_bytes)}"]
        if self.finished:
            lines.append(f"finished by an earlier call: {self.finished:,} segments")
        if sum(self.segments.values()) == self.finished:
            return "\n".join([*lines, "nothing is left to prepare"])
        disk, duration = (
            f"{_bytes(self.store_bytes)} to be written",
            f"about {_duration(self.seconds)}",
        )
        if not self.sampled_frames:
            disk = duration = "unknown, for the sampled segments cannot be read"
        lines += [
            f"disk:   {disk}; {_bytes(self.free_bytes)} "
            f"free{'' if self.fits else ', which is NOT ENOUGH'}",
            f"memory: at most {self.workers} x {_bytes(WORKER_MEMORY)}; "
            f"{_bytes(self.available_memory)} available here",
            f"time:   {duration}, with {self.workers} worker{'s' if self.workers > 1 else ''}",
            f"        ({self.frames_to_do:,} frames to do; measured on {self.sampled_frames} of "
            "them, here and now)",
        ]
        return "\n".join(lines)


def list_tasks(folder: Path, out: Path) -> list[SegmentTask]:
    """Return what is to be prepared of a split, in order of names; only names, sizes and footers
    are looked at.

    Raises:
        DataError: If the split has no segments, or a component is missing.
    """
    names = list_segments(folder)
    if detect_format(folder) == "v1":
        size = sum(path.stat().st_size for path in folder.glob("*.tfrecord"))
        return [SegmentTask(folder, name, out / name, None, size // len(names)) for name in names]

    def look(name: str) -> SegmentTask:
        files = component_files(folder, name)
        with reading(files["vehicle_pose"]):
            frames = pq.read_metadata(files["vehicle_pose"]).num_rows
        return SegmentTask(
            folder, name, out / name, frames, sum(path.stat().st_size for path in files.values())
        )

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(look, names))


def estimate_tasks(
    tasks: Mapping[str, Sequence[SegmentTask]], out: Path, workers: int, objects: Sequence[str] = ()
) -> PrepareEstimate:
    """Prepare the first frames of a few segments in a temporary folder, and reckon from that what
    all will take.

    Args:
        tasks: From :func:`list_tasks`, by split.
        out: Where the store will be; need not exist.
        workers: Processes that will share the work.
        objects: Splits that get an object bank.

    Raises:
        DataError: If there is no folder for temporary files.
    """
    everything = list(chain(*tasks.values()))
    missing = [task for task in everything if not _seems_finished(task.folder)]
    typical = _typical(missing)

    def frames(tasks: Iterable[SegmentTask]) -> int:
        return sum(
            round(typical["frames"]) if task.frames is None else task.frames for task in tasks
        )

    of_objects = frames(task for task in missing if task.source.name in objects)
    seconds = (
        len(missing) * typical["seconds_opening"] + frames(missing) * typical["seconds_a_frame"]
    )
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    return PrepareEstimate(
        segments={split: len(of_split) for split, of_split in tasks.items()},
        frames={split: frames(of_split) for split, of_split in tasks.items()},
        source_bytes=sum(task.source_bytes for task in everything),
        finished=len(everything) - len(missing),
        frames_to_do=frames(missing),
        sampled_frames=int(typical["sampled"]),
        store_bytes=int(
            frames(missing) * typical["bytes_a_frame"]
            + of_objects * typical["object_bytes_a_frame"]
        ),
        free_bytes=shutil.disk_usage(place).free,
        workers=workers,
        memory_bytes=workers * WORKER_MEMORY,
        available_memory=psutil.virtual_memory().available,
        seconds=seconds / workers,
    )


def _seems_finished(folder: Path) -> bool:
    """Look at the manifest only; preparing looks at the files too."""
    try:
        return "checksum" in records.read_json(folder / MANIFEST)
    except (DataError, OSError):
        return False


def _typical(tasks: Sequence[SegmentTask]) -> dict[str, float]:
    """Return what a segment of those to prepare takes, from the first, a middle and the last
    one.
    """
    samples = []
    with (
        writing(Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory(prefix="kdlib-") as folder,
    ):
        for number in sorted({0, len(tasks) // 2, len(tasks) - 1} if tasks else ()):
            try:
                samples.append(_sample(tasks[number], Path(folder) / "sample"))
            # a damaged segment: the run itself gets to it, says so, and keeps what was finished
            # before
            except DataError:
                continue
    return dict(pd.DataFrame(samples, columns=list(_TYPICAL)).agg(_TYPICAL).fillna(0))


def _sample(task: SegmentTask, folder: Path) -> dict[str, float]:
    arrivals = []
    labels = []

    def first_frames() -> Iterator[Frame]:
        for frame in islice(read_segment(task.source, task.segment), _SAMPLE_FRAMES):
            arrivals.append(time.monotonic())
            labels.append(frame.labels)
            yield frame

    started = time.monotonic()
    manifest = write_segment(first_frames(), folder, "sample")
    ended, count = time.monotonic(), manifest["frames"]
    # The first frame comes with the tables of the whole segment; what it takes beyond a later one
    # is paid once a segment.
    each = ended - arrivals[0] if count == 1 else (arrivals[-1] - arrivals[0]) / (count - 1)
    object_points = 0.0
    for of_frame in labels:
        for name, every in EVERY.items():
            object_points += of_frame.num_points[of_frame.types == WAYMO_TYPES[name]].sum() / every
    return dict(
        frames=task.frames
        or len(tfrecord.index(segment_files(task.source, task.segment)["tfrecord"])),
        sampled=count,
        seconds_opening=max(0.0, ended - started - count * each),
        seconds_a_frame=each,
        bytes_a_frame=sum(record["bytes"] for record in manifest["files"].values()) / count,
        object_bytes_a_frame=POINT.itemsize * object_points / count,
    )


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
