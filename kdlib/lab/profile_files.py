"""Profiles outside the package: a TOML file above a ready one, single settings given beside it, and
the file in which a run keeps the profile it was made with.
"""

from __future__ import annotations

import ast
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from kdlib import records, zoo
from kdlib.config import ModelConfig, TrainConfig, from_dict, to_dict
from kdlib.config.codec import overlaid, require
from kdlib.errors import ConfigError
from kdlib.lab import profiles
from kdlib.lab.detector_table import DetectorTable, cells_a_side, check_cells, fit_pair
from kdlib.lab.profile import Profile
from kdlib.types import Json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "profile.json"  # of a run: the profile it was made with, every setting
_OBJECTS = 10  # pasted of a class that the schedule does not know


def load(source: str, settings: Sequence[str] = ()) -> Profile:
    """Return a profile: a ready one by name, that of a ``.toml`` file, or of a run's
    ``profile.json``; ``settings`` are ``PATH=VALUE`` texts that replace one setting each.

    Raises:
        ConfigError: If there is no such profile, or a setting is unknown or cannot have its value;
            the message names file or option, the setting's path and the value.
    """
    path = Path(source).expanduser()
    words = " ".join([source, *(f"--set {text}" for text in settings)])
    more = _tree(settings)
    changes: Json = {}
    if path.suffix == ".json":
        base = _saved(path)
    elif path.suffix == ".toml":
        base, changes = _from_toml(path)
    else:
        base = _ready(source)
    if "base" in more:
        raise ConfigError("--set base: a base is named in a TOML file, or as the PROFILE itself")
    if not changes and not more:
        return base
    try:
        return _changed(base, _merged(changes, more))
    except ConfigError as error:
        raise ConfigError(f"{words}: {error}") from error


def save(profile: Profile, folder: Path) -> Path:
    """Keep a run's profile in its folder; the file is left alone where it says the same."""
    values = to_dict(profile)
    if math.isinf(profile.evaluation.half_width):
        del values["evaluation"]["half_width"]  # JSON has no infinity, and it is the default
    path = folder / FILE
    if not path.is_file() or records.read_json(path) != values:
        records.write_json(path, values)
    return path


def of_run(folder: Path) -> Profile:
    """Return the profile a run was made with; a run without ``profile.json`` names a ready one in
    its records.

    Raises:
        ConfigError: If it names none, or one that is not there.
        DataError: If its records are damaged.
    """
    if (folder / FILE).is_file():
        return _saved(folder / FILE)
    for file in (folder / "run.json", folder / "result.json", *folder.glob("*/result.json")):
        name = records.read_json(file).get("profile") if file.is_file() else None
        if name is not None:
            return profiles.profile(str(name))
    raise ConfigError(f"{folder} does not say of which profile it is: it has no {FILE}")


def _ready(name: str) -> Profile:
    try:
        return profiles.profile(name)
    except ConfigError as error:
        file = f"{name}.toml" if Path(f"{name}.toml").is_file() else "a .toml file of your own"
        raise ConfigError(f"{error}; or name {file}") from error


