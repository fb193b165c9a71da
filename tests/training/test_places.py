"""Places: a GPU takes one training at a time whoever starts it, a worker too, and who fails keeps
no other back.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from kdlib.errors import DataError
from kdlib.training import launch as launching
from kdlib.training import places
from kdlib.training.job import RunDir
from kdlib.training.launch import TrainingFailed, launch
from kdlib.training.places import GPUS, SCHEDULER, VISIBLE, Gpus, Processor

# Notes what it was given, trains for a moment, and ends as its folder asks.
CHILD = """
import json, os, pathlib, sys, time
home = pathlib.Path(sys.argv[-1])
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
begun = time.time()
print("at work", flush=True)
time.sleep(float((home / "seconds").read_text()) if (home / "seconds").exists() else 0.3)
if (home / "fail").exists():
    sys.exit("it was made to fail")
record = {name: os.environ.get(name) for name in names}
record |= {"begun": begun, "ended": time.time(), "steps": 1, "pid": os.getpid()}
(home / "result.json").write_text(json.dumps(record))
(home / "complete.json").write_text('{"key": "k"}')
"""


class Job:
    """Stands in for a job file whose store exists."""

    def __init__(self, name):
        self.name = name

    @staticmethod
    def read(run_dir):
        return Job(run_dir.name)

    def hash(self):
        return "k"


@pytest.fixture(autouse=True)
def own_places(monkeypatch, tmp_path):
    """Locks and jobs of this test alone."""
    monkeypatch.setattr(launching, "TrainJob", Job)
    monkeypatch.setattr(places.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in (GPUS, SCHEDULER, VISIBLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    return (sys.executable, str(script))


def folders(root: Path, count: int) -> list[Path]:
    found = [root / f"run{number}" for number in range(count)]
    for folder in found:
        folder.mkdir()
    return found


def results(found):
    return [result.values for result in found]


def most_at_once(spans):
    """How many spans ran at the same time; that number is reached where one of them begins."""
    return max(sum(b["begun"] <= a["begun"] < b["ended"] for b in spans) for a in spans)


def test_each_gpu_has_one_training_at_a_time(tmp_path, monkeypatch, command):
    monkeypatch.setenv(GPUS, "3,GPU-5a/1")
    lines: list[str] = []
    found = results(
        launch(folders(tmp_path, 5), parallel=1, threads=1, command=command, echo=lines.append)
    )
    assert {one[VISIBLE] for one in found} == {"3", "GPU-5a/1"}
    for name in ("3", "GPU-5a/1"):
        assert most_at_once([one for one in found if one[VISIBLE] == name]) == 1
    assert most_at_once(found) == 2
    assert any(line.endswith("starting on GPU 3") for line in lines)


def test_without_gpus_nothing_is_set(tmp_path, command):
    found = results(
        launch(folders(tmp_path, 3), parallel=2, threads=1, command=command, echo=lambda line: None)
    )
    assert {one[VISIBLE] for one in found} == {None} and {
        one["OMP_NUM_THREADS"] for one in found
    } == {"1"}
    assert most_at_once(found) <= 2


def test_two_drivers_share_the_gpus(tmp_path, command):
    """The lock is the training's: another driver sees it, and the death of the driver does not end
    it.
    """
    first, second = Gpus(["0", "1"], 1), Gpus(["0", "1"], 1)
    runs = [RunDir(folder) for folder in folders(tmp_path, 4)]
    for run in runs:
        (run.path / "seconds").write_text("20")
    children = [first.start(runs[0], command), second.start(runs[1], command)]
    assert [child.place for child in children] == ["GPU 0", "GPU 1"]
    assert first.start(runs[2], command) is None and second.start(runs[2], command) is None
    del first
    assert second.start(runs[2], command) is None
    os.kill(children[0].process.pid, signal.SIGKILL)
    while children[0].poll() is None:
        time.sleep(0.01)
    assert children[0].ending() == "was killed by SIGKILL without finishing"
    again = second.start(runs[2], command)
    assert again.place == "GPU 0", "a lock that outlives its training"
    for child in (again, children[1]):
        child.process.kill()


def test_cores_are_shared_out_between_gpus(tmp_path, monkeypatch, command):
    monkeypatch.setattr(places.os, "cpu_count", lambda: 12)
    monkeypatch.setenv(GPUS, "0,1,2")
    (found,) = results(
        launch(folders(tmp_path, 1), threads=0, command=command, echo=lambda line: None)
    )
    assert found["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize("gpus", ["", "0,1"])
def test_one_failure_lets_the_others_finish(tmp_path, monkeypatch, command, gpus):
    monkeypatch.setenv(GPUS, gpus)
    runs = folders(tmp_path, 4)
    (runs[0] / "fail").touch()
    lines: list[str] = []
    with pytest.raises(TrainingFailed) as caught:
        launch(runs, parallel=2, command=command, echo=lines.append)
    sentence, _, log = str(caught.value).partition(" Last lines of ")
    assert "\n" not in sentence
    assert (
        str(runs[0]) in sentence
        and "ended with code 1" in sentence
        and ("The other 3 trainings are finished.") in sentence
    )
    assert "it was made to fail" in log
    assert [(folder / "complete.json").exists() for folder in runs] == [False, True, True, True]
    assert "run0: ended with code 1 without finishing" in lines
    (runs[0] / "fail").unlink()
    assert len(launch(runs, command=command, echo=lines.append)) == 4
    assert [f"run{number}: finished earlier, kept" in lines for number in range(4)] == [
        False,
        True,
        True,
        True,
    ]


def test_all_that_failed_are_named(tmp_path, command):
    runs = folders(tmp_path, 3)
    for folder in runs[1:]:
        (folder / "fail").touch()
    with pytest.raises(
        TrainingFailed,
        match=(r"run1 ended with code 1.*So did run2\. The other " r"training is finished\."),
    ):
        launch(runs, parallel=3, command=command, echo=lambda line: None)


def test_the_processor_is_the_default():
    with places.places(3, 2) as where:
        assert isinstance(where, Processor) and where.limit == 3


def test_no_cluster_is_one_sentence(tmp_path, monkeypatch, command):
    monkeypatch.setenv(SCHEDULER, "tcp://127.0.0.1:9")
    with pytest.raises(DataError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        launch(folders(tmp_path, 1), command=command, echo=lambda line: None)


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=3, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as found:
        yield found


def test_the_workers_of_a_cluster(cluster, tmp_path, monkeypatch, command):
    monkeypatch.setenv(SCHEDULER, cluster.scheduler_address)
    runs = folders(tmp_path, 5)
    for folder in runs:
        (folder / "seconds").write_text("1.5")  # long enough to overlap on a busy machine
    (runs[1] / "fail").touch()
    lines: list[str] = []
    with pytest.raises(
        TrainingFailed, match=(r"run1 ended with code 1.*The other 4 trainings are " r"finished")
    ) as caught:
        launch(runs, parallel=1, command=command, echo=lines.append)
    assert "it was made to fail" in str(caught.value)
    found = [
        json.loads((folder / "result.json").read_text()) for folder in runs if folder != runs[1]
    ]
    assert most_at_once(found) == 2, "one on each worker, however many threads a worker has"
    assert sum("starting on tcp://" in line for line in lines) == 5


def test_a_worker_that_is_gone_is_named(cluster, tmp_path, monkeypatch, command):
    """Its training may go on, so nothing is started a second time; the next call finds out."""
    monkeypatch.setenv(SCHEDULER, cluster.scheduler_address)
    (run,) = folders(tmp_path, 1)
    (run / "seconds").write_text("4")
    lines: list[str] = []

    def lose(line: str) -> None:
        lines.append(line)
        if "starting on" in line:
            time.sleep(1.5)
            cluster.sync(
                cluster.scheduler.retire_workers,
                workers=[line.rpartition(" ")[2]],
                close_workers=True,
                remove=True,
            )

    with pytest.raises(TrainingFailed, match="lost its Dask worker"):
        launch([run], command=command, echo=lose)
