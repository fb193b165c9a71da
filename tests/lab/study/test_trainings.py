"""Arms in, jobs out: shared arms are trained once, the weak teacher before those that need it,
budgets are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kdlib.errors import ConfigError
from kdlib.lab import pipeline, profiles
from kdlib.lab.pipeline import Run, Student, student_folder
from kdlib.lab.profile import ABLATIONS
from kdlib.lab.study import trainings
from kdlib.lab.study.trainings import Chapter, arm_job, open_chapter, training_table
from kdlib.training.job import TrainJob
from kdlib.training.launch import RunResult


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[Path]]:
    """Collects the folders instead of training in them, call by call."""
    calls: list[list[Path]] = []

    def pretend(
        folders: Sequence[Path], parallel: int, threads: int, every: float
    ) -> list[RunResult]:
        calls.append(list(folders))
        values = {
            folder: {"samples": TrainJob.read(folder).train.epochs * 300} for folder in folders
        }
        return [RunResult(folder, values[folder]) for folder in folders]

    monkeypatch.setattr(pipeline, "launch", pretend)
    return calls


def test_chapters_share_students(study: Run) -> None:
    chapters = [open_chapter(study, notebook) for notebook in ABLATIONS]
    folders = [{student_folder(study, *key) for key in chapter.students} for chapter in chapters]
    assert len(set.union(*folders)) < sum(map(len, folders))
    assert all(len(chapter.students) == 3 * len(chapter.arms) for chapter in chapters)
    assert open_chapter(study, ABLATIONS[0], seeds="4,5").seeds == (4, 5)


def test_titles_fit_what_stands_beside_them(study: Run) -> None:
    first, last = (open_chapter(study, ABLATIONS[number]) for number in (0, 3))
    assert (
        first.titles["base"] == "initialisation alone"
        and last.titles["base"] == "coarse student (initialised)"
    )
    assert first.arms["base"] == last.arms["base"]


def test_what_cannot_be_asked(study: Run) -> None:
    with pytest.raises(
        ConfigError,
        match="unknown question of 13_ablate_teacher_batchnorm 'shape'; there are: norm",
    ):
        open_chapter(study, "13_ablate_teacher_batchnorm").question("shape")
    settings = profiles.profile("study").study
    for arms, words in (
        (("none",), "nothing to compare among the arms"),
        (("nobody",), "unknown arm 'nobody'"),
    ):
        profile = replace(study.profile, study=replace(settings, arms=arms))
        with pytest.raises(ConfigError, match=words):
            open_chapter(replace(study, profile=profile), ABLATIONS[0])


def test_jobs_follow_their_arms(study: Run) -> None:
    arms = {
        name: arm
        for notebook in ABLATIONS
        for name, arm in open_chapter(study, notebook).arms.items()
    }
    jobs = {name: arm_job(study, arm, 7) for name, arm in arms.items()}
    strong = str(pipeline.WEIGHTS / "cp_pillar_demo.safetensors")
    for name, job in jobs.items():
        arm = arms[name]
        assert (job.kd is None) == (job.teacher is None) == (arm.kd is None)
        assert (job.init_weights is None) == (arm.initialisation == "none")
        assert job.train.seed == 7 and job.model == arm.student
        assert all((str(path) == strong) == (arm.teacher == "strong") for path in job.inputs)
        assert job.kd is None or job.kd.initialisation == arm.initialisation
    assert (jobs["base"].train.epochs, jobs["base_long"].train.epochs) == (4, 10)
    assert jobs["narrow_l1"].initialisation == "l1"
    same = {
        replace(jobs[name], kd=None, teacher=None, name="")
        for name in ("base", "full", "features_map", "full_running")
    }
    assert len(same) == 1, "arms of one question differ in the recipe alone"


def test_the_weak_teacher_comes_first(study: Run, launched: list[list[Path]]) -> None:
    chapter = open_chapter(study, "11_ablate_signals")
    trainings.train_chapter(chapter)
    first, second = launched
    assert first[0] == trainings.weak_folder(study)
    assert len(first) + len(second) == 1 + len(chapter.students) == len({*first, *second})
    assert {folder.name.rsplit("_seed")[0] for folder in second} == {
        "base_weak",
        "full_weak",
        "base_weak_long",
        "full_weak_long",
    }
    weak = TrainJob.read(first[0])
    assert weak.train == replace(study.profile.teacher, epochs=1) and weak.kd is None
    lengths = [TrainJob.read(folder).train.epochs for folder in first[1:]]
    assert lengths == sorted(lengths, reverse=True), "the longest runs start first"


def test_no_weak_teacher_where_nobody_needs_it(study: Run, launched: list[list[Path]]) -> None:
    trainings.train_chapter(open_chapter(study, "13_ablate_teacher_batchnorm"))
    assert trainings.weak_folder(study) not in launched[0] and launched[1] == []


def test_unequal_budgets_are_refused(study: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def cheat(
        folders: Sequence[Path], parallel: int, threads: int, every: float
    ) -> list[RunResult]:
        return [RunResult(f, {"samples": 1500 + ("running" in f.name)}) for f in folders]

    monkeypatch.setattr(pipeline, "launch", cheat)
    with pytest.raises(
        ConfigError, match="'full_running' saw 1501 samples and 'full' 1500, with seed 1"
    ):
        trainings.train_chapter(open_chapter(study, "13_ablate_teacher_batchnorm"))


def test_tables(study: Run, pretend: Callable[[Chapter], dict[Student, RunResult]]) -> None:
    chapter = open_chapter(study, "12_ablate_initialisation")
    students = pretend(chapter)
    table = training_table(chapter, students).set_index("arm")
    assert list(table.index) == [arm.title for arm in chapter.arms.values()]
    assert table.loc["fresh weights", "starts from"] == "nothing"
    assert table.loc["narrow student (by L1 of weights)", "starts from"] == "strong teacher, l1"
    assert set(table["samples"]) == {1200, 3000} and set(table["seconds a run"]) == {60}
    terms = trainings.term_table(chapter.titles, students)
    assert list(terms.columns) == ["arm", "name", "weight", "value", "positions", "teacher_labels"]
    assert len(terms) == len(chapter.arms)
    assert {arm.teacher for arm in chapter.arms.values()} == {"strong"}
