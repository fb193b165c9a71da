"""What the notebooks call: data, teacher and students of a run, each kept once it is there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kdlib import records
from kdlib.data.own import own_frame, store_frames
from kdlib.errors import ConfigError, DataError
from kdlib.lab import folders, pipeline
from kdlib.lab.pipeline import Run
from kdlib.lab.profile import ARMS
from kdlib.lab.trained import TrainedWeights
from kdlib.simulate import generate
from kdlib.training.job import TrainJob
from kdlib.training.launch import RunResult

OWN = f"{Path(__file__).parents[1]}/kd/own_term.py:HEADING"


@pytest.fixture
def run(tmp_path: Path, smoke_data: Path) -> Run:
    return pipeline.open_run("smoke", str(tmp_path / "run"), str(smoke_data))


@pytest.fixture
def teacher(smoke_run: Run) -> TrainedWeights:
    return pipeline.chosen_teacher(smoke_run)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[TrainJob]:
    """Collects the jobs instead of training them."""
    jobs: list[TrainJob] = []

    def pretend(folders, parallel, threads, every):
        jobs.extend(TrainJob.read(folder) for folder in folders)
        return [RunResult(folder, {"steps": 4, "samples": 8, "frames": 8}) for folder in folders]

    monkeypatch.setattr(pipeline, "launch", pretend)
    return jobs


def result(steps: int = 4, samples: int = 8) -> RunResult:
    values = {
        "steps": steps,
        "samples": samples,
        "frames": 8,
        "timing": {"seconds": 1.0},
        "final": {"loss": 1.0},
    }
    return RunResult(Path("/somewhere"), values)


def test_open_run_uses_the_profiles_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "PROJECT", tmp_path)
    run = pipeline.open_run("smoke")
    assert run.folder == tmp_path / "reports" / "runs" / "smoke" and run.folder.is_dir()
    assert run.data == tmp_path / "data" / "smoke"
    with pytest.raises(ConfigError, match="'smoky'"):
        pipeline.open_run("smoky")


def test_results_are_handed_over(run: Run) -> None:
    with pytest.raises(
        ConfigError, match=(r"result\.json is missing; run notebook " r"01_train_teacher first")
    ):
        pipeline.chosen_teacher(run)
    weights = run.folder / "w"
    weights.write_bytes(b"w")
    pipeline.save_result(run, "01_train_teacher", {"weights": "w", "origin": "x"})
    values = run.result("01_train_teacher")
    assert (values["profile"], values["simulated"], values["weights"]) == ("smoke", True, "w")
    assert pipeline.chosen_teacher(run) == TrainedWeights(run.profile.teacher_model, weights, "x")


def test_data_is_made_once(run: Run, smoke_data: Path) -> None:
    files = {
        path: path.stat().st_mtime_ns
        for path in smoke_data.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    store = pipeline.prepare_data(run)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    made = run.profile.simulated
    assert len(store.split("training")) == made.training_segments * made.frames
    assert len(store.split("validation")) == made.validation_segments * made.frames
    assert not set(store.contents["training"]) & set(store.contents["validation"])


def test_store_that_is_not_there(run: Run, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="no finished store; pass the folder that holds it as DATA_ROOT"
    ):
        _ = replace(run, data=tmp_path).store


def test_waymo_that_is_not_there(tmp_path: Path) -> None:
    run = pipeline.open_run("waymo20", str(tmp_path / "run"), str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"nowhere holds neither waymo nor store.*README"):
        pipeline.prepare_data(run)
    assert not (tmp_path / "nowhere").exists()


def test_shipped_teacher(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "WEIGHTS", tmp_path)
    with pytest.raises(
        ConfigError, match=(r"cp_pillar_demo\.safetensors is missing; " r".*TEACHER=scratch")
    ):
        pipeline.choose_teacher(run, "auto")
    (tmp_path / "cp_pillar_demo.safetensors").write_bytes(b"x")
    found = pipeline.choose_teacher(run, "auto")
    assert (found.origin, found.weights) == ("shipped", tmp_path / "cp_pillar_demo.safetensors")
    waymo = pipeline.open_run("waymo20", str(tmp_path / "waymo"))
    with pytest.raises(ConfigError, match=r"ships no teacher.*TEACHER=scratch"):
        pipeline.choose_teacher(waymo, "shipped")


def test_a_teacher_of_ones_own(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"TEACHER=mine\.safetensors is neither"):
        pipeline.choose_teacher(run, "mine.safetensors")
    (tmp_path / "mine.safetensors").write_bytes(b"x")
    assert (
        pipeline.choose_teacher(run, str(tmp_path / "mine.safetensors")).weights
        == tmp_path / "mine.safetensors"
    )


def test_teacher_from_scratch_trains_on_its_own_range(run: Run, launched: list[TrainJob]) -> None:
    found = pipeline.choose_teacher(run, "scratch", epochs=3)
    assert (
        found.origin == "scratch"
        and found.weights == run.folder / "teacher" / "scratch" / "weights.safetensors"
    )
    (job,) = launched
    assert (job.train.epochs, job.kd, job.teacher, job.init_weights) == (3, None, None, None)
    assert job.model.name == run.profile.teacher_model.name


@pytest.mark.parametrize("profile", ["smoke", "waymo20"])
def test_a_given_teacher_is_continued_for_a_few_steps(
    profile: str, tmp_path: Path, launched: list[TrainJob], teacher: TrainedWeights
) -> None:
    run = pipeline.open_run(profile, str(tmp_path / "run"), str(tmp_path))
    pipeline.exercise_training(run, replace(teacher, origin="file"))
    (job,) = launched
    assert job.init_weights == str(teacher.weights)
    assert job.max_steps is not None and job.max_steps <= 100, "a whole training was not asked for"
    assert job.train.learning_rate == pytest.approx(run.profile.teacher.learning_rate / 100)


def test_arms_differ_in_the_teacher_only(run: Run, teacher: TrainedWeights) -> None:
    jobs = {
        arm: pipeline.student_job(run, run.profile.arm(arm), 5, teacher) for arm in run.profile.arms
    }
    assert jobs["alone"].inputs == ()
    assert jobs["init"].inputs == (teacher.weights,)
    assert jobs["full"].inputs == (teacher.weights, teacher.weights)
    assert jobs["full"].kd == run.profile.kd and jobs["init"].kd is None
    bare = {
        replace(job, kd=None, teacher=None, init_weights=None, name="") for job in jobs.values()
    }
    assert len(bare) == 1 and bare.pop().train.seed == 5
    with pytest.raises(ConfigError, match="unknown arm 'ful'; there are: alone, init, full"):
        run.profile.arm("ful")


def test_terms_make_one_more_arm(
    tmp_path: Path, smoke_data: Path, launched: list[TrainJob], teacher: TrainedWeights
) -> None:
    run = pipeline.open_run("smoke", str(tmp_path / "run"), str(smoke_data), OWN)
    assert run.profile.terms == (OWN,)
    assert run.profile.chosen_arms("full") == ("full", "own")
    arms = run.profile.chosen_arms("")
    assert arms == ("alone", "init", "full", "own") == tuple(ARMS)
    pipeline.train_students(run, teacher, arms, (1,))
    jobs = {job.name.partition(",")[0]: job for job in launched}
    own, full = jobs["full SparseKD and own terms"], jobs["full SparseKD"]
    assert own.terms == (OWN,) and replace(own, terms=(), name=full.name) == full
    assert not any(job.terms for job in jobs.values() if job is not own)


def test_students_of_all_arms_and_seeds(
    run: Run, launched: list[TrainJob], teacher: TrainedWeights
) -> None:
    found = pipeline.train_students(run, teacher, ("alone", "full"), (1, 2), epochs=2)
    assert list(found) == [("alone", 1), ("full", 1), ("alone", 2), ("full", 2)]
    assert len({result.run_dir for result in found.values()}) == 4
    assert {job.train.epochs for job in launched} == {2}
    started = [(job.kd is not None, job.train.seed) for job in launched]
    assert started == [(True, 1), (True, 2), (False, 1), (False, 2)], "the longest runs start first"


def test_unknown_arm_starts_nothing(
    run: Run, launched: list[TrainJob], teacher: TrainedWeights
) -> None:
    with pytest.raises(ConfigError, match="unknown arm"):
        pipeline.train_students(run, teacher, ("alone", " init"), (1,))
    assert not launched and not (run.folder / "students").exists()


def test_one_budget_for_all(run: Run) -> None:
    values = pipeline.students_result(
        run, {("alone", 1): result(), ("full", 1): result()}, epochs=3
    )
    assert values["budget"] == {"steps": 4, "samples": 8, "frames": 8, "epochs": 3}
    assert [(row["arm"], row["seed"], row["seconds"]) for row in values["students"]] == [
        ("alone", 1, 1.0),
        ("full", 1, 1.0),
    ]
    with pytest.raises(ConfigError, match=r"different budgets.*\(4, 8\), \(5, 10\)"):
        pipeline.students_result(run, {("alone", 1): result(), ("full", 1): result(5, 10)})


def test_results_name_no_machine_and_move_with_their_run(run: Run, tmp_path: Path) -> None:
    shipped = folders.WEIGHTS / str(run.profile.shipped_teacher)
    own = run.stage("students") / "full_seed1" / "weights.safetensors"
    records.write_bytes(own, b"w")
    assert run.portable(shipped) == "data/weights/cp_pillar_demo.safetensors"
    assert run.portable(own) == "students/full_seed1/weights.safetensors"
    outside = tmp_path / "given.safetensors"
    outside.write_bytes(b"w")
    for path in (shipped, own, outside):
        assert run.located(run.portable(path)) == path
    moved = replace(run, folder=Path(shutil.move(run.folder, tmp_path / "laptop")))
    here = moved.folder / "students" / "full_seed1" / "weights.safetensors"
    old = ("reports/runs/smoke/students/full_seed1/weights.safetensors", str(own))
    for text in ("students/full_seed1/weights.safetensors", *old):
        assert moved.located(text) == here
    outside.unlink()
    with pytest.raises(ConfigError, match=r"given\.safetensors, by which .* TEACHER=FILE"):
        moved.located(str(outside))


def test_another_jobs_results_are_not_overwritten(run: Run, teacher: TrainedWeights) -> None:
    folder = run.folder / "students" / "alone_seed1"
    job = pipeline.student_job(run, run.profile.arm("alone"), 1, teacher)
    job.write(folder)
    records.mark_complete(folder, job.hash())
    before = (folder / "job.json").read_text()
    with pytest.raises(ConfigError, match="results of another job"):
        replace(job, train=replace(job.train, epochs=9)).write(folder)
    assert (folder / "job.json").read_text() == before


def listing(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def own_data(folder: Path, **others) -> Path:
    for split in ("training", "validation"):
        floor = np.random.default_rng(0).uniform((-9, -9, 0), (9, 9, 0.01), (50, 3))
        frames = [own_frame(f"{split}_drive", number, floor, **others) for number in range(4)]
        store_frames(frames, folder / "store", split)
    return folder


def test_a_simulating_profile_on_own_data_leaves_nothing_behind(tmp_path: Path) -> None:
    own = own_data(tmp_path / "own")
    before = listing(own)
    run = pipeline.open_run("smoke", str(tmp_path / "run"), str(own))
    with pytest.raises(ConfigError, match=r"smoke simulates its data, but .*store/training holds"):
        pipeline.prepare_data(run)
    assert listing(own) == before
    real = pipeline.open_run("waymo20", str(tmp_path / "other"), str(own))
    assert pipeline.prepare_data(real).split("training").own


def test_a_simulating_profile_on_recorded_files_leaves_nothing_behind(
    tmp_path: Path, smoke_data: Path
) -> None:
    lidar = next((smoke_data / "waymo" / "training" / "lidar").glob("*.parquet"))
    data = tmp_path / "real"
    for file in (smoke_data / "waymo" / "training").rglob(lidar.name):
        copy = data / file.relative_to(smoke_data)
        copy.parent.mkdir(parents=True)
        table = pq.read_table(file)  # as recorded: without the simulation's mark
        pq.write_table(table.replace_schema_metadata(None), copy)
    before = listing(data)
    run = pipeline.open_run("smoke", str(tmp_path / "run"), str(data))
    with pytest.raises(ConfigError, match=r"simulates its data, but .*waymo/training holds others"):
        pipeline.prepare_data(run)
    assert listing(data) == before


def test_two_simulating_profiles_do_not_share_a_folder(tmp_path: Path, smoke_data: Path) -> None:
    data = tmp_path / "shared"
    shutil.copytree(smoke_data, data)
    other = generate.segment_names(3, seed=1, split="training")[-1]
    first = next((data / "waymo" / "training" / "lidar").glob("*.parquet"))
    for file in (data / "waymo" / "training").rglob(first.name):
        shutil.copy(file, file.with_name(f"{other}.parquet"))
    before = listing(data)
    run = pipeline.open_run("smoke", str(tmp_path / "run"), str(data))
    with pytest.raises(ConfigError, match=r"holds 1 segments that profile smoke does not simulate"):
        pipeline.prepare_data(run)
    assert listing(data) == before


def test_own_data_that_an_older_run_mixed_name_both_places(
    tmp_path: Path, smoke_data: Path
) -> None:
    own = own_data(tmp_path / "own")
    shutil.copytree(smoke_data / "waymo", own / "waymo")
    before = listing(own / "store")
    run = pipeline.open_run("waymo20", str(tmp_path / "run"), str(own))
    with pytest.raises(DataError, match=r"own/waymo/training and .*own/store/training: segment .*"):
        pipeline.prepare_data(run)
    assert listing(own / "store") == before


def test_a_profile_of_other_classes_says_so_first(tmp_path: Path) -> None:
    own = own_data(tmp_path / "own", class_names=("Forklift", "Pallet"))
    run = pipeline.open_run("waymo20", str(tmp_path / "run"), str(own))
    with pytest.raises(
        ConfigError,
        match=r'the classes Forklift, Pallet, .* \[detector\]: classes = \["Forklift", "Pallet"\]',
    ):
        pipeline.prepare_data(run)


def test_a_store_without_a_split_says_how_to_name_another(tmp_path: Path) -> None:
    own = own_data(tmp_path / "own", class_names=("Forklift",))
    text = f'base = "own_small"\ndata = "{own}"\n[detector]\nclasses = ["Forklift"]\n'
    (tmp_path / "hall.toml").write_text(text)
    run = pipeline.open_run(str(tmp_path / "hall.toml"), str(tmp_path / "run"))
    assert run.data == own and len(run.frames(run.profile.student_model)) == 4, "every frame"
    for setting in ("training_split", "validation_split"):
        profile = replace(run.profile, **{setting: "val"})
        with pytest.raises(ConfigError, match=f"no split 'val', .* --set {setting}=SPLIT"):
            pipeline.prepare_data(replace(run, profile=profile))
    other = replace(run.profile, training_split="validation", validation_split="training")
    turned = replace(run, profile=other)
    assert turned.evaluated.segments == ("training_drive",)
    job = pipeline.teacher_job(turned)
    assert (job.split, job.model) == ("validation", run.profile.teacher_model)
    kept = records.read_json(run.folder / "profile.json")
    assert kept["name"] == "hall" and kept["data"] == str(own)
