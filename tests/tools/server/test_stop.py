"""Stopping from another terminal: what trains in a folder is told, all else is left alone, and
every answer says how to go on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kdlib import records
from kdlib.errors import ConfigError
from kdlib.lab import occupancy
from kdlib.tools.server.stop import stop_runs

# A training in name: it says it is up, and SIGTERM ends it with a word in a file, if it hears it.
TRAINING = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[-1])
def end(number, frame):
    (folder / "told").write_text("checkpoint")
    sys.exit(143)
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == "deaf" else end)
(folder / "up").write_text("")
time.sleep(120)
"""

Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start() -> Iterator[Start]:
    """``f(folder, kind)``: a process that looks like the training of a folder."""
    processes = []

    def begin(folder: Path, kind: str = "good", **variables: str) -> subprocess.Popen:
        folder.mkdir(parents=True, exist_ok=True)
        command = (sys.executable, "-c", TRAINING, kind, "kdlib", "train", str(folder))
        processes.append(subprocess.Popen(command, env={**os.environ, **variables}))
        until((folder / "up").exists)
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def claim(path: Path, pid: int, **changes: object) -> None:
    created = psutil.Process(pid).create_time()
    values = {"pid": pid, "host": records.this_process()["host"], "created": created}
    records.write_json(path, {**values, **changes})


def test_trainings_of_a_closed_notebook_are_told_and_tidied(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "runs" / "smoke", tmp_path / "elsewhere"
    first, second = start(run / "students" / "full_seed1"), start(run / "students" / "full_seed2")
    apart = start(other)
    claim(run / "students" / "full_seed1" / "child.json", first.pid)
    (run / "students" / "full_seed1" / f".job.json.{first.pid}.tmp").write_text("half")
    assert stop_runs([tmp_path / "runs"])
    assert (first.wait(), second.wait(), apart.poll()) == (143, 143, None)
    assert (run / "students" / "full_seed1" / "told").read_text() == "checkpoint"
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("child.json"))
    said = capsys.readouterr().out
    assert "stopped 2 trainings" in said and "go on from their checkpoints" in said
    assert stop_runs([tmp_path / "runs"])
    assert "nothing is at work in" in capsys.readouterr().out


def test_only_the_training_named_is_stopped(tmp_path: Path, start: Start) -> None:
    first, second = start(tmp_path / "students" / "a"), start(tmp_path / "students" / "b")
    assert stop_runs([tmp_path / "students" / "a"])
    assert (first.wait(), second.poll()) == (143, None)


def test_what_does_not_listen_is_named_and_ended_at_once_when_asked(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(tmp_path / "a", "deaf")
    assert not stop_runs([tmp_path], patience=0.5)
    assert "still at work" in (said := capsys.readouterr().out) and "--now" in said
    assert process.poll() is None
    assert stop_runs([tmp_path], now=True)
    assert process.wait() == -signal.SIGKILL


def test_a_number_that_another_process_has_now_is_left_alone(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    innocent = start(tmp_path / "elsewhere")
    folder = tmp_path / "run" / "students" / "a"
    claim(folder / "child.json", innocent.pid, created=1.0)
    claim(tmp_path / "run" / occupancy.DRIVER, innocent.pid, created=1.0)
    assert stop_runs([tmp_path / "run"])
    assert innocent.poll() is None and "nothing is at work" in capsys.readouterr().out


def test_another_machine_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim(tmp_path / "students" / "a" / "child.json", os.getpid(), host="node7")
    assert not stop_runs([tmp_path])
    said = capsys.readouterr().out
    assert "on node7; call this command there" in said and "nothing is at work" not in said
    with pytest.raises(ConfigError, match="nowhere does not exist; name a folder of runs"):
        stop_runs([tmp_path / "nowhere"])


def test_kernels_of_a_driver_that_was_killed_are_ended(tmp_path: Path, start: Start) -> None:
    records.write_json(tmp_path / "run.json", {"profile": "smoke", "stages": {}})
    kernel = start(tmp_path / "elsewhere", **{occupancy.FOLDER: str(tmp_path)})
    apart = start(tmp_path.with_name("apart"), **{occupancy.FOLDER: str(tmp_path.parent)})
    assert stop_runs([tmp_path])
    assert kernel.wait() in (143, -signal.SIGKILL) and apart.poll() is None
