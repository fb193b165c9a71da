"""The numbers of ``bench data`` fit together; how large they are is the machine's business."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdlib import cli
from kdlib.data.store import Store
from kdlib.errors import DataError, KdlibError
from kdlib.tools.bench import data
from kdlib.tools.bench.data import bench_data
from kdlib.tools.judge import official
from kdlib.tools.judge.official import OfficialError, find_python
from kdlib.tools.own_process import in_own_process

RATIOS = ("v1_read", "v2_read", "v2_convert")

# Stands for the official code: finds what kdlib finds, and claims a second a frame for each part.
PRETENDER = """
import json, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {root!r})
from kdlib.waymo.segments import read_segment
task, request, answer = sys.argv[1:]
assert task == "convert"
asked = dict(np.load(request))
frames = read_segment(Path(str(asked["folder"])), str(asked["segment"]))
clouds = [frame.points[:, :3].astype(float) for frame in frames]
frames = [{{"points": len(cloud), "sum": cloud.sum(axis=0).tolist()}} for cloud in clouds]
{damage}
count = len(frames)
seconds = [{{name: [1.0 * count, 3.0 * count] for name in ("read", "convert")}}]
seconds *= int(asked["rounds"])
said = {{"seconds": seconds, "frames": frames, "version": "pretender"}}
open(answer, "w").write(json.dumps(said))
"""


def pretender(folder: Path, damage: str = "") -> Path:
    script = folder / "pretender.py"
    script.write_text(PRETENDER.format(root=str(Path(data.__file__).parents[3]), damage=damage))
    return script


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "CHILD", pretender(folder))
        return folder / "keep", bench_data(2, 1, "demo", folder / "keep", sys.executable, 0)


def test_rates_and_sizes_are_positive(measured):
    _, outcome = measured
    may_be_none = {"objects_pasted"}  # two frames have few objects
    assert all(
        line.value is not None and (line.value > 0 or line.key in may_be_none)
        for line in outcome.lines
    )
    assert len({line.key for line in outcome.lines}) == len(outcome.lines)


def test_ratios_are_quotients_of_the_lines_above(measured):
    _, outcome = measured
    for key in RATIOS:
        assert outcome[f"{key}_ratio"] == pytest.approx(
            outcome[f"{key}_official_ms"] / outcome[f"{key}_ms"]
        )
    assert outcome["v1_read_official_ms"] == pytest.approx(2000.0)
    assert outcome["v2_convert_official_ms"] == pytest.approx(1000.0)


def test_bytes_per_point_by_hand(measured):
    folder, outcome = measured
    split = Store.open(folder / "store").split("training")
    files = [
        path for name in split.segments for path in (folder / "store/training" / name).iterdir()
    ]
    assert {path.name for path in files} >= {
        "points.npy",
        "frames.parquet",
        "boxes.parquet",
        "manifest.json",
    }
    assert outcome["bytes_per_point"] == pytest.approx(
        sum(len(path.read_bytes()) for path in files) / split.counts.sum()
    )
    assert outcome["bytes_per_point"] > 8


def test_targets_are_judged(measured):
    _, outcome = measured
    lines = {line.key: line for line in outcome.lines}
    targets = {key for key, line in lines.items() if line.target}
    assert targets == {
        "v1_read_ratio",
        "v2_convert_ratio",
        "bytes_per_point",
        *(key for key in lines if key.endswith("peak_mb")),
    }
    assert all(lines[key].met is not None for key in targets)
    assert lines["v1_read_ratio"].met == (outcome["v1_read_ratio"] >= 10)
    assert lines["bytes_per_point"].met == (outcome["bytes_per_point"] <= 9)
    assert outcome.to_dict()["targets"]["bytes_per_point"]["at_most"] == 9
    assert json.loads(json.dumps(outcome.to_dict()))["hardware"]["cores"] >= 1


def test_without_the_official_package_nothing_is_invented(measured, monkeypatch, tmp_path):
    folder, _ = measured

    def nowhere(named=None):
        raise OfficialError("no Python with the package waymo_open_dataset was found")

    monkeypatch.setattr(data, "find_python", nowhere)
    written = tmp_path / "out.json"
    options = [
        "--frames",
        "2",
        "--rounds",
        "1",
        "--scale",
        "demo",
        "--keep",
        str(folder),
        "--seconds",
        "0",
    ]
    answer = CliRunner().invoke(cli.app, ["bench", "data", *options, "--out", str(written)])
    assert answer.exit_code == 0, answer.output
    values = json.loads(written.read_text())
    theirs = ("official_ms", "ratio", "processor_ratio")
    assert {values["numbers"][f"{key}_{part}"] for key in RATIOS for part in theirs} == {None}
    assert values["targets"]["v1_read_ratio"]["met"] is None
    assert "not measured, ratios included: no Python with the package" in values["notes"][0]
    assert answer.output.count("not measured") == len(theirs) * len(RATIOS) + 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("frames.pop()", "2 frames, the official code finds 1; these times cannot be compared"),
        ("frames[1]['points'] -= 1", "frame 1: .* cannot be compared"),
        ("frames[0]['sum'][2] += frames[0]['points']", "frame 0: .* their means 1 m apart"),
    ],
)
def test_other_work_is_not_compared(measured, monkeypatch, tmp_path, damage, message):
    folder, _ = measured
    monkeypatch.setattr(official, "CHILD", pretender(tmp_path, damage))
    with pytest.raises(KdlibError, match=message):
        bench_data(2, 1, "demo", folder, sys.executable, 0)


def test_what_goes_wrong_in_a_process_of_its_own_is_raised_here(tmp_path):
    with pytest.raises(DataError, match=tmp_path.name):
        in_own_process(data.measure_reading, tmp_path, "a", data.Effort(1, 0.0), threads=1)
    with pytest.raises(KdlibError, match="'_exit' died in a process of its own"):
        in_own_process(os._exit, 3)


@pytest.mark.official
def test_the_official_code_does_the_same_work(measured):
    folder, _ = measured
    outcome = bench_data(2, 1, "demo", folder, find_python(), 0)
    assert all(outcome[f"{key}_ratio"] > 0 for key in RATIOS)
    assert any("TensorFlow" in note for note in outcome.notes)
