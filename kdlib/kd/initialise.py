"""Initialisation of a student: a student and a teacher's tensors enter, a table of what was copied leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from kdlib.config import Initialisation
from kdlib.errors import ConfigError
from kdlib.kd.slim import slim


@dataclass(frozen=True)
class CopyRow:
    """What happened to one tensor."""

    name: str
    student: tuple[int, ...] | None  # shape, None if the student lacks it
    teacher: tuple[int, ...] | None  # shape, None if the teacher lacks it
    copied: bool

    @property
    def reason(self) -> str:
        """Why, in words."""
        if self.copied:
            return "copied" if self.student == self.teacher else "first channels copied"
        if self.student is None:
            return "only in the teacher"
        if self.teacher is None:
            return "only in the student"
        return "not asked for" if self.student == self.teacher else "shapes differ"


@dataclass(frozen=True)
class CopyReport:
    """What of the student came from the teacher."""

    how: Initialisation
    rows: tuple[CopyRow, ...]  # student's order, then what only the teacher has

    @property
    def copied(self) -> int:
        """Number of tensors copied."""
        return sum(row.copied for row in self.rows)

    @property
    def total(self) -> int:
        """Number of tensors of the student."""
        return sum(row.student is not None for row in self.rows)

    def __str__(self) -> str:
        """One line with the totals, then one per tensor that was not copied."""
        slimmed = sum(row.copied and row.student != row.teacher for row in self.rows)
        narrowed = f", {slimmed} of them by their first channels" if slimmed else ""
        lines = [f"initialisation '{self.how}': {self.copied} of {self.total} student tensors copied from the teacher{narrowed}"]
        left = [row for row in self.rows if not row.copied] if self.how != "none" else []
        lines += [f"  {row.name}: {row.reason} (student {row.student}, teacher {row.teacher})" for row in left]
        return "\n".join(lines)


def initialise(student: nn.Module, teacher_state: Mapping[str, Tensor], how: Initialisation) -> CopyReport:
    """Write teacher tensors into a student and return what was copied.

    ``none`` copies nothing. ``matching`` copies each tensor that both have under one name with one shape, which for the pillar
    family is all of them. ``first`` copies the first channels of every tensor (:mod:`kdlib.kd.slim`), for a student that differs
    in width alone.

    Raises:
        ConfigError: If the way is unknown, ``matching`` finds nothing to copy, or ``first`` a tensor that it cannot narrow.

    Source: spec sections 6 and 8.
    """
    if how not in get_args(Initialisation):
        raise ConfigError(f"unknown initialisation '{how}'; use one of {', '.join(get_args(Initialisation))}")
    own = student.state_dict()
    given = _given(own, teacher_state, how)
    rows = [CopyRow(n, tuple(t.shape), _shape(teacher_state.get(n)), n in given) for n, t in own.items()]
    rows += [CopyRow(name, None, tuple(t.shape), False) for name, t in teacher_state.items() if name not in own]
    with torch.no_grad():
        for name, value in given.items():
            own[name].copy_(value)
    return CopyReport(how, tuple(rows))


def _given(own: Mapping[str, Tensor], teacher_state: Mapping[str, Tensor], how: Initialisation) -> Mapping[str, Tensor]:
    """Return what the student takes over, in the student's shapes."""
    if how == "none":
        return {}
    if how == "first":
        return slim(teacher_state, own)
    both = {n: v for n, v in teacher_state.items() if n in own and own[n].shape == v.shape}
    if not any(value.is_floating_point() for value in both.values()):
        raise ConfigError(
            f"none of the teacher's {len(teacher_state)} tensors has the name and shape of one of the student's {len(own)}; "
            "is it of the same family?"
        )
    return both


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
