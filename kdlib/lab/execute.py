"""Runs a chain of notebooks through papermill: finished stages are kept, a failed one stops it
loudly.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdlib import records, zoo
from kdlib.config import config_hash
from kdlib.errors import ConfigError, DataError, KdlibError
from kdlib.kd.objective import Distillation
from kdlib.lab import occupancy, pipeline, profile_files, runlog
from kdlib.lab.data_checks import check_data
from kdlib.lab.folders import NOTEBOOKS, PROJECT, WEIGHTS, run_folder
from kdlib.lab.profiles import Profile
from kdlib.lab.runlog import RunLog
from kdlib.models.build import build
from kdlib.models.weights import load_weights, read_weights
from kdlib.types import Json

SOURCES = PROJECT / "kdlib"
# No notebook's numbers rest on these: what only draws (viz), what only the command line reaches
# (tools, cli), and those modules of the lab that drive notebooks or dress their results. An edit
# there need not repeat a finished run's trainings. What profiles and the zoo say of a run is in its
# own profile, whose values count: one more profile repeats nothing.
_UNCOUNTED = (
    *("viz/", "tools/", "cli.py", "__main__.py", "zoo.py"),
    *("lab/profiles.py", "lab/profile_files.py", "lab/detector_table.py"),
    *("lab/execute.py", "lab/occupancy.py", "lab/runlog.py"),
    *("lab/report.py", "lab/page.py", "lab/publish.py", "lab/data_checks.py"),
)
_TEACHERS = {"TEACHER": ("auto", "shipped", "scratch"), "FIRST_STAGE": ("auto", "scratch")}
_MANY = 1_000_000
_BOUNDS = {
    **dict.fromkeys(("TEACHER_EPOCHS", "STUDENT_EPOCHS"), (0, _MANY)),
    **dict.fromkeys(("RESAMPLES", "REPEATS"), (1, _MANY)),
    "FRAME": (-1, _MANY),
    "SCORE_THRESHOLD": (0, 1),
}
RUN = "run.json"  # what a run folder is to hold, profile and stages, and how each stage stands


class StageFailed(KdlibError):
    """A notebook of the chain did not finish; the executed copy shows where."""


@dataclass(frozen=True)
class Stage:
    """One notebook with the parameters it takes and the key that says whether its result is still
    valid.
    """

    name: str
    parameters: Json
    key: str


def declared_parameters(notebook: Path) -> Json:
    """Return name and default of every parameter of a notebook.

    ConfigError if the notebook is missing, or its cell tagged ``parameters`` is missing or holds
    more than literals.
    """
    if not notebook.is_file():
        raise ConfigError(
            f"{notebook} does not exist; run from a checkout of the project, the "
            "notebooks are not in the wheel"
        )
    cells = json.loads(notebook.read_text())["cells"]
    tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", ())]
    if len(tagged) != 1:
        raise ConfigError(
            f"{notebook} needs exactly one cell tagged 'parameters', it has {len(tagged)}"
        )
    parameters = {}
    for statement in ast.parse("".join(tagged[0]["source"])).body:
        assigned: Any = statement
        try:
            parameters[assigned.targets[0].id] = ast.literal_eval(assigned.value)
        # no assignment to one name, or not of a literal
        except (AttributeError, ValueError) as error:
            words = (
                f"the parameters cell may hold only NAME = literal, not '{ast.unparse(statement)}'"
            )
            raise ConfigError(f"{notebook}: {words}") from error
    return parameters


def parse_overrides(texts: list[str]) -> dict[str, str]:
    """Split ``NAME=VALUE`` texts; ConfigError if one has no equals sign or comes twice."""
    overrides: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"parameter '{text}' is not NAME=VALUE")
        if name in overrides:
            raise ConfigError(f"parameter {name} is given twice: '{overrides[name]}' and '{value}'")
        overrides[name] = value
    return overrides


def _typed(name: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        # A path is the caller's, not one below the run folder in which the notebooks execute.
        path = os.path.expanduser(text)  # a shell leaves the ~ in NAME=~/FOLDER as it is
        is_path = (name == "DATA_ROOT" and text) or (name in _TEACHERS and os.path.exists(path))
        return str(Path(path).resolve()) if is_path else text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if (type(default), type(value)) == (float, int):
        value = float(value)
    if type(value) is not type(default):
        raise ConfigError(
            f"parameter {name}='{text}' must be of type {type(default).__name__}, "
            f"like its default {default!r}"
        )
    return value


def check_parameter(name: str, value: Any, profile: Profile) -> None:
    """Check the value of a notebook's parameter; ConfigError names the accepted form."""
    if name == "SEEDS":
        profile.chosen_seeds(value)
    elif name == "ARMS":
        profile.chosen_arms(value)
    elif name in _TEACHERS and value not in _TEACHERS[name] and not os.path.exists(value):
        words = ", ".join(_TEACHERS[name])
        raise ConfigError(f"{name}={value} is neither {words} nor a safetensors file")
    elif name == "TEACHER" and value == "shipped" and not profile.shipped_teacher:
        raise ConfigError(
            f"TEACHER=shipped: profile {profile.name} ships none; use scratch or a safetensors file"
        )
    elif name == "DATA_ROOT" and os.path.exists(value) and not os.path.isdir(value):
        raise ConfigError(f"DATA_ROOT={value} is no folder; name the one that holds waymo or store")
    elif name in _BOUNDS:
        least, most = _BOUNDS[name]
        if not least <= value <= most:
            open_above = value < least and most == _MANY
            rest = f"at least {least}" if open_above else f"from {least} to {most}"
            more = "; 0 means the profile's" if name.endswith("EPOCHS") else ""
            raise ConfigError(f"{name}={value} must be {rest}{more}")


