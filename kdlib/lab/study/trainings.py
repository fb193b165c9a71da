"""A run and a notebook's name in, the trained students of all its arms out; what is trained already, by any notebook, is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from kdlib import zoo
from kdlib.config import lookup
from kdlib.errors import ConfigError
from kdlib.lab import pipeline
from kdlib.lab.pipeline import Run, TeacherWeights
from kdlib.lab.study.arms import RETITLED, Question, StudyArm, TeacherQuality, arms_of, questions_of, settings_of
from kdlib.training.job import TeacherSource, TrainJob
from kdlib.training.launch import RunResult, launch

_EVERY = 30.0  # seconds between two lines of a run: there are many runs
Key = tuple[str, int]  # arm, seed


@dataclass(frozen=True)
class Chapter:
    """One notebook of the study: what it trains and what it asks."""

    run: Run
    notebook: str
    arms: Mapping[str, StudyArm]
    questions: tuple[Question, ...]
    seeds: tuple[int, ...]

    @property
    def stage(self) -> Path:
        """The folder of its pictures and its result."""
        return self.run.stage(self.notebook)

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every training, seed by seed."""
        return tuple((arm, seed) for seed in self.seeds for arm in self.arms)

    def question(self, name: str) -> Question:
        """Return a question by name.

        Raises:
            ConfigError: If the notebook does not ask it, or the arms for it were left out.
        """
        return lookup({question.name: question for question in self.questions}, name, f"question of {self.notebook}")


def open_chapter(run: Run, notebook: str, seeds: str = "") -> Chapter:
    """Return what a notebook trains and asks.

    Args:
        run: The run; its profile may leave arms out.
        notebook: One of the profile's chain.
        seeds: Comma-separated numbers; empty means the profile's.

    Raises:
        ConfigError: If the profile names an unknown arm, or leaves nothing to compare.
    """
    known = arms_of(run.profile)
    wanted = settings_of(run.profile).arms or tuple(known)
    questions = questions_of(notebook, [lookup(known, name, "arm").name for name in wanted])
    if not questions:
        raise ConfigError(f"{notebook} has nothing to compare among the arms of profile {run.profile.name}: {', '.join(wanted)}")
    used = {name for question in questions for name in question.arms}
    chosen = tuple(int(seed) for seed in seeds.split(",")) if seeds else run.profile.seeds
    titles = RETITLED.get(notebook, {})
    ours = {name: replace(arm, title=titles.get(name, arm.title)) for name, arm in known.items() if name in used}
    return Chapter(run, notebook, ours, questions, chosen)


def teacher_of(run: Run, quality: TeacherQuality) -> TeacherWeights:
    """Return the run's teacher, or where the weak one is or will be."""
    if quality == "strong":
        return pipeline.choose_teacher(run, "auto")
    return TeacherWeights(run.profile.teacher_model, weak_folder(run) / "weights.safetensors", "weak")


def weak_folder(run: Run) -> Path:
    """Return where the weak teacher is trained."""
    return run.folder / "teacher" / "weak"


def weak_job(run: Run) -> TrainJob:
    """Return the training of the weak teacher: the teacher's own, cut short."""
    schedule = replace(run.profile.teacher, epochs=settings_of(run.profile).weak_epochs)
    model = zoo.model(run.profile.teacher_model.name)
    return TrainJob(model, schedule, str(run.data / "store"), name="weak teacher")


def student_folder(run: Run, arm: str, seed: int) -> Path:
    """Return where a student is trained; notebooks that share an arm share its students."""
    return run.folder / "students" / f"{arm}_seed{seed}"


def student_job(run: Run, arm: StudyArm, seed: int, teacher: TeacherWeights) -> TrainJob:
    """Return the training of one arm and seed."""
    starts = arm.initialisation != "none"
    return TrainJob(
        arm.student,
        replace(run.profile.student, seed=seed, epochs=arm.epochs or run.profile.student.epochs),
        str(run.data / "store"),
        # A recipe names an initialisation, too: the arm's holds, also where it is none.
        kd=None if arm.kd is None else replace(arm.kd, initialisation=arm.initialisation),
        teacher=None if arm.kd is None else TeacherSource(teacher.model, str(teacher.weights)),
        init_weights=str(teacher.weights) if starts else None,
        initialisation=arm.initialisation if starts else "matching",
        name=f"{arm.name}, seed {seed}",
    )


