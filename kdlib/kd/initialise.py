"""Initialisation of a student: a student and a teacher's tensors enter, a table of what was copied leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from kdlib.config import Initialisation
from kdlib.errors import ConfigError


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
            return "copied"
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
        lines = [f"initialisation '{self.how}': {self.copied} of {self.total} student tensors copied from the teacher"]
        left = [row for row in self.rows if not row.copied] if self.how != "none" else []
        lines += [f"  {row.name}: {row.reason} (student {row.student}, teacher {row.teacher})" for row in left]
        return "\n".join(lines)


def initialise(student: nn.Module, teacher_state: Mapping[str, Tensor], how: Initialisation) -> CopyReport:
    """Write teacher tensors into a student and return what was copied.

    ``none`` copies nothing. ``matching`` copies each tensor that both have under one name with one shape, which for the pillar
    family is all of them.

    Raises:
        ConfigError: If the way is unknown, or ``matching`` finds nothing to copy.

    Source: spec sections 6 and 8.
    """
    if how not in get_args(Initialisation):
        raise ConfigError(f"unknown initialisation '{how}'; use one of {', '.join(get_args(Initialisation))}")
    own = student.state_dict()
    rows = []
    for name, tensor in own.items():
        given = teacher_state.get(name)
        fits = how == "matching" and given is not None and given.shape == tensor.shape
        rows.append(CopyRow(name, tuple(tensor.shape), None if given is None else tuple(given.shape), fits))
    rows += [CopyRow(name, None, tuple(t.shape), False) for name, t in teacher_state.items() if name not in own]
    report = CopyReport(how, tuple(rows))
    if how == "matching":
        if not any(row.copied and own[row.name].is_floating_point() for row in rows):
            raise ConfigError(
                f"none of the teacher's {len(teacher_state)} tensors has the name and shape of one of the student's {len(own)}; "
                "is it a teacher of the same family?"
            )
        with torch.no_grad():
            for row in rows:
                if row.copied:
                    own[row.name].copy_(teacher_state[row.name])
    return report
