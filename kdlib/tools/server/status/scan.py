"""A folder of runs goes in; every run with its stages and trainings, as files and processes tell, comes out."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kdlib import records
from kdlib.errors import ConfigError, DataError
from kdlib.lab import occupancy, runlog
from kdlib.lab.execute import RUN
from kdlib.lab.profiles import PROFILES
from kdlib.training.launch import log_tail
from kdlib.training.rundir import RunDir, worker

State = Literal["done", "running", "failed", "stopped", "waiting"]  # stopped: its process is gone, a new call goes on

_STAGE = re.compile(r"\d\d_[a-z0-9_]+")
_SAID = re.compile(r"^[-\d]+ [:\d]+ (\d\d_[a-z0-9_]+): (running|failed|done|kept)")
# How the last line of a training that ended by itself, but not well, begins: kdlib's own sentence, or an exception.
_ERROR = re.compile(r"kdlib: |[\w.]*(Error|Exception|Diverged|Interrupt|Busy)\b")
_ABBREVIATED = 240  # characters of a log line


@dataclass(frozen=True)
class Training:
    """One training of a run."""

    name: str
    folder: str  # below the run
    state: State
    step: int
    steps: int  # 0 while nobody knows
    losses: tuple[float, ...]  # over the steps, oldest first
    speed: float | None  # frames a second, newest
    seconds: float  # of work so far
    left: float | None  # seconds, by the speed so far
    process: str  # at work, "" if there is none
    says: str  # last line of its log


@dataclass(frozen=True)
class Stage:
    """One notebook of a run."""

    name: str
    state: State


@dataclass(frozen=True)
class RunStatus:
    """One run folder."""

    name: str
    folder: str
    profile: str
    simulated: bool
    state: State
    process: str  # the driver at work, "" if there is none
    stages: tuple[Stage, ...]
    trainings: tuple[Training, ...]
    says: str  # last line of the driver's log
    report: bool  # report.html is there

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def _last_line(path: Path) -> str:
    text = log_tail(path, 1) if path.is_file() else ""
    line = text.rpartition("\r")[2]
    return line if len(line) <= _ABBREVIATED else line[:_ABBREVIATED] + " …"


def _process(owner: dict[str, Any] | None) -> str:
    if owner is None or owner.get("alive") is False:
        return ""
    elsewhere = owner["host"] != socket.gethostname()
    return f"{owner['pid']} on {owner['host']}" if elsewhere else str(owner["pid"])


def _training_state(run: RunDir, process: str, says: str) -> State:
    if (run.path / records.COMPLETE).is_file() and run.result.is_file():
        return "done"
    if process:
        return "running"
    if not run.log.is_file():
        return "waiting"
    return "failed" if _ERROR.match(says) else "stopped"


def training(folder: Path, top: Path) -> Training:
    """Return what is known of a training's folder; half-written and missing files count as not there."""
    run = RunDir(folder)
    says, process = _last_line(run.log), _process(worker(run))
    state = _training_state(run, process, says)
    try:
        job, lines = records.read_json(run.job), records.read_json_lines(run.history)
    except DataError as error:
        job, lines, says = {}, [], str(error)
    newest = lines[-1] if lines else {}
    step, steps, seconds = newest.get("step", 0), newest.get("steps", 0), newest.get("seconds", 0.0)
    return Training(
        name=job.get("name") or folder.name,
        folder=str(folder.relative_to(top)) if folder != top else folder.name,
        state=state,
        step=step,
        steps=steps,
        losses=tuple(line["loss"] for line in lines if "loss" in line),
        speed=newest.get("samples_per_second"),
        seconds=seconds,
        left=seconds / step * (steps - step) if step and state == "running" else None,
        process=process,
        says=says,
    )


def _trainings(folder: Path) -> tuple[Training, ...]:
    jobs = [path for pattern in ("job.json", "*/job.json", "*/*/job.json") for path in folder.glob(pattern)]
    found = [training(path.parent, folder) for path in sorted(jobs)]
    order = ("running", "failed", "stopped", "waiting", "done")
    return tuple(sorted(found, key=lambda one: order.index(one.state)))