def _check_networks(profile: Profile) -> None:
    """Check that teacher, student and recipe fit together; ConfigError says what does not."""
    with torch.device("meta"):
        student, teacher = build(profile.student_model), build(profile.teacher_model)
        if "full" in profile.arms:
            Distillation(student, teacher, profile.kd)


def _check_teachers(stages: Sequence[Stage], profile: Profile) -> None:
    """Check that weights that are given fit their model, and are finite; ConfigError says what
    is wrong with them.
    """
    for name, words in _TEACHERS.items():
        given = {stage.parameters.get(name, "auto") for stage in stages} - set(words)
        for file in map(Path, given):
            try:
                if name == "TEACHER":
                    load_weights(file, build(profile.teacher_model))
                else:
                    read_weights(file)
            except DataError as error:
                raise ConfigError(
                    f"{name} is neither {', '.join(words)} nor usable: {error}"
                ) from error
    shipped = WEIGHTS / profile.shipped_teacher
    asked = {stage.parameters.get("TEACHER", "auto") for stage in stages} <= {"auto", "shipped"}
    if asked and shipped.is_file():
        try:
            load_weights(shipped, build(profile.teacher_model))
        except DataError as error:
            raise ConfigError(
                f"the shipped teacher is not of this profile ({error}); set shipped_teacher to '', "
                "or give -p TEACHER=scratch or a safetensors file"
            ) from error


def source_hash(package: Path = SOURCES) -> str:
    """Return a digest of the sources a notebook's numbers rest on; a stage is repeated when the
    code under it changed.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if not path.relative_to(package).as_posix().startswith(_UNCOUNTED):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _settings_hash(profile: Profile) -> str:
    """Return a digest of all settings a run's numbers rest on; how many trainings run side by side
    is none of them.
    """
    arms = [profile.arm(name) for name in profile.arms]
    others = [zoo.pair(profile.study.width_pair)] if profile.study else []
    return config_hash(replace(profile, parallel=1, threads=0), *arms, *others)


def plan_stages(
    profile: str, folder: Path, overrides: Mapping[str, str], settings: Sequence[str] = ()
) -> list[Stage]:
    """Return the chain's stages with typed parameters, none executed; ConfigError if a name is
    unknown, or a type or value is wrong.

    ``profile`` and ``settings`` are those of :func:`kdlib.lab.profile_files.load`.
    """
    chosen = profile_files.load(profile, settings)
    declared = {name: declared_parameters(NOTEBOOKS / f"{name}.ipynb") for name in chosen.chain}
    known = set().union(*declared.values()) - {"PROFILE", "RUN_DIR"}
    if unknown := sorted(set(overrides) - known):
        raise ConfigError(
            f"no notebook has a parameter {', '.join(unknown)}; there are: "
            f"{', '.join(sorted(known))}"
        )
    given = [_typed(name, overrides[name], "") for name in _TEACHERS if name in overrides]
    files = [WEIGHTS / name for name in (chosen.shipped_teacher, *given) if name]
    contents = (records.sha256(path) for path in files if os.path.isfile(path))
    key = source_hash() + _settings_hash(chosen) + "".join(contents)
    stages = []
    for name, defaults in declared.items():
        own = {
            each: _typed(each, overrides[each], default)
            for each, default in defaults.items()
            if each in overrides
        }
        for each, value in own.items():
            check_parameter(each, value, chosen)
        own |= {"PROFILE": str(folder / profile_files.FILE), "RUN_DIR": str(folder)}
        notebook = (NOTEBOOKS / f"{name}.ipynb").read_text()
        # A stage stands on the one before it: whatever changes there changes every key from there
        # on.
        key = hashlib.sha256(
            (key + json.dumps(own, sort_keys=True) + notebook).encode()
        ).hexdigest()[:16]
        stages.append(Stage(name, own, key))
    return stages


def _own_kernel() -> type:
    """Return a kernel manager that starts this very Python, whatever kernels are installed."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    return OwnKernel


