"""What the notebooks call, stage by stage: data, teacher, students, predictions; every stage keeps what is already there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdlib import records, zoo
from kdlib.config import ModelConfig, TrainConfig
from kdlib.data.prepare import prepare
from kdlib.data.store import INDEX, Store
from kdlib.errors import ConfigError
from kdlib.lab import occupancy, profiles
from kdlib.lab.execute import PROJECT, WEIGHTS, run_folder
from kdlib.lab.profiles import Profile
from kdlib.simulate import simulate
from kdlib.training import places
from kdlib.training.job import TeacherSource, TrainJob
from kdlib.training.launch import RunResult, launch


@dataclass(frozen=True)
class Run:
    """A profile with its folders; what every notebook opens first."""

    profile: Profile
    folder: Path
    data: Path

    @property
    def store(self) -> Store:
        """The prepared store.

        Raises:
            DataError: If it is missing or damaged; the message says to run notebook 00.
        """
        return Store.open(self.data / "store")

    def stage(self, name: str) -> Path:
        """Return the folder of a stage, made if missing."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def result(self, name: str) -> dict[str, Any]:
        """Return what an earlier notebook handed over.

        Raises:
            ConfigError: If that notebook has not finished.
        """
        path = self.folder / name / "result.json"
        if not path.is_file():
            raise ConfigError(f"{path} is missing; run notebook {name} first")
        return records.read_json(path)


def open_run(profile: str, run_dir: str = "", data_root: str = "") -> Run:
    """Open a run by profile name; empty paths mean the profile's own folders.

    Raises:
        ConfigError: If the profile is unknown.
    """
    chosen = profiles.profile(profile)
    folder = run_folder(profile, Path(run_dir) if run_dir else None)
    folder.mkdir(parents=True, exist_ok=True)
    return Run(chosen, folder, Path(data_root).resolve() if data_root else PROJECT / "data" / (chosen.data or profile))


def save_result(run: Run, stage: str, values: dict[str, Any]) -> Path:
    """Hand a stage's results over to later notebooks, the report and the tests."""
    facts = {"profile": run.profile.name, "simulated": run.profile.simulated is not None}
    return records.write_result(run.stage(stage), {**facts, **values})


def prepare_data(run: Run) -> Store:
    """Simulate the profile's dataset if it has one, then prepare the store; both continue where they stopped.

    Raises:
        DataError: If real Waymo files are wanted and not there.
    """
    source = run.data / "waymo"
    if run.profile.simulated is None and not source.is_dir():
        if (run.data / "store" / INDEX).is_file():
            return run.store  # frames of another dataset, or the licensed files are on another machine
        raise ConfigError(f"{source} does not exist; data/README.md says how to get Waymo, then pass DATA_ROOT={run.data}")
    pasted = any(schedule.augment.objects is not None for schedule in (run.profile.teacher, run.profile.student))
    with occupancy.turn(run.data):
        _simulate(run, source)
        prepare(
            source, run.data / "store", workers=_workers(run), objects=pasted, scheduler=os.environ.get(places.SCHEDULER) or None
        )
    return run.store


def _simulate(run: Run, source: Path) -> None:
    made = run.profile.simulated
    if made is None:
        return
    counts = {"training": made.training_segments, "validation": made.validation_segments}
    for offset, (split, count) in enumerate(counts.items()):
        simulate(source, count, made.frames, made.seed + offset, made.scale, split=split, workers=_workers(run))


def _workers(run: Run) -> int:
    """Return how many processes pay: starting one costs more than a smoke run's few frames."""
    made = run.profile.simulated
    return 1 if made is not None and made.training_segments < 10 else os.cpu_count() or 1


def portable(path: Path) -> str:
    """Return a path as results name it: from the project's folder on where it lies inside, so that no result names a machine."""
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)


def located(text: str) -> Path:
    """Return the path a result names."""
    return PROJECT / text


@dataclass(frozen=True)
class TeacherWeights:
    """A teacher ready to teach."""

    model: ModelConfig
    weights: Path
    origin: str  # "shipped", "scratch" or the path given


def shipped_teacher(run: Run) -> TeacherWeights:
    """Return the teacher in data/weights.

    Raises:
        ConfigError: If the profile has none, or its file is missing.
    """
    name = run.profile.shipped_teacher
    if not name:
        raise ConfigError(f"profile {run.profile.name} ships no teacher (Waymo's licence); pass TEACHER=scratch or TEACHER=FILE")
    if not (WEIGHTS / name).is_file():
        raise ConfigError(f"{WEIGHTS / name} is missing; restore it from git, or pass TEACHER=scratch")
    return TeacherWeights(run.profile.teacher_model, WEIGHTS / name, "shipped")


def _full_range(run: Run) -> ModelConfig:
    """The teacher trains on its own range; the pair may show it the student's."""
    return zoo.model(run.profile.teacher_model.name)


def _launch(jobs: Mapping[Path, TrainJob], run: Run) -> list[RunResult]:
    for folder, job in jobs.items():
        job.write(folder)
    return launch(list(jobs), parallel=run.profile.parallel, threads=run.profile.threads)


def train_teacher(run: Run, epochs: int = 0) -> TeacherWeights:
    """Train the teacher from scratch by the profile's schedule (``epochs`` above 0 replaces its length)."""
    schedule = replace(run.profile.teacher, epochs=epochs) if epochs else run.profile.teacher
    folder = run.folder / "teacher" / "scratch"
    result = _launch({folder: TrainJob(_full_range(run), schedule, str(run.data / "store"), name="teacher")}, run)[0]
    return TeacherWeights(run.profile.teacher_model, result.weights, "scratch")


