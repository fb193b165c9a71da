"""The whole path on a tiny simulated store: detectors, distillation, child processes, exact
resume.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdlib import records, zoo
from kdlib.config import (
    AugmentConfig,
    FeatureKDConfig,
    GridConfig,
    HeadConfig,
    KDConfig,
    LabelKDConfig,
    ModelConfig,
    PillarEncoderConfig,
    TrainConfig,
)
from kdlib.data.prepare import prepare
from kdlib.data.store import Store
from kdlib.errors import ConfigError, DataError, KdlibError
from kdlib.models.build import build
from kdlib.models.weights import load_weights, read_card, save_weights
from kdlib.simulate import simulate
from kdlib.training import checkpoint, loop
from kdlib.training.checkpoint import CheckpointError
from kdlib.training.job import RunDir, TeacherSource, TrainJob, worker
from kdlib.training.launch import TrainingFailed, launch
from kdlib.training.loop import limit_threads, train
from kdlib.training.places import Processor

PAIR = zoo.PAIRS["cp_pillar_demo_v0.64_sparsekd"]


def tiny(model: ModelConfig) -> ModelConfig:
    """The demo's model with eight channels everywhere, over 10 m."""
    grid = GridConfig(
        (-10.24, -10.24, -2.0, 10.24, 10.24, 4.0), model.grid.voxel_size, model.grid.max_points
    )
    backbone = replace(
        model.backbone, layers=(1, 1, 1), filters=(8, 8, 8), upsample_filters=(8, 8, 8)
    )
    return replace(
        model,
        name=f"tiny_{model.name}",
        grid=grid,
        encoder=PillarEncoderConfig((8, 8)),
        backbone=backbone,
        head=HeadConfig(8),
    )


TEACHER, STUDENT = tiny(PAIR.teacher), tiny(PAIR.student)
KD = replace(PAIR.kd, label=LabelKDConfig(thresholds=(0.1, 0.1, 0.1)))
SCHEDULE = TrainConfig(epochs=3, batch_size=2, interval=1, workers=0, checkpoint_steps=4, seed=5)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDLIB_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    simulate(root / "waymo", segments=2, frames=4, seed=3, scale="demo", workers=1, progress=False)
    prepare(root / "waymo", root / "store", workers=1, progress=False)
    return root / "store"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(path, build(TEACHER), {})
    return path


@pytest.fixture(scope="module")
def job(store, teacher) -> TrainJob:
    source = TeacherSource(TEACHER, str(teacher))
    return TrainJob(
        STUDENT, SCHEDULE, str(store), kd=KD, teacher=source, init_weights=str(teacher), name="tiny"
    )


