"""Finding and running a Python with the official package: here with stand-ins; tests/official has
the real one.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdlib.metric.waymo_metrics import evaluate_boxes
from kdlib.tools.bench.crowd import crowd
from kdlib.tools.judge import official
from kdlib.tools.judge.official import VARIABLE, OfficialError, find_python, official_scores
from kdlib.tools.judge.side_by_side import compare_with_official


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """No environment variable, no .venv-official, no package."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(official, "BESIDE", tmp_path / "absent")
    monkeypatch.setattr(official, "PACKAGE", "no_such_package_here")


def stand_in(folder: Path, body: str) -> Path:
    """An executable that gets the child's arguments: the script, an .npz, a .json."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o755)
    return path


def test_named_then_variable_then_beside_then_running(bare, monkeypatch, tmp_path):
    with pytest.raises(OfficialError, match=r"no Python with the package .*'make test-official'"):
        find_python()
    monkeypatch.setattr(official, "PACKAGE", "json")
    assert find_python() == Path(sys.executable)
    beside, named, variable = (tmp_path / name for name in ("beside", "named", "variable"))
    for path in (beside, named, variable):
        path.touch()
    monkeypatch.setattr(official, "BESIDE", beside)
    assert find_python() == beside
    monkeypatch.setenv(VARIABLE, str(variable))
    assert find_python() == variable
    assert find_python(named) == named


def test_a_named_python_must_exist(bare, monkeypatch, tmp_path):
    with pytest.raises(
        OfficialError, match=(r"--python names the Python '.*nowhere', which does " r"not exist")
    ):
        find_python(tmp_path / "nowhere")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(OfficialError, match=f"{VARIABLE} names the Python"):
        find_python()


ECHO = """
import json, os, sys
import numpy as np
assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and sys.argv[2] == "metric"
with np.load(sys.argv[3], allow_pickle=False) as a:
    numbers = [
        (len(a[f"{i}/prediction_bbox"]), float(a[f"{i}/ground_truth_bbox"].sum()))
        for i in range(int(a["sets"]))
    ]
sets = [
    {"names": ["X_LEVEL_1"], "ap": [float(ap)], "aph": [aph], "seconds": 2.0} for ap, aph in numbers
]
json.dump({"sets": sets, "peak_bytes": 2, "version": "stand-in"}, open(sys.argv[4], "w"))
"""


def test_every_set_goes_there_and_back(tmp_path):
    scenes = [crowd(2, 3, 5, seed=0), crowd(1, 2, 4, seed=1)]
    found = official_scores(scenes, python=stand_in(tmp_path, ECHO))
    for scene, scores in zip(scenes, found):
        assert scores.metrics["X_LEVEL_1/AP"] == len(scene.predictions.box)
        assert scores.metrics["X_LEVEL_1/APH"] == pytest.approx(scene.truth.box.sum(), rel=1e-5)
        assert (scores.seconds, scores.peak_bytes, scores.version) == (2.0, 2, "stand-in")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import os; os.abort()", r"died of SIGABRT \(it aborts on boxes"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            (r"died of SIGKILL \(the " r"machine may be short of memory"),
        ),
        (
            "raise ValueError('tensor of the wrong shape')",
            ("failed with: ValueError: tensor of the wrong shape"),
        ),
        ("raise SystemExit(3)", "failed with: it wrote nothing"),
        (
            "raise ImportError(\"No module named 'waymo_open_dataset'\")",
            ("lacks the package waymo_open_dataset"),
        ),
        (
            "raise ImportError(\"No module named 'tensorflow'\")",
            ("lacks the package waymo_open_dataset"),
        ),
        ("import time; time.sleep(60)", "was stopped after 2 s"),
    ],
)
def test_what_goes_wrong_there_is_one_sentence(tmp_path, body, message):
    with pytest.raises(OfficialError, match=message) as error:
        official_scores([crowd(1, 1, 1)], python=stand_in(tmp_path, body), timeout=2.0)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_program(tmp_path):
    path = tmp_path / "python"
    path.write_text("text")
    with pytest.raises(OfficialError, match="cannot be run"):
        official_scores([crowd(1, 1, 1)], python=path)


def test_types_the_official_tool_aborts_on(tmp_path):
    scene = crowd(1, 2, 3)
    broken = replace(scene, predictions=replace(scene.predictions, kind=np.array([1, 5, 2])))
    with pytest.raises(OfficialError, match="a box is of type 5"):
        official_scores([broken], python=stand_in(tmp_path, ECHO))


def test_comparison_runs_ours_in_its_own_process(monkeypatch, tmp_path):
    """The official side is played by kdlib's numbers, one of them shifted."""
    scene = crowd(20, 10, 20)
    result = evaluate_boxes(scene, tuple(range(20)))
    names = list(result.curves)
    ap, aph = ([result.metrics[f"{name}/{kind}"] for name in names] for kind in ("AP", "APH"))
    ap[0] += 1e-3
    part = {"names": names, "ap": ap, "aph": aph, "seconds": 100.0}
    answer = {"sets": [part], "peak_bytes": 10**12, "version": "stand-in"}
    python = stand_in(tmp_path, f"import json, sys; json.dump({answer!r}, open(sys.argv[4], 'w'))")
    for workers in (1, 2):
        found = compare_with_official(scene, python=python, workers=workers)
        assert (
            found.difference == pytest.approx(1e-3)
            and not found.agrees
            and "THEY DISAGREE" in found.table()
        )
        assert found.ours.metrics == result.to_dict()
        assert 0 < found.ours.seconds < 100 and found.speedup > 1
        assert 2e7 < found.ours.peak_bytes < 1e10
    assert found.to_dict()["official"]["metrics"][f"{names[0]}/AP"] == ap[0]
    assert (found.frames, found.predictions, found.ground_truth) == (20, 400, 200)
    assert "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1" in found.table()


def test_the_crowd_is_dense_and_repeatable():
    scene, again = crowd(10, 30, 60), crowd(10, 30, 60)
    assert scene.predictions.box.tobytes() == again.predictions.box.tobytes()
    assert (
        len(scene.predictions.frame) == 600 and len(scene.truth.frame) == 300 and scene.frames == 10
    )
    assert ((scene.predictions.score >= 0) & (scene.predictions.score <= 1)).all()
    assert set(scene.truth.kind) == {1, 2, 4} and set(scene.truth.difficulty) == {1, 2}
    counts = evaluate_boxes(scene, tuple(range(10))).frames.counts
    assert counts.tp[:, :, 0].sum() > 100
