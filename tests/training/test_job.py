"""Jobs as files, and the hash that says whether two runs end with the same weights."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import psutil
import pytest

from kdlib import records, zoo
from kdlib.config import AugmentConfig, TrainConfig, config_hash, to_dict
from kdlib.data.segment import STORE_VERSION
from kdlib.data.store import INDEX, fingerprint
from kdlib.errors import ConfigError, DataError
from kdlib.training.job import TeacherSource, TrainJob

PAIR = zoo.PAIRS["cp_pillar_demo_v0.64_sparsekd"]


def write_store(folder, **changes):
    splits = {"training": {"s1": "aa"}, "validation": {"s2": "bb"}, **changes}
    records.write_json(
        folder / INDEX, {"format": "kdlib-store", "version": STORE_VERSION, "splits": splits}
    )


@pytest.fixture
def job(tmp_path):
    write_store(tmp_path / "store")
    for name in ("teacher", "first"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    teacher = TeacherSource(PAIR.teacher, str(tmp_path / "teacher.safetensors"))
    first = str(tmp_path / "first.safetensors")
    return TrainJob(
        PAIR.student,
        TrainConfig(),
        str(tmp_path / "store"),
        kd=PAIR.kd,
        teacher=teacher,
        init_weights=first,
        max_steps=9,
        name="x",
    )


def test_file_round_trip(tmp_path, job):
    job.write(tmp_path / "run")
    assert TrainJob.read(tmp_path / "run") == job


def test_relative_paths_become_absolute(tmp_path, job, monkeypatch):
    monkeypatch.chdir(tmp_path)
    replace(job, store="store", init_weights="first.safetensors").write(tmp_path / "run")
    assert TrainJob.read(tmp_path / "run") == job


@pytest.mark.parametrize(
    "change", [{"name": "y"}, {"train": TrainConfig(workers=0, checkpoint_steps=7)}]
)
def test_hash_ignores_what_changes_no_weight(job, change):
    assert replace(job, **change).hash() == job.hash()


@pytest.mark.parametrize(
    "change",
    [
        {"model": replace(PAIR.student, name="other")},
        {"train": TrainConfig(seed=1)},
        {"train": TrainConfig(augment=AugmentConfig(rotation=0.1))},
        {"split": "validation"},
        {"init_weights": None},
        {"max_steps": None},
        {"kd": None, "teacher": None},
        {"kd": replace(PAIR.kd, label=None)},
    ],
)
def test_hash_notices_every_setting(job, change):
    assert replace(job, **change).hash() != job.hash()


def test_hash_follows_contents_not_places(tmp_path, job):
    before = job.hash()
    assert job.hash(fingerprint({"training": {"s1": "aa"}})) == before
    # of no interest to a job on the training split
    write_store(tmp_path / "store", validation={"s3": "cc"})
    os.rename(tmp_path / "first.safetensors", tmp_path / "moved.safetensors")
    moved = replace(job, init_weights=str(tmp_path / "moved.safetensors"))
    assert moved.hash() == before
    (tmp_path / "moved.safetensors").write_bytes(b"other weights")
    assert moved.hash() != before
    (tmp_path / "moved.safetensors").write_bytes(b"first")
    write_store(tmp_path / "store", training={"s1": "changed"})
    assert moved.hash() != before


def test_parts_must_fit(job):
    with pytest.raises(ConfigError, match="names no teacher"):
        replace(job, teacher=None)
    with pytest.raises(ConfigError, match="names a teacher but no kd recipe"):
        replace(job, kd=None)
    with pytest.raises(ConfigError, match="max_steps must be at least 1"):
        replace(job, max_steps=0)


def test_missing_inputs_are_named(tmp_path, job):
    with pytest.raises(ConfigError, match=r"store .*/nowhere does not exist; make it with"):
        replace(job, store=str(tmp_path / "nowhere")).hash()
    with pytest.raises(ConfigError, match=r"weights .*none\.safetensors do not exist"):
        replace(job, init_weights=str(tmp_path / "none.safetensors")).hash()
    with pytest.raises(ConfigError, match="has no split 'test', it has: training, validation"):
        replace(job, split="test").hash()


def test_job_file_problems_are_named(tmp_path, job):
    with pytest.raises(DataError, match=r"job\.json does not exist"):
        TrainJob.read(tmp_path)
    job.write(tmp_path / "run")
    values = records.read_json(tmp_path / "run" / "job.json")
    values["train"]["learning_rat"] = 1
    records.write_json(tmp_path / "run" / "job.json", values)
    with pytest.raises(ConfigError, match=r"TrainConfig has no setting .*learning_rat"):
        TrainJob.read(tmp_path / "run")


def test_finished_folder_keeps_its_job(tmp_path, job):
    run = tmp_path / "run"
    job.write(run)
    records.mark_complete(run, job.hash())
    job.write(run)
    replace(job, name="renamed").write(run)
    with pytest.raises(
        ConfigError, match=r"holds the results of another job.*init_weights of a job"
    ):
        replace(job, max_steps=10).write(run)
    assert TrainJob.read(run).max_steps == 9


def test_folder_at_work_keeps_its_job(tmp_path, job):
    run = tmp_path / "run"
    job.write(run)
    me = psutil.Process()
    records.write_json(
        run / "child.json",
        {"pid": me.pid, "host": socket.gethostname(), "created": me.create_time()},
    )
    with pytest.raises(ConfigError, match="is being trained under other settings"):
        replace(job, max_steps=10).write(run)


TERM = """
from kdlib.kd.term import Term
MINE = Term("kd_mine", weight={weight}, value=lambda step: step.prediction.bev.mean())
"""


def test_terms_are_part_of_the_hash_by_name_and_source(tmp_path, job, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(TERM.format(weight=0.5) + "OTHER = MINE\n")
    monkeypatch.chdir(tmp_path)
    own = replace(job, terms=("here/mine.py:MINE",))
    before = own.hash()
    assert before != job.hash() != replace(job, terms=("here/mine.py:OTHER",)).hash()
    assert before == replace(job, terms=("there/mine.py:MINE",)).hash()
    own.write(tmp_path / "run")
    records.mark_complete(tmp_path / "run", before)
    monkeypatch.chdir("/")
    assert TrainJob.read(tmp_path / "run").terms == (f"{tmp_path}/here/mine.py:MINE",)
    assert TrainJob.read(tmp_path / "run").hash() == before
    (tmp_path / "here" / "mine.py").write_text(TERM.format(weight=0.6) + "OTHER = MINE\n")
    changed = TrainJob.read(tmp_path / "run")
    assert changed.hash() != before
    with pytest.raises(ConfigError, match="holds the results of another job; delete that folder"):
        replace(changed, terms=(f"{tmp_path}/here/mine.py:OTHER",)).write(tmp_path / "run")
    (tmp_path / "here" / "mine.py").unlink()
    with pytest.raises(ConfigError, match=r"here/mine\.py does not exist"):
        changed.hash()


def test_a_job_without_terms_is_what_it_was_before_there_were_any(tmp_path, job):
    job.write(tmp_path / "run")
    assert "terms" not in records.read_json(tmp_path / "run" / "job.json")
    digest = records.sha256(tmp_path / "first.safetensors")
    taught = replace(job.teacher, weights=records.sha256(tmp_path / "teacher.safetensors"))
    known = replace(job, teacher=taught, init_weights=digest, name="")
    known = replace(known, store=fingerprint({"training": {"s1": "aa"}}))
    values = to_dict(replace(known, train=replace(job.train, workers=0, checkpoint_steps=1)))
    del values["terms"]
    assert job.hash() == config_hash(values)


def test_terms_need_a_recipe_or_say_that_they_are_alone(job):
    with pytest.raises(ConfigError, match=r"no kd recipe; .* KDConfig\(logit=None, label=None\)"):
        replace(job, kd=None, teacher=None, terms=("mine.py:MINE",))