@pytest.fixture(scope="module")
def uninterrupted(job, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    job.write(folder)
    train(folder)
    return folder


def same_end(a: Path, b: Path) -> None:
    left, right = load_file(a / "weights.safetensors"), load_file(b / "weights.safetensors")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    ours, theirs = records.read_json(a / "result.json"), records.read_json(b / "result.json")
    assert {k: v for k, v in ours.items() if k not in ("timing", "card")} == {
        k: v for k, v in theirs.items() if k not in ("timing", "card")
    }


def test_result_weights_and_card(uninterrupted, job, teacher):
    result = records.read_json(uninterrupted / "result.json")
    assert result["steps"] == 12 and result["samples"] == 24 and result["frames"] == 8
    assert result["job"] == job.hash()
    assert set(result["final"]["parts"]) == {"heatmap", "box", "kd_heatmap"}
    assert [term["name"] for term in result["terms"]] == ["heatmap", "box", "kd_heatmap"]
    student = build(STUDENT)
    assert load_weights(uninterrupted / "weights.safetensors", student).complete
    card = read_card(uninterrupted / "weights.safetensors")
    assert (
        card["job"] == job.hash() and card["dataset"] == result["dataset"] and card["steps"] == 12
    )
    moved = load_file(uninterrupted / "weights.safetensors")
    first = load_file(teacher)
    assert not torch.equal(
        moved["dense_head.heads_list.0.hm.1.bias"], first["dense_head.heads_list.0.hm.1.bias"]
    )


def test_finished_run_is_left_alone(uninterrupted, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in uninterrupted.iterdir()}
    train(uninterrupted)
    assert "is complete, nothing to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in uninterrupted.iterdir()} == before


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_bit_identical(tmp_path, job, uninterrupted, workers):
    job.write(tmp_path)
    train(tmp_path, stop_after=3)
    # where data is loaded changes nothing
    replace(job, train=replace(SCHEDULE, workers=workers)).write(tmp_path)
    train(tmp_path, stop_after=8)
    assert not (tmp_path / "weights.safetensors").exists()
    train(tmp_path)
    same_end(tmp_path, uninterrupted)


def test_adapters_resume_bit_identically_and_stay_out_of_the_weights(tmp_path, job):
    feature = FeatureKDConfig("rois", adapter="3x3", roi_grid=3, relation_weight=1.0)
    adapted = replace(job, kd=replace(KD, feature=feature))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        adapted.write(folder)
    train(whole)
    for stop_after in (3, 8, None):
        train(parts, stop_after=stop_after)
    same_end(whole, parts)
    last, again = (
        checkpoint.load_checkpoint(checkpoint.files(folder / "checkpoints")[-1]).tensors
        for folder in (whole, parts)
    )
    kept = {name for name in last if "adapter" in name}
    moments = {
        f"optimiser/{moment}/adapter.{name}"
        for moment in ("step", "exp_avg", "exp_avg_sq")
        for name in ("weight", "bias")
    }
    assert kept == {"weights/adapter.weight", "weights/adapter.bias"} | moments
    assert all(torch.equal(last[name], again[name]) for name in kept) and not [
        name for name in last if "teacher" in name
    ]
    first = loop.build_objective(adapted).adapter
    assert not torch.equal(last["weights/adapter.weight"], first.weight)
    assert load_file(whole / "weights.safetensors").keys() == build(STUDENT).state_dict().keys()
    assert {"kd_feature", "kd_relation"} < {
        term["name"] for term in records.read_json(whole / "result.json")["terms"]
    }


def test_sigkill_and_sigterm_in_the_real_child(tmp_path, job, uninterrupted):
    job.write(tmp_path)
    Processor(1, 1).start(RunDir(tmp_path), (sys.executable, "-m", "kdlib", "train"))
    target = random.randint(1, 9)
    end = time.monotonic() + 150
    while len(records.read_json_lines(tmp_path / "history.jsonl")) < target:
        assert time.monotonic() < end, (tmp_path / "train.log").read_text()
        time.sleep(0.01)
    owner = worker(RunDir(tmp_path))
    if owner is not None:
        os.kill(owner["pid"], signal.SIGKILL if target % 2 else signal.SIGTERM)
    while worker(RunDir(tmp_path)) is not None:
        time.sleep(0.02)
    lines: list[str] = []
    (result,) = launch([tmp_path], echo=lines.append, every=0.0)
    assert result.values["steps"] == 12
    same_end(tmp_path, uninterrupted)
    assert launch([tmp_path], echo=lines.append)[0].values == result.values
    assert lines[-1] == "tiny: finished earlier, kept"


def test_arms_differ_where_they_should(tmp_path, job, store):
    alone = replace(job, kd=None, teacher=None, init_weights=None)
    alone.write(tmp_path)
    train(tmp_path)
    result = records.read_json(tmp_path / "result.json")
    assert set(result["final"]["parts"]) == {"heatmap", "box"}
    assert result["steps"] == 12


def test_kd_initialises_without_init_weights(job, capsys):
    objective = loop.build_objective(replace(job, init_weights=None))
    assert "tensors copied from the teacher" in capsys.readouterr().out
    student, source = objective.student.state_dict(), objective.teacher.model.state_dict()
    assert all(torch.equal(student[name], source[name]) for name in student)


OWN = """
import torch
from kdlib.kd.term import Term


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, step):
        ours, theirs = step.prediction.heads[0].rot, step.answer.heads[0].rot
        return (self.scale * ours.square().mean() - theirs.square().mean()).square()


MINE = Term("kd_mine", weight=2.0, value=Scale())
BAD = Term("kd_bad", weight=1.0, value=lambda step: step.prediction.heads[0].rot.sum() / 0)
"""


def test_terms_of_ones_own_train_in_the_child_and_resume(tmp_path, job, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    alone = KDConfig(logit=None, label=None)
    own = replace(job, kd=alone, terms=("mine:MINE",), max_steps=6)
    for folder in ("whole", "parts"):
        own.write(tmp_path / folder)
    monkeypatch.chdir("/")
    (result,) = launch([tmp_path / "whole"], echo=lambda _: None)
    assert [(row["name"], row["weight"]) for row in result.values["terms"]][-1] == ("kd_mine", 2.0)
    lines = records.read_history(tmp_path / "whole")
    assert all(line["parts"]["kd_mine"] > 0 for line in lines) and len(lines) == 6
    assert "active term kd_mine: weight 2," in (tmp_path / "whole" / "train.log").read_text()
    train(tmp_path / "parts", stop_after=4)
    train(tmp_path / "parts")
    same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_term_that_is_not_finite_is_named_before_the_first_step(tmp_path, job):
    (tmp_path / "mine.py").write_text(OWN)
    replace(job, terms=(f"{tmp_path}/mine.py:BAD",)).write(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"term .kd_bad. is -?(inf|nan) on the first batch"):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "history.jsonl").is_file()


def test_max_steps_shortens_the_schedule(tmp_path, job):
    replace(job, max_steps=2).write(tmp_path)
    train(tmp_path)
    lines = records.read_json_lines(tmp_path / "history.jsonl")
    assert [line["steps"] for line in lines] == [2, 2]


def test_changed_settings_do_not_resume(tmp_path, job):
    job.write(tmp_path)
    train(tmp_path, stop_after=2)
    replace(job, train=replace(SCHEDULE, learning_rate=0.1)).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"belongs to job .* this run is job"):
        train(tmp_path)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


