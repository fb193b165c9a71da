"""Where trainings run: as processes of this machine, one on each of its GPUs, or on the workers of
a Dask cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlib import records
from kdlib.data.cluster import connect
from kdlib.errors import DataError
from kdlib.training.job import RunDir

if TYPE_CHECKING:
    from distributed import Client, Future

# How a driver tells its notebooks: where a training runs is no part of what is trained, so these
# are no parameters.
GPUS = "KDLIB_GPUS"  # ids as the driver of the GPUs knows them, comma-separated
SCHEDULER = "KDLIB_SCHEDULER"  # address of a Dask scheduler
VISIBLE = "CUDA_VISIBLE_DEVICES"

# glibc hands large blocks back to the kernel and gets them zeroed again at every step, a tenth of a
# step's time on a CPU.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


@dataclass(eq=False)
class Child:
    """A training that was started, as a process of this machine."""

    process: subprocess.Popen[bytes]
    place: str = ""  # what is shown of where it runs, "" where there is only one place
    lost: bool = False  # whether nobody can say any more what became of it

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        return self.process.poll()

    def ending(self) -> str:
        """Say in words how it ended, where that was too early."""
        code = self.poll() or 0
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else (f"ended with code {code}")
        )
        return f"{how} without finishing"


def _spawn(
    run: RunDir,
    command: Sequence[str],
    threads: int,
    keep_open: tuple[int, ...] = (),
    **variables: str,
) -> subprocess.Popen[bytes]:
    """Start a child with this package, unbuffered output, and at most so many threads (0 sets no
    limit).
    """
    path = os.pathsep.join(
        filter(None, (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")))
    )
    limits = (
        {name: str(threads) for name in ("KDLIB_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        if threads
        else {}
    )
    with run.log.open("ab") as log:
        return subprocess.Popen(
            (*command, str(run.path)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the end of a notebook or terminal does not reach it
            env={
                **_MALLOC,
                **os.environ,
                "PYTHONPATH": path,
                "PYTHONUNBUFFERED": "1",
                **limits,
                **variables,
            },
            pass_fds=keep_open,
        )


@dataclass(frozen=True)
class Processor:
    """This machine's processor, or whatever accelerator a training finds by itself."""

    limit: int  # trainings at a time
    threads: int  # of each, 0 leaves it to them

    def start(self, run: RunDir, command: Sequence[str]) -> Child:
        """Start a command, to which the folder is added; who keeps to the limit is never
        refused.
        """
        return Child(_spawn(run, command, self.threads))


class Gpus:
    """GPUs of this machine, one training on each.

    A lock that the training itself holds says that its GPU is taken: it ends with the training,
    however that ends, and holds against the trainings of other drivers and for those whose driver
    was killed.
    """

    def __init__(self, ids: Sequence[str], threads: int) -> None:
        self._ids, self.limit = tuple(ids), len(ids)
        self._threads = threads or max(1, (os.cpu_count() or 1) // len(ids))
        self._locks = Path(tempfile.gettempdir()) / f"kdlib-{os.getuid()}"
        self._locks.mkdir(mode=0o700, exist_ok=True)

    def start(self, run: RunDir, command: Sequence[str]) -> Child | None:
        """Start a command, to which the folder is added, on a free GPU; None if all are taken,
        perhaps by other drivers.
        """
        for name in self._ids:
            with (self._locks / f"gpu_{name.replace('/', '_')}").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                return Child(
                    _spawn(run, command, self._threads, (lock.fileno(),), **{VISIBLE: name}),
                    f"GPU {name}",
                )
        return None


class RemoteChild(Child):
    """A training that a worker of a Dask cluster started."""

    def __init__(self, cluster: Cluster, worker: str, future: Future[Any]) -> None:
        """Keep the future of :func:`train_here`."""
        self._cluster, self.place, self._future = cluster, worker, future
        self._code: int | None = None

    def poll(self) -> int | None:
        """See :meth:`Child.poll`; 1 where its worker was lost."""
        if self._code is None and self._future.done():
            self.lost = self._future.status != "finished"
            self._code = 1 if self.lost else int(self._future.result())
        if self._code is None and self.place not in self._cluster.workers():
            self.lost, self._code = True, 1
            self._future.cancel()
        return self._code

    def ending(self) -> str:
        """See :meth:`Child.ending`."""
        return f"lost its Dask worker {self.place}" if self.lost else super().ending()


def train_here(run_dir: str, arguments: Sequence[str], threads: int) -> int:
    """Train in a run folder from a Dask worker, with the worker's own Python, and return the exit
    code.
    """
    run = RunDir(Path(run_dir))
    child = _spawn(run, (sys.executable, *arguments), threads)
    code = child.wait()
    # Another machine cannot see that the process is gone: where it was killed, its claim is taken
    # back here.
    with contextlib.suppress(DataError):
        if records.read_json(run.owner).get("pid") == child.pid:
            run.owner.unlink(missing_ok=True)
    return code


class Cluster:
    """The workers of a Dask cluster that sees the same files, one training on each; a worker's
    environment chooses its GPU.
    """

    def __init__(self, client: Client, threads: int) -> None:
        self._client, self._threads = client, threads
        self._started: list[RemoteChild] = []

    def workers(self) -> set[str]:
        """Return the addresses of the workers there are."""
        try:
            return set(self._client.ncores())
        except (OSError, asyncio.TimeoutError, CancelledError, AttributeError) as error:
            raise DataError(
                "the Dask scheduler was lost; trainings go on, and the same command finds them"
            ) from error

    @property
    def limit(self) -> int:
        """One training for each worker."""
        return max(1, len(self.workers()))

    def start(self, run: RunDir, command: Sequence[str]) -> Child | None:
        """Start a command, to which the folder is added, on a free worker; None if all are at
        work.
        """
        free = sorted(
            self.workers() - {child.place for child in self._started if child.poll() is None}
        )
        if not free:
            return None
        task = (train_here, str(run.path), command[1:], self._threads)
        future = self._client.submit(*task, workers=free[:1], allow_other_workers=False, pure=False)
        self._started.append(RemoteChild(self, free[0], future))
        return self._started[-1]


Places = Processor | Gpus | Cluster


@contextlib.contextmanager
def places(parallel: int, threads: int) -> Iterator[Places]:
    """Give the places that the environment names: a cluster, GPUs, or else ``parallel`` processes
    of ``threads`` threads.

    Raises:
        DataError: If no scheduler answers, or it has no worker.
    """
    if os.environ.get(SCHEDULER):
        with connect(os.environ[SCHEDULER]) as client:
            yield Cluster(client, threads)
    elif os.environ.get(GPUS):
        yield Gpus(os.environ[GPUS].split(","), threads)
    else:
        yield Processor(parallel, threads)
