"""Several processes against one: the same gradients, the same weights, the same ways to stop; on
CPU, through gloo.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from kdlib import records, zoo
from kdlib.config import GridConfig, HeadConfig, PillarEncoderConfig, TrainConfig
from kdlib.data.prepare import prepare
from kdlib.errors import ConfigError
from kdlib.simulate import simulate
from kdlib.training import checkpoint, loop
from kdlib.training.distributed import ONE_PROCESS, here
from kdlib.training.job import TrainJob

sys.path.insert(0, str(Path(__file__).parent))
import ddp_cases as cases

WHOLE = ("pillar64", "sparsekd64", "voxel64")  # twenty steps
ONE_STEP = (
    "anchor64",
    "voxel_local64",
    *(f"{recipe}64" for recipe in cases.RECIPES if recipe != "sparsekd"),
)
SINGLE = ("pillar", "sparsekd")  # in 32 bits
RESUMED = "pillar64@resumed"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("KDLIB_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(one_thread, tmp_path_factory) -> tuple[Path, Path]:
    """Folders of all cases, trained by one process and by two; the one to be resumed had seven
    steps of one process before.
    """
    alone, both = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("both")
    steps = {**dict.fromkeys((*WHOLE, *SINGLE), cases.STEPS), **dict.fromkeys(ONE_STEP, 1)}
    for case, count in steps.items():
        cases.run_case(alone / case, case, count)
    cases.run_case(both / RESUMED, "pillar64", cases.STEPS, stop_after=7)
    words = [f"{case}:{count}" for case, count in steps.items()] + [
        f"{RESUMED}:{cases.STEPS}:13",
        "die",
    ]
    with (both / "log").open("w") as log:
        # In a process of its own: its output is looked at below.
        subprocess.run(two_ranks(both, words), stdout=log, stderr=log, timeout=300, check=False)
    return alone, both


def two_ranks(folder: Path, words: list[str]) -> tuple[str, ...]:
    arguments = (str(Path(cases.__file__)), str(folder), *words)
    order = (
        "import sys; from kdlib.training.launcher import start_ranks; "
        f"sys.exit(start_ranks({arguments!r}, 2))"
    )
    return (sys.executable, "-c", order)


def newest(folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.load_checkpoint(checkpoint.files(folder / "checkpoints")[-1])


def largest_difference(a: Path, b: Path, kind: str) -> float:
    """Over all tensors of a kind: ``weights`` (buffers included), ``optimiser``."""
    left, right = newest(a), newest(b)
    assert left.step == right.step and left.tensors.keys() == right.tensors.keys()
    names = [
        name for name in left.tensors if name.startswith(f"{kind}/") and left.tensors[name].numel()
    ]
    assert len(names) > 20
    return max(
        float((left.tensors[name].double() - right.tensors[name].double()).abs().max())
        for name in names
    )


@pytest.mark.parametrize("case", WHOLE)
def test_two_processes_end_with_the_weights_of_one(trained, case):
    alone, both = trained
    assert newest(both / case).step == cases.STEPS
    assert largest_difference(alone / case, both / case, "weights") < 1e-6  # measured: 3e-9
    assert largest_difference(alone / case, both / case, "optimiser") < 1e-10
    first = {
        name: value
        for name, value in newest(alone / case).notes.items()
        if name in ("samples", "meter")
    }
    assert newest(both / case).notes["samples"] == first["samples"] == 56


@pytest.mark.parametrize("case", ONE_STEP)
def test_gradients_after_one_step(trained, case):
    """Adam's first moment after one step is the clipped gradient, times a number; the batch has 3
    frames, shared 2 to 1.
    """
    alone, both = trained
    assert largest_difference(alone / case, both / case, "optimiser") < 1e-12
    ours, theirs = (
        records.read_json_lines(folder / case / "history.jsonl")[-1] for folder in (both, alone)
    )
    assert ours["parts"] == pytest.approx(theirs["parts"], rel=1e-12)
    assert all(theirs["parts"].values())
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-10)


@pytest.mark.parametrize("case", SINGLE)
def test_in_32_bits_the_order_of_sums_is_what_is_left(trained, case):
    """Later, two runs of one process that only sum in another order drift apart as far: Adam
    divides noise by noise.
    """
    alone, both = trained
    ours, theirs = (
        records.read_json_lines(folder / case / "history.jsonl") for folder in (both, alone)
    )
    for one, other in zip(ours[:10], theirs[:10]):
        assert one["parts"] == pytest.approx(other["parts"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_resume_with_two_processes_and_with_one_again(trained):
    alone, both = trained
    assert newest(both / RESUMED).step == 13
    assert newest(both / RESUMED).job == newest(alone / "pillar64").job
    cases.run_case(both / RESUMED, "pillar64", cases.STEPS)
    assert largest_difference(alone / "pillar64", both / RESUMED, "weights") < 1e-6
    assert [
        line["step"] for line in records.read_json_lines(both / RESUMED / "history.jsonl")
    ] == list(range(1, cases.STEPS + 1))
    assert newest(both / RESUMED).notes["samples"] == 56


def test_a_rank_that_dies_ends_all_with_one_sentence(trained):
    lines = [line for line in (trained[1] / "log").read_text().splitlines() if "rank" in line]
    last = (
        "kdlib: rank 1 of 2 was killed by SIGKILL, so all were stopped; a new start goes on "
        "from the last checkpoint"
    )
    assert lines[-1] == last
    assert lines[:-1] in ([], ["rank 0 of 2 lost another rank and ends"])


def test_ranks_save_and_end_when_their_starter_is_killed(tmp_path, one_thread):
    starter = subprocess.Popen(two_ranks(tmp_path, ["pillar:5000"]))
    wait_for_step(tmp_path / "pillar", starter, 3)
    ranks = psutil.Process(starter.pid).children()
    starter.kill()
    starter.wait()
    assert len(ranks) == 2 and not psutil.wait_procs(ranks, timeout=60)[1]
    assert newest(tmp_path / "pillar").step >= 3


# Through the command line.

TINY = replace(
    zoo.CP_PILLAR_DEMO_V064,
    name="tiny",
    grid=GridConfig((-10.24, -10.24, -2.0, 10.24, 10.24, 4.0), (0.64, 0.64, 6.0), 20),
    encoder=PillarEncoderConfig((8, 8)),
    backbone=replace(
        zoo.CP_PILLAR_DEMO.backbone, layers=(1, 1, 1), filters=(8, 8, 8), upsample_filters=(8, 8, 8)
    ),
    head=HeadConfig(8),
)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TrainJob:
    root = tmp_path_factory.mktemp("data")
    simulate(root / "waymo", segments=1, frames=5, seed=3, scale="demo", workers=1, progress=False)
    prepare(
        root / "waymo",
        root / "store",
        workers=1,
        progress=False,
        splits=("training",),
        objects=False,
    )
    schedule = TrainConfig(
        epochs=30, batch_size=2, interval=1, workers=1, checkpoint_steps=1000, seed=5
    )
    return TrainJob(TINY, schedule, str(root / "store"), name="tiny")


def start(
    run_dir: Path, *words: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    told = {**os.environ, **(environment or {})}
    with (run_dir / "train.log").open("ab") as log:
        return subprocess.Popen(
            (sys.executable, *words), stdout=log, stderr=log, start_new_session=True, env=told
        )


def srun(task: int, tasks: int) -> dict[str, str]:
    """What SLURM tells one of several tasks on one node."""
    numbers = {
        "STEP_NUM_TASKS": tasks,
        "NTASKS": tasks,
        "NTASKS_PER_NODE": tasks,
        "PROCID": task,
        "LOCALID": task,
    }
    numbers |= {"STEP_NUM_NODES": 1, "NNODES": 1, "NODEID": 0, "JOB_ID": 15000 + os.getpid() % 1000}
    names = {"NODELIST": "127.0.0.1", "JOB_NAME": "tiny"}
    return {f"SLURM_{name}": str(value) for name, value in {**numbers, **names}.items()}


def wait_for_step(run_dir: Path, child: subprocess.Popen[bytes], step: int) -> None:
    for _ in range(2400):
        lines = records.read_json_lines(run_dir / "history.jsonl")
        if lines and lines[-1]["step"] >= step:
            return
        assert child.poll() is None, "it ended early"
        time.sleep(0.05)
    raise AssertionError("it made no progress")


def ended(child: subprocess.Popen[bytes], run_dir: Path) -> int:
    try:
        return child.wait(timeout=150)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        print((run_dir / "train.log").read_text())


@pytest.mark.long
def test_termination_and_resume_through_the_command_line(tmp_path, job, one_thread):
    job.write(tmp_path)
    child = start(tmp_path, "-m", "kdlib", "train", str(tmp_path), "--devices", "2")
    wait_for_step(tmp_path, child, 5)
    # as a terminal or a scheduler does it: starter, ranks and data workers
    os.killpg(child.pid, signal.SIGTERM)
    assert ended(child, tmp_path) == 143
    assert (tmp_path / "train.log").read_text().count("stopped at step") == 1
    stopped = newest(tmp_path).step
    assert stopped >= 5 and not (tmp_path / "child.json").exists()

    torchrun = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "kdlib",
        "train",
        str(tmp_path),
    )
    child = start(tmp_path, *torchrun)
    wait_for_step(tmp_path, child, stopped + 5)
    ranks = {
        int(p.environ()["RANK"]): p
        for p in psutil.Process(child.pid).children()
        if "RANK" in p.environ()
    }
    ranks[1].terminate()  # one rank alone: all save and end
    assert ended(child, tmp_path) != 0
    assert newest(tmp_path).step >= stopped + 5
    assert f"going on from step {stopped} of 90" in (tmp_path / "train.log").read_text()

    children = [
        start(tmp_path, "-m", "kdlib", "train", str(tmp_path), environment=srun(task, 2))
        for task in range(2)
    ]
    assert [ended(child, tmp_path) for child in children] == [0, 0]
    result = records.read_json(tmp_path / "result.json")
    assert result["steps"] == 90 and result["samples"] == 150 and result["frames"] == 5
    lines = records.read_json_lines(tmp_path / "history.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 91))


def test_what_cannot_work_is_said_before_anything_starts(tmp_path, job, monkeypatch):
    job.write(tmp_path)
    with pytest.raises(
        ConfigError, match="a batch of 2 frames cannot be shared evenly by 3 processes"
    ):
        loop.train(tmp_path, 3)
    monkeypatch.setenv("KDLIB_DEVICES", "4")  # a whole chain of notebooks says it so
    with pytest.raises(
        ConfigError, match="a batch of 2 frames cannot be shared evenly by 4 processes"
    ):
        loop.train(tmp_path)
    monkeypatch.setenv("KDLIB_DEVICES", "all")
    with pytest.raises(ConfigError, match="KDLIB_DEVICES='all' must be a positive number"):
        loop.train(tmp_path)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(
        ConfigError, match="2 processes on this machine but only 1 GPU visible; use --devices 1"
    ):
        loop.train(tmp_path, 2)
    assert not list(tmp_path.glob("*.jsonl"))


def test_places_as_launchers_tell_them(monkeypatch):
    assert here() == ONE_PROCESS
    for name, value in {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_PROCID": "5",
    }.items():
        monkeypatch.setenv(name, value)
    place = here()
    assert (place.world, place.rank, place.devices, place.slurm, place.first) == (
        8,
        5,
        4,
        True,
        False,
    )
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": "6",
        "RANK": "0",
        "LOCAL_WORLD_SIZE": "4",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="6 processes are not shared evenly by the machines"):
        here()
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit, match="2"):  # the first rank has said it
        here()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="--devices 2 but the launcher started 3 processes"):
        loop.train(Path("unread"), 2)
