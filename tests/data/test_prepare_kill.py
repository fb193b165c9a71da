"""prepare, killed at random moments and started again, leaves the store an undisturbed call leaves,
to the last byte.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from kdlib.data.prepare import prepare
from kdlib.data.store import Store
from kdlib.errors import DataError
from kdlib.simulate import simulate

# A process that has imported everything and forks: a child is at work after milliseconds instead of
# seconds.
NURSERY = """
import json, os, sys, traceback
from pathlib import Path
import distributed, kdlib.simulate.generate
from kdlib.data import prepare as module

for line in sys.stdin:
    source, out, workers = json.loads(line)
    child = os.fork()
    if not child:
        try:
            os.setsid()
            os.write(1, b"started %d\\n" % os.getpid())
            os.dup2(2, 1)
            module.prepare(Path(source), Path(out), workers=workers, progress=False)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.write(1, b"ended %d\\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Nursery:
    def __init__(self, source: Path) -> None:
        self.source = source
        single = {
            name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            env={**os.environ, **single},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def start(self, out: Path, workers: int) -> int:
        print(
            json.dumps([str(self.source), str(out), workers]), file=self._process.stdin, flush=True
        )
        return self._answer("started")

    def wait(self) -> int:
        return self._answer("ended")

    def _answer(self, expected: str) -> int:
        word, _, number = self._process.stdout.readline().partition(" ")
        assert word == expected, (word, self.close())
        return int(number)

    def close(self) -> str:
        return self._process.communicate()[1]


@pytest.fixture(scope="module")
def waymo(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("waymo")
    for seed, (split, count) in enumerate({"training": 4, "validation": 1}.items()):
        simulate(
            root,
            segments=count,
            frames=2,
            seed=seed,
            scale="demo",
            split=split,
            workers=1,
            progress=False,
        )
    return root


@pytest.fixture(scope="module")
def undisturbed(waymo, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("store") / "store"
    prepare(waymo, out, progress=False)
    return tree(out)


@pytest.fixture(scope="module")
def nursery(waymo):
    nursery = Nursery(waymo)
    yield nursery
    nursery.close()


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def session(leader: int) -> list[int]:
    """Processes of a session, zombies left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def until(condition: Callable[[], object], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def killed_in_the_middle(
    nursery: Nursery, out: Path, workers: int, delay: float, whole_group: bool = True
) -> bool:
    """Start a call and kill it ``delay`` seconds after its work began; return whether that came in
    time.
    """
    leader = nursery.start(out, workers)
    assert until((out / ".lock").exists)
    if workers > 1:
        assert until(lambda: list(out.glob("*/.*.tmp")) or (out / "store.json").exists())
    time.sleep(delay)
    with suppress(ProcessLookupError):  # it was faster
        (os.killpg if whole_group else os.kill)(leader, signal.SIGKILL)
    hit = nursery.wait() == -signal.SIGKILL
    assert not whole_group or until(lambda: not session(leader), 5)
    return hit


def duration(nursery: Nursery, out: Path) -> float:
    """Time from the lock to the end of an undisturbed call with one worker."""
    nursery.start(out, 1)
    assert until((out / ".lock").exists)
    begun = time.monotonic()
    assert nursery.wait() == 0
    return time.monotonic() - begun


def check_open(out: Path) -> None:
    """Whatever moment it was: the store opens whole, or says in one sentence that it is
    unfinished.
    """
    try:
        Store.open(out)
    except DataError as error:
        assert "\n" not in str(error) and "prepare" in str(error)


def test_killed_at_16_moments_and_resumed_each_time(nursery, undisturbed, tmp_path):
    whole = duration(nursery, tmp_path / "first")
    assert tree(tmp_path / "first") == undisturbed
    rng = np.random.default_rng(0)
    moments = list(rng.permutation((np.arange(16) + rng.random(16)) / 16))
    for number in range(40):
        out = tmp_path / str(number)
        if not killed_in_the_middle(nursery, out, 1, whole * moments[-1]):
            whole *= 0.9  # the machine is less busy than it was; this moment is tried again
            continue
        check_open(out)
        nursery.start(out, 1)
        assert nursery.wait() == 0
        assert tree(out) == undisturbed, f"killed {moments[-1]:.0%} of the way"
        moments.pop()
        if not moments:
            return
    raise AssertionError(f"{len(moments)} moments were never hit")


def test_killed_at_4_moments_with_two_workers(nursery, undisturbed, tmp_path):
    """Every other time only the caller dies: its workers may still be writing when the next call
    begins.
    """
    rng = np.random.default_rng(1)
    hits = 0
    for number in range(4):
        out = tmp_path / str(number)
        hits += killed_in_the_middle(
            nursery, out, 2, rng.uniform(0, 0.1), whole_group=number % 2 == 0
        )
        check_open(out)
        nursery.start(out, 1 + number // 3)
        assert nursery.wait() == 0
        assert tree(out) == undisturbed
    assert hits >= 2


def test_orphaned_workers_end_by_themselves(nursery, tmp_path):
    out = tmp_path / "store"
    leader = nursery.start(out, 2)
    assert until(lambda: list(out.glob("*/.*.tmp")))
    assert len(session(leader)) >= 3  # the caller and two workers
    os.kill(leader, signal.SIGKILL)
    nursery.wait()
    assert until(lambda: not session(leader), 10), session(leader)
