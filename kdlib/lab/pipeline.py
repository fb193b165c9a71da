"""What the notebooks call, stage by stage: data, teacher, students, predictions; every stage keeps
what is already there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.config import ModelConfig, TrainConfig
from kdlib.data.dataset import FrameDataset
from kdlib.data.prepare import prepare
from kdlib.data.segment import is_own
from kdlib.data.store import INDEX, Store, StoreSplit, first_manifests
from kdlib.errors import ConfigError, DataError
from kdlib.kd import own
from kdlib.lab import occupancy, parameters, profile_files
from kdlib.lab.data_checks import check_data
from kdlib.lab.folders import (
    WEIGHTS,
    check_checkout,
    data_folder,
    located,
    make_folder,
    portable,
    run_folder,
)
from kdlib.lab.profile import Arm, Profile
from kdlib.lab.trained import TrainedWeights
from kdlib.simulate import simulate
from kdlib.training import places
from kdlib.training.job import TeacherSource, TrainJob
from kdlib.training.launch import RunResult, launch
from kdlib.types import Json

Student = tuple[str, int]  # arm, seed
Students = Mapping[Student, RunResult]  # what came of their trainings


@dataclass(frozen=True)
class Run:
    """A profile with its folders; what every notebook opens first."""

    profile: Profile
    folder: Path
    data: Path

    @property
    def store(self) -> Store:
        """The prepared store; DataError if it is missing or damaged; the message says to run
        notebook 00.
        """
        if not (self.data / "store" / INDEX).is_file():
            raise DataError(
                f"{self.data} holds no finished store; pass the folder that holds it as DATA_ROOT, "
                "or make it with notebook 00"
            )
        return Store.open(self.data / "store")

    @property
    def evaluated(self) -> StoreSplit:
        """The split of frames nobody trains on."""
        return self.store.split(self.profile.validation_split)

    @property
    def frame_count(self) -> int:
        """The number of evaluated frames."""
        return len(self.evaluated.frames(self.profile.evaluation.interval))

    def frames(self, model: ModelConfig) -> FrameDataset:
        """Return the evaluated frames as a model sees them."""
        interval, reach = self.profile.evaluation.interval, model.grid.point_range
        return FrameDataset(self.evaluated, model.class_names, interval, point_range=reach)

    def stage(self, name: str) -> Path:
        """Return the folder of a stage, made if missing."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def check(self, **values: Any) -> None:
        """Check more of a notebook's parameters, by name; ConfigError says what is wrong."""
        for name, value in values.items():
            parameters.check(name, value, self.profile)

    def portable(self, path: Path) -> str:
        """Return a path as results name it, see :func:`kdlib.lab.folders.portable`."""
        return portable(self.folder, path)

    def located(self, text: str) -> Path:
        """Return the file a result of the run names; ConfigError if it is not here."""
        path = located(self.folder, text)
        if not path.is_file():
            raise ConfigError(
                f"{path}, by which {self.folder} was made, is not here; put that file there, or "
                "run notebook 01 with the same weights as TEACHER=FILE"
            )
        return path

    def result(self, name: str) -> Json:
        """Return what an earlier notebook handed over; ConfigError if it has not finished."""
        path = self.folder / name / "result.json"
        if not path.is_file():
            raise ConfigError(f"{path} is missing; run notebook {name} first")
        return records.read_json(path)


def open_run(profile: str, run_dir: str = "", data_root: str = "", terms: str = "") -> Run:
    """Open a run by its profile's name or file, which its folder keeps; empty paths mean the
    profile's own folders, no terms of one's own the profile's.

    ConfigError if the profile is unknown, a path is wrong, a term's file or module is not there, or
    a notebook lies in another checkout than kdlib.
    """
    if records.in_kernel() and occupancy.FOLDER not in os.environ:
        check_checkout("this notebook")
    chosen = profile_files.load(profile)
    parameters.check("DATA_ROOT", data_root, chosen)
    chosen = replace(chosen, terms=own.named(terms) or tuple(map(own.resolve, chosen.terms)))
    folder = run_folder(chosen.name, Path(run_dir) if run_dir else None)
    make_folder(folder, f"RUN_DIR={folder}")
    if data_root:
        chosen = replace(chosen, data=str(Path(data_root).expanduser().resolve()))
    profile_files.save(chosen, folder)
    return Run(chosen, folder, data_folder(chosen.folder))


def save_result(run: Run, stage: str, values: Json) -> Path:
    """Hand a stage's results over to later notebooks, the report and the tests."""
    manifests = first_manifests(run.data / "store").values()
    facts = {
        "profile": run.profile.name,
        "simulated": run.profile.simulated is not None,
        "own data": any(map(is_own, manifests)),
    }
    return records.write_result(run.stage(stage), {**facts, **values})


