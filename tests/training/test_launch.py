"""Children: started, followed, re-attached, refused; with the toy in place of the detector."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from kdlib import records
from kdlib.errors import ConfigError
from kdlib.training import launch as launching
from kdlib.training.job import RunBusy, RunDir, claim, worker
from kdlib.training.launch import TrainingFailed, launch, progress_line
from kdlib.training.places import Processor

sys.path.insert(0, str(Path(__file__).parent))
import toy

COMMAND = (sys.executable, str(Path(toy.__file__)), "train")


class ToyJob:
    """Stands in for a job file whose store exists."""

    name = "toy"

    @staticmethod
    def read(run_dir):
        if not (run_dir / "toy.json").is_file():
            raise ConfigError(f"{run_dir} has no job")
        return ToyJob()

    def hash(self):
        return toy.JOB


@pytest.fixture(autouse=True)
def toy_jobs(monkeypatch):
    monkeypatch.setattr(launching, "TrainJob", ToyJob)


def make(folder: Path, text: str = "{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.json").write_text(text)
    return folder


def start(folder: Path) -> None:
    """Start a child as launch() does, without following it."""
    Processor(1, 1).start(RunDir(folder), COMMAND)


def wait_until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_two_runs_side_by_side_then_kept(tmp_path):
    folders = [make(tmp_path / name, '{"pause": 0.02}') for name in ("a", "b")]
    lines: list[str] = []
    results = launch(folders, parallel=2, every=0.1, command=COMMAND, echo=lines.append)
    assert results[0].values["steps"] == 30 and results[0].weights.is_file()
    assert "toy: done, 30 steps" in lines
    assert any("step" in line and "frames/s" in line and "(fit" in line for line in lines)
    before = {folder: (folder / "history.jsonl").read_text() for folder in folders}
    again = launch(folders, command=("false",), echo=lines.append)
    assert [r.values for r in again] == [r.values for r in results]
    assert lines.count("toy: finished earlier, kept") == 2
    assert {folder: (folder / "history.jsonl").read_text() for folder in folders} == before


def test_attaches_to_a_running_child(tmp_path):
    folder = make(tmp_path / "a", '{"pause": 0.1}')
    start(folder)
    wait_until(lambda: worker(RunDir(folder)) is not None)
    pid = worker(RunDir(folder))["pid"]
    # closing the caller's terminal or kernel does not reach it
    assert os.getsid(pid) != os.getsid(0)
    lines: list[str] = []
    (result,) = launch([folder], command=("false",), echo=lines.append, every=0.1)
    assert result.values["steps"] == 30
    assert lines[0] == "toy: already in training, following it"
    steps = [line["step"] for line in records.read_json_lines(folder / "history.jsonl")]
    assert steps == list(range(1, 31))  # one process wrote it, without a gap


def test_failing_child_surfaces_its_log(tmp_path):
    folder = make(tmp_path / "a", '{"fail": true}')
    with pytest.raises(
        TrainingFailed,
        match=(
            r"ended with code 1 without finishing(.|\n)*speaks before it "
            r"dies(.|\n)*made-up failure"
        ),
    ):
        launch([folder], command=COMMAND, echo=lambda _: None)


def test_killed_child_is_named_and_can_go_on(tmp_path):
    folder = make(tmp_path / "a", '{"kill_self": true}')
    with pytest.raises(TrainingFailed, match="was killed by SIGKILL"):
        launch([folder], command=COMMAND, echo=lambda _: None)
    make(folder)
    assert launch([folder], command=COMMAND, echo=lambda _: None)[0].values["steps"] == 30


def test_termination_saves(tmp_path):
    folder = make(tmp_path / "a", '{"pause": 0.1, "checkpoint_steps": 1000}')
    start(folder)
    wait_until(lambda: len(records.read_json_lines(folder / "history.jsonl")) > 2)
    os.kill(worker(RunDir(folder))["pid"], signal.SIGTERM)
    wait_until(lambda: worker(RunDir(folder)) is None)
    assert len(list((folder / "checkpoints").iterdir())) == 1


def test_a_folder_has_one_worker(tmp_path):
    folder = make(tmp_path / "a", '{"pause": 0.1}')
    start(folder)
    wait_until(lambda: worker(RunDir(folder)) is not None)
    pid = worker(RunDir(folder))["pid"]
    with pytest.raises(RunBusy, match=f"is being trained by process {pid}"), claim(RunDir(folder)):
        pass
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: worker(RunDir(folder)) is None)
    assert (folder / "child.json").exists()  # left behind, and no obstacle
    with claim(RunDir(folder)):
        assert worker(RunDir(folder))["pid"] == os.getpid()
    assert not (folder / "child.json").exists()


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}', "[]"])
def test_damaged_claim_counts_as_stale(tmp_path, text):
    (tmp_path / "child.json").write_text(text)
    assert worker(RunDir(tmp_path)) is None


def test_recycled_pid_counts_as_stale(tmp_path):
    import socket

    records.write_json(
        tmp_path / "child.json", {"pid": os.getpid(), "host": socket.gethostname(), "created": 1.0}
    )
    assert worker(RunDir(tmp_path)) is None


def test_wrong_calls_start_nothing(tmp_path):
    folders = [make(tmp_path / name) for name in ("a", "b")]
    with pytest.raises(ConfigError, match="named twice"):
        launch([folders[0], folders[0]], command=COMMAND)
    with pytest.raises(ConfigError, match="parallel must be"):
        launch(folders, parallel=0, command=COMMAND)
    with pytest.raises(ConfigError, match="has no job"):
        launch([folders[0], tmp_path / "none"], command=COMMAND)
    assert not (folders[0] / "train.log").exists()


def test_progress_line():
    line = {
        "step": 30,
        "steps": 120,
        "loss": 1.5,
        "parts": {"heatmap": 1.0, "box": 0.5},
        "samples_per_second": 8.04,
        "seconds": 60.0,
    }
    assert progress_line("teacher", line) == (
        "teacher: step 30/120, loss 1.5 (heatmap 1, box 0.5), 8.0 frames/s, 3:00 left"
    )


def test_log_tail(tmp_path):
    log = tmp_path / "log"
    assert launching.log_tail(log) == "(no log)"
    log.write_text("\n".join(str(i) for i in range(100)))
    assert launching.log_tail(log, lines=2) == "98\n99"
    log.write_text("")
    assert launching.log_tail(log) == "(the log is empty)"
