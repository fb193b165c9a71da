"""How runs stand: told from files and processes alone, in a table, a page that needs nothing else,
and JSON.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from kdlib import records
from kdlib.errors import ConfigError
from kdlib.lab import runlog
from kdlib.lab.occupancy import DRIVER, RUN
from kdlib.tools.server.status.scan import scan_runs
from kdlib.tools.server.status.show import (
    duration,
    show_status,
    sparkline,
    status_page,
    status_table,
)

STAGES = ("00_explore_data", "01_train_teacher", "02_distill_student", "03_evaluate")


def training(
    folder: Path, name: str, steps: int = 0, *, log: str = "", done: bool = False, pid: int = 0
) -> None:
    folder.mkdir(parents=True)
    records.write_json(folder / "job.json", {"name": name})
    lines = [
        {
            "step": step,
            "steps": 40,
            "loss": 4.0 / step,
            "parts": {},
            "samples_per_second": 16.0,
            "seconds": 0.5 * step,
        }
        for step in range(1, steps + 1)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if log:
        (folder / "train.log").write_text(log)
    if done:
        records.write_json(folder / "result.json", {"steps": 40})
        records.mark_complete(folder, "k")
    if pid:
        at_work(folder / "child.json", pid)


def at_work(path: Path, pid: int, **changes: object) -> None:
    created = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 1.0
    records.write_json(
        path, {"pid": pid, "host": socket.gethostname(), "created": created, **changes}
    )


def stage(run: Path, name: str) -> None:
    records.write_json(run / name / "result.json", {"profile": "smoke"})
    records.mark_complete(run / name, "k")
    (run / f"{name}.ipynb").write_text("{}")


def make_run(folder: Path, *done: str, says: str = "", **states: str) -> Path:
    """A run some of whose stages are done; its driver noted states of others (of ``s02``, say), and
    printed a last line.
    """
    noted = {
        name: {"state": states.get(f"s{name[:2]}", "done" if name in done else "waiting")}
        for name in STAGES
    }
    records.write_json(folder / RUN, {"profile": "smoke", "stages": noted})
    (folder / runlog.LOG).write_text(f"2026-11-23 10:00:00 {says}\n")
    for name in done:
        stage(folder, name)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """One run at work by this very process, one that failed, one that was killed, one that is done,
    one that is no run.
    """
    root = tmp_path / "runs"
    busy = make_run(root / "busy", *STAGES[:2], says="full: step 10/40", s02="running")
    at_work(busy / DRIVER, os.getpid())
    training(
        busy / "students" / "full_seed1",
        "full SparseKD, seed 1",
        10,
        log="active term\nstep 10",
        pid=os.getpid(),
    )
    training(busy / "students" / "alone_seed1", "student alone, seed 1")
    training(
        busy / "teacher" / "continued",
        "teacher <b>, continued",
        40,
        log="done: 40 steps",
        done=True,
    )
    failed = make_run(root / "failed", *STAGES[:1], s01="failed")
    training(
        failed / "teacher" / "scratch",
        "teacher",
        5,
        log=("Traceback:\nkdlib: cannot write step 5; free some space"),
    )
    killed = make_run(root / "killed", *STAGES[:2], s02="running")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    at_work(killed / DRIVER, gone.pid)
    training(
        killed / "students" / "full_seed1", "full", 7, log="10 %\r20 %\rhalf-way", pid=gone.pid
    )
    make_run(root / "well", *STAGES)
    (root / "notes").mkdir()
    (root / "status.html").write_text("an older page")
    return root


def test_a_run_that_was_told_to_stop_is_stopped(tmp_path: Path) -> None:
    make_run(tmp_path, *STAGES[:2], s02="stopped", says="kdlib: stopped; the same command goes on")
    (run,) = scan_runs(tmp_path)
    assert run.state == "stopped" and run.says.endswith("the same command goes on")
    assert [stage.state for stage in run.stages] == ["done", "done", "stopped", "waiting"]


def test_states_of_runs_stages_and_trainings(runs: Path) -> None:
    found = {run.name: run for run in scan_runs(runs)}
    assert [(run.name, run.state) for run in scan_runs(runs)] == [
        ("busy", "running"),
        ("failed", "failed"),
        ("killed", "stopped"),
        ("well", "done"),
    ]
    states = {name: [stage.state for stage in run.stages] for name, run in found.items()}
    assert states == {
        "busy": ["done", "done", "running", "waiting"],
        "failed": ["done", "failed", "waiting", "waiting"],
        "killed": ["done", "done", "stopped", "waiting"],
        "well": ["done"] * 4,
    }
    trainings = {one.name: one for run in found.values() for one in run.trainings}
    assert {name: one.state for name, one in trainings.items()} == {
        "full SparseKD, seed 1": "running",
        "student alone, seed 1": "waiting",
        "teacher <b>, continued": "done",
        "teacher": "failed",
        "full": "stopped",
    }
    assert found["busy"].process == str(os.getpid()) and found["killed"].process == ""
    assert found["busy"].says.endswith("full: step 10/40") and found["busy"].simulated


def test_numbers_of_a_training(runs: Path) -> None:
    one = scan_runs(runs)[0].trainings[0]
    assert (one.step, one.steps, one.speed, one.seconds) == (10, 40, 16.0, 5.0)
    assert one.left == pytest.approx(15.0), "as long a step as up to now"
    assert len(one.losses) == 10 and one.losses[-1] == 0.4
    assert (one.process, one.says, one.folder) == (
        str(os.getpid()),
        "step 10",
        "students/full_seed1",
    )
    stopped = scan_runs(runs)[2].trainings[0]
    assert (stopped.left, stopped.process, stopped.says) == (None, "", "half-way"), (
        "what stands after the last carriage return"
    )


def test_a_recycled_process_number_is_nobody(runs: Path) -> None:
    at_work(runs / "busy" / DRIVER, os.getpid(), created=1.0)  # long before this process was born
    assert scan_runs(runs)[0].process == ""


def test_another_machines_driver_cannot_be_looked_up(runs: Path) -> None:
    at_work(runs / "killed" / DRIVER, 7, host="elsewhere")
    found = {run.name: run for run in scan_runs(runs)}["killed"]
    assert (found.state, found.process) == ("running", "7 on elsewhere")


def test_one_run_and_one_training_can_be_named(runs: Path) -> None:
    assert [run.name for run in scan_runs(runs / "busy")] == ["busy"]
    (one,) = scan_runs(runs / "busy" / "students" / "full_seed1")
    assert (one.stages, one.state, [t.folder for t in one.trainings]) == (
        (),
        "running",
        ["full_seed1"],
    )
    with pytest.raises(ConfigError, match="does not exist; name a folder of runs"):
        scan_runs(runs / "nowhere")


def test_folders_without_a_driver_are_understood(tmp_path: Path) -> None:
    """Without the driver's note, results and folders tell; what is half-written does not stop the
    page.
    """
    stage(tmp_path / "mine", "00_explore_data")
    (tmp_path / "mine" / "01_train_teacher.ipynb").write_text("{}")
    training(tmp_path / "mine" / "teacher" / "scratch", "teacher", 3)
    (tmp_path / "mine" / "teacher" / "scratch" / "job.json").write_text("{")
    (run,) = scan_runs(tmp_path)
    assert run.profile == "smoke" and [stage.state for stage in run.stages] == [
        "done",
        "stopped",
        *["waiting"] * 4,
    ]
    assert run.trainings[0].name == "scratch" and "is not JSON" in run.trainings[0].says


def test_table(runs: Path) -> None:
    lines = status_table(scan_runs(runs)).splitlines()
    assert lines[0] == f"▶ busy: running (profile smoke, simulated data, driver {os.getpid()})"
    assert "✓ 01_train_teacher  ▶ 02_distill_student  · 03_evaluate" in lines[1]
    (row,) = [line for line in lines if "full SparseKD" in line]
    assert re.search(r"▶ running .* 10/40 +0\.4 +16\.0/s +0:00:15 process \d+$", row)
    (bad,) = [line for line in lines if "✗ failed  teacher" in line]
    assert bad.endswith("kdlib: cannot write step 5; free some space")
    assert status_table([]) == "no runs"


def test_finished_trainings_are_counted(tmp_path: Path) -> None:
    for seed in range(9):
        training(tmp_path / "run" / "students" / f"a{seed}", f"a, seed {seed}", 3, done=True)
    assert status_table(scan_runs(tmp_path)).endswith("and 3 more")
    assert "<summary>9 trainings done</summary>" in status_page(scan_runs(tmp_path))


def test_page_needs_nothing_else_and_escapes_names(runs: Path) -> None:
    found = status_page(scan_runs(runs), refresh=5)
    assert "default-src 'none'" in found and '<meta http-equiv="refresh" content="5">' in found
    assert not re.search(r'(src|href)="', found) and "<script" not in found
    assert "teacher &lt;b&gt;, continued" in found and "teacher <b>" not in found
    assert found.count("<svg") == 4, "no drawing for a training without steps"
    assert "1 running, 1 failed, 1 stopped, 1 done" in found and "simulated data" in found
    assert 'http-equiv="refresh"' not in status_page(scan_runs(runs))


def test_show_writes_the_page_beside_the_runs(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_status(runs)
    assert "<h1>Runs</h1>" in (runs / "status.html").read_text()
    assert "busy: running" in capsys.readouterr().out
    show_status(runs, as_json=True)
    values = json.loads(capsys.readouterr().out)["runs"]
    assert values[0]["stages"][2] == {"name": "02_distill_student", "state": "running"}
    show_status(runs, tmp_path / "elsewhere.html", as_json=True)
    assert (tmp_path / "elsewhere.html").is_file()
    with pytest.raises(ConfigError, match="--watch 0 must be above 0"):
        show_status(runs, watch=0)


def test_watch_looks_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdlib.tools.server.status import show as module

    def sleep(seconds: float) -> None:
        if capsys.readouterr().out.count("busy: done"):
            raise KeyboardInterrupt
        for name in STAGES:
            stage(runs / "busy", name)
        (runs / "busy" / DRIVER).unlink(missing_ok=True)
        (runs / "busy" / "students" / "full_seed1" / "child.json").unlink(missing_ok=True)

    monkeypatch.setattr(module.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        show_status(runs, watch=2)
    assert 'content="2"' in (runs / "status.html").read_text()


def test_small_things() -> None:
    assert [duration(value) for value in (None, 0, 75, 3661)] == [
        "–",
        "0:00:00",
        "0:01:15",
        "1:01:01",
    ]
    assert sparkline([1.0]) == "" and 'aria-label="loss from 2 to 1"' in sparkline([2.0, 1.0])
    assert 'points="3.0,3.0 55.0,13.0 107.0,23.0"' in sparkline([4.0, 3.0, 2.0])
    assert sparkline(list(range(1000, 0, -1))).count(",") == 80, "means of stretches"