def prepare_data(run: Run) -> Store:
    """Simulate the profile's dataset if it has one, prepare the store; both continue. ConfigError
    if real files are missing.
    """
    check_data(run.profile, run.data)
    source = run.data / "waymo"
    if run.profile.simulated is None and not source.is_dir():
        # frames of another dataset, or the licensed files are on another machine
        return run.store
    pasted = any(
        schedule.augment.objects is not None
        for schedule in (run.profile.teacher, run.profile.student)
    )
    made, workers = run.profile.simulated, 0
    with occupancy.take_turn(run.data):
        if made is not None:
            # Starting a process costs more than a smoke run's few frames.
            workers = 1 if made.training_segments < 10 else 0
            for split, (count, seed) in made.splits.items():
                simulate(source, count, made.frames, seed, "demo", split=split, workers=workers)
        prepare(
            source,
            run.data / "store",
            workers=workers,
            objects=pasted,
            scheduler=os.environ.get(places.SCHEDULER) or None,
        )
    return run.store


def launch_all(
    run: Run, jobs: Mapping[Path, TrainJob], every: float = 5.0
) -> dict[Path, RunResult]:
    """Train every job in its folder; what is trained already is kept (``every``: seconds between
    two lines of a training).
    """
    for folder, job in jobs.items():
        job.write(folder)
    results = launch(
        list(jobs), parallel=run.profile.parallel, threads=run.profile.threads, every=every
    )
    return dict(zip(jobs, results))


def train_one(run: Run, where: str, job: TrainJob) -> RunResult:
    """Train one job in a folder of the run, or return what is trained already."""
    (result,) = launch_all(run, {run.folder / where: job}).values()
    return result


def plain_job(run: Run, model: ModelConfig, schedule: TrainConfig, name: str) -> TrainJob:
    """Return the training of a model on the run's data, from nothing and without distillation."""
    split = run.profile.training_split
    return TrainJob(model, schedule, str(run.data / "store"), split, name=name)


def teacher_job(run: Run, epochs: int = 0, name: str = "teacher") -> TrainJob:
    """Return the teacher's training from scratch by the profile's schedule (``epochs`` above 0
    replaces its length).
    """
    schedule = replace(run.profile.teacher, epochs=epochs or run.profile.teacher.epochs)
    # It trains on its own range; the pair may show it the student's.
    return plain_job(run, run.profile.pair.trained_teacher, schedule, name)


def exercise_training(run: Run, teacher: TrainedWeights) -> RunResult:
    """Return the training from scratch, or train a given teacher some more steps at a hundredth of
    the learning rate.
    """
    if teacher.origin == "scratch":
        return launch([teacher.weights.parent], parallel=1, threads=run.profile.threads)[0]
    job = teacher_job(run, name="teacher, continued")
    slow = replace(job.train, learning_rate=job.train.learning_rate / 100)
    job = replace(
        job, train=slow, init_weights=str(teacher.weights), max_steps=run.profile.continue_steps
    )
    return train_one(run, "teacher/continued", job)


def choose_teacher(run: Run, teacher: str, epochs: int = 0) -> TrainedWeights:
    """Return the teacher a notebook asks for: ``auto``, ``shipped``, ``scratch`` or a file;
    ``auto`` is shipped where possible.

    ConfigError if the file is missing, or none is shipped.
    """
    shipped, model = run.profile.shipped_teacher, run.profile.teacher_model
    if teacher == "auto":
        teacher = "shipped" if shipped else "scratch"
    if teacher == "scratch":
        return TrainedWeights(
            model, train_one(run, "teacher/scratch", teacher_job(run, epochs)).weights, "scratch"
        )
    if teacher == "shipped":
        if not shipped:
            raise ConfigError(
                f"profile {run.profile.name} ships no teacher (Waymo's licence); pass "
                "TEACHER=scratch or TEACHER=FILE"
            )
        if not (WEIGHTS / shipped).is_file():
            raise ConfigError(
                f"{WEIGHTS / shipped} is missing; restore it from git, or pass TEACHER=scratch"
            )
        return TrainedWeights(model, WEIGHTS / shipped, "shipped")
    return given_weights(run, model, teacher, "TEACHER")


def given_weights(run: Run, model: ModelConfig, file: str, parameter: str) -> TrainedWeights:
    """Return the weights in the file a notebook's parameter names; ConfigError if it is none of the
    parameter's words either.
    """
    run.check(**{parameter: file})
    return TrainedWeights(model, Path(file).resolve(), file)


