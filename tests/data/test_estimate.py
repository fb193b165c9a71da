from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from kdlib.data import estimate as module
from kdlib.data.estimate import list_tasks
from kdlib.data.prepare import estimate_prepare, prepare
from kdlib.errors import DataError
from kdlib.simulate import simulate


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    root = tmp_path_factory.mktemp("simulated")
    simulate(root, segments=4, frames=3, seed=5, scale="demo", workers=1, progress=False)
    simulate(
        root / "v1",
        segments=4,
        frames=3,
        seed=5,
        scale="demo",
        workers=1,
        progress=False,
        format="v1",
    )
    return root


@pytest.mark.parametrize("which", ["v2", "v1"])
def test_the_estimate_is_close_to_what_is_written(simulated, tmp_path, which):
    source = simulated if which == "v2" else simulated / "v1"
    expected = estimate_prepare(source, tmp_path / "store", workers=1)
    assert (
        expected.segments == {"training": 4}
        and expected.frames == {"training": 12}
        and expected.frames_to_do == 12
    )
    assert (
        expected.fits
        and expected.finished == 0
        and expected.seconds > 0
        and expected.memory_bytes < 2e9
    )
    assert not (tmp_path / "store").exists()
    prepare(source, tmp_path / "store", progress=False)
    written = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert 0.7 * written < expected.store_bytes < 1.5 * written
    assert json.loads(json.dumps(expected.to_dict()))["fits"] is True


def test_what_is_finished_is_not_counted_again(simulated, tmp_path):
    prepare(simulated, tmp_path / "store", progress=False)
    done = estimate_prepare(simulated, tmp_path / "store")
    assert (done.finished, done.frames_to_do, done.store_bytes) == (
        4,
        0,
        0,
    ) and "nothing is left to prepare" in str(done)
    shutil.rmtree(next((tmp_path / "store" / "training").glob("*_*")))
    assert estimate_prepare(simulated, tmp_path / "store").frames_to_do == 3


def test_the_text_says_disk_memory_and_time(simulated, tmp_path):
    lines = str(estimate_prepare(simulated, tmp_path / "store")).splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["source", "disk", "memory", "time"]
    assert (
        "training 4 segments, 12 frames" in lines[0]
        and "free" in lines[1]
        and "measured on 9 of them" in lines[4]
    )


def test_a_disk_too_small_is_refused_before_anything_is_written(simulated, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000)
    )
    assert "NOT ENOUGH" in str(estimate_prepare(simulated, tmp_path / "store"))
    with pytest.raises(
        DataError,
        match=(r"store: about .* MB are to be written, the disk has 0.0 " r"MB free; .* --force"),
    ):
        prepare(simulated, tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()
    assert (
        prepare(simulated, tmp_path / "store", progress=False, force=True).splits["training"].frames
        == 12
    )


def test_damaged_samples_leave_the_estimate_unknown(source, tmp_path):
    waymo = shutil.copytree(source, tmp_path / "waymo")
    for path in waymo.glob("*/lidar/*.parquet"):
        path.write_bytes(path.read_bytes()[:-50])
    assert "unknown, for the sampled segments cannot be read" in str(
        estimate_prepare(waymo, tmp_path / "store")
    )


def test_a_segment_in_two_splits_is_refused(source, tmp_path):
    waymo = shutil.copytree(source, tmp_path / "waymo")
    for path in waymo.glob("training/*/a.parquet"):
        shutil.copy(path, waymo / "validation" / path.parent.name)
    with pytest.raises(
        DataError,
        match="segment a is in both training and validation; remove it from one of them",
    ):
        estimate_prepare(waymo, tmp_path / "store")


def test_tasks_are_listed_without_reading_frames(source, tmp_path):
    tasks = list_tasks(source / "training", tmp_path)
    assert [(task.segment, task.frames) for task in tasks] == [("a", 3), ("b", 4)]
    assert all(task.source_bytes > 1000 for task in tasks)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (9000, "2 h 30 min")]
)
def test_durations(simulated, tmp_path, seconds, text):
    assert f"about {text}, with 1 worker" in str(
        replace(estimate_prepare(simulated, tmp_path), seconds=seconds)
    )
