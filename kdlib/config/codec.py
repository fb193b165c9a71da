"""Configurations to plain JSON values and back, with every unknown or ill-typed key named."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kdlib.errors import ConfigError
from kdlib.types import Json

T = TypeVar("T")
_ENDLESS = ("half_width", "clip_norm")  # settings that infinity switches off


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(config: Any, *names: str) -> None:
    """Raise a ConfigError unless these settings, numbers or tuples of numbers, are positive,
    finite, and none is empty.
    """
    for name in names:
        value = getattr(config, name)
        least = min(value, default=0) if isinstance(value, tuple) else value
        where = f"{type(config).__name__}: {name}"
        require(least > 0, f"{where} must be positive, not {value}")
        most = max(value) if isinstance(value, tuple) else value
        require(math.isfinite(most), f"{where} must be finite, not {value}")


def to_dict(config: Any) -> Json:
    """Return a configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[T], values: Json, where: str = "") -> T:
    """Rebuild a configuration written by :func:`to_dict`.

    Raises:
        ConfigError: If a key is unknown or a field is missing; the message names it, with its path
            below ``where`` if that is given.
    """
    hints, name = get_type_hints(kind), where or kind.__name__
    known = _settings(kind)
    unknown = sorted(set(values) - known)
    require(not unknown, f"{name} has no setting {unknown}; it has {sorted(known)}")
    try:
        return kind(
            **{
                key: _rebuild(hints[key], value, f"{name}.{key}", nested=bool(where))
                for key, value in values.items()
            }
        )
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from error


def overlaid(config: T, changes: Json, where: str = "") -> T:
    """Return a configuration with some settings replaced, at any depth: ``{"grid": {"max_points":
    9}}`` replaces one.

    Raises:
        ConfigError: If a setting is unknown, of another type or of a value that cannot be; the
            message names its path below ``where``.
    """
    hints, known = get_type_hints(type(config)), _settings(type(config))
    values = {}
    for key, value in changes.items():
        path = f"{where}.{key}" if where else key
        require(
            key in known,
            f"there is no setting {path}; the settings {f'of {where} ' if where else ''}are "
            f"{', '.join(sorted(known))}",
        )
        before = getattr(config, key)
        if dataclasses.is_dataclass(before) and isinstance(value, dict):
            values[key] = overlaid(before, value, path)
        else:
            values[key] = _rebuild(hints[key], value, path, nested=True)
    try:
        return dataclasses.replace(config, **values)  # type: ignore[type-var]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def _rebuild(hint: Any, value: Any, where: str, nested: bool = False) -> Any:
    """Return a setting's value of the hinted type; ``nested`` names what is below by its path."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        require(value in parts, f"{where} must be one of {parts}, not {value!r}")
        return value
    if origin is tuple:
        require(
            isinstance(value, (list, tuple)),
            f"{where} must be a list, in brackets, not {value!r}",
        )
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        require(
            len(value) == len(kinds), (f"{where} must have {len(kinds)} entries, not {len(value)}")
        )
        return tuple(_rebuild(inner, v, where, nested) for v, inner in zip(value, kinds))
    if origin in (Union, UnionType):
        # TOML has no null
        if type(None) in parts and (value is None or (value == "none" and str not in parts)):
            return None
        options = [option for option in parts if option is not type(None)]
        fitting = (
            option
            for option in options
            if isinstance(value, dict) and set(value) <= _settings(option)
        )
        return _rebuild(next(fitting, options[0]), value, where, nested)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        require(
            isinstance(value, dict),
            f"{where} is a group of settings ({', '.join(sorted(_settings(hint)))}), not {value!r}",
        )
        return from_dict(hint, value, where if nested else "")
    if hint in (bool, int, float, str):
        fits = type(value) is hint or (hint is float and type(value) is int)
        require(fits, f"{where} must be of type {hint.__name__}, not {value!r}")
        finite = hint is not float or math.isfinite(value) or where.endswith(_ENDLESS)
        require(finite and value == value, f"{where} must be a finite number, not {value!r}")
        if nested:  # written by hand, where 1 and 1.0 are one setting
            return hint(value)
    return value


def _settings(kind: Any) -> set[str]:
    return (
        {item.name for item in dataclasses.fields(kind)}
        if dataclasses.is_dataclass(kind)
        else set()
    )


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return an entry of a table of named configurations.

    Raises:
        ConfigError: If there is none of that name; the message lists those there are.
    """
    if name not in table:
        there = ", ".join(table)
        raise ConfigError(f"unknown {kind} '{name}'; there are: {there}{meant(name, table)}")
    return table[name]


def meant(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'WORD'?" for the known word that is most like a wrong one, "" where
    none is.
    """
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), by_lower, 1)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""


def config_hash(*configs: Any) -> str:
    """Return 12 hexadecimal digits that change whenever any setting does."""
    text = json.dumps(
        [to_dict(c) if dataclasses.is_dataclass(c) else c for c in configs], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]
