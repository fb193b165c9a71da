"""Runs a chain of notebooks through papermill: finished stages are kept, a failed one stops it
loudly.
"""

from __future__ import annotations

import ast
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.errors import ConfigError, KdlibError
from kdlib.lab import occupancy, profiles, runlog
from kdlib.lab.folders import NOTEBOOKS, PROJECT, WEIGHTS, run_folder
from kdlib.lab.parts import Json
from kdlib.lab.runlog import RunLog

SOURCES = PROJECT / "kdlib"
# No notebook's numbers rest on these: what only draws (viz), what only the command line reaches
# (tools, cli), and those modules of the lab that drive notebooks or dress their results. An edit
# there need not repeat a finished run's trainings.
_UNCOUNTED = (
    *("viz/", "tools/", "cli.py", "__main__.py"),
    *(
        "lab/execute.py",
        "lab/occupancy.py",
        "lab/runlog.py",
        "lab/report.py",
        "lab/page.py",
        "lab/publish.py",
    ),
)
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
        is_path = (name == "DATA_ROOT" and text) or (name == "TEACHER" and Path(text).is_file())
        return str(Path(text).resolve()) if is_path else text
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


def source_hash(package: Path = SOURCES) -> str:
    """Return a digest of the sources a notebook's numbers rest on; a stage is repeated when the
    code under it changed.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if not path.relative_to(package).as_posix().startswith(_UNCOUNTED):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def plan_stages(profile: str, folder: Path, overrides: Mapping[str, str]) -> list[Stage]:
    """Return the chain's stages with typed parameters, none executed; ConfigError if a name is
    unknown or a type is wrong.
    """
    chosen = profiles.profile(profile)
    declared = {name: declared_parameters(NOTEBOOKS / f"{name}.ipynb") for name in chosen.chain}
    known = set().union(*declared.values()) - {"PROFILE", "RUN_DIR"}
    if unknown := sorted(set(overrides) - known):
        raise ConfigError(
            f"no notebook has a parameter {', '.join(unknown)}; there are: "
            f"{', '.join(sorted(known))}"
        )
    teachers = [
        WEIGHTS / name for name in (chosen.shipped_teacher, overrides.get("TEACHER", "")) if name
    ]
    stages, key = (
        [],
        source_hash() + "".join(records.sha256(path) for path in teachers if path.is_file()),
    )
    for name, defaults in declared.items():
        own = {
            each: _typed(each, overrides[each], default)
            for each, default in defaults.items()
            if each in overrides
        }
        own |= {"PROFILE": profile, "RUN_DIR": str(folder)}
        notebook = (NOTEBOOKS / f"{name}.ipynb").read_text()
        # A stage stands on the one before it: whatever changes there changes every key from there
        # on.
        key = hashlib.sha256(
            (key + json.dumps(own, sort_keys=True) + notebook).encode()
        ).hexdigest()[:16]
        stages.append(Stage(name, own, key))
    return stages


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
            str(NOTEBOOKS / f"{stage.name}.ipynb"),
            str(executed),
            parameters=stage.parameters,
            kernel_name="python3",
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
    profile: str, out: Path | None = None, overrides: Mapping[str, str] | None = None
) -> Path:
    """Run the chain of a profile, write its report and return the folder of all that; a second call
    does no work twice.

    Raises:
        ConfigError: If a name or value is wrong (before anything is executed).
        StageFailed: If a notebook failed.
        FolderBusy: If another process runs in this folder.
    """
    from kdlib.lab.report import write_run_report

    folder = run_folder(profile, out)
    stages = plan_stages(profile, folder, overrides or {})
    with occupancy.hold(folder), runlog.opened(folder) as log:
        states: dict[str, Json] = {stage.name: {"state": "waiting"} for stage in stages}

        def note(stage: Stage, state: str, words: str, **facts: Any) -> None:
            states[stage.name] = {"state": state, **facts}
            records.write_json(folder / RUN, {"profile": profile, "stages": states})
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
        write_run_report(folder, profile)
        print(f"report: {folder / 'report.html'}", file=log)
    return folder
