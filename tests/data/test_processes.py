"""Scripts without a main guard, and processes that die: one sentence, no hang, and each its own."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdlib.data.prepare import only_writer
from kdlib.data.processes import process_pool
from kdlib.errors import ConfigError, DataError
from kdlib.lab import occupancy

ROOT = Path(__file__).resolve().parents[2]
GUARD = "call from under \"if __name__ == '__main__':\", or with one worker"
TABLES = """
import numpy as np, pyarrow as pa
from kdlib.metric.waymo_metrics import evaluate_tables
numbers = ("x", "y", "z", "length", "width", "height", "heading")
boxes = {"frame_id": [str(n) for n in range(600)], **{name: np.ones(600) for name in numbers}}
kinds = {"type": np.ones(600, int), "num_points": np.ones(600, int)}
truth = pa.table({**boxes, **kinds, "difficulty": np.zeros(600, int)})
"""
CALLS = {
    "pool": """
from kdlib.data.processes import process_pool
with process_pool(2, "died") as pool:
    pool.submit(abs, 1).result()
""",
    "simulate": """
from pathlib import Path
from kdlib.simulate import simulate
simulate(Path("waymo"), 2, 2, 1, "demo", workers=2, progress=False)
""",
    "evaluate": TABLES
    + "evaluate_tables(pa.table({**boxes, **kinds, 'score': np.ones(600)}), truth, workers=2)",
    "prepare": """
from pathlib import Path
from kdlib.data.prepare import prepare
prepare(Path("waymo"), Path("store"), workers=2, progress=False)
""",
    "pipeline": """
from kdlib.lab import pipeline
pipeline.prepare_data(pipeline.open_run("waymo20", "run", "."))
""",
}


@pytest.mark.parametrize(
    "what", ["pool", *(pytest.param(name, marks=pytest.mark.long) for name in list(CALLS)[1:])]
)
def test_a_script_without_a_main_guard_is_told_of_it(tmp_path: Path, what: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(CALLS[what])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if what in ("prepare", "pipeline"):
        simulated = (sys.executable, "-m", "kdlib", "simulate", "--out", "waymo", "--seed")
        for split, seed in (("training", "1"), ("validation", "2")):
            rest = (seed, "--segments", "3", "--frames", "4", "--split", split)
            subprocess.run((*simulated, *rest), cwd=tmp_path, env=environment, check=True)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("kdlib.errors.") and GUARD in last, done.stderr
    assert "memory; run" not in done.stderr and "another process" not in done.stderr


def test_what_waits_or_holds_refuses_in_a_process_that_runs_the_script_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: process_pool(2, "died").__enter__(),
        lambda: occupancy.take_turn(tmp_path).__enter__(),
        lambda: occupancy.hold(tmp_path).__enter__(),
        lambda: only_writer(tmp_path).__enter__(),
    )
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    for call in calls:
        with pytest.raises(ConfigError, match="runs the whole script again; call from under"):
            call()
    assert not list(tmp_path.iterdir())


def test_a_process_that_dies_at_work_is_told_from_one_that_cannot_start() -> None:
    with pytest.raises(DataError, match="for want of memory"):
        with process_pool(1, "a process was killed, perhaps for want of memory") as pool:
            pool.submit(os._exit, 9).result()
