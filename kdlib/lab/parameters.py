"""What the parameters of notebooks may be: looked at before the first notebook begins, and again by
each.
"""

from __future__ import annotations

import math
import numbers
import os
from typing import Any

from kdlib.config.codec import meant
from kdlib.errors import ConfigError
from kdlib.lab.profile import Profile

TEACHERS = {"TEACHER": ("auto", "shipped", "scratch"), "FIRST_STAGE": ("auto", "scratch")}
_MANY = 1_000_000
_BOUNDS = {
    **dict.fromkeys(("TEACHER_EPOCHS", "STUDENT_EPOCHS"), (0, _MANY)),
    **dict.fromkeys(("RESAMPLES", "REPEATS"), (1, _MANY)),
    "FRAME": (-1, _MANY),
}
_TEXTS = ("PROFILE", "SEEDS", "ARMS", "TERMS", *TEACHERS)


def check(name: str, value: Any, profile: Profile) -> None:
    """Check the value of a notebook's parameter; ConfigError names the accepted form."""
    if name in _TEXTS and not isinstance(value, str):
        kind = type(value).__name__
        raise ConfigError(f"{name}={value!r} must be a text, of type str, not {kind}")
    if name == "SEEDS":
        profile.chosen_seeds(value)
    elif name == "ARMS":
        profile.chosen_arms(value)
    elif name in TEACHERS:
        _check_teacher(name, value, profile)
    elif name == "DATA_ROOT" and os.path.exists(value) and not os.path.isdir(value):
        raise ConfigError(f"DATA_ROOT={value} is no folder; name the one that holds waymo or store")
    elif name == "SCORE_THRESHOLD":
        if not _is_number(value, numbers.Real) or not 0 <= value <= 1:
            raise ConfigError(f"{name}={value!r} must be a number from 0 to 1")
    elif name in _BOUNDS:
        _check_whole(name, value, *_BOUNDS[name])
        if name == "FRAME":
            _check_frame(value, profile)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_whole(name: str, value: Any, least: int, most: int) -> None:
    if _is_number(value, numbers.Integral) and least <= value <= most:
        return
    small = _is_number(value, numbers.Real) and value < least
    rest = f"at least {least}" if small else f"from {least} to {most}"
    more = "; 0 means the profile's" if name.endswith("EPOCHS") else ""
    raise ConfigError(f"{name}={value!r} must be a whole number {rest}{more}")


def _check_frame(value: int, profile: Profile) -> None:
    made = profile.simulated
    if made is None:
        return  # how many there are is known when they are prepared
    count = math.ceil(made.validation_segments * made.frames / profile.evaluation.interval)
    if value >= count:
        raise ConfigError(
            f"FRAME={value} is none of the {count} evaluated frames of profile {profile.name}; "
            f"the last one is {count - 1}"
        )


def _check_teacher(name: str, value: str, profile: Profile) -> None:
    words = teachers(name, profile)
    if value in words or os.path.isfile(value):
        return
    listed = ", ".join(words)
    if value in TEACHERS[name]:
        raise ConfigError(
            f"{name}={value}: profile {profile.name} ships none; use scratch or a safetensors file"
        )
    what = f"{value} is a folder" if os.path.isdir(value) else "there is no such file"
    raise ConfigError(
        f"{name}={value} is neither {listed} nor a safetensors file; {what}{meant(value, words)}"
    )


def teachers(name: str, profile: Profile) -> tuple[str, ...]:
    """Return the words that a teacher's parameter takes in a profile, beside the name of a file."""
    shipped = profile.shipped_teacher != ""
    return tuple(word for word in TEACHERS[name] if shipped or word != "shipped")