COUNTING = """
import json, pathlib, sys
from kdlib.data.store import Store
from kdlib.training import job, loop
counts = {"stores": 0, "weights": []}
open_store, digest = Store.open, job.sha256

def counted_open(path):
    counts["stores"] += 1
    return open_store(path)

def counted_digest(path):
    counts["weights"].append(str(path))
    return digest(path)

Store.open, job.sha256 = staticmethod(counted_open), counted_digest
loop.train(pathlib.Path(sys.argv[1]))
pathlib.Path(sys.argv[1], "counts.json").write_text(json.dumps(counts))
"""


def test_a_process_opens_the_store_once_and_hashes_each_weight_file_once(
    tmp_path, job, teacher, monkeypatch
):
    """The starting process reads no more of the store than its index; with several ranks each of
    them is such a child.
    """
    opened, hashed = [], []
    monkeypatch.setattr(Store, "open", opened.append)
    monkeypatch.setattr(
        "kdlib.training.job.sha256", lambda path: hashed.append(str(path)) or records.sha256(path)
    )
    replace(job, max_steps=1).write(tmp_path)
    (result,) = launch([tmp_path], command=(sys.executable, "-c", COUNTING), echo=lambda _: None)
    assert result.values["steps"] == 1
    assert (opened, hashed) == ([], [str(teacher)])
    assert records.read_json(tmp_path / "counts.json") == {"stores": 1, "weights": [str(teacher)]}


CHANGING = """
import pathlib, sys
from kdlib.training.loop import train
path = pathlib.Path(sys.argv[1])
path.write_bytes(pathlib.Path(sys.argv[2]).read_bytes())
train(pathlib.Path(sys.argv[3]))
"""


