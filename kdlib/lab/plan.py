"""What a run is going to do: its notebooks with their parameters, and the keys that say which of
them are done already; checked whole before anything begins.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kdlib import records, zoo
from kdlib.config import config_hash
from kdlib.config.codec import meant
from kdlib.errors import ConfigError, DataError
from kdlib.kd.objective import Distillation
from kdlib.kd.own import digest, named, resolve
from kdlib.lab import parameters, profile_files, trial
from kdlib.lab.data_checks import check_data
from kdlib.lab.folders import NOTEBOOKS, PROJECT, WEIGHTS, data_folder, make_folder
from kdlib.lab.parameters import TEACHERS
from kdlib.lab.profile import Profile
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
    *("lab/execute.py", "lab/plan.py", "lab/occupancy.py", "lab/runlog.py", "lab/stopping.py"),
    *("lab/parameters.py", "lab/data_checks.py", "lab/trial.py"),
    *("lab/report.py", "lab/page.py", "lab/publish.py"),
)


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


def _check_terms(stages: Sequence[Stage], profile: Profile) -> None:
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


def _settings_hash(profile: Profile) -> str:
    """Return a digest of all settings a run's numbers rest on; how many trainings run side by side
    is none of them.
    """
    arms = [profile.arm(name) for name in profile.arms]
    others = [zoo.pair(profile.study.width_pair)] if profile.study else []
    # terms of one's own count by their sources, and only for the notebooks that train them
    return config_hash(replace(profile, parallel=1, threads=0, terms=()), *arms, *others)


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
            f"no notebook has a parameter {', '.join(unknown)} here; there are: "
            f"{', '.join(sorted(known))}{_remedy(unknown[0], known)}"
        )
    terms = named(overrides.get("TERMS", "")) or tuple(map(resolve, chosen.terms))
    chosen = replace(chosen, terms=terms)
    given = [_typed(name, overrides[name], "") for name in TEACHERS if name in overrides]
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
            parameters.check(each, value, chosen)
        own |= {"PROFILE": str(folder / profile_files.FILE), "RUN_DIR": str(folder)}
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


def check_run(profile: Profile, folder: Path, stages: Sequence[Stage]) -> None:
    """Check what the first notebook would otherwise meet, or the last one after hours: teachers and
    terms that are given, the data, and the run folder, which is made.

    ConfigError says what is wrong.
    """
    _check_teachers(stages, profile)
    _check_networks(profile)
    _check_terms(stages, profile)
    if not all(is_kept(stage, folder) for stage in stages):
        data_root = str(stages[0].parameters.get("DATA_ROOT", ""))
        check_data(profile, data_folder(profile.folder, data_root))
    make_folder(folder, f"--out {folder}")


def is_kept(stage: Stage, folder: Path) -> bool:
    """Return whether a run folder holds the result of a stage already."""
    home = folder / stage.name
    return records.is_complete(home, stage.key) and (home / "result.json").is_file()
