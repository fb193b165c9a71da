"""Runs a function in a process of its own, so that its memory and its threads are its own, and says
how much memory it held.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kdlib.data.processes import process_pool

_Answer = TypeVar("_Answer")
_DIED = "died in a process of its own; the machine may be short of memory"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS")


def in_own_process(work: Callable[..., _Answer], *arguments: Any, threads: int = 0) -> _Answer:
    """Return what a function of a module returns (or raise what it raises) in a fresh interpreter.

    Libraries there get so many threads, with 0 as many as they like.

    Raises:
        ConfigError: If the caller's script has no main guard.
        DataError: If the process dies.
    """
    before = dict(os.environ)
    if threads:
        os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        with process_pool(1, f"'{work.__name__}' {_DIED}") as pool:
            return pool.submit(work, *arguments).result()
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
