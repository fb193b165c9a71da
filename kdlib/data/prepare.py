"""Waymo files of either format enter, a prepared store leaves; segment by segment, continuing where it was interrupted."""

from __future__ import annotations

import fcntl
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.data.cluster import cluster_cores, run_tasks, worker_count
from kdlib.data.estimate import Estimate, SegmentTask, check_homes, estimate, survey
from kdlib.data.object_bank import build_bank
from kdlib.data.points import POINT
from kdlib.data.progress import progress_bar
from kdlib.data.segment import STORE_VERSION, read_manifest, source_fingerprint, write_segment, writing
from kdlib.data.store import INDEX, Store, fingerprint
from kdlib.data.summary import PrepareReport, SplitReport
from kdlib.errors import DataError
from kdlib.waymo.components import reading
from kdlib.waymo.segments import read_segment, segment_files
from kdlib.waymo.simulated import is_simulated

SPLITS = ("training", "validation")
OBJECT_SPLITS = ("training",)
"""Splits whose objects are pasted into other frames in training."""


@dataclass(frozen=True)
class _Done:
    """What a worker says of a segment."""

    manifest: Mapping[str, Any]
    kept: bool
    peak_memory: int  # bytes, of its process so far


def plan(
    source: Path,
    out: Path,
    splits: Sequence[str] = SPLITS,
    workers: int = 1,
    scheduler: str | None = None,
    objects: bool = True,
) -> Estimate:
    """Say what :func:`prepare` would take with these arguments, without writing into ``out``.

    Raises:
        DataError: If the source is missing or incomplete.
    """
    tasks = survey(Path(source).resolve(), Path(out).resolve(), _present(Path(source), splits))
    return estimate(tasks, Path(out).resolve(), _threads(tasks, workers, scheduler), OBJECT_SPLITS if objects else ())


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
    """Turn Waymo v1 or v2 files into a store; segments whose source files have not changed are kept as they are.

    Args:
        source: ``<root>`` of ``<root>/<split>/<component>/<segment>.parquet`` or ``<root>/<split>/*.tfrecord``.
        out: Folder of the store, made if missing. Other splits and segments already in it stay.
        splits: Folder names; at least one must exist.
        workers: Processes; each needs less than 1 GB for full-size segments. 0 means all cores.
        progress: Show the estimate and a progress bar.
        scheduler: Address of a running Dask cluster that shares the file system; ``workers`` is not used then.
        objects: Also collect the objects of the training split, for pasting them into other frames.
        force: Begin even if the disk seems too small.

    Raises:
        DataError: If the source is missing or damaged, or the disk too small, full or read-only; finished segments are kept.
    """
    started, source, out = time.monotonic(), Path(source), Path(out)
    present = _present(source, splits)
    tasks = survey(source.resolve(), out.resolve(), present)
    threads = _threads(tasks, workers, scheduler)
    banks = OBJECT_SPLITS if objects else ()
    _announce(estimate(tasks, out.resolve(), threads, banks), out, progress, force)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with only_one(out):
            begun = time.monotonic()
            done = _run(out, [task for some in tasks.values() for task in some], threads, scheduler, progress)
            speed = sum(one.manifest["frames"] for one in done.values() if not one.kept) / (time.monotonic() - begun)
            manifests = {
                split: merged(out / split, {task.segment: done[task.folder].manifest for task in some})
                for split, some in tasks.items()
            }
            contents = write_index(out, manifests)
            paths = [build_bank(Store.open(out).split(split), progress=progress) for split in present if split in banks]
    return PrepareReport(
        store=str(out),
        fingerprint=fingerprint(contents),
        seconds=time.monotonic() - started,
        frames_per_second=speed or None,
        workers=threads,
        peak_memory=max(one.peak_memory for one in done.values()),
        bytes_per_point=POINT.itemsize,
        missing_splits=tuple(split for split in splits if split not in present),
        splits={
            split: SplitReport.of(manifests[split], len(tasks[split]), sum(done[task.folder].kept for task in tasks[split]))
            for split in present
        },
        object_bank=str(paths[0]) if paths else None,
    )


