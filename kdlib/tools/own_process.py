"""Runs a function in a process of its own, so that its memory and its threads are its own, and says
how much memory it held.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from kdlib.errors import KdlibError

_Answer = TypeVar("_Answer")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS")


def in_own_process(work: Callable[..., _Answer], *arguments: Any, threads: int = 0) -> _Answer:
    """Return what a function of a module returns (or raise what it raises) in a fresh interpreter.

    Libraries there get so many threads, with 0 as many as they like.

    Raises:
        KdlibError: If the process dies.
    """
    before = dict(os.environ)
    if threads:
        os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    except BrokenProcessPool as error:
        raise KdlibError(
            f"'{work.__name__}' died in a process of its own; the machine may be short of memory"
        ) from error
    finally:
        os.environ.clear()
        os.environ.update(before)


def peak_bytes() -> int:
    """Return the most memory this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a fresh process may be that of the parent it was forked from
        return next(
            int(line.split()[1]) * 1024
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
