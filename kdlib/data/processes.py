"""Hands out pools of fresh processes; a script without a main guard, which none can start under, is
told so.
"""

from __future__ import annotations

import ast
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdlib.errors import ConfigError, DataError

GUARD = "call from under \"if __name__ == '__main__':\", or with one worker"


def refuse_unguarded() -> None:
    """Refuse work in a process that is only just importing its parent's script.

    Raises:
        ConfigError: If the script calls without a main guard; the message names it.
    """
    # Python's own look at whether a spawned process still runs the script of its parent
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(f"a process of this call runs the whole script again; {GUARD}")


def require_guard() -> None:
    """Refuse to start processes from the body of a script that has no main guard: each would run
    the whole script again, and some of Python's pools then wait for ever.

    Raises:
        ConfigError: If it is so; the message names script and guard.
    """
    refuse_unguarded()
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if script is None or main.__spec__ is not None:  # typed in, or started with -m
        return
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
    if frame.f_globals is not vars(main) or not Path(script).is_file():
        return  # called from another thread, or after the script has ended
    body = ast.parse(Path(script).read_bytes()).body
    tests = [ast.unparse(node.test) for node in body if isinstance(node, ast.If)]
    if not any("__name__" in test for test in tests):
        raise ConfigError(f"{script} cannot start processes; {GUARD}")


@contextmanager
def process_pool(
    workers: int, death: str, initializer: Callable[..., Any] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Hand out a pool of spawned processes, which inherit no thread and no lock as forked ones do.

    Args:
        workers: Processes, at most.
        death: What to say if one dies.
        initializer: Called in each of them first, with ``arguments``.
        *arguments: For it.

    Raises:
        ConfigError: If the caller's script has no main guard.
        DataError: If a process dies.
    """
    require_guard()
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    pool = ProcessPoolExecutor(workers, context, _begin, (started, initializer, arguments))
    try:
        yield pool
    except BrokenProcessPool as error:
        if started.is_set():
            raise DataError(death) from error
        # the processes have said why, each for itself
        raise ConfigError(f"processes of this call cannot be started; {GUARD}") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(started: Any, initializer: Callable[..., Any] | None, arguments: Any) -> None:
    started.set()
    if initializer is not None:
        initializer(*arguments)
