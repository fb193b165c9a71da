"""Thousands of damaged files, 10,000 in the long suite: each ends in a typed error or a correct
frame.

None hangs, none takes memory it could not justify.

The mutants are those of ``mutate.py``, half of them v1 and half v2: bytes of the file, payloads and
matrices with fitting checksums, cells, rows, columns, whole files. What is correct depends on them.
Where a checksum covers the change (v1) only an error or the unchanged frames are, except for a file
cut on the boundary of a record, which nothing in the format tells. Where none does, other numbers
cannot be told from the right ones: then both frames must be there with finite points of the right
shape, no more than pixels, rigid poses, and boxes that can be; the time stamps of v2 are in several
files and must be the right ones. Rows and columns in another order must give the unchanged frames.

More of them: ``python tests/waymo/mutate.py tests/goldens/waymo_format FOLDER FIRST COUNT``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

MUTATE = Path(__file__).with_name("mutate.py")
ROOT = MUTATE.parents[2]
MOST_CRASHES = 10  # then the rest need not be read

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="limits of memory and time are Linux's"
)


def run(goldens, folder, first, count, program=(str(MUTATE),)):
    """Return what came of some mutants; a process that ends early is started anew behind the mutant
    that ended it.
    """
    settings = {
        "MALLOC_ARENA_MAX": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    environment = {
        **os.environ,
        **settings,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(MUTATE.parent))),
    }
    found, end, crashes = [], first + count, 0
    while first < end and crashes < MOST_CRASHES:
        command = [
            sys.executable,
            *program,
            str(goldens),
            str(folder),
            str(first),
            str(end - first),
        ]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
        lines = done.stdout.splitlines()
        found += [json.loads(line) for line in lines if line.startswith("{")]
        if done.returncode == 0:
            break
        assert lines and not lines[-1].startswith("{"), done.stderr
        number, _, kind = lines[-1].partition(" ")
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        found.append(
            {
                "number": int(number),
                "kind": kind,
                "result": (f"FAULT: process ended with {done.returncode}: {said}"),
                "peak": 0,
            }
        )
        first, crashes = int(number) + 1, crashes + 1
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_mutants(goldens, tmp_path, count):
    workers = min(4, os.cpu_count() or 1)
    share = -(-count // workers)
    with ThreadPoolExecutor(workers) as pool:
        shares = [
            (tmp_path / str(n), n * share, min(share, count - n * share)) for n in range(workers)
        ]
        found = [
            one
            for some in pool.map(lambda part: run(goldens / "waymo_format", *part), shares)
            for one in some
        ]
    faults = [one for one in found if one["result"].startswith("FAULT")]
    assert not faults, "\n".join(map(str, faults[:20]))
    assert sorted(one["number"] for one in found) == list(range(count))
    classes = Counter((one["kind"], one["result"].split()[0]) for one in found)
    for (kind, result), number in sorted(classes.items()):
        print(f"{kind:12} {result:8} {number:5}")
    print(f"largest peak {max(one['peak'] for one in found) / 2**20:.0f} MiB")
    errors = {kind: classes[kind, "error"] for kind, _ in classes}
    assert sum(errors.values()) > count / 2
    assert all(number > count / 200 for kind, number in errors.items() if kind != "v2 order"), (
        errors
    )
    assert (
        classes["v2 order", "equal"] > count / 100
        and "v2 order" in errors
        and errors["v2 order"] == 0
    )
    fine = (
        "v1 payload",
        "v1 matrix",
        "v1 field",
        "v2 bytes",
        "v2 footer",
        "v2 pages",
        "v2 cells",
        "v2 schema",
    )
    for kind in fine:
        # the damage is not all of the crude sort
        assert classes[kind, "equal"] + classes[kind, "changed"] > count / 200, kind


FAULTS = {
    "an untyped error": ("raise KeyError('x')", "KeyError"),
    "a crash": ("os.abort()", "ended with -6"),
    "a hang": ("time.sleep(60)", "ended with -14"),
    "an endless loop in C": ("re.match('(a*)*b', 'a' * 60)", "ended with -14"),
    "a bomb": ("bytearray(200 << 20)", "MemoryError"),
    "fewer frames": ("return iter(frames[:0])", "0 frames, allowed"),
    "one frame twice": ("return iter(frames[:1] * 2)", "allowed: equal|wrong names"),
    "not a number": ("frames[0].points[0, 0] = np.nan", "wrong finite"),
    "a file that is read though it is another": ("return iter(frames)", "equal, allowed: error"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_the_harness_sees(goldens, tmp_path, what):
    """A reader with a fault of its own must not pass."""
    statement, said = FAULTS[what]
    program = f"""
import os, re, sys, time
import numpy as np
import mutate

mutate.SECONDS = 0.5
reads = {{"parquet": mutate.reader_v2.frames_v2, "records": mutate.reader_v1.frames_v1}}
ready = []


def faulty(read):
    def call(*args):
        if not ready:
            frames = list(read(*args))
        else:
            frames = [frame_copy(frame) for frame in ready[0].frames]
            {statement}
        return iter(frames)

    return call


def frame_copy(frame):
    from dataclasses import replace

    return replace(frame, points=frame.points.copy())


class Mutants(mutate.Mutants):
    def __init__(self, *args):
        super().__init__(*args)
        ready.append(self)


mutate.Mutants = Mutants
mutate.reader_v2.frames_v2 = faulty(reads["parquet"])
mutate.reader_v1.frames_v1 = faulty(reads["records"])
mutate.main(*sys.argv[1:])
"""
    first, count = (0, 60) if "another" in what else (0, 2)
    found = run(goldens / "waymo_format", tmp_path, first, count, ("-c", program))
    texts = [one["result"] for one in found]
    faults = [text for text in texts if text.startswith("FAULT")]
    assert faults and any(part in text for text in faults for part in said.split("|")), texts
