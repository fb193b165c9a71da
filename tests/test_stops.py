"""Ctrl-C, SIGTERM and ``kdlib stop`` on whole runs: they end soon, leave nothing behind, say how to
go on, and the same command ends as if nobody had disturbed it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_kills import Call, check_end, outcome, survivors, until

from kdlib import records
from kdlib.lab.occupancy import DRIVER
from kdlib.lab.profile import MAIN_LINE

SECONDS = 20  # for a smoke run to be gone
SHORT = ("01_train_teacher", "02_distill_student")
FEW = {"TEACHER": "shipped", "SEEDS": "1", "ARMS": "full", "STUDENT_EPOCHS": 3}
WHOLE = {**FEW, "ARMS": "alone,full", "STUDENT_EPOCHS": 1, "REPEATS": 1, "RESAMPLES": 20}

Stop = Callable[[Call], None]


def ctrl_c(call: Call) -> None:
    """As a terminal sends it: to the whole foreground group."""
    os.killpg(call.process.pid, signal.SIGINT)


def sigint(call: Call) -> None:
    call.process.send_signal(signal.SIGINT)


def sigterm(call: Call) -> None:
    call.process.send_signal(signal.SIGTERM)


def twice(call: Call) -> None:
    ctrl_c(call)
    time.sleep(0.5)
    if call.running():
        ctrl_c(call)


def stop_command(call: Call) -> None:
    command = (sys.executable, "-m", "kdlib", "stop", str(call.folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"stopped {call.folder}" in done.stdout and "it goes on with: " in done.stdout


CODES = {ctrl_c: 130, sigint: 130, twice: 130, sigterm: 143, stop_command: 143}


def stop(call: Call, how: Stop) -> str:
    """Stop a call and check that it ends well and leaves nothing; return its sentence."""
    how(call)
    said = call.end()
    ended = time.monotonic() - call.begun
    # from when the driver took the signal: the command that sends it has to start first
    assert (
        ended - next(at for at, line in call.printed if "stopping the notebook" in line) < SECONDS
    )
    assert call.process.returncode == CODES[how], said
    assert "Traceback" not in said and "Error" not in said
    (sentence,) = [line for line in said.splitlines() if line.startswith("kdlib: ")]
    assert "stopped; the same command goes on" in sentence
    assert until(lambda: not survivors(call.folder) and not call.trainings(), 2)
    assert not list(call.folder.rglob("*.tmp")) + list(call.data.rglob("*.tmp"))
    assert not list(call.folder.rglob("child.json")) + list(call.folder.rglob(DRIVER))
    return sentence


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("students/*/checkpoints/*"))


def test_ctrl_c_stops_a_training_at_a_checkpoint(smoke_data: Path, tmp_path: Path) -> None:
    call = Call(tmp_path / "run", smoke_data, parameters=FEW, chain=SHORT)
    assert until(lambda: checkpoints(call.folder) or not call.running(), 120)
    sentence = stop(call, ctrl_c)
    assert "goes on with 02_distill_student" in sentence
    stages = records.read_json(call.folder / "run.json")["stages"]
    assert [stage["state"] for stage in stages.values()] == ["done", "stopped"]
    log = next(call.folder.glob("students/*/train.log")).read_text()
    assert "stopped at step" in log and checkpoints(call.folder)


def wait_for(call: Call, stage: str, seconds: float) -> bool:
    """Wait until so long after a stage began, or until the call ends."""
    return until(lambda: (call.since(stage) or 0) > seconds or not call.running(), 200)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_stopped_in_every_stage_a_run_ends_undisturbed(tmp_path: Path) -> None:
    """Each stage is stopped another way, with its data made in the run, and called again."""
    expected = Call(tmp_path / "quiet", tmp_path / "quiet_data", parameters=WHOLE, chain=MAIN_LINE)
    said = expected.end()
    assert expected.process.returncode == 0, said
    folder, data = tmp_path / "run", tmp_path / "run_data"
    ways = [ctrl_c, sigterm, stop_command, sigint, twice, ctrl_c]
    for stage, how in zip(MAIN_LINE, ways):
        call = Call(folder, data, parameters=WHOLE, chain=MAIN_LINE)
        assert wait_for(call, stage, seconds=3.5)
        if call.running() and call.stage() == stage:
            assert stage in stop(call, how)
        else:
            call.end()
        print(stage, how.__name__, call.process.returncode, flush=True)
    last = Call(folder, data, parameters=WHOLE, chain=MAIN_LINE)
    said = last.end()
    assert last.process.returncode == 0, said
    check_end(folder, outcome(expected.folder))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", [ctrl_c, sigterm, twice])
def test_several_runs_stop_together(how: Stop, smoke_data: Path, tmp_path: Path) -> None:
    names = ("smoke", "study_smoke")
    call = Call(tmp_path / "runs", smoke_data, profiles=names, parameters={}, chain=MAIN_LINE)
    assert until(lambda: checkpoints(call.folder / "smoke") or not call.running(), 200)
    sentence = stop(call, how)
    assert "goes on: " in sentence
    assert not survivors(call.folder / "smoke")
    assert not (call.folder / "study_smoke" / "run.json").exists(), "nothing new is begun"
