"""Histories as tables and event files: every number comes back as it was written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from kdlib.errors import ConfigError
from kdlib.tools.server import tracking


def line(step: int, **parts: float) -> dict:
    values = {
        "step": step,
        "steps": 4,
        "epoch": 0,
        "lr": 0.1 * step,
        "loss": 2.0 / step,
        "parts": parts,
        "seconds": 1.5 * step,
    }
    return {
        **values,
        "grad_norm": None if step == 1 else 3.0,
        "samples_per_second": 8.0,
        "memory_mb": 100.0,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two trainings; the second distils, and its last line is only half there."""
    folder = tmp_path / "run"
    histories = {
        "teacher/scratch": [line(1, heatmap=1.5), line(2, heatmap=0.5)],
        "students/full_seed1": [
            line(step, heatmap=1.0, kd_heatmap=0.25 * step) for step in (1, 2, 3)
        ],
    }
    for name, lines in histories.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "history.jsonl").write_text(
            "".join(json.dumps(one) + "\n" for one in lines)
        )
    with (folder / "students/full_seed1/history.jsonl").open("a") as stream:
        stream.write('{"step": 4, "st')
    return folder


def test_csv_holds_every_line(run: Path, tmp_path: Path) -> None:
    assert tracking.write_csv(run, tmp_path / "out.csv") == 5
    with (tmp_path / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["training"], row["step"]) for row in rows] == [
        *(("students/full_seed1", str(step)) for step in (1, 2, 3)),
        *(("teacher/scratch", str(step)) for step in (1, 2)),
    ]
    assert list(rows[0])[:5] == ["training", "step", "steps", "epoch", "loss"]
    assert float(rows[2]["loss/kd_heatmap"]) == 0.75 and rows[3]["loss/kd_heatmap"] == ""
    assert rows[0]["grad_norm"] == "" and float(rows[1]["grad_norm"]) == 3.0


def test_one_training_goes_by_its_name(run: Path, tmp_path: Path) -> None:
    tracking.write_csv(run / "teacher" / "scratch", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("scratch,1,4,0,2.0,")


def test_nothing_to_export_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no history\.jsonl; name the folder of a run"):
        tracking.write_csv(tmp_path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_reads_the_same_numbers(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    out = tmp_path / "events"
    written = tracking.write_tensorboard(run, out)
    assert tracking.write_tensorboard(run, out) == written, (
        "a second call replaces the first one's files"
    )
    teacher, student = events(out / "teacher" / "scratch"), events(out / "students" / "full_seed1")
    assert teacher["loss/total"] == [(1, 2.0), (2, 1.0)]
    assert teacher["optimiser/grad_norm"] == [(2, 3.0)] and "loss/kd_heatmap" not in teacher
    assert student["loss/kd_heatmap"] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert student["machine/samples_per_second"] == [(step, 8.0) for step in (1, 2, 3)]
    assert written == sum(len(values) for one in (teacher, student) for values in one.values())


def test_without_tensorboard_the_remedy_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard, or take --csv"):
        tracking.write_tensorboard(run, tmp_path / "events")


def test_the_verb(run: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from kdlib.cli import app

    said = CliRunner().invoke(app, ["history", str(run), "--csv", str(tmp_path / "out.csv")])
    assert said.exit_code == 0 and said.output == f"5 lines written to {tmp_path / 'out.csv'}\n"
    assert CliRunner().invoke(app, ["history", str(run)]).exit_code == 2
