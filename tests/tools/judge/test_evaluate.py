"""`python -m kdlib evaluate`: the numbers, the official ones beside them (played by a stand-in),
the leaderboard's file.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from kdlib.cli import app
from kdlib.errors import DataError
from kdlib.metric.box_tables import predictions_table, read_table, write_predictions
from kdlib.metric.waymo_metrics import evaluate_boxes
from kdlib.tools.bench.crowd import crowd
from kdlib.tools.judge.evaluate import evaluate as score
from kdlib.tools.judge.official import OfficialError


@pytest.fixture
def files(tmp_path):
    scene = crowd(6, 10, 20)
    names = [f"segment_{i:03d}" for i in range(6)]
    found, truth = scene.predictions, scene.truth
    table = predictions_table(
        [names[i] for i in found.frame], found.box, found.kind, found.score, frames=names
    )
    times = json.dumps([1_000_000 * i for i in range(6)])
    write_predictions(
        tmp_path / "p.parquet",
        table.replace_schema_metadata({**table.schema.metadata, "frame_timestamps": times}),
    )
    table = predictions_table(
        [names[i] for i in truth.frame], truth.box, truth.kind, np.ones(60), frames=names
    )
    table = table.append_column("difficulty", [truth.difficulty]).append_column(
        "num_points", [np.full(60, 9)]
    )
    write_predictions(tmp_path / "g.parquet", table)
    return scene, tmp_path


def official_python(folder, metrics, off=0.0):
    """Plays the official Python: the given numbers, all of them too high by ``off``."""
    names = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in metrics if "TYPE" in name))
    ap, aph = ([metrics[f"{name}/{kind}"] + off for name in names] for kind in ("AP", "APH"))
    answer = {
        "sets": [{"names": names, "ap": ap, "aph": aph, "seconds": 9.0}],
        "peak_bytes": 10**9,
        "version": "X",
    }
    path = folder / "python"
    path.write_text(
        f"#!{sys.executable}\nimport json, sys\njson.dump({answer!r}, open(sys.argv[4], 'w'))\n"
    )
    path.chmod(0o755)
    return path


def evaluate(folder, *options):
    command = [
        "evaluate",
        "--predictions",
        str(folder / "p.parquet"),
        "--ground-truth",
        str(folder / "g.parquet"),
        *options,
    ]
    return CliRunner().invoke(app, command)


def test_plain(files):
    scene, folder = files
    expected = evaluate_boxes(scene, tuple(range(6))).to_dict()
    judged = score(folder / "p.parquet", folder / "g.parquet")
    assert judged.to_dict() == expected and judged.comparison is None and judged.exported is None
    shown = evaluate(folder, "--json", "--workers", "2")
    assert shown.exit_code == 0 and json.loads(shown.stdout) == expected


def test_official_agrees(files):
    scene, folder = files
    python = official_python(folder, evaluate_boxes(scene, tuple(range(6))).metrics)
    shown = evaluate(folder, "--official", "--python", str(python))
    assert shown.exit_code == 0
    assert "largest difference 0.0e+00: they agree" in shown.stdout and "9.00 s" in shown.stdout
    shown = evaluate(folder, "--official", "--python", str(python), "--json")
    assert json.loads(shown.stdout)["official"]["agrees"] is True


def test_official_disagrees(files):
    scene, folder = files
    python = official_python(folder, evaluate_boxes(scene, tuple(range(6))).metrics, off=1e-4)
    shown = evaluate(folder, "--official", "--python", str(python))
    assert shown.exit_code == 1 and "THEY DISAGREE" in shown.stdout


def test_a_missing_python_is_said_before_the_work(files, monkeypatch):
    _, folder = files
    monkeypatch.setattr(
        "kdlib.tools.judge.evaluate.load_boxes", lambda *_, **__: pytest.fail("worked first")
    )
    with pytest.raises(OfficialError, match="does not exist"):
        score(folder / "p.parquet", folder / "g.parquet", official=True, python=folder / "none")


def test_export(files, import_objects):
    scene, folder = files
    shown = evaluate(folder, "--export", str(folder / "out" / "p.bin"))
    assert shown.exit_code == 0 and "120 boxes written" in shown.stdout
    again = import_objects(folder / "out" / "p.bin")
    assert (
        again["frame_timestamp_micros"].to_pylist()
        == (1_000_000 * scene.predictions.frame).tolist()
    )


def test_bad_files_keep_their_one_sentence(files):
    _, folder = files
    with pytest.raises(DataError, match=r"predictions file .*x\.parquet.: no column .score."):
        write_predictions(
            folder / "x.parquet", read_table(folder / "g.parquet", "t").drop(["score"])
        )
        score(folder / "x.parquet", folder / "p.parquet")
    (folder / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"predictions file '.*' is no readable Parquet"):
        score(folder / "p.parquet", folder / "g.parquet")
