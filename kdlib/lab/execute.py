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
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.config.codec import meant
from kdlib.errors import ConfigError, DataError, KdlibError
from kdlib.kd.own import digest, named, resolve
from kdlib.lab import occupancy, parameters, profiles, runlog, stopping, trial
from kdlib.lab.dataset import check_data
from kdlib.lab.folders import NOTEBOOKS, PROJECT, WEIGHTS, data_folder, make_folder, run_folder
from kdlib.lab.occupancy import RUN
from kdlib.lab.parameters import TEACHERS
from kdlib.lab.runlog import RunLog
from kdlib.lab.stopping import Request, Stopped
from kdlib.models.build import build
from kdlib.models.weights import load_weights, read_weights
from kdlib.types import Json

SOURCES = PROJECT / "kdlib"
# No notebook's numbers rest on these: what only draws (viz), what only the command line reaches
# (tools, cli), and those modules of the lab that drive notebooks or dress their results. An edit
# there need not repeat a finished run's trainings.
_UNCOUNTED = (
    *("viz/", "tools/", "cli.py", "__main__.py"),
    *("lab/execute.py", "lab/occupancy.py", "lab/runlog.py", "lab/stopping.py"),
    *("lab/parameters.py", "lab/report.py", "lab/page.py", "lab/publish.py", "lab/trial.py"),
)
_POLL_SECONDS = 0.2


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
        is_path = (name == "DATA_ROOT" and text) or (name in TEACHERS and os.path.exists(path))
        return str(Path(path).resolve()) if is_path else text
    try:
        value = ast.literal_eval(text.strip())
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


def _check_teachers(stages: Sequence[Stage], profile: profiles.Profile) -> None:
    """Check that weights that are given fit their model, and are finite; ConfigError says what
    is wrong with them.
    """
    for name in TEACHERS:
        words = parameters.teachers(name, profile)
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


def _check_terms(stages: Sequence[Stage], profile: profiles.Profile) -> None:
    """Check that terms of one's own can be trained; ConfigError says what is wrong with them."""
    for given in {stage.parameters.get("TERMS", "") for stage in stages}:
        trial.try_terms(profile, named(given))


def source_hash(package: Path = SOURCES) -> str:
    """Return a digest of the sources a notebook's numbers rest on; a stage is repeated when the
    code under it changed.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if not path.relative_to(package).as_posix().startswith(_UNCOUNTED):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _remedy(name: str, known: Iterable[str]) -> str:
    options = {"PROFILE": "name the profile after 'run'", "RUN_DIR": "it is --out FOLDER here"}
    return f"; {options[name]}" if name in options else meant(name, known)


def plan_stages(profile: str, folder: Path, overrides: Mapping[str, str]) -> list[Stage]:
    """Return the chain's stages with typed parameters, none executed; ConfigError if a name is
    unknown, or a type or value is wrong.
    """
    chosen = profiles.profile(profile)
    declared = {name: declared_parameters(NOTEBOOKS / f"{name}.ipynb") for name in chosen.chain}
    known = set().union(*declared.values()) - {"PROFILE", "RUN_DIR"}
    if unknown := sorted(set(overrides) - known):
        raise ConfigError(
            f"no notebook has a parameter {', '.join(unknown)} here; there are: "
            f"{', '.join(sorted(known))}{_remedy(unknown[0], known)}"
        )
    terms = named(overrides.get("TERMS", "")) or tuple(map(resolve, chosen.terms))
    chosen = replace(chosen, terms=terms)
    given = [_typed(name, overrides[name], "") for name in TEACHERS if name in overrides]
    files = [WEIGHTS / name for name in (chosen.shipped_teacher, *given) if name]
    key = source_hash() + "".join(records.sha256(path) for path in files if os.path.isfile(path))
    stages = []
    for name, defaults in declared.items():
        own = {
            each: _typed(each, overrides[each], default)
            for each, default in defaults.items()
            if each in overrides
        }
        for each, value in own.items():
            parameters.check(each, value, chosen)
        own |= {"PROFILE": profile, "RUN_DIR": str(folder)}
        if "TERMS" in defaults and terms:
            own["TERMS"] = ",".join(terms)
            key += "".join(map(digest, terms))
        notebook = (NOTEBOOKS / f"{name}.ipynb").read_text()
        # A stage stands on the one before it: whatever changes there changes every key from there
        # on.
        key = hashlib.sha256(
            (key + json.dumps(own, sort_keys=True) + notebook).encode()
        ).hexdigest()[:16]
        stages.append(Stage(name, own, key))
    return stages


def _own_kernel(log: RunLog) -> type:
    """Return a kernel manager that starts this very Python with this very kdlib, whatever kernels
    are installed and wherever another checkout was.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))

    class OwnKernel(AsyncKernelManager):
        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            environment = {**os.environ, **(options.pop("env", None) or {}), "PYTHONPATH": path}
            await super().start_kernel(env=environment, stderr=log, **options)

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    return OwnKernel


