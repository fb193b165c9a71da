"""A smoke run, killed with SIGKILL at random moments and called again each time, ends as if nobody
had disturbed it.

``KDLIB_KILLS=20`` kills the whole chain at 20 moments for each kind of victim, which takes a
quarter of an hour; without it, a short chain is killed a few times by all kinds in turn.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from kdlib import records
from kdlib.lab.occupancy import FOLDER
from kdlib.lab.profile import MAIN_LINE

VICTIMS = ("child", "driver", "kernel", "tree")
KILLS = int(os.environ.get("KDLIB_KILLS", "0"))  # of each kind; 0 is the short form
CHAIN = MAIN_LINE if KILLS else ("01_train_teacher", "02_distill_student")
PARAMETERS = {
    "TEACHER": "shipped",
    "SEEDS": "1,2" if KILLS else "1",
    "ARMS": "" if KILLS else "full",
    "STUDENT_EPOCHS": 3,
    **({"REPEATS": 1, "RESAMPLES": 20} if KILLS else {}),
}

# The command itself; in the short form with a chain of fewer notebooks, about which the report has
# nothing to say.
DRIVER = """
import signal, sys
from dataclasses import replace
from kdlib import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in background
from kdlib.lab import profiles, report
from kdlib.lab.profile import MAIN_LINE
chain = tuple(sys.argv.pop(1).split(","))
if chain != MAIN_LINE:
    profiles.PROFILES["smoke"] = replace(profiles.profile("smoke"), chain=chain)
    report.write_run_report = lambda folder, profile: None
