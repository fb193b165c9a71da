"""Runs a function over many tasks: in this process, on a Dask cluster of this machine, or on a
running one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import pyarrow as pa

from kdlib import records
from kdlib.data.processes import GUARD, require_guard
from kdlib.errors import ConfigError, DataError

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

WORKER_MEMORY = 3 << 29
"""Bytes, 1.5 GiB: a process that grows beyond is ended. A full-size segment takes less than 1
GB.
"""

_T = TypeVar("_T")
_R = TypeVar("_R")
_CONNECT, _CLOSE = 20, 10  # seconds
_SETTINGS = {
    # Results are a few hundred bytes: nothing to spill, and a paused worker would only look like a
    # hanging one.
    **{f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause")},
    "distributed.worker.memory.terminate": 0.95,
    "distributed.scheduler.allowed-failures": 1,
    "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical",
    "distributed.comm.timeouts.connect": f"{_CONNECT}s",
}
_AGAIN = "finished segments are kept, the same command continues"


def worker_count(asked: int, tasks: int) -> int:
    """Return how many processes to start: no more than tasks; 0 means all cores, or as many as the
    free memory can feed.

    Raises:
        ConfigError: If ``asked`` is negative.
    """
    if asked < 0:
        raise ConfigError(f"workers is {asked}; give a number of processes, or 0 for all cores")
    if not asked:
        asked = min(records.cores(), psutil.virtual_memory().available // WORKER_MEMORY)
    return max(1, min(asked, tasks))


def run_tasks(
    function: Callable[[_T], _R], tasks: Sequence[_T], workers: int, scheduler: str | None = None
) -> Iterator[tuple[_T, _R]]:
    """Yield every task with its result, in the order of finishing; no more tasks are under way than
    there are threads.

    After an error nothing new is started, what is under way is finished and yielded, and then the
    error is raised.

    Args:
        function: Importable by name, in a module the workers have too; tasks can be pickled.
        tasks: Its arguments.
        workers: Processes of one thread each; 1 means this process.
        scheduler: Address of a running Dask scheduler to use instead, such as
            ``tcp://10.0.0.1:8786``.

    Raises:
        DataError: Whatever the function raises, or if a process dies or the scheduler is lost.
    """
    if scheduler is None and (workers <= 1 or len(tasks) <= 1):
        yield from ((task, function(task)) for task in tasks)
        return
    with connect(scheduler) if scheduler else _local(min(workers, len(tasks))) as client:
        yield from _collect(client, function, tasks)


def cluster_cores(address: str) -> int:
    """Return the threads of a running cluster; raises as :func:`connect`."""
    with connect(address) as client:
        return sum(client.ncores().values())


def _on_worker(function: Callable[[_T], _R], task: _T) -> _R:
    pa.set_cpu_count(1)  # one thread each, or they fight for the cores
    return function(task)


def _collect(
    client: Client, function: Callable[[_T], _R], tasks: Sequence[_T]
) -> Iterator[tuple[_T, _R]]:
    from distributed import as_completed

    arriving = as_completed(loop=client.loop, with_results=True, raise_errors=False)
    waiting, failure = iter(tasks), None
    flying: dict[Any, _T] = {}  # by the future's key
    lost = DataError(
        f"the Dask scheduler was lost; start one and run the same command again ({_AGAIN})"
    )

    def start() -> None:
        for task in islice(waiting, max(1, sum(client.ncores().values())) - len(flying)):
            future = client.submit(_on_worker, function, task, pure=False)
            flying[future.key] = task
            arriving.add(future)

    try:
        start()
        for future, result in arriving:
            task = flying.pop(future.key)
            if future.status == "finished":
                yield task, result
            else:  # raised when the others are done
                failure = failure or (_explained(result[1]) if future.status == "error" else lost)
            if failure is None:
                start()
    except (OSError, asyncio.TimeoutError, CancelledError) as error:
        raise lost from error
    if failure or flying:
        raise failure or lost


def _explained(error: BaseException) -> BaseException:
    """Say in one sentence what happened to a worker; what the function itself raised stays as it
    is.
    """
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        return DataError(
            "a preparing process died, most likely out of memory; run again with "
            f"fewer workers ({_AGAIN})"
        )
    if isinstance(error, ModuleNotFoundError):
        return DataError(
            f"the workers of the cluster lack {error.name}; install kdlib where "
            "they run, in this version"
        )
    return error


@contextmanager
def _prepared_dask() -> Iterator[None]:
    """Set what a preparation needs of Dask, and keep its remarks about its own workings off the
    screen.
    """
    import dask
    import distributed  # noqa: F401  # makes the loggers

    names = (
        name
        for name in logging.root.manager.loggerDict
        if name.startswith(("distributed", "tornado", "asyncio"))
    )
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    with dask.config.set(_SETTINGS):
        for logger in levels:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)


@contextmanager
def _local(workers: int) -> Iterator[Client]:
    from distributed import Client, LocalCluster

    require_guard()
    before = dict(os.environ)
    with _prepared_dask():
        try:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=WORKER_MEMORY,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
        except (OSError, RuntimeError, asyncio.TimeoutError) as error:
            raise DataError(f"{workers} processes cannot be started ({error}); {GUARD}") from error
        try:
            with Client(cluster, set_as_default=False) as client:
                yield client
        finally:
            _close(cluster)
            # Dask sets one thread and an eager malloc for its workers, which trainings started
            # later would inherit.
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(before)


def _close(cluster: LocalCluster) -> None:
    try:
        cluster.close(timeout=_CLOSE)
    # Dask of 2023 waits for ever for a worker that died and is just being replaced
    except asyncio.TimeoutError:
        cluster.shutdown_on_close = False
        for worker in cluster.workers.values():
            with suppress(ProcessLookupError):
                if worker.pid:
                    os.kill(worker.pid, signal.SIGKILL)


@contextmanager
def connect(address: str) -> Iterator[Client]:
    """Connect to a running cluster; a DataError says that no scheduler answers there, or that it
    has no worker.
    """
    from distributed import Client
    from distributed.comm.addressing import get_address_host_port, parse_address

    with _prepared_dask():
        # knock first: a Dask client that could not connect would keep the process waiting for a
        # minute
        try:
            if parse_address(address)[0] in ("tcp", "tls"):
                socket.create_connection(
                    get_address_host_port(address, strict=True), _CONNECT
                ).close()
        except (OSError, ValueError) as error:
            raise DataError(
                f"no Dask scheduler answers at {address} ({error}); start one with 'dask scheduler'"
            ) from error
        try:
            client = Client(address, timeout=_CONNECT, set_as_default=False)
        except (OSError, asyncio.TimeoutError, ValueError) as error:
            raise DataError(f"what answers at {address} is no Dask scheduler ({error})") from error
        with client:
            try:
                client.wait_for_workers(1, timeout=_CONNECT)
            except asyncio.TimeoutError as error:
                raise DataError(
                    f"the scheduler at {address} has no workers, or runs another version of Dask; "
                    f"start some with 'dask worker {address}' from this environment"
                ) from error
            yield client