def _literal(path: Path) -> str:
    """Return a path as papermill takes it, for which braces are places of parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def execute(stage: Stage, folder: Path, log: RunLog, request: Request) -> None:
    """Run one notebook through papermill into the run folder and mark it complete; what it prints
    goes to the log. A signal that the request notes ends notebook and trainings.

    StageFailed if a cell raised, the kernel died, or the last cell did not write ``result.json``.
    Stopped after a signal.
    """
    if request.count:
        raise _stopped(stage, request)
    home = folder / stage.name
    home.mkdir(parents=True, exist_ok=True)
    result = home / "result.json"
    # the mark first: it must never stand without its result
    for old in (home / records.COMPLETE, result):
        old.unlink(missing_ok=True)
    # In a thread of its own the notebook's client takes no signal for itself.
    with ThreadPoolExecutor(1) as pool:
        executed = pool.submit(_through_papermill, stage, folder, log)
        while not wait([executed], _POLL_SECONDS).done:
            if request.count:
                say = partial(print, file=log)
                stopping.stop_run(folder, request, lambda: not executed.done(), say)
    if request.count and executed.exception():
        raise _stopped(stage, request)
    executed.result()
    if not result.is_file():
        raise StageFailed(
            f"{stage.name} ended without writing {result}; its last cell must call save_result"
        )
    records.mark_complete(home, stage.key)


def _stopped(stage: Stage, request: Request) -> Stopped:
    return Stopped(
        f"stopped; the same command goes on with {stage.name}, and its trainings from their "
        f"checkpoints: {records.command()}",
        request.number,
    )


def _through_papermill(stage: Stage, folder: Path, log: RunLog) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    executed = folder / f"{stage.name}.ipynb"
    try:
        papermill.execute_notebook(
            _literal(NOTEBOOKS / f"{stage.name}.ipynb"),
            _literal(executed),
            parameters=stage.parameters,
            kernel_name="python3",  # says the language; the manager says which Python
            kernel_manager_class=_own_kernel(log),
            progress_bar=False,
            stdout_file=log,
            cwd=str(folder),
            extra_arguments=["--log-level=CRITICAL"],
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
            f"{stage.name}: its kernel died, perhaps for want of memory (see {executed} and "
            f"{folder / runlog.LOG})"
        ) from error


def check_run(profile: str, folder: Path, stages: Sequence[Stage]) -> None:
    """Check what the first notebook would otherwise meet, or the last one after hours: teachers and
    terms that are given, the data, and the run folder, which is made.

    ConfigError says what is wrong.
    """
    chosen = profiles.profile(profile)
    _check_teachers(stages, chosen)
    _check_terms(stages, chosen)
    if not all(_is_kept(stage, folder) for stage in stages):
        data_root = str(stages[0].parameters.get("DATA_ROOT", ""))
        check_data(chosen, data_folder(chosen.folder, data_root))
    make_folder(folder, f"--out {folder}")


def _is_kept(stage: Stage, folder: Path) -> bool:
    home = folder / stage.name
    return records.is_complete(home, stage.key) and (home / "result.json").is_file()


def run_profile(
    profile: str, out: Path | None = None, overrides: Mapping[str, str] | None = None
) -> Path:
    """Run the chain of a profile, write its report and return the folder of all that; a second call
    does no work twice.

    Raises:
        ConfigError: If a name or value is wrong (before anything is executed).
        StageFailed: If a notebook failed.
        Stopped: After SIGINT or SIGTERM, when nothing of the run is left at work.
        FolderBusy: If another process runs in this folder.
    """
    from kdlib.lab.report import write_run_report

    folder = run_folder(profile, out)
    stages = plan_stages(profile, folder, overrides or {})
    check_run(profile, folder, stages)
    with (
        stopping.heeded() as request,
        occupancy.hold(folder),
        runlog.opened(folder) as log,
    ):
        states: dict[str, Json] = {stage.name: {"state": "waiting"} for stage in stages}

        def note(stage: Stage, state: str, words: str, **facts: Any) -> None:
            states[stage.name] = {"state": state, **facts}
            records.write_json(folder / RUN, {"profile": profile, "stages": states})
            print(f"{stage.name}: {words}", file=log)

        for stage in stages:
            if _is_kept(stage, folder):
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
                execute(stage, folder, log, request)
            except (StageFailed, Stopped) as error:
                # The sentence itself is for whoever called, and for the log.
                state = "stopped" if isinstance(error, Stopped) else "failed"
                note(stage, state, state, message=str(error))
                log.note(f"kdlib: {error}")
                raise
            seconds = round(time.time() - start)
            note(stage, "done", f"done in {seconds} s", seconds=seconds)
        write_run_report(folder, profile)
        print(f"report: {folder / 'report.html'}", file=log)
    return folder
