"""A Waymo v2 folder enters, a prepared store leaves; segment by segment, in processes, continuing where it was interrupted."""

from __future__ import annotations

import fcntl
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm.auto import tqdm

from kdlib import jsonfile
from kdlib.data.points import POINT
from kdlib.data.segment import STORE_VERSION, read_manifest, source_fingerprint, write_segment, writing
from kdlib.data.store import INDEX, fingerprint
from kdlib.errors import DataError
from kdlib.types import WAYMO_TYPES
from kdlib.waymo.components import list_segments, segment_files
from kdlib.waymo.parquet import read_segment


@dataclass(frozen=True)
class SplitReport:
    """What a split of the store holds."""

    segments: int
    reused: int  # of those, segments an earlier call had finished
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
    bytes_per_point: int
    missing_splits: tuple[str, ...]  # asked for, but the source has no such folder
    splits: Mapping[str, SplitReport]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.store} (fingerprint {self.fingerprint}), {self.seconds:.1f} s"]
        for name, split in self.splits.items():
            boxes = ", ".join(f"{count:,} {kind}" for kind, count in split.boxes.items())
            counts = f"{split.frames:,} frames, {split.points:,} points"
            lines += [f"  {name}: {split.segments} segments ({split.reused} kept), {counts}", f"    boxes: {boxes}"]
            if split.points_out_of_reach:
                lines.append(f"    {split.points_out_of_reach:,} points beyond +-80 m left out")
        lines += [f"  {name}: the source has no such folder" for name in self.missing_splits]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Task:
    source: Path  # <root>/<split>
    segment: str
    folder: Path  # <store>/<split>/<segment>


def prepare(
    source: Path,
    out: Path,
    splits: Sequence[str] = ("training", "validation"),
    workers: int = 1,
    progress: bool = True,
) -> PrepareReport:
    """Turn Waymo v2 files into a store; segments whose source files have not changed are kept as they are.

    Args:
        source: ``<root>`` of ``<root>/<split>/<component>/<segment>.parquet``.
        out: Folder of the store, made if missing. Other splits already in it stay.
        splits: Folder names; at least one must exist.
        workers: Processes; each needs about 0.5 GB for full-size segments.
        progress: Show a progress bar.

    Raises:
        DataError: If the source is missing or damaged, or the disk full or read-only; finished segments are kept.
    """
    started, source, out = time.monotonic(), Path(source), Path(out)
    present = [split for split in splits if (source / split).is_dir()]
    if not present:
        raise DataError(f"{source} has none of the folders {', '.join(splits)}; point to the folder that holds them")
    tasks = {
        split: [_Task(source / split, name, out / split / name) for name in list_segments(source / split)] for split in present
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with _only_one(out):
            _remove_leftovers(out)
            manifests = _run([task for some in tasks.values() for task in some], workers, progress)
            contents = _write_index(out, {split: [manifests[task.folder][0] for task in some] for split, some in tasks.items()})
    reports = {split: _summary([manifests[task.folder] for task in some]) for split, some in tasks.items()}
    missing = tuple(split for split in splits if split not in present)
    return PrepareReport(str(out), fingerprint(contents), time.monotonic() - started, POINT.itemsize, missing, reports)


def prepare_segment(task: _Task) -> tuple[dict[str, Any], bool]:
    """Write one segment unless it is there already; return its manifest and whether it was kept."""
    source = source_fingerprint(segment_files(task.source, task.segment).values())
    kept = _finished(task.folder, source)
    if kept is not None:
        return kept, True
    return write_segment(read_segment(task.source, task.segment), task.folder, source), False


def _finished(folder: Path, source: str) -> dict[str, Any] | None:
    if not folder.is_dir():
        return None
    try:
        manifest = read_manifest(folder)
    except DataError:  # another version or damaged: it is written anew
        return None
    return manifest if manifest.get("source") == source else None


def _run(tasks: Sequence[_Task], workers: int, progress: bool) -> dict[Path, tuple[dict[str, Any], bool]]:
    done: dict[Path, tuple[dict[str, Any], bool]] = {}
    with tqdm(total=len(tasks), desc="prepare", unit="segment", mininterval=2, disable=not progress) as bar:
        if workers <= 1 or len(tasks) <= 1:
            for task in tasks:
                done[task.folder] = prepare_segment(task)
                bar.update()
            return done
        # spawn: forking a process with pyarrow's threads can hang; one thread each, or they fight for the cores
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=pa.set_cpu_count, initargs=(1,))
        with pool:
            futures = {pool.submit(prepare_segment, task): task for task in tasks}
            try:
                for future in as_completed(futures):
                    done[futures[future].folder] = future.result()
                    bar.update()
            except BrokenProcessPool as error:
                raise DataError("a preparing process died, most likely out of memory; run again with fewer workers") from error
            finally:
                pool.shutdown(cancel_futures=True)
    return done


def _write_index(out: Path, manifests: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, str]]:
    """Write store.json last: without it, or with changed segments, the store does not open."""
    contents: dict[str, dict[str, str]] = {}
    if (out / INDEX).is_file():
        index = jsonfile.read(out / INDEX)
        if index.get("version") == STORE_VERSION:
            contents.update(index["splits"])
    for split, some in manifests.items():
        contents[split] = {manifest["segment"]: manifest["content"] for manifest in some}
    values = {"format": "kdlib-store", "version": STORE_VERSION, "fingerprint": fingerprint(contents), "splits": contents}
    if not (out / INDEX).is_file() or jsonfile.read(out / INDEX) != values:
        jsonfile.write(out / INDEX, values)
    return contents


def _summary(manifests: Sequence[tuple[Mapping[str, Any], bool]]) -> SplitReport:
    records = [manifest for manifest, _ in manifests]
    return SplitReport(
        segments=len(records),
        reused=sum(kept for _, kept in manifests),
        frames=sum(record["frames"] for record in records),
        points=sum(record["points"] for record in records),
        points_out_of_reach=sum(record["points_out_of_reach"] for record in records),
        boxes={name: sum(record["boxes"][name] for record in records) for name in WAYMO_TYPES},
    )


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Hold a lock on the store; it ends with the process, however that ends."""
    with (out / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{out} is being prepared by another process; wait for it or choose another folder") from error
        yield


def _remove_leftovers(out: Path) -> None:
    """Remove what a killed call left; nobody else writes, the lock is ours."""
    for folder in out.glob("*/.*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)