def exercise_training(run: Run, teacher: TeacherWeights) -> RunResult:
    """Return the training from scratch, or train a given teacher some more steps at a hundredth of the learning rate."""
    if teacher.origin == "scratch":
        folder = teacher.weights.parent
        return launch([folder], parallel=1, threads=run.profile.threads)[0]
    schedule = replace(run.profile.teacher, learning_rate=run.profile.teacher.learning_rate / 100)
    job = TrainJob(
        _full_range(run),
        schedule,
        str(run.data / "store"),
        init_weights=str(teacher.weights),
        max_steps=run.profile.continue_steps,
        name="teacher, continued",
    )
    return _launch({run.folder / "teacher" / "continued": job}, run)[0]


def choose_teacher(run: Run, teacher: str, epochs: int = 0) -> TeacherWeights:
    """Return the teacher a notebook asks for: ``auto``, ``shipped``, ``scratch`` or a file; ``auto`` is shipped where possible.

    Raises:
        ConfigError: If the file is missing.
    """
    if teacher == "auto":
        teacher = "shipped" if run.profile.shipped_teacher else "scratch"
    if teacher == "shipped":
        return shipped_teacher(run)
    if teacher == "scratch":
        return train_teacher(run, epochs)
    if not Path(teacher).is_file():
        raise ConfigError(f"TEACHER={teacher} is neither 'auto', 'shipped', 'scratch' nor a safetensors file")
    return TeacherWeights(run.profile.teacher_model, Path(teacher).resolve(), teacher)


def chosen_teacher(run: Run) -> TeacherWeights:
    """Return the teacher notebook 01 settled on.

    Raises:
        ConfigError: If notebook 01 has not finished.
    """
    values = run.result("01_train_teacher")
    return TeacherWeights(run.profile.teacher_model, located(values["weights"]), values["origin"])


def starting_weights(run: Run, teacher: TeacherWeights, schedule: TrainConfig) -> Path:
    """Return what an initialised student starts from: the teacher, or the model its pair names, trained without distillation."""
    source = run.profile.zoo_pair.initialise_from
    if source is None or run.profile.kd.initialisation == "none":
        return teacher.weights
    folder = run.folder / "students" / f"start_{source.name}"
    job = TrainJob(source, schedule, str(run.data / "store"), name=f"{source.name}, to start from")
    return _launch({folder: job}, run)[0].weights


def student_job(
    run: Run, arm: str, seed: int, teacher: TeacherWeights, schedule: TrainConfig, start: Path | None = None
) -> TrainJob:
    """Return the training job of one arm and seed; the arms differ in nothing else.

    Args:
        run: The run.
        arm: One of the profile's.
        seed: Of data order, augmentation and fresh weights.
        teacher: Who distils.
        schedule: Same for all arms.
        start: Weights an initialised arm starts from; the teacher's if None.

    Raises:
        ConfigError: If the arm is unknown.
    """
    chosen = profiles.arm(arm)
    return TrainJob(
        run.profile.student_model,
        replace(schedule, seed=seed),
        str(run.data / "store"),
        kd=run.profile.kd if chosen.distil else None,
        teacher=TeacherSource(teacher.model, str(teacher.weights)) if chosen.distil else None,
        init_weights=str(start or teacher.weights) if chosen.initialise else None,
        initialisation=run.profile.kd.initialisation if chosen.initialise else "matching",
        name=f"{chosen.title}, seed {seed}",
    )


def train_students(
    run: Run, teacher: TeacherWeights, arms: Sequence[str], seeds: Sequence[int], epochs: int = 0
) -> dict[tuple[str, int], RunResult]:
    """Train every arm with every seed under one schedule; finished runs are kept.

    Returns:
        The outcome of every (arm, seed).

    Raises:
        ConfigError: If an arm is unknown.
    """
    schedule = replace(run.profile.student, epochs=epochs) if epochs else run.profile.student
    keys = [(arm, seed) for seed in seeds for arm in arms]
    # Distilling takes longest: started first, no core waits at the end.
    order = sorted(keys, key=lambda key: not profiles.arm(key[0]).distil)
    start = starting_weights(run, teacher, schedule) if any(profiles.arm(arm).initialise for arm in arms) else None
    folders = {key: run.folder / "students" / f"{key[0]}_seed{key[1]}" for key in order}
    results = _launch({folders[key]: student_job(run, *key, teacher, schedule, start) for key in order}, run)
    found = dict(zip(order, results))
    return {key: found[key] for key in keys}


def students_result(run: Run, students: Mapping[tuple[str, int], RunResult], epochs: int = 0) -> dict[str, Any]:
    """Return what notebook 02 hands over: the budget all arms share, and every student's weights."""
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "weights": portable(result.weights),
            "steps": result.values["steps"],
            "samples": result.values["samples"],
            "seconds": result.values["timing"].get("seconds"),
            "final": result.values["final"],
        }
        for (arm, seed), result in students.items()
    ]
    budgets = {(row["steps"], row["samples"]) for row in rows}
    if len(budgets) != 1:
        raise ConfigError(f"the arms were trained for different budgets (steps, samples): {sorted(budgets)}; delete {run.folder}")
    steps, samples = budgets.pop()
    frames = next(iter(students.values())).values["frames"]
    epochs = epochs or run.profile.student.epochs
    return {"budget": {"steps": steps, "samples": samples, "frames": frames, "epochs": epochs}, "students": rows}
