"""Several profiles: checked first, run in turn or side by side; one that fails keeps no other from
finishing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kdlib import records
from kdlib.errors import ConfigError, KdlibError
from kdlib.lab import execute, plan
from kdlib.tools.server import batch
from kdlib.training.places import GPUS, SCHEDULER, VISIBLE

# A driver that notes what it was given, works for a moment, and fails if it is to run study_smoke.
DRIVER = """
import json, os, pathlib, sys, time
name, folder = sys.argv[1], pathlib.Path(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
begun = time.time()
print("00_explore_data: running", flush=True)
time.sleep(0.5)
names = ("CUDA_VISIBLE_DEVICES", "KDLIB_GPUS", "KDLIB_SCHEDULER", "KDLIB_ATTENDED")
record = {key: os.environ.get(key) for key in names}
record |= {"words": sys.argv[4:], "begun": begun, "ended": time.time()}
(folder / "record.json").write_text(json.dumps(record))
if name == "study_smoke":
    sys.exit("kdlib: 11_ablate_signals stopped at cell 5")
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (GPUS, SCHEDULER, VISIBLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    monkeypatch.setattr(batch, "COMMAND", (sys.executable, str(script)))
    return tmp_path / "runs"


def written_records(folder: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/record.json")}


def at_once(found: dict[str, dict]) -> int:
    spans = list(found.values())
    return max(sum(b["begun"] <= a["begun"] < b["ended"] for b in spans) for a in spans)


def test_gpus_are_those_of_the_machine_or_those_left_visible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "hardware", lambda: {"gpus": ["H200", "H200"]})
    assert batch.gpu_ids(2) == ("0", "1")
    with pytest.raises(ConfigError, match=r"--gpus 3, but nvidia-smi lists 2 on this machine"):
        batch.gpu_ids(3)
    monkeypatch.setenv(VISIBLE, "5, MIG-1/2,7")
    assert batch.gpu_ids(2) == ("5", "MIG-1/2")
    monkeypatch.setenv(VISIBLE, "")
    with pytest.raises(ConfigError, match=r"CUDA_VISIBLE_DEVICES='' leaves 0"):
        batch.gpu_ids(1)


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["smoke", "smoke"], {}, "named twice: smoke, smoke"),
        (["smoke", "smokey"], {}, "unknown profile 'smokey'.*; did you mean 'smoke'?"),
        (["smoke"], {"scheduler": "tcp://127.0.0.1:9"}, "no Dask scheduler answers at tcp://127"),
        (["smoke"], {"scheduler": "nonsense"}, "no Dask scheduler answers at nonsense"),
        (["smoke", "demo"], {"overrides": {"DATA_ROOT": "/proc/x"}}, "cannot be written to"),
        (["smoke"], {"gpus": 1, "scheduler": "tcp://a:1"}, "give one of them"),
        (["smoke"], {"gpus": 1}, "--gpus 1, but"),
        (["smoke", "demo"], {"overrides": {"SEED": "1"}}, "no notebook has a parameter SEED"),
    ],
)
def test_wrong_calls_start_nothing(
    names: list[str], options: dict, words: str, drivers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "hardware", lambda: {"gpus": []})
    with pytest.raises(KdlibError, match=words):
        batch.run_profiles(names, drivers, **options)
    assert not drivers.exists()


def test_a_folder_of_another_checkout_is_refused(
    drivers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kdlib", "notebooks"):
        (tmp_path / name).mkdir()
    (tmp_path / "kdlib" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path / "notebooks")
    with pytest.raises(ConfigError, match=f"this folder lies in {tmp_path}, but kdlib comes from"):
        batch.run_profiles(["smoke"], drivers)
    assert not drivers.exists()


def test_one_after_the_other_where_there_is_no_gpu(
    drivers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(batch.RunsFailed) as caught:
        batch.run_profiles(["study_smoke", "smoke"], drivers)
    assert str(caught.value) == (
        "1 of 2 runs failed, the same command continues them: study_smoke: 11_ablate_signals "
        "stopped at cell 5"
    )
    found = written_records(drivers)
    assert set(found) == {"study_smoke", "smoke"} and at_once(found) == 1
    monkeypatch.setattr(execute, "run_profile", lambda name, folder, overrides, settings: folder)
    assert batch.run_profiles(["demo"], drivers) == [drivers], "of one profile, --out is its folder"


def test_side_by_side_over_gpus(
    drivers: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VISIBLE, "4,6,8")
    names = ["smoke", "demo", "waymo20", "study_smoke"]
    monkeypatch.setattr(plan, "plan_stages", lambda name, folder, overrides, settings: [])
    monkeypatch.setattr(plan, "check_run", lambda profile, folder, stages: None)
    with pytest.raises(
        batch.RunsFailed,
        match=(r"1 of 4 runs failed.*study_smoke: " r"11_ablate_signals stopped at cell 5"),
    ):
        batch.run_profiles(names, drivers, {"SEEDS": "1,2"}, gpus=2, settings=["student.epochs=2"])
    found = written_records(drivers)
    assert set(found) == set(names) and at_once(found) == 2
    assert {one[GPUS] for one in found.values()} == {"4,6"}, "trainings may go to all of them"
    assert {one[VISIBLE] for one in found.values()} == {"4", "6"}, "a driver's own work to one"
    assert all(
        one["words"] == ["-p", "SEEDS=1,2", "--set", "student.epochs=2"]
        and one["KDLIB_ATTENDED"] == "1"
        for one in found.values()
    )
    said = capfd.readouterr().out
    assert "waymo20 | 00_explore_data: running" in said.splitlines()
    assert "stopped at cell 5" not in said, "the reason is said once, at the end"
    assert GPUS not in os.environ and os.environ[VISIBLE] == "4,6,8"


def test_side_by_side_on_a_cluster(drivers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "cluster_cores", lambda address: 2)
    batch.run_profiles(["smoke", "demo"], drivers, scheduler="tcp://10.0.0.1:8786")
    found = written_records(drivers)
    assert {one[SCHEDULER] for one in found.values()} == {"tcp://10.0.0.1:8786"} and at_once(
        found
    ) == 2
    assert {one[VISIBLE] for one in found.values()} == {None}


def test_a_driver_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """However that ends: by SIGKILL it cannot tell anybody."""
    driver = (
        "import os, time; from kdlib.tools.server import batch; batch._follow_starter(); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    starter = (
        "import os, subprocess, sys, time\n"
        "environment = {**os.environ, 'KDLIB_ATTENDED': '1'}\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE, "
        "env=environment)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", starter, driver], stdout=subprocess.PIPE, text=True
    )
    pid = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
