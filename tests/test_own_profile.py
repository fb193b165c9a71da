"""The README's section about a dataset of one's own, from an empty folder to a finished report."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdlib import records

ROOT = Path(__file__).resolve().parents[1]
SHORT = ("seeds=[1]", "teacher.epochs=3", "student.epochs=2", "student.batch_size=2")
TRAINING, VALIDATION, SWEEPS = ("monday", "tuesday"), ("friday",), 4  # drives, sweeps of each


def recordings(folder: Path) -> None:
    """Invented drives: a flat road, two cars, a pedestrian, as KITTI's files and lines of text."""
    rng = np.random.default_rng(1)
    for split, drives in (("training", TRAINING), ("validation", VALIDATION)):
        for drive in drives:
            home = folder / split / drive
            home.mkdir(parents=True)
            for number in range(SWEEPS):
                boxes = [
                    ("Car", 10.0 + number, 4.0, 0.8, 4.2, 1.8, 1.6, 0.1),
                    ("Car", 30.0 - number, -5.0, 0.8, 4.2, 1.8, 1.6, 3.0),
                    ("Pedestrian", 8.0, -6.0 + number, 0.9, 0.8, 0.8, 1.8, 1.5),
                ]
                road = np.column_stack(
                    (rng.uniform((-5, -25), (50, 25), (3000, 2)), np.zeros(3000))
                )
                clusters = [
                    np.array(box[1:4]) + rng.uniform(-0.5, 0.5, (150, 3)) * box[4:7]
                    for box in boxes
                ]
                points = np.concatenate((road, *clusters)) - (0, 0, 1.73)  # from KITTI's sensor
                scan = np.column_stack((points, rng.uniform(0, 1, len(points))))
                scan.astype("<f4").tofile(home / f"{number:03}.bin")
                lines = "\n".join(" ".join(map(str, box)) for box in boxes)
                (home / f"{number:03}.txt").write_text(lines)


def blocks() -> dict[str, str]:
    """The section's blocks of code, by language."""
    section = (ROOT / "README.md").read_text().partition("## A dataset of your own")[2]
    return dict(re.findall(r"```(\w+)\n(.*?)```", section.partition("\n## ")[0], re.S))


def work_of_children() -> float:
    """CPU seconds of finished children: what else runs on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.long
@pytest.mark.notebooks
def test_the_section_runs_as_written(tmp_path: Path) -> None:
    home, out, code = tmp_path / "project", tmp_path / "run", blocks()
    home.mkdir()
    recordings(home / "recordings")
    (home / "convert.py").write_text(
        f'{code["python"]}\nconvert(Path("recordings"), Path("mine"))\n'
    )
    (home / "my_profile.toml").write_text(code["toml"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = code["bash"].splitlines()[0].partition("#")[0].split()
    assert command == ["python", "-m", "kdlib", "run", "my_profile.toml"]
    short = [word for text in SHORT for word in ("--set", text)]
    begun = work_of_children()
    for words in (["convert.py"], [*command[1:], "--out", str(out), *short]):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert work_of_children() - begun < 300, "seconds; on two idle cores it takes less"
    result = records.read_json(out / "result.json")
    assert (result["profile"], records.read_json(out / "profile.json")["seeds"]) == (
        "my_profile",
        [1],
    )

    trained = result["02_distill_student"]
    assert {row["arm"] for row in trained["students"]} == {"alone", "init", "full"}
    assert trained["budget"]["frames"] == len(TRAINING) * SWEEPS, "every frame is used"
    judged = result["03_evaluate"]
    assert judged["evaluation"]["frames"] == len(VALIDATION) * SWEEPS
    assert judged["evaluation"]["settings"]["mean_over"] == ["CAR", "PEDESTRIAN"]
    assert judged["comparison"]["basis"] == "one segment: no interval"
    scores = {row["arm"]: row for row in judged["arms"]}
    assert len(scores) == 4 and scores["teacher"]["LEVEL_2 mAPH"] is not None
    for row in (*scores.values(), *judged["differences"]):
        assert row["95 % low"] is None and row["95 % high"] is None
    assert all(row["std over seeds"] is None for row in scores.values())
    assert [row["a gain"] for row in judged["differences"]] == [None] * 6
    assert all(
        verdict["met"] is None and verdict["result"].endswith("one segment: no interval")
        for verdict in judged["verdicts"]
    )
    page = (out / "report.html").read_text()
    assert "frames of one&#39;s own" in page and "Waymo Open Dataset" not in page
    assert page.count("not measured") == len(judged["verdicts"])
    assert not (ROOT / "reports" / "runs" / "my_profile").exists()
