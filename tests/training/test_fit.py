"""Resuming, accumulating, stopping: on a toy objective."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdlib import records
from kdlib.config import TrainConfig
from kdlib.errors import ConfigError
from kdlib.training import checkpoint
from kdlib.training.checkpoint import CheckpointError
from kdlib.training.fit import fit_objective, schedule_length
from kdlib.training.history import Diverged
from kdlib.training.job import RunDir
from kdlib.training.optim import beta1, learning_rate

sys.path.insert(0, str(Path(__file__).parent))
import toy

TOY = Path(toy.__file__)


class Listed:
    """A list as a loader; Lightning takes a bare list for several loaders."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def start(folder: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.Popen(
        (sys.executable, str(TOY), "train", str(folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )


def wait_for_line(folder: Path, step: int) -> None:
    for _ in range(2400):
        lines = records.read_json_lines(folder / "history.jsonl")
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError("the child made no progress")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums depend on the number of threads; runs are compared bit by bit, so all of them, like the
    children, have one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    toy.run_toy(folder)
    return folder


def same_end(a: Path, b: Path) -> None:
    left, right = load_file(a / "weights.safetensors"), load_file(b / "weights.safetensors")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert records.read_json(a / "result.json") == records.read_json(b / "result.json")
    timeless = ("step", "lr", "epoch", "loss", "parts", "grad_norm")
    ours, theirs = (
        [{k: x[k] for k in timeless} for x in records.read_json_lines(f / "history.jsonl")]
        for f in (a, b)
    )
    assert ours == theirs


def test_history_and_schedule(uninterrupted):
    lines = records.read_json_lines(uninterrupted / "history.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert [line["epoch"] for line in lines] == [0] * 10 + [1] * 10 + [2] * 10
    for line in lines:
        assert line["lr"] == learning_rate(line["step"] - 1, 30, 0.003)
        assert sum(line["parts"].values()) == pytest.approx(line["loss"], rel=1e-5)
        assert line["samples_per_second"] > 0 and line["memory_mb"] > 0
    assert [path.name for path in checkpoint.files(uninterrupted / "checkpoints")] == [
        "step_0000028.safetensors",
        "step_0000030.safetensors",
    ]


@pytest.mark.parametrize("stops", [(1,), (7,), (8, 13, 29)])
def test_resume_is_bit_identical(tmp_path, uninterrupted, stops):
    for stop in stops:
        _, outcome = toy.run_toy(tmp_path, stop_after=stop)
        assert outcome.step == stop and not outcome.done
        torch.randn(random.randrange(9))  # another generator state must not matter
    toy.run_toy(tmp_path)
    same_end(tmp_path, uninterrupted)


def test_sigkill_at_a_random_step(tmp_path, uninterrupted):
    (tmp_path / "toy.json").write_text('{"pause": 0.05}')
    child = start(tmp_path)
    wait_for_line(tmp_path, random.randint(3, 25))
    child.kill()
    child.communicate()
    assert not (tmp_path / "complete.json").exists()
    (tmp_path / "toy.json").unlink()
    again = start(tmp_path)
    output = again.communicate(timeout=120)[0].decode()
    assert again.returncode == 0, output
    same_end(tmp_path, uninterrupted)


def test_sigterm_saves_and_exits_143(tmp_path, uninterrupted):
    (tmp_path / "toy.json").write_text('{"pause": 0.05, "checkpoint_steps": 1000}')
    child = start(tmp_path)
    wait_for_line(tmp_path, 5)
    child.send_signal(signal.SIGTERM)
    output = child.communicate(timeout=60)[0].decode()
    assert child.returncode == 143, output
    (kept,) = checkpoint.files(tmp_path / "checkpoints")
    assert checkpoint.load_checkpoint(kept).step >= 5
    assert not (tmp_path / "child.json").exists()
    (tmp_path / "toy.json").unlink()
    toy.run_toy(tmp_path)
    same_end(tmp_path, uninterrupted)


def test_truncated_newest_checkpoint_is_named_and_the_one_before_used(
    tmp_path, uninterrupted, caplog, capsys
):
    toy.run_toy(tmp_path, stop_after=14)
    newest = checkpoint.files(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    toy.run_toy(tmp_path)
    assert str(newest) in caplog.text
    assert "going on from step 12" in capsys.readouterr().out
    same_end(tmp_path, uninterrupted)


def test_finished_run_is_not_repeated(tmp_path, uninterrupted):
    toy.run_toy(tmp_path)
    before = (tmp_path / "history.jsonl").read_text()
    _, outcome = toy.run_toy(tmp_path)
    assert outcome.done and outcome.step == 30
    assert (tmp_path / "history.jsonl").read_text() == before
    same_end(tmp_path, uninterrupted)


def test_checkpoint_of_another_job_is_refused(tmp_path):
    toy.run_toy(tmp_path, stop_after=4)
    with pytest.raises(CheckpointError, match="belongs to job 0123456789ab, this run is job other"):
        fit_objective(
            toy.ToyObjective(),
            lambda s: toy.Batches(s, 9),
            RunDir(tmp_path),
            TrainConfig(),
            "other",
            total=9,
            per_epoch=9,
        )


def small(folder, objective, batches, *, accumulate, total, clip=10.0):
    config = TrainConfig(accumulate=accumulate, clip_norm=clip, checkpoint_steps=100)
    return fit_objective(
        objective,
        lambda s: Listed(batches[s:]),
        RunDir(folder),
        config,
        "job",
        total=total,
        per_epoch=len(batches),
    )


def test_accumulation_equals_a_big_batch_without_batchnorm(tmp_path):
    parts = [toy.make_batch(i, 4) for i in range(12)]
    joined = []
    for first in range(0, 12, 3):
        three = [b.points for b in parts[first : first + 3]]
        points = torch.cat([p.points for p in three])
        big = toy.make_batch(0, 12)
        joined.append(
            type(big)(
                type(big.points)(points, big.points.batch_index, 12, big.points.frame_ids),
                big.truth,
            )
        )
    ends = []
    for name, batches, accumulate in (("parts", parts, 3), ("big", joined, 1)):
        torch.manual_seed(0)
        objective = toy.ToyObjective(dropout=0.0, norm=False)
        outcome = small(tmp_path / name, objective, batches, accumulate=accumulate, total=4)
        assert outcome.step == 4 and outcome.samples == 48
        ends.append(objective.student.state_dict())
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-5, atol=1e-6)


def test_accumulating_run_resumes_at_whole_steps(tmp_path):
    batches = [toy.make_batch(i) for i in range(20)]
    ends = []
    for name, stops in (("whole", ()), ("halved", (2,))):
        config = TrainConfig(accumulate=3, checkpoint_steps=100)
        for stop in (*stops, None):
            torch.manual_seed(0)
            objective = toy.ToyObjective()
            options = {"total": 6, "per_epoch": 20, "stop_after": stop}
            outcome = fit_objective(
                objective,
                lambda s: Listed(batches[s:]),
                RunDir(tmp_path / name),
                config,
                "job",
                **options,
            )
        assert outcome.done and outcome.samples == 18 * 4
        ends.append(objective.state_dict())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_teacher_is_neither_updated_nor_stored(tmp_path):
    torch.manual_seed(0)
    objective = toy.ToyObjective()
    before = {k: v.clone() for k, v in objective.teacher.state_dict().items()}
    small(tmp_path, objective, [toy.make_batch(i) for i in range(5)], accumulate=1, total=5)
    assert all(torch.equal(before[k], v) for k, v in objective.teacher.state_dict().items())
    saved = checkpoint.load_checkpoint(checkpoint.files(tmp_path / "checkpoints")[-1])
    assert not any("teacher" in name for name in saved.tensors)


def test_gradients_are_clipped_together(tmp_path):
    torch.manual_seed(0)
    objective = toy.ToyObjective(dropout=0.0, norm=False)
    outcome = small(tmp_path, objective, [toy.make_batch(0)], accumulate=1, total=1, clip=0.01)
    assert outcome.last["grad_norm"] > 0.01
    norms = [p.grad.norm() for p in objective.student.parameters()]
    assert torch.stack(norms).norm() == pytest.approx(0.01, rel=1e-3)


def test_clip_equals_original(goldens):
    import numpy as np

    golden = np.load(goldens / "original" / "09_optim" / "clip_grad_norm.npz", allow_pickle=False)
    names = [key[3:] for key in golden.files if key.startswith("g__")]
    parameters = []
    for name in names:
        parameter = torch.nn.Parameter(torch.zeros(golden[f"g__{name}"].shape))
        parameter.grad = torch.from_numpy(golden[f"g__{name}"].copy())
        parameters.append(parameter)
    from kdlib.training.module import TrainingModule

    module = TrainingModule(torch.nn.ParameterList(parameters), TrainConfig(), total=10)
    module.configure_gradient_clipping(None)
    assert float(module.grad_norm) == pytest.approx(float(golden["total_norm"]), rel=1e-6)
    for name, parameter in zip(names, parameters):
        np.testing.assert_allclose(
            parameter.grad.numpy(), golden[f"clipped__{name}"], rtol=1e-6, atol=1e-6
        )


def test_bfloat16_resumes_exactly(tmp_path):
    ends = []
    for name, stops in (("whole", (None,)), ("halved", (5, None))):
        config = TrainConfig(precision="bf16-mixed", checkpoint_steps=100)
        for stop in stops:
            torch.manual_seed(0)
            objective = toy.ToyObjective()
            batches = Listed([toy.make_batch(i) for i in range(9)])
            loader = lambda s, b=batches: Listed(b.batches[s:])  # noqa: E731
            fit_objective(
                objective,
                loader,
                RunDir(tmp_path / name),
                config,
                "job",
                total=9,
                per_epoch=9,
                stop_after=stop,
            )
        ends.append(objective.state_dict())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_float16_without_a_gpu_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config = TrainConfig(precision="16-mixed")
    with pytest.raises(ConfigError, match="16-mixed needs a GPU"):
        fit_objective(
            toy.ToyObjective(),
            lambda s: toy.Batches(s, 3),
            RunDir(tmp_path),
            config,
            "job",
            total=3,
            per_epoch=3,
        )


def test_diverging_loss_stops_without_a_checkpoint(tmp_path):
    objective = toy.ToyObjective()
    torch.nn.init.constant_(objective.student[0].weight, float("nan"))
    with pytest.raises(Diverged, match="became NaN or infinite; lower learning_rate"):
        small(tmp_path, objective, [toy.make_batch(i) for i in range(3)], accumulate=1, total=3)
    assert checkpoint.files(tmp_path / "checkpoints") == []


def test_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, uninterrupted):
    toy.run_toy(tmp_path, stop_after=5)
    before = {path.name: path.read_bytes() for path in checkpoint.files(tmp_path / "checkpoints")}
    real = os.fsync

    def full(descriptor):
        if os.fstat(descriptor).st_size > 4000:  # the checkpoint; the small records still fit
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            CheckpointError,
            match=(r"cannot write .*No space left on device.*go " r"on from step_0000005"),
        ):
            toy.run_toy(tmp_path)
    assert {
        path.name: path.read_bytes() for path in checkpoint.files(tmp_path / "checkpoints")
    } == before
    assert not list(tmp_path.rglob("*.tmp"))
    toy.run_toy(tmp_path)
    same_end(tmp_path, uninterrupted)


def test_schedule_length():
    config = TrainConfig(accumulate=4)
    assert schedule_length(42, config, None) == 10
    assert schedule_length(42, config, 3) == 3
    with pytest.raises(ConfigError, match="fewer than accumulate=4"):
        schedule_length(3, config, None)
    assert beta1(0, 10) == 0.95
