"""Initialisation of a student from a teacher's tensors, with a table of what went where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import get_args

import torch
from torch import nn

from kdlib.config import Initialisation
from kdlib.errors import ConfigError
from kdlib.kd.channels import Chosen, Tensors
from kdlib.kd.remap import Part, Remapped, remap
from kdlib.types import Json


@dataclass(frozen=True)
class CopyRow:
    """What happened to one tensor."""

    name: str
    student: tuple[int, ...] | None  # shape, None if the student lacks it
    teacher: tuple[int, ...] | None  # shape, None if the teacher lacks it
    copied: bool
    # which entries of its axes were taken, where a way chooses channels
    parts: tuple[Part, ...] = ()

    @property
    def reason(self) -> str:
        """Why, in words."""
        if self.copied:
            if all(part.whole for part in self.parts):
                return "copied"
            return "channels reordered" if self.student == self.teacher else "narrowed"
        if self.student is None:
            return "only in the teacher"
        if self.teacher is None:
            return "only in the student"
        return "not asked for" if self.student == self.teacher else "shapes differ"

    def to_dict(self) -> Json:
        """Return plain values."""
        shapes = {"teacher": self.teacher, "student": self.student}
        axes = [part.to_dict() for part in self.parts]
        return {
            "name": self.name,
            **shapes,
            "copied": self.copied,
            "axes": axes,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class CopyReport:
    """What of the student came from the teacher."""

    how: Initialisation
    rows: tuple[CopyRow, ...]  # student's order, then what only the teacher has
    groups: Chosen

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
        lines = [
            f"  {row.name}: {row.reason} (student {row.student}, teacher {row.teacher})"
            for row in self.rows
            if not row.copied and self.how != "none"
        ]
        return "\n".join([self.summary(), *lines])

    def summary(self) -> str:
        """Return the totals in one line."""
        reasons = [row.reason for row in self.rows]
        changed = [reason for reason in ("narrowed", "channels reordered") if reason in reasons]
        said = "".join(f", {reasons.count(reason)} {reason}" for reason in changed)
        return (
            f"initialisation '{self.how}': {self.copied} of {self.total} student tensors "
            f"copied from the teacher{said}"
        )

    def table(self) -> str:
        """Return one line per tensor: shapes in the teacher and the student, what each axis of
        channels was taken from, why.
        """
        cells = [("tensor", "teacher", "student", "what", "channels")]
        for row in self.rows:
            chosen = ", ".join(f"axis {part.axis}: {part}" for part in row.parts)
            cells.append(
                (row.name, _spelled(row.teacher), _spelled(row.student), row.reason, chosen)
            )
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        return "\n".join([*lines, self.summary()])

    def to_dict(self) -> Json:
        """Return plain JSON values."""
        rows = [row.to_dict() for row in self.rows]
        values = {
            "how": self.how,
            "copied": self.copied,
            "total": self.total,
            "tensors": rows,
            "groups": self.groups,
        }
        return json.loads(json.dumps(values))


def initialise(student: nn.Module, teacher_state: Tensors, how: Initialisation) -> CopyReport:
    """Write teacher tensors into a student and return what was copied.

    ``none`` copies nothing. ``matching`` copies each tensor that both have under one name with one
    shape, which for the pillar family is all of them. All others choose channels of every tensor
    (:func:`kdlib.kd.remap.remap`), for a student that differs in width alone.

    Raises:
        ConfigError: If the way is unknown, ``matching`` finds nothing to copy, or another a tensor
            that it cannot narrow; the student is unchanged.

    Source: SparseKD section 4.4; spec sections 6 and 8.
    """
    if how not in get_args(Initialisation):
        raise ConfigError(
            f"unknown initialisation '{how}'; use one of {', '.join(get_args(Initialisation))}"
        )
    own = student.state_dict()
    given = Remapped({})
    if how == "matching":
        given = Remapped(
            {n: v for n, v in teacher_state.items() if n in own and own[n].shape == v.shape}
        )
        if not any(value.is_floating_point() for value in given.tensors.values()):
            raise ConfigError(
                f"none of the teacher's {len(teacher_state)} tensors has the name and shape of "
                f"one of the student's {len(own)}; "
                "is it of the same family?"
            )
    elif how != "none":
        given = remap(teacher_state, own, how)
    ours, theirs = (
        {name: tuple(value.shape) for name, value in state.items()}
        for state in (own, teacher_state)
    )
    rows = [
        CopyRow(
            name, ours.get(name), theirs.get(name), name in given.tensors, given.parts.get(name, ())
        )
        for name in {**ours, **theirs}
    ]
    with torch.no_grad():
        for name, value in given.tensors.items():
            own[name].copy_(value)
    return CopyReport(how, tuple(rows), given.kept)


def _spelled(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape)) or "scalar"
