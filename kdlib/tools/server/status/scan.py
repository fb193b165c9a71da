"""How the runs below a folder stand, as their drivers' notes, completion marks and living processes
tell.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kdlib import records
from kdlib.errors import ConfigError, DataError
from kdlib.lab import occupancy, profile_files, runlog
from kdlib.lab.occupancy import RUN
from kdlib.lab.profile import Profile
from kdlib.lab.profiles import PROFILES
from kdlib.training.job import RunDir, worker
from kdlib.training.launch import log_tail

# stopped: its process is gone, a new call goes on
State = Literal["running", "failed", "stopped", "waiting", "done"]
STATES: tuple[State, ...] = get_args(State)  # in the order of a reader's interest

_NOTEBOOKS = {name for profile in PROFILES.values() for name in profile.chain}
# How the last line of a training that ended by itself, but not well, begins: kdlib's own sentence,
# or an exception.
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
class StageStatus:
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
    stages: tuple[StageStatus, ...]
    trainings: tuple[Training, ...]
    says: str  # last line of the driver's log


def scan_runs(root: Path) -> list[RunStatus]:
    """Return how all runs below a folder stand, those at work first; the folder may itself be one
    run, or one training.

    Raises:
        ConfigError: If it does not exist.
    """
    if not root.is_dir():
        raise ConfigError(f"{root} does not exist; name a folder of runs, such as reports/runs")
    root = root.resolve()
    below = [
        path
        for path in sorted(root.iterdir())
        if path.is_dir() and (_is_run(path) or any(path.glob("*/*/job.json")))
    ]
    runs = [_run_status(folder) for folder in ([root] if _is_run(root) else below)]
    return sorted(runs, key=lambda run: STATES.index(run.state))


def _is_run(folder: Path) -> bool:
    return any(
        path.name in (RUN, "job.json") or path.stem in _NOTEBOOKS for path in folder.iterdir()
    )


def _run_status(folder: Path) -> RunStatus:
    driver = _process(occupancy.driver(folder))
    known = _profile(folder)
    profile, notes = _noted_stages(folder, known)
    stages = tuple(
        StageStatus(name, _stage_state(folder / name, note, bool(driver)))
        for name, note in notes.items()
    )
    jobs = sorted(
        path
        for pattern in ("job.json", "*/job.json", "*/*/job.json")
        for path in folder.glob(pattern)
    )
    trainings = sorted(
        (_training(path.parent, folder) for path in jobs),
        key=lambda training: STATES.index(training.state),
    )
    return RunStatus(
        name=folder.name,
        folder=str(folder),
        profile=profile,
        simulated=known is not None and known.simulated is not None,
        state=_overall(stages, trainings, bool(driver)),
        process=driver,
        stages=stages,
        trainings=tuple(trainings),
        says=_last_line(folder / runlog.LOG),
    )


def _profile(folder: Path) -> Profile | None:
    """Return a run's profile; None of a single training, or where this version does not know it."""
    with suppress(ConfigError, DataError):
        return profile_files.of_run(folder)
    return None


def _noted_stages(folder: Path, known: Profile | None) -> tuple[str, dict[str, Mapping[str, Any]]]:
    """Return a run's profile, and of each stage what its driver noted last: nothing where notebooks
    ran without a driver.
    """
    if (folder / RUN).is_file():
        note = records.read_json(folder / RUN)
        return note["profile"], note["stages"]
    if (folder / "job.json").is_file():  # one training, no run
        return folder.name, {}
    there = sorted({path.stem for path in folder.iterdir() if path.stem in _NOTEBOOKS})
    results = [
        records.read_json(path)
        for path in sorted(folder.glob("*/result.json"))
        if path.parent.name in there
    ]
    profile = str(results[0].get("profile", folder.name)) if results else folder.name
    known = known or PROFILES.get(profile)
    return profile, {name: {} for name in (known.chain if known else there)}


def _stage_state(home: Path, note: Mapping[str, Any], driven: bool) -> State:
    if (home / records.COMPLETE).is_file() and (home / "result.json").is_file():
        return "done"
    state = note.get("state")
    if state == "running":
        return "running" if driven else "stopped"
    if state in ("failed", "stopped"):
        return state
    # Where nothing was noted, an executed copy of the notebook tells that it was begun.
    return "stopped" if not note and home.with_suffix(".ipynb").is_file() else "waiting"


def _overall(stages: tuple[StageStatus, ...], trainings: list[Training], driven: bool) -> State:
    """Return a run's state: its driver's or a training's work counts first, then its stages, and
    without those its trainings.
    """
    if driven or any(training.state == "running" for training in trainings):
        return "running"
    states: set[State] = {stage.state for stage in stages} or {
        training.state for training in trainings
    }
    if states == {"done"}:
        return "done"
    if "failed" in states:
        return "failed"
    return "stopped" if states & {"stopped", "done"} else "waiting"


def _training(folder: Path, top: Path) -> Training:
    """Return what is known of a training's folder; half-written and missing files count as not
    there.
    """
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
        losses=tuple(line["loss"] for line in lines),
        speed=newest.get("samples_per_second"),
        seconds=seconds,
        left=seconds / step * (steps - step) if step and state == "running" else None,
        process=process,
        says=says,
    )


def _training_state(run: RunDir, process: str, says: str) -> State:
    if (run.path / records.COMPLETE).is_file() and run.result.is_file():
        return "done"
    if process:
        return "running"
    if not run.log.is_file():
        return "waiting"
    return "failed" if _ERROR.match(says) else "stopped"


def _process(owner: Mapping[str, Any] | None) -> str:
    if owner is None:
        return ""
    return (
        str(owner["pid"])
        if owner["host"] == socket.gethostname()
        else (f"{owner['pid']} on {owner['host']}")
    )


def _last_line(path: Path) -> str:
    line = (log_tail(path, 1) if path.is_file() else "").rpartition("\r")[2]
    return line if len(line) <= _ABBREVIATED else line[:_ABBREVIATED] + " …"