cli.main()
"""


@dataclass
class Call:
    """One ``kdlib run`` while it goes."""

    folder: Path
    data: Path
    printed: list[tuple[float, str]] = field(default_factory=list)  # seconds since the start, line
    profiles: tuple[str, ...] = ("smoke",)
    parameters: dict[str, object] = field(default_factory=lambda: PARAMETERS)
    chain: tuple[str, ...] = CHAIN

    def __post_init__(self) -> None:
        values = {"DATA_ROOT": self.data, **self.parameters}
        words = [word for name, value in values.items() for word in ("-p", f"{name}={value}")]
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                DRIVER,
                ",".join(self.chain),
                "run",
                *self.profiles,
                "--out",
                str(self.folder),
                *words,
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # for Ctrl-C, which goes to a whole group
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.printed.append((time.monotonic() - self.begun, line.rstrip()))

    def running(self) -> bool:
        return self.process.poll() is None

    def stage(self) -> str:
        """The stage at work."""
        names = [line.partition(":")[0] for _, line in self.printed if line.endswith(": running")]
        return names[-1] if names else "(starting)"

    def reached(self, stage: str) -> bool:
        """Whether a stage has begun, or a later one."""
        return self.stage() in self.chain[self.chain.index(stage) :]

    def since(self, stage: str) -> float | None:
        """Seconds since a stage began, None before."""
        times = [at for at, line in self.printed if line == f"{stage}: running"]
        return time.monotonic() - self.begun - times[0] if times else None

    def kernel(self) -> list[psutil.Process]:
        return [
            p
            for p in self._descendants()
            if any("ipykernel_launcher" in word for word in _words(p))
        ]

    def trainings(self) -> list[psutil.Process]:
        """Children at work, also those of an earlier call."""
        return [p for p in psutil.process_iter() if _training(p).startswith(str(self.folder))]

    def everything(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *self._descendants(), *self.trainings()]

    def _descendants(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def end(self) -> str:
        """Wait for the end and return what it said on stderr."""
        self.process.wait(900)
        self.reader.join(10)
        return self.process.stderr.read()


def _words(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def _training(process: psutil.Process) -> str:
    """The folder a process trains in; empty if it does something else."""
    words = _words(process)
    return words[words.index("train") + 1] if "kdlib" in words and "train" in words[:-1] else ""


def until(condition: Callable[[], Any], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@dataclass(frozen=True)
class Moment:
    """When to kill: so long after a stage began or, where a training is the victim, after its
    process started.
    """

    victim: str
    place: str  # name of the stage, or folder of the training below the run's
    seconds: float


@dataclass(frozen=True)
class Timeline:
    """How long an undisturbed run spends where, and what it ends with."""

    stages: dict[str, float]  # seconds
    trainings: dict[str, float]
    outcome: dict[str, Any]

    def moments(self, victim: str, count: int, rng: np.random.Generator) -> list[Moment]:
        """Random moments, one in each of ``count`` equal parts of the time there is."""
        spans = self.trainings if victim == "child" else self.stages
        ends = np.cumsum(list(spans.values()))
        found = []
        for at in (np.arange(count) + rng.random(count)) / count * ends[-1]:
            number = int(np.searchsorted(ends, at, side="right"))
            found.append(
                Moment(victim, list(spans)[number], float(at - (ends[number - 1] if number else 0)))
            )
        return found


def undisturbed(folder: Path, data: Path) -> Timeline:
    call = Call(folder, data)
    seen: dict[str, list[float]] = {}
    while call.running():
        for process in call.trainings():
            now = time.monotonic()
            seen.setdefault(_training(process) or "gone", [now, now])[1] = now
        time.sleep(0.05)
    said = call.end()
    assert call.process.returncode == 0, said
    starts = [
        (at, line.partition(":")[0]) for at, line in call.printed if line.endswith(": running")
    ]
    ends = [at for at, _ in starts[1:]] + [call.printed[-1][0]]
    trainings = {
        str(Path(name).relative_to(folder)): last - first
        for name, (first, last) in seen.items()
        if name != "gone"
    }
    return Timeline(
        {name: end - at for (at, name), end in zip(starts, ends)}, trainings, outcome(folder)
    )


NEUTRAL = re.compile(r"card|hardware|timing|seconds|.* ms")  # keys: times, machine, versions
TIMED = re.compile(r"and, on this machine, .*? instead of \d+\.")  # what notebook 05 says of time


def bare(value: Any, folder: Path) -> Any:
    """A result without times, hardware and paths."""
    if isinstance(value, dict):
        return {key: bare(one, folder) for key, one in value.items() if not NEUTRAL.fullmatch(key)}
    if isinstance(value, list):
        return [bare(one, folder) for one in value]
    if isinstance(value, str):
        return TIMED.sub("", value.replace(str(folder), "RUN"))
    return value


def outcome(folder: Path) -> dict[str, Any]:
    """Every result and every trained weight of a run; and the steps of each history, which must
    have no gap.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("result.json")):
        found[str(path.relative_to(folder))] = bare(records.read_json(path), folder)
    for path in sorted(folder.rglob("weights.safetensors")):
        found[str(path.relative_to(folder))] = tensors(path)
    for path in sorted(folder.rglob("history.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[str(path.relative_to(folder))] = [
            (line["step"], line["loss"], line["parts"]) for line in lines
        ]
    for path in sorted(folder.glob("*.ipynb")):
        found[path.name] = len(json.loads(path.read_text())["cells"])
    return found


def tensors(path: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: value.tobytes() for name, value in load_file(path).items()}


def kill(processes: list[psutil.Process]) -> None:
    """End processes at one stroke: none may see another one die first."""
    for sign in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(sign)


@dataclass(frozen=True)
class Hit:
    """What was killed, and what it was doing."""

    moment: Moment
    stage: str
    seconds: float  # since the stage began

    def __str__(self) -> str:
        asked = f"{self.moment.victim:6} {self.moment.place:22} +{self.moment.seconds:4.1f} s"
        return f"{asked}: in {self.stage} +{self.seconds:.1f} s"


def kill_children(call: Call, moments: list[Moment]) -> list[Hit]:
    """Kill every training at its first moment, until the call ends: those that are left finish, and
    then it fails.
    """
    first = {moment.place: moment for moment in reversed(moments)}
    hits: list[Hit] = []
    while call.running():
        for process in call.trainings():
            with suppress(psutil.NoSuchProcess, ValueError):
                place = str(Path(_training(process)).relative_to(call.folder))
                age = time.time() - process.create_time()
                if (
                    place in first
                    and age > first[place].seconds
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    stage = call.stage()
                    kill([process])
                    hits.append(Hit(first.pop(place), stage, call.since(stage) or 0))
        time.sleep(0.01)
    return hits


def kill_at(call: Call, moment: Moment) -> list[Hit]:
    """Wait for a moment and kill."""
    # A stage that was finished at the kill before this one is kept; then the moment is now.
    assert until(lambda: call.reached(moment.place) or not call.running(), 200)
    until(
        lambda: (
            not call.running()
            or call.stage() != moment.place
            or call.since(moment.place) > moment.seconds
        )
    )
    if moment.victim == "kernel":
        assert until(lambda: call.kernel() or not call.running())
    if not call.running():
        return []
    stage = call.stage()
    victims = {
        "driver": lambda: [psutil.Process(call.process.pid)],
        "kernel": call.kernel,
        "tree": call.everything,
    }
    found = victims[moment.victim]()
    kill(found)
    return [Hit(moment, stage, call.since(stage) or 0)] if found else []


def disturb(call: Call, waiting: list[Moment]) -> list[Hit]:
    """Kill at the next moments, of one kind of victim."""
    if not waiting:
        return []
    if waiting[0].victim != "child":
        return kill_at(call, waiting[0])
    return kill_children(call, list(takewhile(lambda moment: moment.victim == "child", waiting)))


def survive(
    moments: list[Moment], root: Path, data: Callable[[Path], Path], expected: dict[str, Any]
) -> int:
    """Kill at all moments, in as many runs as that takes; whatever is killed is called again, and
    each run must end well.

    Returns:
        How many runs it took.
    """
    waiting, count = list(moments), 0
    for number in range(10):
        folder = root / f"run{number}"
        code: int | None = None
        while code != 0:
            call = Call(folder, data(folder))
            hits = disturb(call, waiting)
            said, code = call.end(), call.process.returncode
            for hit in hits:
                count += 1
                waiting.remove(hit.moment)
                print(f"{count:3} {hit}", flush=True)
            if code:
                assert hits, said
                assert code == (
                    -signal.SIGKILL if hits[0].moment.victim in ("driver", "tree") else 2
                ), said
                # Kernels that die have words of their own; a driver that is left ends in its one
                # sentence.
                assert code < 0 or [
                    line for line in said.splitlines() if line.startswith("kdlib: ")
                ], said
        check_end(folder, expected)
        if not waiting:
            return number + 1
        # The others were over before their moment: the machine is less busy than it was, or little
        # was left to do.
        waiting = [replace(moment, seconds=0.7 * moment.seconds) for moment in waiting]
    raise AssertionError(f"never came: {waiting}")


def check_end(folder: Path, expected: dict[str, Any]) -> None:
    found = outcome(folder)
    assert set(found) == set(expected)
    wrong = [name for name in expected if found[name] != expected[name]]
    assert not wrong, [
        (name, expected[name], found[name]) for name in wrong if not name.endswith("safetensors")
    ] or wrong
    left = [
        str(path)
        for path in folder.rglob("*")
        if path.name.endswith(".tmp") or path.name == "child.json"
    ]
    assert not left
    for path in (folder / "run.log", *folder.rglob("train.log")):
        assert "\r" not in path.read_text(), f"{path} cannot be read with tail"
    assert until(lambda: not survivors(folder), 10), survivors(folder)


def survivors(folder: Path) -> list[list[str]]:
    """Processes that still work on a folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if (
                process.environ().get(FOLDER) == str(folder)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process.cmdline())
    return found


@pytest.fixture(scope="module")
def data(request: pytest.FixtureRequest) -> Callable[[Path], Path]:
    """Where a run finds its data: prepared already in the short form, its own in the long one,
    where notebook 00 makes it.
    """
    if KILLS:
        return lambda folder: folder.with_name(f"{folder.name}_data")
    prepared = request.getfixturevalue("smoke_data")
    return lambda folder: prepared


@pytest.fixture(scope="module")
def timeline(
    data: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Timeline]:
    folder = tmp_path_factory.mktemp("kills") / "undisturbed"
    found = undisturbed(folder, data(folder))
    print(
        "undisturbed:",
        {name: round(seconds, 1) for name, seconds in (found.stages | found.trainings).items()},
        flush=True,
    )
    yield found


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    KILLS > 0, reason="KDLIB_KILLS asks for the long form; unset it for this short one"
)
def test_killed_by_all_kinds_in_turn(
    timeline: Timeline, data: Callable[[Path], Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    names = [*VICTIMS, *VICTIMS]
    moments = [
        timeline.moments(victim, len(names), rng)[number] for number, victim in enumerate(names)
    ]
    survive(moments, tmp_path, data, timeline.outcome)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not KILLS, reason="set KDLIB_KILLS to the number of kills, such as 20")
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_at_many_moments(
    victim: str, timeline: Timeline, data: Callable[[Path], Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(VICTIMS.index(victim))
    begun = time.monotonic()
    runs = survive(timeline.moments(victim, KILLS, rng), tmp_path, data, timeline.outcome)
    print(f"{victim}: {KILLS} kills in {runs} runs, {time.monotonic() - begun:.0f} s", flush=True)