def _saved(path: Path) -> Profile:
    values = records.read_json(path)
    try:
        return from_dict(Profile, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _from_toml(path: Path) -> tuple[Profile, Json]:
    """Return the profile a file stands on, and what it changes."""
    try:
        changes = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; give a profile's name or its TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except (OSError, ValueError) as error:  # a name no file can have
        raise ConfigError(f"{str(path)[:200]!r} cannot be read ({error}); name a file") from error
    base = changes.pop("base", None)
    if not isinstance(base, str) or base not in profiles.PROFILES:
        said = f"base is {base!r}" if base is not None else "base is missing"
        raise ConfigError(
            f'{path}: {said}; name the profile it stands on, as base = "own_small": '
            f"{', '.join(profiles.PROFILES)}"
        )
    _resolve(changes, path.parent)
    changes.setdefault("name", path.stem)
    _check_name(changes["name"], ())
    return profiles.PROFILES[base], changes


def _tree(settings: Sequence[str]) -> Json:
    """Return ``PATH=VALUE`` texts as nested settings."""
    tree: Json = {}
    for text in settings:
        path, equals, value = (part.strip() for part in text.partition("="))
        *groups, last = path.split(".")
        if not equals or not all((*groups, last)):
            raise ConfigError(f"--set {text} is not PATH=VALUE, as --set student.epochs=3")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {text}: {group} was given a value of its own before")
        if last in place:
            raise ConfigError(f"--set {path} is given twice")
        place[last] = _value(value)
    _resolve(tree, Path())
    return tree


def _resolve(changes: Json, folder: Path) -> None:
    """Make paths whole: those in a file lie beside it, those of options in the current folder."""
    if isinstance(data := changes.get("data"), str) and data:
        require("\0" not in data, f"data = {data!r} is no folder")
        changes["data"] = str((folder / Path(data).expanduser()).resolve())
    if isinstance(terms := changes.get("terms"), list):
        changes["terms"] = [_beside(term, folder) for term in terms]


def _beside(term: Any, folder: Path) -> Any:
    """Return a term's reference with the path of its file whole; a module's stays as it is."""
    file, colon, name = str(term).rpartition(":")
    if not file.strip().endswith(".py"):
        return term
    return f"{(folder / Path(file.strip()).expanduser()).resolve()}{colon}{name}"


def _value(text: str) -> Any:
    """Return what a text means: a TOML value, else a Python literal, else the text itself."""
    try:
        values = tomllib.loads(f"x = {text}")
        if set(values) == {"x"} and isinstance(values["x"], (bool, int, float, str, list, dict)):
            return values["x"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [_value(part.strip()) for part in text.split(",")] if "," in text else text


def _merged(first: Json, second: Json) -> Json:
    merged = {**first}
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(first.get(key), dict)
        merged[key] = _merged(first[key], value) if both else value
    return merged


def _changed(base: Profile, changes: Json) -> Profile:
    """Return a profile with changes; what follows from another range or other classes follows,
    unless it is set itself.
    """
    changes = {**changes}
    require("chain" not in changes, "the chain of notebooks is the base's; take another base")
    name = changes.get("name", base.name)
    _check_name(name, (base.name,))
    known = sorted({item.name for item in fields(Profile)} - {"chain"} | {"detector", "kd"})
    for key in changes:
        require(key in known, f"there is no setting {key}; the settings are {', '.join(known)}")
    pair = base.pair
    if isinstance(changes.get("pair"), str):
        pair = zoo.pair(changes.pop("pair"))
    if "kd" in changes:
        changes["pair"] = _merged({"kd": changes.pop("kd")}, changes.get("pair", {}))
    if "detector" in changes:
        table = changes.pop("detector")
        require(isinstance(table, dict), f"detector is a table of settings, not {table!r}")
        pair = fit_pair(pair, from_dict(DetectorTable, table, "detector"), name)
    if "data" not in changes:
        # Streets that are made anew get a folder of their own; otherwise the base's data are used.
        require(
            "simulated" not in changes or name != base.name,
            f"simulated makes other data than data/{base.folder} holds; give the profile a name of "
            "its own too, as --set name=NAME",
        )
        changes["data"] = "" if "simulated" in changes else base.folder
    profile = overlaid(replace(base, pair=pair), changes)
    profile = _following(profile, base, changes)
    for model in (profile.student_model, profile.teacher_model):
        grid = model.grid
        check_cells(f"'{model.name}'", grid.point_range, grid.voxel_size[:2], cells_a_side(model))
    return profile


def _check_name(name: Any, allowed: Sequence[str]) -> None:
    require(
        isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) is not None,
        f"name {name!r} cannot name a run's folder; give letters, digits, _ . and -, as "
        'name = "my_profile"',
    )
    require(
        name in allowed or name not in profiles.PROFILES,
        f'there is a ready profile {name}; give yours another name, as name = "my_{name}"',
    )


def _following(profile: Profile, base: Profile, changes: Json) -> Profile:
    """Return a profile evaluated within its own range, with counts of pasted objects for its own
    classes, unless these are set, and with names for models that are no longer the base's.
    """
    student, before = profile.student_model, base.student_model
    reach = student.grid.point_range
    if reach != before.grid.point_range and "half_width" not in changes.get("evaluation", {}):
        half = float(max(map(abs, (*reach[:2], *reach[3:5]))))
        profile = replace(profile, evaluation=replace(profile.evaluation, half_width=half))
    if student.class_names != before.class_names:
        profile = replace(
            profile,
            teacher=_with_counts(profile.teacher, base.teacher, before, student),
            student=_with_counts(profile.student, base.student, before, student),
        )
    pair = replace(
        profile.pair,
        teacher=_renamed(profile.teacher_model, base.teacher_model, f"{profile.name}_teacher"),
        student=_renamed(student, before, f"{profile.name}_student"),
    )
    return replace(profile, pair=pair)


def _with_counts(
    schedule: TrainConfig, base: TrainConfig, before: ModelConfig, model: ModelConfig
) -> TrainConfig:
    objects = schedule.augment.objects
    if objects is None or objects != base.augment.objects:
        return schedule
    known = dict(zip(before.class_names, objects.counts))
    counts = tuple(known.get(name, _OBJECTS) for name in model.class_names)
    augment = replace(schedule.augment, objects=replace(objects, counts=counts))
    return replace(schedule, augment=augment)


def _renamed(model: ModelConfig, before: ModelConfig, name: str) -> ModelConfig:
    """Return a model under a name of its own where it is no model of the zoo by its name."""
    changed = model != before and model.name == before.name
    return replace(model, name=name) if changed else model