def prepare_segment(task: SegmentTask) -> _Done:
    """Write one segment unless it is there already.

    Raises:
        DataError: If a file is damaged, a frame is missing, or the disk is full or read-only.
    """
    files = segment_files(task.source, task.segment)
    with reading(task.source):
        source = source_fingerprint(files.values())
    manifest = _finished(task.folder, source)
    kept = manifest is not None
    if manifest is None:
        frames = read_segment(task.source, task.segment)
        manifest = write_segment(frames, task.folder, source, simulated=is_simulated(files), expected=task.frames)
    unit = 1 if sys.platform == "darwin" else 1024
    return _Done(manifest, kept, unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _announce(expected: Estimate, out: Path, progress: bool, force: bool) -> None:
    if progress:
        print(expected, file=sys.stderr)
    if not (expected.fits or force):
        raise DataError(f"{out}: {expected.shortage}; make room, choose another folder, or insist with --force")


def _present(source: Path, splits: Sequence[str]) -> list[str]:
    present = [split for split in dict.fromkeys(splits) if (source / split).is_dir()]
    if not present:
        raise DataError(f"{source} has none of the folders {', '.join(splits)}; point to the folder that holds them")
    return present


def _threads(tasks: Mapping[str, Sequence[SegmentTask]], workers: int, scheduler: str | None) -> int:
    return cluster_cores(scheduler) if scheduler else worker_count(workers, sum(map(len, tasks.values())))


def _finished(folder: Path, source: str) -> dict[str, Any] | None:
    if not folder.is_dir():
        return None
    try:
        manifest = read_manifest(folder)
    except DataError:  # another version or damaged: it is written anew
        return None
    return manifest if manifest.get("source") == source and "checksum" in manifest else None


def _run(out: Path, tasks: Sequence[SegmentTask], workers: int, scheduler: str | None, progress: bool) -> dict[Path, _Done]:
    done: dict[Path, _Done] = {}
    remove_leftovers(out)
    try:
        with progress_bar(len(tasks), "prepare", "segment", progress) as bar:
            for task, result in run_tasks(prepare_segment, tasks, workers, scheduler):
                done[task.folder] = result
                bar.update()
    finally:
        remove_leftovers(out)  # of workers that were ended in the middle
    return done


def merged(folder: Path, written: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the manifests of a split: those just written, and those of segments an earlier call took from elsewhere.

    Raises:
        DataError: If an earlier segment is damaged, or simulated ones would stand beside others.
    """
    found = dict(written)
    index = folder.parent / INDEX
    known = records.read_json(index) if index.is_file() else {}
    if known.get("version") == STORE_VERSION:
        for name in known["splits"].get(folder.name, {}):
            if name not in found:
                try:
                    found[name] = read_manifest(folder / name)
                except DataError as error:
                    raise DataError(f"{error}, from a source that has this segment; or delete {index} to forget it") from error
    kinds = {bool(manifest.get("simulated")): name for name, manifest in found.items()}
    if len(kinds) > 1:
        raise DataError(f"{folder}: segment {kinds[True]} is simulated, {kinds[False]} is not; prepare them into two stores")
    return [found[name] for name in sorted(found)]


def write_index(out: Path, manifests: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, str]]:
    """Write store.json last and return what it lists: without it, or with changed segments, the store does not open."""
    contents: dict[str, dict[str, str]] = {}
    if (out / INDEX).is_file():
        index = records.read_json(out / INDEX)
        if index.get("version") == STORE_VERSION:
            contents.update(index["splits"])
    for split, some in manifests.items():
        contents[split] = {manifest["segment"]: manifest["content"] for manifest in some}
    check_homes(out, contents)
    values = {"format": "kdlib-store", "version": STORE_VERSION, "fingerprint": fingerprint(contents), "splits": contents}
    if not (out / INDEX).is_file() or records.read_json(out / INDEX) != values:
        records.write_json(out / INDEX, values)
    return contents


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Hold a lock on the store; it ends with the process, however that ends.

    Raises:
        DataError: If another process holds it.
    """
    with (out / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{out} is being prepared by another process; wait for it or choose another folder") from error
        yield


def remove_leftovers(out: Path) -> None:
    """Remove what a killed call left; nobody else writes, the lock is ours."""
    for left in (*out.glob(".*.tmp"), *out.glob("*/.*.tmp")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
