"""Measured lines in, one table or one JSON object out, with targets judged and the machine beside the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """One number of a benchmark."""

    key: str  # name in JSON
    title: str  # name for people
    value: float | None  # None: not measured
    unit: str
    at_least: float | None = None  # targets
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Say whether the target is met; None without target or number."""
        if self.value is None or (self.at_least is None and self.at_most is None):
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    @property
    def target(self) -> str:
        """Return the target as text, empty without one."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return ", ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)


@dataclass(frozen=True)
class Outcome:
    """All numbers of one benchmark, taken in one run."""

    name: str
    lines: tuple[Line, ...]
    facts: Mapping[str, Any]  # what was measured: plain JSON values
    notes: tuple[str, ...]  # what could not be measured, and why
    hardware: Mapping[str, Any]  # the card of the machine

    def __getitem__(self, key: str) -> float | None:
        return next(line.value for line in self.lines if line.key == key)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "bench": self.name,
            "numbers": {line.key: line.value for line in self.lines},
            "units": {line.key: line.unit for line in self.lines},
            "targets": {
                line.key: {"at_least": line.at_least, "at_most": line.at_most, "met": line.met}
                for line in self.lines
                if line.target
            },
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "hardware": dict(self.hardware),
        }


def text(outcome: Outcome) -> str:
    """Return the table, what it was measured on, and the notes."""
    words = {True: "met", False: "MISSED", None: ""}
    rows = [("", "", "", "target", "")]
    rows += [(line.title, _number(line.value), line.unit, line.target, words[line.met]) for line in outcome.lines]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [f"bench {outcome.name}: " + ", ".join(f"{name} {value}" for name, value in outcome.facts.items())]
    for title, value, *rest in rows:
        cells = [title.ljust(widths[0]), value.rjust(widths[1]), *(cell.ljust(width) for cell, width in zip(rest, widths[2:]))]
        lines.append("  ".join(cells).rstrip())
    card = outcome.hardware
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    lines.append(f"{card['cpu']}, {card['cores']} cores, {card['memory_gb']} GB, {card['system']}; {versions}")
    return "\n".join([*lines, *outcome.notes])


def page(outcome: Outcome, command: str) -> str:
    """Return the table as a Markdown page with the command that makes it and the card of the machine."""
    words = {True: "met", False: "**missed**", None: ""}
    card = outcome.hardware
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    rows = [
        f"| {line.title} | {_number(line.value)} {line.unit} | {line.target} | {words[line.met]} | `{line.key}` |"
        for line in outcome.lines
    ]
    return "\n".join(
        [
            f"# What is fast on this machine: bench {outcome.name}\n",
            f"Made by `{command}` from **simulated** data; times are medians, taken in turns after warm-up.\n",
            f"- device: {card['device']}, {card['threads']} threads",
            f"- processor: {card['cpu']}, {card['cores']} cores, {card['memory_gb']} GB, {card['system']}",
            f"- GPUs: {', '.join(card['gpus']) or 'none'}",
            f"- versions: {versions}",
            *(f"- {name}: {value}" for name, value in outcome.facts.items()),
            "\n| measured | value | target | | key in JSON |\n|---|---:|---|---|---|",
            *rows,
            "",
            *(f"- {note}" for note in outcome.notes),
            "",
        ]
    )


def _number(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
