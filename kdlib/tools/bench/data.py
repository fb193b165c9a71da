"""``bench data``: what converting, preparing and loading simulated frames costs, beside Waymo's own
code on the same frames.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdlib.config import ObjectSamplingConfig
from kdlib.errors import KdlibError
from kdlib.tools.bench.measurements import Benchmark, Measurement
from kdlib.tools.judge.official import OfficialError, ask_official, find_python
from kdlib.tools.own_process import in_own_process, peak_bytes

# metres between the mean points of a frame: the official float32 at world coordinates of some
# kilometres
POINT_AGREEMENT = 1e-2
# What must be faster. From file to points the two v2 paths share Arrow's Parquet decoder, which
# takes most of ours.
CONVERSIONS = ("v1_read", "v2_convert")
MOST_OF_A_CORE = 0.8  # below this share wall clock times say more about others
SEGMENTS = 2  # prepared and loaded; the first one is converted
OBJECTS = ObjectSamplingConfig().counts  # drawn for each frame
FASTER, POINT_BYTES, WORKER_MB = 10.0, 9.0, 1000.0  # targets
_BATCH = 2  # frames, as published

_Answer = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How often a measurement is repeated."""

    rounds: int  # at least
    seconds: float  # at least


@dataclass(frozen=True)
class _Segment:
    """One segment on disk."""

    form: str  # "v1" or "v2"
    folder: Path  # <root>/<split>
    name: str
    frames: int


def bench_data(
    frames: int,
    rounds: int,
    scale: str,
    keep: Path | None,
    python: str | Path | None,
    seconds: float,
) -> Benchmark:
    """Measure all on the same simulated frames (so many in each segment), one process after the
    other, each with one thread.

    Every measurement is repeated ``rounds`` times at least, the median counts; kdlib's own also at
    least so many seconds: they are short, and others work on the machine too. A folder to ``keep``
    the simulated files in is used again next time. Without a Python that has the official package
    (:func:`kdlib.tools.judge.official.find_python`), what needs it is named and left out.

    Raises:
        ConfigError: If ``frames`` or ``scale`` is out of range.
        KdlibError: If a measurement fails, or the official code finds other points.
    """
    from kdlib.profiling.hardware import hardware_card
    from kdlib.simulate import simulate

    lines: list[Measurement] = []
    notes: list[str] = []
    effort, interpreter = Effort(rounds, seconds), None
    try:
        interpreter = find_python(python)
    except OfficialError as error:
        if python:
            raise
        notes.append(f"not measured, ratios included: {error}")
    with tempfile.TemporaryDirectory(prefix="kdlib-bench-") as temporary:
        root, segments = Path(keep or temporary), []
        for form in ("v1", "v2"):
            # Objects return to where they were seen: only those of another street find free places
            # there.
            count = 1 if form == "v1" else SEGMENTS
            name, *_ = simulate(
                root / form, count, frames, 1, scale, workers=1, progress=False, format=form
            )
            segments.append(_Segment(form, root / form / "training", name, frames))
        for segment in segments:
            lines += _conversion(segment, effort, interpreter, notes)
        lines += _prepare_lines(segments[1], root / "store", effort)
        lines += _loader_lines(root / "store", effort)
    facts = {"frames": frames, "rounds": rounds, "scale": scale, "simulated": True}
    return Benchmark("data", tuple(lines), facts, tuple(dict.fromkeys(notes)), hardware_card())


