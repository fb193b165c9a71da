"""A seed and numbers in, a folder of genuine Waymo segments out, many at a time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from kdlib.errors import ConfigError, DataError
from kdlib.simulate.segment import FORMATS, REACH, SegmentJob, is_written, write_segment


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

    v2 is ``<out>/<split>/<component>/<segment>.parquet``, v1 ``<out>/<split>/segment-<segment>_with_camera_labels.tfrecord``; the
    frames in them are the same. They depend on seed, split, number, frames and scale alone, never on the number of workers.
    Segments that are there already with the same parameters are kept.

    Args:
        out: Root folder of the data set.
        segments: How many segments.
        frames: Frames per segment, at 10 Hz.
        seed: Another seed, other streets.
        scale: "demo" (coarse lasers, 45 m of street) or "full" (Waymo's resolution, 80 m).
        split: "training", "validation" or "testing".
        workers: Processes; 0 for one per core.
        progress: Show a progress bar.
        format: "v2" (Parquet) or "v1" (TFRecord).

    Raises:
        ConfigError: If an argument is out of range, or the folder holds segments of the other format.
        DataError: If a file cannot be written or a worker dies.
    """
    _check(segments, frames, seed, scale, split, workers)
    folder = Path(out) / split
    _check_format(folder, format)
    jobs = [SegmentJob(seed, split, number, frames, scale) for number in range(segments)]
    missing = [job for job in jobs if not is_written(folder, job, format)]
    # mininterval keeps logs short where the bar is not on a terminal.
    bar = tqdm(
        total=segments,
        initial=segments - len(missing),
        desc=f"simulate {split}",
        unit="segment",
        mininterval=2.0,
        disable=not progress,
    )
    with bar:
        for _ in _run(folder, missing, format, min(workers or _cores(), len(missing))):
            bar.update()
    return [job.name for job in jobs]


def _check(segments: int, frames: int, seed: int, scale: str, split: str, workers: int) -> None:
    for name, value, least in (("segments", segments, 1), ("frames", frames, 1), ("seed", seed, 0), ("workers", workers, 0)):
        if value < least:
            raise ConfigError(f"{name} is {value}, it must be at least {least}")
    if scale not in REACH:
        raise ConfigError(f"unknown scale '{scale}', choose one of {', '.join(REACH)}")
    if split not in ("training", "validation", "testing"):
        raise ConfigError(f"unknown split '{split}', choose one of training, validation, testing")


def _check_format(folder: Path, format: str) -> None:
    if format not in FORMATS:
        raise ConfigError(f"unknown format '{format}', choose one of {', '.join(FORMATS)}")
    other = "lidar/*.parquet" if format == "v1" else "*.tfrecord"
    there = next(folder.glob(other), None)
    if there is not None:
        raise ConfigError(f"{folder} holds {there.relative_to(folder)}, which is not {format}; choose another folder")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(folder: Path, jobs: Sequence[SegmentJob], format: str, workers: int) -> Iterator[str]:
    if workers <= 1:
        for job in jobs:
            yield write_segment(folder, job, format)
        return
    # Fresh processes: open3d brings threads along, which a fork would not survive.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(write_segment, folder, job, format) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise DataError("a simulating process was killed, perhaps for want of memory; run again with fewer workers") from error
    finally:
        pool.shutdown(cancel_futures=True)
