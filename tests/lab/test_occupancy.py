"""A run folder has one driver; a killed one leaves neither a lock nor a kernel nor half-written
files behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from kdlib import records
from kdlib.lab import occupancy
from kdlib.lab.occupancy import FolderBusy, hold

HOLDER = """
import sys, time
from pathlib import Path
from kdlib.lab import occupancy
with occupancy.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_one_driver_at_a_time_and_a_killed_one_is_no_obstacle(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with (
        pytest.raises(
            FolderBusy, match=f"is being run by process {process.pid} on .*--out"
        ) as caught,
        hold(tmp_path),
    ):
        pass
    assert "\n" not in str(caught.value)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert occupancy.driver(tmp_path) is None, "its note stayed, but it is dead"
    with hold(tmp_path):
        assert os.environ[occupancy.FOLDER] == str(tmp_path)
        assert occupancy.driver(tmp_path)["pid"] == os.getpid()
    assert occupancy.FOLDER not in os.environ and occupancy.driver(tmp_path) is None
    with hold(tmp_path):
        pass


def test_the_lock_is_not_handed_on_to_children(tmp_path: Path) -> None:
    with hold(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with hold(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_orphaned_kernels_are_ended_and_no_others(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    commands = {"kernel": "ipykernel_launcher", "training": "kdlib"}
    started = {
        (folder.name, name): subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)", word],
            env={**os.environ, occupancy.FOLDER: str(folder)},
        )
        for folder in (mine, other)
        for name, word in commands.items()
    }
    try:
        time.sleep(0.3)
        with hold(mine):
            ended = {key for key, process in started.items() if process.poll() is not None}
        assert ended == {("mine", "kernel")}
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_half_written_files_of_the_dead_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert not psutil.pid_exists(dead.pid)
    (tmp_path / "stage").mkdir()
    left = [
        tmp_path / f".result.json.{dead.pid}.tmp",
        tmp_path / "stage" / f".a.b.png.{dead.pid}.tmp",
    ]
    kept = [
        tmp_path / f".result.json.{os.getpid()}.tmp",
        tmp_path / "stage" / ".notes.tmp",
        tmp_path / "stage" / "result.json",
    ]
    for path in (*left, *kept):
        path.write_text("half")
    with hold(tmp_path):
        assert not [path for path in left if path.exists()]
        assert all(path.exists() for path in kept)


def test_a_killed_writer_leaves_what_sweep_removes(tmp_path: Path) -> None:
    code = "import os, signal, sys\nfrom pathlib import Path\nfrom kdlib import records\n"
    code += (
        "os.fsync = lambda number: os.kill(os.getpid(), "
        "signal.SIGKILL)\nrecords.write_json(Path(sys.argv[1]), {'a': 1})"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "values.json")], check=False)
    assert not (tmp_path / "values.json").exists()
    assert len(list(tmp_path.iterdir())) == 1
    assert len(records.remove_leftovers(tmp_path)) == 1 and not list(tmp_path.iterdir())


def test_runs_that_share_a_folder_take_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def second() -> None:
        with occupancy.take_turn(tmp_path):
            order.append("second")

    with occupancy.take_turn(tmp_path):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.3)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert "waiting for another run" in capsys.readouterr().out
