"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from devices import accelerators, on

from kdlib import records

if TYPE_CHECKING:
    from kdlib.lab.pipeline import Run

TESTS = Path(__file__).parent


@pytest.fixture(
    scope="module",
    params=["cpu", *(pytest.param(name, marks=pytest.mark.gpu) for name in accelerators())],
)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where a test's tensors and modules lie: on the CPU, and once more on the accelerator where
    there is one.
    """
    if request.param == "cpu":
        yield torch.device("cpu")
        return
    with on(torch.device(request.param)):
        yield torch.device(request.param)


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Outputs of the official Waymo package and of the original implementation, small ones, in
    git.
    """
    return TESTS / "goldens"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Larger goldens and real sweeps that stay out of git: a folder beside the checkout, or
    KDLIB_SHARED.
    """
    folder = Path(os.environ.get("KDLIB_SHARED", TESTS.parent.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(
            f"needs the folder {folder} (set KDLIB_SHARED); it holds files that may not "
            "be committed"
        )
    return folder


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DATA_ROOT of the smoke profile: simulated Waymo files and the store prepared from them. Not
    to be changed.
    """
    from kdlib.lab import pipeline

    root = tmp_path_factory.mktemp("smoke")
    run = pipeline.open_run("smoke", str(root / "run"), str(root / "data"))
    pipeline.prepare_data(run)
    return run.data


@pytest.fixture(scope="session")
def smoke_run(smoke_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A smoke run as notebooks 00 to 02 leave it, but nobody was trained. Not to be changed."""
    import torch

    from kdlib.lab import pipeline
    from kdlib.models.build import build
    from kdlib.models.weights import save_weights

    run = pipeline.open_run("smoke", str(tmp_path_factory.mktemp("run")), str(smoke_data))
    files = {}
    models = {
        "teacher": run.profile.teacher_model,
        **dict.fromkeys(run.profile.arms, run.profile.student_model),
    }
    for number, (name, model) in enumerate(models.items()):
        files[name] = run.folder / f"{name}.safetensors"
        torch.manual_seed(number)
        save_weights(files[name], build(model), {"made": "for the tests"})
    pipeline.save_result(
        run, "01_train_teacher", {"weights": str(files.pop("teacher")), "origin": "scratch"}
    )
    rows = [{"arm": arm, "seed": 1, "weights": str(path)} for arm, path in files.items()]
    budget = {"steps": 4, "samples": 8, "frames": 8, "epochs": 1}
    pipeline.save_result(run, "02_distill_student", {"budget": budget, "students": rows})
    return run


@dataclass(frozen=True)
class Chain:
    """A run of a chain of notebooks, as a process of its own."""

    folder: Path
    command: tuple[str, ...]
    cwd: Path
    printed: str

    def again(self) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            self.command, cwd=self.cwd, env=environment, capture_output=True, text=True, check=False
        )

    def result(self, stage: str) -> dict[str, Any]:
        return records.read_json(self.folder / stage / "result.json")


@pytest.fixture(scope="session")
def headless(smoke_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Chain]:
    """``f(profile, out, **parameters)``: ``kdlib run`` on the smoke data, from a folder far from
    the project.
    """

    def execute(profile: str, out: str, **parameters: Any) -> Chain:
        root = tmp_path_factory.mktemp("headless")
        given = [
            f"{name}={value}"
            for name, value in {"DATA_ROOT": smoke_data, "RESAMPLES": 50, **parameters}.items()
        ]
        options = [word for value in given for word in ("-p", value)]
        command = (sys.executable, "-m", "kdlib", "run", profile, "--out", out, *options)
        done = Chain(root / out, command, root, "").again()
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return Chain(root / out, command, root, done.stdout)

    return execute


@pytest.fixture(scope="session")
def import_objects() -> Callable[[Path], Any]:
    """``f(path)``: the boxes of a leaderboard's ``Objects`` file as a table of predictions and of
    ground truth.
    """
    import pyarrow as pa

    from kdlib.data.segment import BOX_NUMBERS
    from kdlib.tools.judge.leaderboard import PROTO_NAMES, objects_message

    def row(item: Any) -> dict[str, Any]:
        label, context, time = item.object, item.context_name, item.frame_timestamp_micros
        return {
            "frame_id": f"{context}_{item.camera_name}_{time:020d}",
            "context_name": context,
            "frame_timestamp_micros": time,
            **{
                column: getattr(label.box, field) for column, field in zip(BOX_NUMBERS, PROTO_NAMES)
            },
            "type": label.type,
            # as the official command-line tool has it
            "score": item.score if item.HasField("score") else 1.0,
            "overlap_nlz": item.overlap_with_nlz,
            "difficulty": label.detection_difficulty_level,
            "num_points": label.num_lidar_points_in_box,
        }

    def read(path: Path) -> Any:
        rows = [row(item) for item in objects_message().FromString(path.read_bytes()).objects]
        return pa.Table.from_pylist(rows)

    return read
