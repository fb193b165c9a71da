"""Turns Waymo files of either format into a prepared store, segment by segment, continuing where it
was interrupted.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdlib import records
from kdlib.data.cluster import cluster_cores, run_tasks, worker_count
from kdlib.data.estimate import PrepareEstimate, SegmentTask, estimate_tasks, list_tasks
from kdlib.data.object_bank import build_bank
from kdlib.data.processes import refuse_unguarded
from kdlib.data.progress import watched
from kdlib.data.segment import (
    MANIFEST,
    STORE_VERSION,
    classes_in,
    read_manifest,
    source_fingerprint,
    write_segment,
    writing,
)
from kdlib.data.store import INDEX, Store, fingerprint, first_manifests
from kdlib.errors import DataError
from kdlib.types import WAYMO_TYPES, Json
from kdlib.waymo.components import reading
from kdlib.waymo.segments import read_segment, segment_files
from kdlib.waymo.simulated import is_simulated

SPLITS = ("training", "validation")
OBJECT_SPLITS = ("training",)
"""Splits whose objects are pasted into other frames in training."""

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class SplitReport:
    """What a split of the store holds."""

    segments: int
    reused: int  # of those, segments an earlier call had finished
    elsewhere: int  # of those, segments the source does not have (any more)
    simulated: bool
    frames: int
    points: int
    points_out_of_reach: int  # beyond +-80 m, left out
    boxes: Mapping[str, int]  # by class, boxes without points included


@dataclass(frozen=True)
class PrepareReport:
    """What a call of :func:`prepare` made."""

    store: str
    fingerprint: str  # of the whole store
    seconds: float
    workers: int
    missing_splits: tuple[str, ...]  # asked for, but the source has no such folder
    splits: Mapping[str, SplitReport]
    object_bank: str | None  # path

    def to_dict(self) -> Json:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.store} (fingerprint {self.fingerprint}), {self.seconds:.1f} s"]
        for name, split in self.splits.items():
            boxes = ", ".join(f"{count:,} {kind}" for kind, count in split.boxes.items())
            counts = f"{split.frames:,} frames, {split.points:,} points"
            what = "simulated segments" if split.simulated else "segments"
            lines += [
                f"  {name}: {split.segments} {what} ({split.reused} kept), {counts}",
                f"    boxes: {boxes}",
            ]
            if split.elsewhere:
                lines.append(
                    f"    {split.elsewhere} of the segments are of earlier calls, the "
                    "source does not have them"
                )
            if split.points_out_of_reach:
                lines.append(f"    {split.points_out_of_reach:,} points beyond +-80 m left out")
        lines += [f"  {name}: the source has no such folder" for name in self.missing_splits]
        lines += [f"  objects to paste: {self.object_bank}"] if self.object_bank else []
        return "\n".join(lines)


def estimate_prepare(
    source: Path,
    out: Path,
    splits: Sequence[str] = SPLITS,
    workers: int = 1,
    scheduler: str | None = None,
    objects: bool = True,
) -> PrepareEstimate:
    """Say what :func:`prepare` would take with these arguments, without writing into ``out``.

    Raises:
        DataError: If the source is missing or incomplete.
    """
    tasks, threads = _survey(Path(source), Path(out), splits, workers, scheduler)
    return estimate_tasks(tasks, Path(out).resolve(), threads, OBJECT_SPLITS if objects else ())


def prepare(
    source: Path,
    out: Path,
    splits: Sequence[str] = SPLITS,
    workers: int = 1,
    progress: bool = True,
    *,
    scheduler: str | None = None,
    objects: bool = True,
    force: bool = False,
) -> PrepareReport:
    """Turn Waymo v1 or v2 files into a store; segments whose source files have not changed are kept
    as they are.

    Args:
        source: ``<root>`` of ``<root>/<split>/<component>/<segment>.parquet`` or
            ``<root>/<split>/*.tfrecord``.
        out: Folder of the store, made if missing. Other splits and segments already in it stay.
        splits: Folder names; at least one must exist.
        workers: Processes; each needs less than 1 GB for full-size segments. 0 means all cores.
        progress: Show the estimate and a progress bar.
        scheduler: Address of a running Dask cluster that shares the file system; ``workers`` is not
            used then.
        objects: Also collect the objects of the training split, for pasting them into other frames.
        force: Begin even if the disk seems too small.

    Raises:
        DataError: If the source is missing or damaged, or the disk too small, full or read-only;
            finished segments are kept.
    """
    started, out = time.monotonic(), Path(out)
    tasks, threads = _survey(Path(source), out, splits, workers, scheduler)
    banks = OBJECT_SPLITS if objects else ()
    expected = estimate_tasks(tasks, out.resolve(), threads, banks)
    if progress:
        print(expected, file=sys.stderr)
    if not (expected.fits or force):
        raise DataError(
            f"{out}: {expected.shortage}; make room, choose another folder, or insist with --force"
        )
    with only_writer(out):
        _check_beside(out, tasks)
        everything = list(chain(*tasks.values()))
        results = run_tasks(prepare_segment, everything, threads, scheduler)
        done = dict(watched(results, len(everything), "prepare", "segment", progress))
        fresh = {
            split: {task.segment: done[task][0] for task in of_split}
            for split, of_split in tasks.items()
        }
        manifests = write_index(out, fresh)
        store = Store.open(out)
        paths = [
            build_bank(store.split(split), progress=progress) for split in tasks if split in banks
        ]
    return PrepareReport(
        store=str(out),
        fingerprint=store.fingerprint,
        seconds=time.monotonic() - started,
        workers=threads,
        missing_splits=tuple(split for split in splits if split not in tasks),
        splits={
            split: _split_report(manifests[split], [done[task][1] for task in tasks[split]])
            for split in tasks
        },
        object_bank=str(paths[0]) if paths else None,
    )


def _survey(
    source: Path, out: Path, splits: Sequence[str], workers: int, scheduler: str | None
) -> tuple[dict[str, list[SegmentTask]], int]:
    """Return the segments of the splits that exist, and how many threads will share them."""
    present = [split for split in dict.fromkeys(splits) if (source / split).is_dir()]
    if not present:
        raise DataError(
            f"{source} has none of the folders {', '.join(splits)}; point to the "
            "folder that holds them"
        )
    tasks = {
        split: list_tasks(source.resolve() / split, out.resolve() / split) for split in present
    }
    _check_homes(
        source, {split: [task.segment for task in of_split] for split, of_split in tasks.items()}
    )
    return tasks, cluster_cores(scheduler) if scheduler else worker_count(
        workers, sum(map(len, tasks.values()))
    )


def _check_homes(place: Path, splits: Mapping[str, Iterable[str]]) -> None:
    """Refuse a segment that is in two splits."""
    home: dict[str, str] = {}
    for split, segments in splits.items():
        for segment in segments:
            if home.setdefault(segment, split) != split:
                raise DataError(
                    f"{place}: segment {segment} is in both {home[segment]} and {split}; remove "
                    "it from one of them, "
                    "or a model would be tested on what it was trained on"
                )


def _check_beside(out: Path, tasks: Mapping[str, Sequence[SegmentTask]]) -> None:
    """Refuse files that may not stand beside what a store holds, before any is written there."""
    index = records.read_json(out / INDEX) if (out / INDEX).is_file() else {}
    for classes in map(classes_in, first_manifests(out).values()):
        if classes != tuple(WAYMO_TYPES):
            raise DataError(
                f"{out} holds frames of other classes ({', '.join(classes)}); prepare Waymo's "
                "files into another folder"
            )
    for split, of_split in tasks.items():
        task, names = of_split[0], {task.segment for task in of_split}
        for other in sorted(index.get("splits", {}).get(split, {}).keys() - names)[:1]:
            manifest = out / split / other / MANIFEST
            if manifest.is_file():
                simulated = bool(records.read_json(manifest).get("simulated"))
                files = segment_files(task.source, task.segment)
                both = f"{task.source} and {out / split}"
                _check_kinds(both, {simulated: other, is_simulated(files): task.segment})


def _check_kinds(place: Path | str, kinds: Mapping[bool, str]) -> None:
    """Refuse a segment that is simulated beside one that is not."""
    if len(kinds) > 1:
        raise DataError(
            f"{place}: segment {kinds[True]} is simulated, {kinds[False]} is not; prepare them "
            "into two stores"
        )


def prepare_segment(task: SegmentTask) -> tuple[Manifest, bool]:
    """Write one segment unless it is there already; return its manifest, and whether it was there.

    Raises:
        DataError: If a file is damaged, a frame is missing, or the disk is full or read-only.
    """
    files = segment_files(task.source, task.segment)
    with reading(task.source):
        source = source_fingerprint(files.values())
    manifest = {}
    with suppress(DataError):  # missing, damaged or of another version: it is written anew
        manifest = read_manifest(task.folder)
    kept = manifest.get("source") == source and "checksum" in manifest
    if not kept:
        frames = read_segment(task.source, task.segment)
        manifest = write_segment(
            frames, task.folder, source, simulated=is_simulated(files), expected=task.frames
        )
    return manifest, kept


def _split_report(manifests: Sequence[Manifest], kept: Sequence[bool]) -> SplitReport:
    """Add up the manifests of a split; ``kept`` says of each segment of the source whether an
    earlier call wrote it.
    """
    return SplitReport(
        segments=len(manifests),
        reused=sum(kept),
        elsewhere=len(manifests) - len(kept),
        simulated=bool(manifests[0].get("simulated")),
        **{
            name: sum(manifest[name] for manifest in manifests)
            for name in ("frames", "points", "points_out_of_reach")
        },
        boxes={
            name: sum(manifest["boxes"][name] for manifest in manifests) for name in WAYMO_TYPES
        },
    )


def write_index(
    out: Path, fresh: Mapping[str, Mapping[str, Manifest]]
) -> dict[str, list[Manifest]]:
    """Write store.json last, without which the store does not open; return the manifests of all
    segments of some splits.

    Args:
        out: The store.
        fresh: By split and segment, what was just written. Segments an earlier call took from
            elsewhere stay.

    Raises:
        DataError: If an earlier segment is damaged or in another split, or simulated ones would
            stand beside others.
    """
    path = out / INDEX
    index = records.read_json(path) if path.is_file() else {}
    contents = dict(index["splits"]) if index.get("version") == STORE_VERSION else {}
    manifests, classes = {}, {classes_in(m): m["segment"] for m in first_manifests(out).values()}
    for split, written in fresh.items():
        merged = dict(written)
        for name in sorted(contents.get(split, {}).keys() - written.keys()):
            try:
                merged[name] = read_manifest(out / split / name)
            except DataError as error:
                raise DataError(
                    f"{error}, from a source that has this segment; or delete {path} to forget it"
                ) from error
        _check_kinds(
            out / split,
            {bool(manifest.get("simulated")): name for name, manifest in merged.items()},
        )
        manifests[split] = [merged[name] for name in sorted(merged)]
        classes |= {classes_in(manifest): name for name, manifest in merged.items()}
        contents[split] = {
            manifest["segment"]: manifest["content"] for manifest in manifests[split]
        }
    if len(classes) > 1:
        first, second, *_ = (f"{name} has {', '.join(names)}" for names, name in classes.items())
        raise DataError(
            f"{out}: all segments of a store share one list of classes, but segment {first}, "
            f"{second}; put them into two stores"
        )
    _check_homes(out, contents)
    values = {
        "format": "kdlib-store",
        "version": STORE_VERSION,
        "fingerprint": fingerprint(contents),
        "splits": contents,
    }
    if index != values:
        records.write_json(path, values)
    return manifests


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Make a store's folder and hold its lock, which ends with the process, however that ends;
    clear what killed calls left.

    Raises:
        ConfigError: If the caller's script has no main guard.
        DataError: If another process holds the lock, or the disk is full or read-only.
    """
    refuse_unguarded()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(out / ".lock", timeout=0):
                _remove_leftovers(out)
                try:
                    yield
                finally:
                    _remove_leftovers(out)  # of workers that were ended in the middle
        except Timeout as error:
            raise DataError(
                f"{out} is being prepared by another process; wait for it or choose another folder"
            ) from error


def _remove_leftovers(out: Path) -> None:
    for left in (*out.glob(".*.tmp"), *out.glob("*/.*.tmp")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