def _conversion(
    segment: _Segment, effort: Effort, python: Path | None, notes: list[str]
) -> list[Measurement]:
    """Measure kdlib before and after the official code, so that a machine that slows down meanwhile
    favours neither.
    """
    before = in_own_process(measure_reading, segment.folder, segment.name, effort, threads=1)
    request = {
        "form": segment.form,
        "folder": str(segment.folder),
        "segment": segment.name,
        "rounds": effort.rounds,
    }
    official = ask_official("convert", request, python) if python else None
    after = in_own_process(measure_reading, segment.folder, segment.name, effort, threads=1)
    if official is not None:
        _check_agreement(before["frames"], official["frames"], segment)
        notes.append(f"official: {official['version']}, all cores; kdlib: one thread")
    ours = [*before["seconds"], *after["seconds"]]
    lines: list[Measurement] = []
    for name in ("read", "convert") if segment.form == "v2" else ("read",):
        key, title = (
            f"{segment.form}_{name}",
            (f"{segment.form} {'file' if name == 'read' else 'range images'} to points"),
        )
        mine, processor = _ms_of_frame(ours, name, segment)
        theirs, their_processor = (
            _ms_of_frame(official["seconds"], name, segment) if official else (None, None)
        )
        target = FASTER if key in CONVERSIONS else None
        less = their_processor and their_processor / processor
        lines += [
            Measurement(f"{key}_official_ms", f"{title}, official", theirs, "ms/frame"),
            Measurement(f"{key}_ms", f"{title}, kdlib", mine, "ms/frame"),
            Measurement(
                f"{key}_ratio",
                f"{title}, times faster",
                theirs and theirs / mine,
                "x",
                at_least=target,
            ),
            Measurement(f"{key}_processor_ratio", f"{title}, times less processor time", less, "x"),
        ]
        if processor < MOST_OF_A_CORE * mine:
            share = f"{processor / mine:.0%} of a core"
            notes.append(
                f"others work on this machine: {segment.form} {name} had {share}, so "
                "trust processor time"
            )
    return lines


def _ms_of_frame(
    rounds: Sequence[Mapping[str, Sequence[float]]], name: str, segment: _Segment
) -> list[float]:
    """Return the medians of the rounds on the wall clock and of all processors; reading includes
    converting.
    """
    parts = ("read", "convert") if name == "read" else ("convert",)
    spent = np.sum([[spent[part] for part in parts] for spent in rounds], axis=1)
    milliseconds: list[float] = (1000 * np.median(spent, axis=0) / segment.frames).tolist()
    return milliseconds


def _check_agreement(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], segment: _Segment
) -> None:
    """Two times may be compared only if the same work was done."""
    place = f"{segment.form} segment {segment.name}"
    if len(ours) != len(theirs):
        raise KdlibError(
            f"{place}: {len(ours)} frames, the official code finds {len(theirs)}; "
            "these times cannot be compared"
        )
    for number, (a, b) in enumerate(zip(ours, theirs)):
        apart = np.abs(np.subtract(a["sum"], b["sum"])).max() / max(a["points"], 1)
        if a["points"] != b["points"] or not apart <= POINT_AGREEMENT:
            raise KdlibError(
                f"{place}, frame {number}: {a['points']} points, the official code finds "
                f"{b['points']}, their means "
                f"{apart:.3g} m apart; these times cannot be compared"
            )


def _prepare_lines(segment: _Segment, out: Path, effort: Effort) -> list[Measurement]:
    measured = in_own_process(measure_preparing, segment.folder.parent, out, effort, threads=1)
    size = measured["bytes"] / measured["points"]
    return [
        Measurement(
            "prepare_fps",
            "prepare",
            SEGMENTS * segment.frames / measured["seconds"],
            "frames/s per core",
        ),
        Measurement(
            "bytes_per_point", "prepared store", size, "bytes per point", at_most=POINT_BYTES
        ),
        _peak("prepare", "prepare", measured),
    ]


def _loader_lines(store: Path, effort: Effort) -> list[Measurement]:
    lines = []
    for key, title, objects in (
        ("augmented", "augmented", ()),
        ("objects", ("augmented, objects pasted"), OBJECTS),
    ):
        measured = in_own_process(measure_loading, store, objects, effort, threads=1)
        rate = measured["frames"] / measured["seconds"]
        lines.append(
            Measurement(f"loader_{key}_fps", f"loader, {title}", rate, ("frames/s per core"))
        )
        if objects:
            pasted = f"loader, objects pasted of {sum(objects)} drawn"
            lines.append(Measurement("objects_pasted", pasted, measured["pasted"], "per frame"))
        lines.append(_peak(f"loader_{key}", f"loader, {title}", measured))
    return lines


def _peak(key: str, title: str, measured: _Answer) -> Measurement:
    return Measurement(
        f"{key}_peak_mb",
        f"{title}, peak memory",
        measured["peak_bytes"] / 1e6,
        "MB per worker",
        at_most=WORKER_MB,
    )


