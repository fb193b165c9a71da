"""What a benchmark measured: single numbers with their targets, all of one run with the machine, as
JSON, text or a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdlib.lab.parts import markdown_table


@dataclass(frozen=True)
class Measurement:
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
        if self.value is None or not self.target:
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    @property
    def target(self) -> str:
        """Return the target as text, empty without one."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return ", ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)

    @property
    def verdict(self) -> str:
        """Return whether the target is met as text."""
        return "" if self.met is None else "met" if self.met else "MISSED"

    def __str__(self) -> str:
        """The number as text, with its unit."""
        if self.value is None:
            return f"not measured {self.unit}"
        return (
            f"{self.value:,.0f} {self.unit}"
            if abs(self.value) >= 1000
            else f"{self.value:.4g} {self.unit}"
        )


def times_faster(
    key: str, ours: Measurement, theirs: Measurement, at_least: float | None = None
) -> list[Measurement]:
    """Return the times of two ways of doing one thing, and how many times faster the first is."""
    ratio = None if not ours.value or theirs.value is None else theirs.value / ours.value
    return [
        ours,
        theirs,
        Measurement(f"{key}_times", "times faster", ratio, "x", at_least=at_least),
    ]


@dataclass(frozen=True)
class Benchmark:
    """All numbers of one benchmark, taken in one run."""

    name: str
    lines: tuple[Measurement, ...]
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

    def text(self) -> str:
        """Return what was measured, all numbers, the machine and the notes, to be read in a
        terminal.
        """
        width = max(len(line.title) for line in self.lines)
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        rows = [
            f"{line.title:{width}}  {line!s:>20}  {line.target:15}  {line.verdict}".rstrip()
            for line in self.lines
        ]
        return "\n".join(
            [
                f"bench {self.name}: {facts}",
                *rows,
                (f"{self._machine()}; {self._versions()}"),
                *self.notes,
            ]
        )

    def page(self, command: str) -> str:
        """Return the same as a Markdown page with the command that makes it."""
        card = self.hardware
        rows = [
            (
                line.title,
                line,
                line.target,
                line.verdict.replace("MISSED", "**missed**"),
                f"`{line.key}`",
            )
            for line in self.lines
        ]
        facts = {
            "device": f"{card['device']}, {card['threads']} threads",
            "processor": self._machine(),
            "GPUs": ", ".join(card["gpus"]) or "none",
            "versions": self._versions(),
            **self.facts,
        }
        return "\n".join(
            [
                f"# What is fast on this machine: bench {self.name}\n",
                f"Made by `{command}` from **simulated** data; times are medians, taken in turns "
                "after warm-up.\n",
                *(f"- {name}: {value}" for name, value in facts.items()),
                "",
                markdown_table(
                    ("measured", "value", "target", "", "key in JSON"), rows, right=("value",)
                ),
                "",
                *(f"- {note}" for note in self.notes),
                "",
            ]
        )

    def _machine(self) -> str:
        return "{cpu}, {cores} cores, {memory_gb} GB, {system}".format_map(self.hardware)

    def _versions(self) -> str:
        return ", ".join(f"{name} {version}" for name, version in self.hardware["versions"].items())