def _plan(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Return a run's profile and stages: as its driver noted them, else as far as the folder tells."""
    note = folder / RUN
    values = records.read_json(note) if note.is_file() else {}
    if values:
        return str(values.get("profile", "")), tuple(values.get("stages", ()))
    there = sorted(path.name for path in folder.iterdir() if path.is_dir() and _STAGE.fullmatch(path.name))
    named = [records.read_json(folder / name / "result.json") for name in there if (folder / name / "result.json").is_file()]
    profile = str(named[0].get("profile", "")) if named else folder.name
    return profile, PROFILES[profile].chain if profile in PROFILES else tuple(there)


def _stages(folder: Path, names: tuple[str, ...], alive: bool) -> tuple[Stage, ...]:
    said: dict[str, str] = {}
    log = folder / runlog.LOG
    for line in log.read_text(errors="replace").splitlines() if log.is_file() else ():
        if match := _SAID.match(line):
            said[match[1]] = match[2]

    def state(name: str) -> State:
        if _has_result(folder / name):
            return "done"
        if said.get(name) == "running":
            return "running" if alive else "stopped"
        if said.get(name) == "failed":
            return "failed"
        return "stopped" if (folder / f"{name}.ipynb").is_file() else "waiting"

    return tuple(Stage(name, state(name)) for name in names)


def _has_result(home: Path) -> bool:
    """Return whether a stage has its mark and its result, under whatever key."""
    return (home / records.COMPLETE).is_file() and (home / "result.json").is_file()


def _overall(stages: tuple[Stage, ...], trainings: tuple[Training, ...], alive: bool) -> State:
    """Return a run's state: its driver's or a training's work counts first, then its stages, and without those its trainings."""
    if alive or any(one.state == "running" for one in trainings):
        return "running"
    states: set[State] = {stage.state for stage in stages} or {one.state for one in trainings}
    if states == {"done"}:
        return "done"
    if "failed" in states:
        return "failed"
    return "stopped" if states & {"stopped", "done"} else "waiting"


def status(folder: Path) -> RunStatus:
    """Return how one run stands."""
    driver = _process(occupancy.driver(folder))
    trainings = _trainings(folder)
    profile, names = _plan(folder)
    stages = _stages(folder, names, bool(driver)) if not (folder / "job.json").is_file() else ()
    known = PROFILES.get(profile)
    return RunStatus(
        name=folder.name,
        folder=str(folder),
        profile=profile,
        simulated=known is not None and known.simulated is not None,
        state=_overall(stages, trainings, bool(driver)),
        process=driver,
        stages=stages,
        trainings=trainings,
        says=_last_line(folder / runlog.LOG),
        report=(folder / "report.html").is_file(),
    )


def _is_run(folder: Path) -> bool:
    if (folder / RUN).is_file() or (folder / "job.json").is_file():
        return True
    return any(_STAGE.fullmatch(path.name) for path in folder.iterdir()) or bool(list(folder.glob("*/*/job.json")))


def _candidates(root: Path) -> Iterator[Path]:
    if (root / RUN).is_file() or (root / "job.json").is_file() or any(_STAGE.fullmatch(path.name) for path in root.iterdir()):
        yield root
        return
    yield from (path for path in sorted(root.iterdir()) if path.is_dir() and _is_run(path))


def scan(root: Path) -> list[RunStatus]:
    """Return how all runs below a folder stand, those at work first; the folder may itself be one run, or one training.

    Raises:
        ConfigError: If it does not exist.
    """
    if not root.is_dir():
        raise ConfigError(f"{root} does not exist; name a folder of runs, such as reports/runs")
    order = ("running", "failed", "stopped", "waiting", "done")
    return sorted((status(folder) for folder in _candidates(root.resolve())), key=lambda run: order.index(run.state))