def _median_seconds(work: Callable[[], Any], effort: Effort) -> float:
    """Return the median time of as many rounds as the effort asks for, after one that does not
    count.
    """
    work()
    seconds: list[float] = []
    while len(seconds) < effort.rounds or sum(seconds) < effort.seconds:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_reading(folder: Path, segment: str, effort: Effort) -> _Answer:
    """Read all frames of a segment, file to points, labels included; answer as the task "convert"
    of ``official_child.py``.

    Files come from the page cache: the first round does not count.
    """
    from kdlib.waymo import lasers, reader_v1, reader_v2
    from kdlib.waymo.segments import read_segment

    converting = np.zeros(2)

    def timed_points(*arguments: Any) -> Any:
        start = _now()
        points = lasers.laser_points(*arguments)
        converting[:] += _now() - start
        return points

    # in a process of its own: where range images become points, a clock is put
    for reader in (reader_v1, reader_v2):
        setattr(reader, "laser_points", timed_points)  # noqa: B010
    rounds: list[dict[str, list[float]]] = []
    spent = 0.0
    while len(rounds) <= effort.rounds or spent < effort.seconds:
        frames: list[dict[str, Any]] = []
        converting[:], start = 0.0, _now()
        for frame in read_segment(folder, segment):
            total = frame.points[:, :3].astype(np.float64).sum(axis=0).tolist()
            frames.append({"points": len(frame.points), "sum": total})
        taken = _now() - start
        rounds.append({"read": (taken - converting).tolist(), "convert": converting.tolist()})
        spent += taken[0] if rounds[1:] else 0.0
    return {"seconds": rounds[1:], "frames": frames}


def _now() -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array((time.perf_counter(), time.process_time()))


def measure_preparing(source: Path, out: Path, effort: Effort) -> _Answer:
    """Prepare a source into a store with one worker; the store of the last round stays."""
    import pyarrow as pa

    from kdlib.data.prepare import prepare
    from kdlib.data.store import Store

    pa.set_cpu_count(1)

    def work() -> None:
        shutil.rmtree(out, ignore_errors=True)
        prepare(source, out, splits=("training",), workers=1, progress=False)

    seconds, peak = _median_seconds(work, effort), peak_bytes()
    size = sum(path.stat().st_size for path in (out / "training").glob("*/*") if path.is_file())
    points = int(Store.open(out).split("training").counts.sum())
    return {"seconds": seconds, "bytes": size, "points": points, "peak_bytes": peak}


def measure_loading(store: Path, objects: Sequence[int], effort: Effort) -> _Answer:
    """Make training batches of a store's frames in one process, as a loader's worker does.

    Frames are filled up to ``objects`` more than the average frame has of each class, so that so
    many are drawn however crowded the simulated streets are; those that collide are dropped as
    always.
    """
    import torch

    from kdlib import zoo
    from kdlib.config import CLASS_NAMES, AugmentConfig
    from kdlib.data.collate import collate
    from kdlib.data.dataset import FrameDataset
    from kdlib.data.object_bank import build_bank
    from kdlib.data.store import Store, class_types

    torch.set_num_threads(1)
    split = Store.open(store).split("training")
    reach = zoo.model("cp_pillar").grid.point_range

    def dataset(objects: ObjectSamplingConfig | None) -> FrameDataset:
        return FrameDataset(
            split, augment=AugmentConfig(objects=objects), drop_empty=True, point_range=reach
        )

    data = plain = dataset(None)
    if objects:
        build_bank(split, progress=False)
        there = [
            int((split.types == kind).sum()) // len(split) for kind in class_types(CLASS_NAMES)
        ]
        data = dataset(ObjectSamplingConfig(counts=tuple(a + b for a, b in zip(there, objects))))
    epoch = 0

    def work() -> None:
        nonlocal epoch
        for first in range(0, len(data), _BATCH):
            collate(
                [data[(epoch, index)] for index in range(first, min(first + _BATCH, len(data)))]
            )
        epoch += 1

    seconds, peak = _median_seconds(work, effort), peak_bytes()
    pasted = sum(
        len(data[(0, index)].labels) - len(plain[(0, index)].labels) for index in range(len(data))
    ) / len(data)
    return {"seconds": seconds, "frames": len(data), "pasted": pasted, "peak_bytes": peak}
