"""Configurations to plain JSON values and back, with every unknown or ill-typed key named."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kdlib.errors import ConfigError
from kdlib.types import Json

T = TypeVar("T")


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(config: Any, *names: str) -> None:
    """Raise a ConfigError unless these settings, numbers or tuples of numbers, are positive and
    none is empty.
    """
    for name in names:
        value = getattr(config, name)
        least = min(value, default=0) if isinstance(value, tuple) else value
        require(least > 0, f"{type(config).__name__}: {name} must be positive, not {value}")


def to_dict(config: Any) -> Json:
    """Return a configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[T], values: Json) -> T:
    """Rebuild a configuration written by :func:`to_dict`.

    Raises:
        ConfigError: If a key is unknown or a field is missing; the message names it.
    """
    hints = get_type_hints(kind)
    known = _settings(kind)
    unknown = sorted(set(values) - known)
    require(not unknown, f"{kind.__name__} has no setting {unknown}; it has {sorted(known)}")
    try:
        return kind(
            **{
                key: _rebuild(hints[key], value, f"{kind.__name__}.{key}")
                for key, value in values.items()
            }
        )
    except TypeError as error:
        raise ConfigError(f"{kind.__name__}: {error}") from error


def _rebuild(hint: Any, value: Any, where: str) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        require(value in parts, f"{where} must be one of {parts}, not {value!r}")
        return value
    if origin is tuple:
        require(isinstance(value, (list, tuple)), f"{where} must be a list, not {value!r}")
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        require(
            len(value) == len(kinds), (f"{where} must have {len(kinds)} entries, not {len(value)}")
        )
        return tuple(_rebuild(inner, v, where) for v, inner in zip(value, kinds))
    if origin in (Union, UnionType):
        if value is None and type(None) in parts:
            return None
        options = [option for option in parts if option is not type(None)]
        fitting = (
            option
            for option in options
            if isinstance(value, dict) and set(value) <= _settings(option)
        )
        return _rebuild(next(fitting, options[0]), value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        require(isinstance(value, dict), f"{where} must be an object, not {value!r}")
        return from_dict(hint, value)
    if hint in (bool, int, float, str):
        fits = type(value) is hint or (hint is float and type(value) is int)
        require(fits, f"{where} must be of type {hint.__name__}, not {value!r}")
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