def test_weights_that_change_meanwhile_are_noticed(tmp_path, job, teacher):
    first, other = tmp_path / "first.safetensors", tmp_path / "other.safetensors"
    first.write_bytes(teacher.read_bytes())
    torch.manual_seed(1)
    save_weights(other, build(TEACHER), {})
    changing = replace(job, init_weights=str(first))
    begun, started = tmp_path / "begun", tmp_path / "started"
    changing.write(begun)
    train(begun, stop_after=1)
    replace(changing, max_steps=1).write(started)
    command = (sys.executable, "-c", CHANGING, str(first), str(other))
    with pytest.raises(TrainingFailed, match="other inputs than were there when it was started"):
        launch([started], command=command, echo=lambda _: None)
    with pytest.raises(CheckpointError, match="the settings, the store or a weight file changed"):
        train(begun)


def test_a_store_that_changes_meanwhile_is_noticed(tmp_path, job, store):
    shutil.copytree(store, tmp_path / "store")
    moved = replace(job, store=str(tmp_path / "store"))
    moved.write(tmp_path / "run")
    train(tmp_path / "run", stop_after=1)
    shutil.rmtree(tmp_path / "store")
    simulate(
        tmp_path / "waymo", segments=1, frames=4, seed=4, scale="demo", workers=1, progress=False
    )
    prepare(tmp_path / "waymo", tmp_path / "store", workers=1, progress=False)
    with pytest.raises(CheckpointError, match="the settings, the store or a weight file changed"):
        train(tmp_path / "run")


def test_weights_that_do_not_fit(tmp_path, job):
    other = tmp_path / "other.safetensors"
    save_weights(other, torch.nn.Linear(2, 2), {})
    with pytest.raises(KdlibError, match=r"other\.safetensors.*does not fit the model"):
        loop.build_objective(replace(job, teacher=TeacherSource(TEACHER, str(other))))
    with pytest.raises(ConfigError, match="is it of the same family"):
        loop.build_objective(replace(job, init_weights=str(other)))


@pytest.mark.parametrize("value", [torch.nan, 1e38])  # in the file, or only in the answer
def test_a_teacher_that_answers_nan_is_named_before_the_first_step(tmp_path, job, value):
    weights, spoilt = tmp_path / "spoilt.safetensors", build(TEACHER)
    spoilt.state_dict()["dense_head.shared_conv.0.weight"].fill_(value)
    save_weights(weights, spoilt, {})
    source = TeacherSource(TEACHER, str(weights))
    labels = replace(job.kd, logit=None, feature=None)
    for kd in (job.kd, labels):
        run = tmp_path / ("labels" if kd is labels else "logits")
        replace(job, kd=kd, teacher=source).write(run)
        with pytest.raises(
            DataError, match=r"the teacher cannot teach, .*spoilt\.safetensors: .*NaN"
        ):
            train(run)
        assert not (run / "history.jsonl").is_file()


def test_nothing_to_learn(job, tmp_path):
    replace(job, train=replace(SCHEDULE, accumulate=50)).write(tmp_path)
    with pytest.raises(ConfigError, match="fewer than accumulate=50"):
        train(tmp_path)
    with pytest.raises((ConfigError, DataError), match="has no split 'test'"):
        loop.open_dataset(replace(job, split="test"))


def test_child_says_what_is_wrong(tmp_path, job):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not weights")
    replace(job, init_weights=str(broken)).write(tmp_path / "run")
    with pytest.raises(
        TrainingFailed,
        match=(r"ended with code 2(.|\n)*broken\.safetensors is " r"(.|\n)*safetensors"),
    ):
        launch([tmp_path / "run"], echo=lambda _: None)


def test_augmentation_is_part_of_the_run(job):
    assert (
        replace(job, train=replace(SCHEDULE, augment=AugmentConfig(flip_x=False))).hash()
        != job.hash()
    )


def test_thread_limit(monkeypatch):
    monkeypatch.setenv("KDLIB_THREADS", "many")
    with pytest.raises(ConfigError, match="KDLIB_THREADS='many' must be a positive number"):
        limit_threads()