@dataclass(frozen=True)
class Trained:
    """A notebook's students."""

    chapter: Chapter
    results: Mapping[Key, RunResult]

    @property
    def teachers(self) -> dict[str, TeacherWeights]:
        """The teachers that took part."""
        return {q: teacher_of(self.chapter.run, q) for q in dict.fromkeys(arm.teacher for arm in self.chapter.arms.values())}

    def table(self) -> pd.DataFrame:
        """Return a row for each arm: what it is and what its trainings took."""
        rows = []
        for name, arm in self.chapter.arms.items():
            found = [self.results[name, seed].values for seed in self.chapter.seeds]
            rows.append(
                {
                    "arm": arm.title,
                    "student": arm.student.name,
                    "starts from": "nothing" if arm.initialisation == "none" else f"{arm.teacher} teacher, {arm.initialisation}",
                    "epochs": found[0]["epochs"],
                    "steps": found[0]["steps"],
                    "samples": found[0]["samples"],
                    "seconds a run": round(sum(values["timing"]["seconds"] for values in found) / len(found)),
                }
            )
        return pd.DataFrame(rows)

    def terms(self) -> pd.DataFrame:
        """Return the startup report of every arm's first seed: each active term, its weight and its value on the first batch."""
        rows = [
            {"arm": arm.title, **term}
            for name, arm in self.chapter.arms.items()
            for term in self.results[name, self.chapter.seeds[0]].values["terms"]
        ]
        return pd.DataFrame(rows).round(4)


def train(chapter: Chapter) -> Trained:
    """Train every arm with every seed, the longest first; an interrupted call is continued by the next one.

    Raises:
        TrainingFailed: If a training ended without finishing.
        ConfigError: If two arms that are compared saw different numbers of samples.
    """
    run = chapter.run
    order = sorted(chapter.keys, key=lambda key: _length(run, chapter.arms[key[0]]), reverse=True)
    waits = [key for key in order if chapter.arms[key[0]].teacher == "weak"]
    first: dict[Path, TrainJob] = {weak_folder(run): weak_job(run)} if waits else {}
    first |= _jobs(chapter, (key for key in order if key not in waits))
    found = _launch(run, first)
    found |= _launch(run, _jobs(chapter, waits))  # a job is known by the bytes of its teacher, so this one had to be there
    trained = Trained(chapter, {key: found[student_folder(run, *key)] for key in chapter.keys})
    _check_budgets(trained)
    return trained


def _length(run: Run, arm: StudyArm) -> tuple[int, bool]:
    return arm.epochs or run.profile.student.epochs, arm.kd is not None


def _jobs(chapter: Chapter, keys: Iterable[Key]) -> dict[Path, TrainJob]:
    run, found = chapter.run, {}
    for name, seed in keys:
        arm = chapter.arms[name]
        found[student_folder(run, name, seed)] = student_job(run, arm, seed, teacher_of(run, arm.teacher))
    return found


def _launch(run: Run, jobs: Mapping[Path, TrainJob]) -> dict[Path, RunResult]:
    for folder, job in jobs.items():
        job.write(folder)
    results = launch(list(jobs), parallel=run.profile.parallel, threads=run.profile.threads, every=_EVERY)
    return dict(zip(jobs, results))


def _check_budgets(trained: Trained) -> None:
    samples = {key: result.values["samples"] for key, result in trained.results.items()}
    for question in trained.chapter.questions:
        for one in question.contrasts:
            for seed in trained.chapter.seeds:
                a, b = samples[one.first, seed], samples[one.second, seed]
                if a != b:
                    raise ConfigError(
                        f"'{one.first}' saw {a} samples and '{one.second}' {b}, with seed {seed}: not to be compared; delete "
                        f"{trained.chapter.run.folder / 'students'}"
                    )