def _literal(path: Path) -> str:
    """Return a path as papermill takes it, for which braces are places of parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def execute(stage: Stage, folder: Path, log: RunLog) -> None:
    """Run one notebook through papermill into the run folder and mark it complete; what it prints
    goes to the log.

    StageFailed if a cell raised, the kernel died, or the last cell did not write ``result.json``.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    home = folder / stage.name
    home.mkdir(parents=True, exist_ok=True)
    result = home / "result.json"
    # the mark first: it must never stand without its result
    for old in (home / records.COMPLETE, result):
        old.unlink(missing_ok=True)
    executed = folder / f"{stage.name}.ipynb"
    try:
        papermill.execute_notebook(
            _literal(NOTEBOOKS / f"{stage.name}.ipynb"),
            _literal(executed),
            parameters=stage.parameters,
            kernel_name="python3",  # says the language; the manager says which Python
            kernel_manager_class=_own_kernel(),
            progress_bar=False,
            stdout_file=log,
            cwd=str(folder),
            extra_arguments=["--log-level=ERROR"],
            store_widget_state=False,  # megabytes that a static picture stands in for
        )
    except PapermillExecutionError as error:
        where = f"{stage.name} stopped at cell {error.exec_count}"
        raise StageFailed(f"{where}: {error.ename}: {error.evalue} (see {executed})") from error
    except RuntimeError as error:
        # the latter while it starts
        if not isinstance(error, DeadKernelError) and "Kernel died" not in str(error):
            raise
        raise StageFailed(
            f"{stage.name}: its kernel died, perhaps for want of memory (see {executed})"
        ) from error
    if not result.is_file():
        raise StageFailed(
            f"{stage.name} ended without writing {result}; its last cell must call save_result"
        )
    records.mark_complete(home, stage.key)


def run_profile(
    profile: str,
    out: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
) -> Path:
    """Run the chain of a profile, write its report and return the folder of all that; a second call
    does no work twice.

    ``profile`` and ``settings`` are those of :func:`kdlib.lab.profile_files.load`.

    Raises:
        ConfigError: If a name or value is wrong (before anything is executed).
        StageFailed: If a notebook failed.
        FolderBusy: If another process runs in this folder.
    """
    from kdlib.lab.report import write_run_report

    chosen = profile_files.load(profile, settings)
    folder = run_folder(chosen.name, out)
    stages = plan_stages(profile, folder, overrides or {}, settings)
    _check_teachers(stages, chosen)
    _check_networks(chosen)
    if root := stages[0].parameters.get("DATA_ROOT"):
        chosen = replace(chosen, data=root)
    check_data(chosen, pipeline.data_folder(chosen))
    with occupancy.hold(folder), runlog.opened(folder) as log:
        profile_files.save(chosen, folder)
        states: dict[str, Json] = {stage.name: {"state": "waiting"} for stage in stages}

        def note(stage: Stage, state: str, words: str, **facts: Any) -> None:
            states[stage.name] = {"state": state, **facts}
            records.write_json(folder / RUN, {"profile": chosen.name, "stages": states})
            print(f"{stage.name}: {words}", file=log)

        for stage in stages:
            home = folder / stage.name
            if records.is_complete(home, stage.key) and (home / "result.json").is_file():
                note(stage, "kept", "kept from an earlier run")
                continue
            start, me = time.time(), records.this_process()
            note(
                stage,
                "running",
                "running",
                since=time.strftime("%Y-%m-%d %H:%M:%S"),
                pid=me["pid"],
                host=me["host"],
            )
            try:
                execute(stage, folder, log)
            except StageFailed as error:
                note(stage, "failed", f"failed, {error}", message=str(error))
                raise
            seconds = round(time.time() - start)
            note(stage, "done", f"done in {seconds} s", seconds=seconds)
        write_run_report(folder, chosen)
        print(f"report: {folder / 'report.html'}", file=log)
    return folder