def chosen_teacher(run: Run) -> TrainedWeights:
    """Return the teacher notebook 01 settled on; ConfigError if it has not finished."""
    values = run.result("01_train_teacher")
    return TrainedWeights(
        run.profile.teacher_model, run.located(values["weights"]), values["origin"]
    )


def starting_weights(run: Run, teacher: TrainedWeights, schedule: TrainConfig) -> Path:
    """Return what an initialised student starts from: the teacher, or the model its pair names,
    trained without distillation.
    """
    source = run.profile.pair.initialise_from
    if source is None or run.profile.kd.initialisation == "none":
        return teacher.weights
    job = plain_job(run, source, schedule, f"{source.name}, to start from")
    return train_one(run, f"students/start_{source.name}", job).weights


def student_folder(run: Run, arm: str, seed: int) -> Path:
    """Return where a student is trained; notebooks that share an arm share its students."""
    return run.folder / "students" / student_name(arm, seed)


def student_name(arm: str, seed: int) -> str:
    """Return what a student's folder and predictions are called."""
    return f"{arm}_seed{seed}"


def student_job(
    run: Run, arm: Arm, seed: int, teacher: TrainedWeights, start: Path | None = None
) -> TrainJob:
    """Return the training of one arm and seed; the arms differ in nothing else.

    The seed decides data order, augmentation and fresh weights; an initialised arm begins at
    ``start``, the teacher's if None.
    """
    starts = arm.initialisation != "none"
    return TrainJob(
        arm.student,
        replace(run.profile.student, seed=seed, epochs=arm.epochs or run.profile.student.epochs),
        str(run.data / "store"),
        run.profile.training_split,
        # A recipe names an initialisation, too: the arm's holds, also where it is none.
        kd=None if arm.kd is None else replace(arm.kd, initialisation=arm.initialisation),
        teacher=None if arm.kd is None else TeacherSource(teacher.model, str(teacher.weights)),
        init_weights=str(start or teacher.weights) if starts else None,
        initialisation=arm.initialisation if starts else "matching",
        terms=arm.terms,
        name=f"{arm.title}, seed {seed}",
    )


def longest_first(run: Run, arms: Iterable[Arm], seeds: Sequence[int]) -> list[tuple[Arm, int]]:
    """Return every training of some arms, those that take longest first: no core waits at the
    end.
    """
    usual = run.profile.student.epochs
    ordered = sorted(arms, key=lambda arm: (arm.epochs or usual, arm.kd is not None), reverse=True)
    return [(arm, seed) for arm in ordered for seed in seeds]


def train_students(
    run: Run, teacher: TrainedWeights, arms: Sequence[str], seeds: Sequence[int], epochs: int = 0
) -> Students:
    """Train every arm with every seed under one schedule; finished runs are kept; ConfigError if an
    arm is unknown.
    """
    chosen = [replace(run.profile.arm(name), epochs=epochs) for name in arms]
    schedule = replace(run.profile.student, epochs=epochs or run.profile.student.epochs)
    starts = any(arm.initialisation != "none" for arm in chosen)
    start = starting_weights(run, teacher, schedule) if starts else None
    jobs = {
        student_folder(run, arm.name, seed): student_job(run, arm, seed, teacher, start)
        for arm, seed in longest_first(run, chosen, seeds)
    }
    results = launch_all(run, jobs)
    return {(arm, seed): results[student_folder(run, arm, seed)] for seed in seeds for arm in arms}


def trained_students(run: Run) -> dict[Student, TrainedWeights]:
    """Return the students notebook 02 trained, by arm and seed; ConfigError if it has not
    finished.
    """
    rows = run.result("02_distill_student")["students"]
    model = run.profile.student_model
    return {
        (row["arm"], row["seed"]): TrainedWeights(model, run.located(row["weights"]))
        for row in rows
    }


def students_result(run: Run, students: Students, epochs: int = 0) -> Json:
    """Return what notebook 02 hands over: the budget all arms share, and every student's
    weights.
    """
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "weights": run.portable(result.weights),
            "seconds": result.values["timing"].get("seconds"),
            **{key: result.values[key] for key in ("steps", "samples", "final")},
        }
        for (arm, seed), result in students.items()
    ]
    budgets = {(row["steps"], row["samples"]) for row in rows}
    if len(budgets) != 1:
        raise ConfigError(
            "the arms were trained for different budgets (steps, samples): "
            f"{sorted(budgets)}; delete {run.folder}"
        )
    steps, samples = budgets.pop()
    frames = next(iter(students.values())).values["frames"]
    epochs = epochs or run.profile.student.epochs
    return {
        "budget": {"steps": steps, "samples": samples, "frames": frames, "epochs": epochs},
        "students": rows,
    }
