"""A Waymo folder and a store's place enter; what preparing will take leaves: frames, disk, memory and time."""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from kdlib import records
from kdlib.data.cluster import WORKER_MEMORY
from kdlib.data.object_bank import EVERY
from kdlib.data.segment import MANIFEST, write_segment, writing
from kdlib.errors import DataError
from kdlib.types import WAYMO_TYPES, Frame
from kdlib.waymo import tfrecord
from kdlib.waymo.components import component_files, reading
from kdlib.waymo.segments import detect_format, list_segments, read_segment, segment_files

_SAMPLES, _SAMPLE_FRAMES = 3, 3
_READERS = 16  # threads that look at small files; a network disk answers many at once
_POINT_BYTES = 8


@dataclass(frozen=True)
class SegmentTask:
    """One segment to prepare."""

    source: Path  # <root>/<split>
    segment: str
    folder: Path  # <store>/<split>/<segment>
    frames: int | None  # as its vehicle_pose says; v1 files do not tell
    source_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What preparing will take; figures per frame are measured on samples of the source, on this machine."""

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
        return f"about {_bytes(self.store_bytes)} are to be written, the disk has {_bytes(self.free_bytes)} free"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "fits": self.fits}

    def __str__(self) -> str:
        parts = [f"{name} {count:,} segments, {self.frames[name]:,} frames" for name, count in self.segments.items()]
        lines = [f"source: {'; '.join(parts)}; {_bytes(self.source_bytes)}"]
        if self.finished:
            lines.append(f"finished by an earlier call: {self.finished:,} segments")
        if sum(self.segments.values()) == self.finished:
            return "\n".join([*lines, "nothing is left to prepare"])
        disk, duration = f"{_bytes(self.store_bytes)} to be written", f"about {_duration(self.seconds)}"
        if not self.sampled_frames:
            disk = duration = "unknown, for the sampled segments cannot be read"
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        lines += [
            f"disk:   {disk}; {_bytes(self.free_bytes)} free{'' if self.fits else ', which is NOT ENOUGH'}",
            f"memory: at most {self.workers} x {_bytes(WORKER_MEMORY)}; {_bytes(self.available_memory)} available here",
            f"time:   {duration}, with {workers}",
            f"        ({self.frames_to_do:,} frames to do; measured on {self.sampled_frames} of them, here and now)",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Sample:
    frames: int  # of the whole segment
    seconds_opening: float
    seconds_a_frame: float
    bytes_a_frame: float
    object_bytes_a_frame: float


def survey(source: Path, out: Path, splits: Sequence[str]) -> dict[str, list[SegmentTask]]:
    """List what is to be prepared, by split, in order of names; only names, sizes and footers are looked at.

    Raises:
        DataError: If a split has no segments, a component is missing, or a segment lies in two splits.
    """
    tasks = {split: _survey_split(source / split, out / split) for split in splits}
    check_homes(source, {split: [task.segment for task in some] for split, some in tasks.items()})
    return tasks


def check_homes(place: Path, splits: Mapping[str, Iterable[str]]) -> None:
    """Refuse a segment that is in two splits.

    Raises:
        DataError: If there is one.
    """
    home: dict[str, str] = {}
    for split, segments in splits.items():
        for segment in segments:
            if home.setdefault(segment, split) != split:
                raise DataError(
                    f"{place}: segment {segment} is in both {home[segment]} and {split}; remove it from one of them, "
                    "or a model would be tested on what it was trained on"
                )


def _survey_split(folder: Path, out: Path) -> list[SegmentTask]:
    names = list_segments(folder)
    if detect_format(folder) == "v1":
        size = sum(path.stat().st_size for path in folder.glob("*.tfrecord"))
        return [SegmentTask(folder, name, out / name, None, size // len(names)) for name in names]

    def look(name: str) -> SegmentTask:
        files = component_files(folder, name)
        with reading(files["vehicle_pose"]):
            frames = pq.read_metadata(files["vehicle_pose"]).num_rows
        return SegmentTask(folder, name, out / name, frames, sum(path.stat().st_size for path in files.values()))

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(look, names))


def estimate(tasks: Mapping[str, Sequence[SegmentTask]], out: Path, workers: int, objects: Sequence[str] = ()) -> Estimate:
    """Prepare the first frames of a few segments in a temporary folder, and reckon from that what all will take.

    Args:
        tasks: From :func:`survey`.
        out: Where the store will be; need not exist.
        workers: Processes that will share the work.
        objects: Splits that get an object bank.

    Raises:
        DataError: If there is no folder for temporary files.
    """
    everything = [task for some in tasks.values() for task in some]
    missing = [task for task in everything if not _seems_finished(task.folder)]
    samples = list(_samples(missing))
    typical = _typical(samples)
    frames = {split: sum(_frames(task, typical) for task in some) for split, some in tasks.items()}
    to_do = sum(_frames(task, typical) for task in missing)
    of_objects = sum(_frames(task, typical) for task in missing if task.source.name in objects)
    seconds = len(missing) * typical.seconds_opening + to_do * typical.seconds_a_frame
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    return Estimate(
        segments={split: len(some) for split, some in tasks.items()},
        frames=frames,
        source_bytes=sum(task.source_bytes for task in everything),
        finished=len(everything) - len(missing),
        frames_to_do=to_do,
        sampled_frames=sum(min(_SAMPLE_FRAMES, sample.frames) for sample in samples),
        store_bytes=int(to_do * typical.bytes_a_frame + of_objects * typical.object_bytes_a_frame),
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


def _frames(task: SegmentTask, typical: _Sample) -> int:
    return typical.frames if task.frames is None else task.frames


def _typical(samples: Sequence[_Sample]) -> _Sample:
    if not samples:  # nothing left to do, or nothing could be read: then preparing will say why
        return _Sample(0, 0.0, 0.0, 0.0, 0.0)
    return _Sample(
        round(statistics.fmean(sample.frames for sample in samples)),
        statistics.median(sample.seconds_opening for sample in samples),
        statistics.median(sample.seconds_a_frame for sample in samples),
        max(sample.bytes_a_frame for sample in samples),
        max(sample.object_bytes_a_frame for sample in samples),
    )


def _samples(tasks: Sequence[SegmentTask]) -> Iterator[_Sample]:
    chosen = sorted({round(position * (len(tasks) - 1) / max(1, _SAMPLES - 1)) for position in range(_SAMPLES)} if tasks else ())
    with writing(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="kdlib-") as folder:
        for number in chosen:
            try:
                yield _sample(tasks[number], Path(folder) / "sample")
            except DataError:  # a damaged segment: the run itself gets to it, says so, and keeps what was finished before
                continue


def _sample(task: SegmentTask, folder: Path) -> _Sample:
    arrivals: list[float] = []
    object_points = 0.0
    started = time.monotonic()

    def watched(frames: Iterable[Frame]) -> Iterator[Frame]:
        nonlocal object_points
        for frame in frames:
            arrivals.append(time.monotonic())
            yield frame
            object_points += sum(
                frame.labels.num_points[frame.labels.types == WAYMO_TYPES[name]].sum() / every for name, every in EVERY.items()
            )

    frames = read_segment(task.source, task.segment)
    manifest = write_segment(watched(itertools.islice(frames, _SAMPLE_FRAMES)), folder, "sample")
    seconds, count = time.monotonic() - started, manifest["frames"]
    # The first frame comes with the tables of the whole segment; what it takes beyond a later one is paid once a segment.
    each = (time.monotonic() - arrivals[0]) / count if count == 1 else (arrivals[-1] - arrivals[0]) / (count - 1)
    whole = task.frames or len(tfrecord.index(segment_files(task.source, task.segment)["tfrecord"]))
    size = sum(record["bytes"] for record in manifest["files"].values())
    return _Sample(whole, max(0.0, seconds - count * each), each, size / count, _POINT_BYTES * object_points / count)


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
