"""The record of a run while it goes: means of the losses of every batch, and a file of one JSON
line per few steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.errors import KdlibError
from kdlib.types import Json, LossTerms


class Diverged(KdlibError):
    """The loss is no longer a number."""


class Meter:
    """Means of a loss and its parts since the last line; sums stay on the device, so no step waits
    for them.
    """

    def __init__(self, sums: Mapping[str, float] | None = None, batches: int = 0) -> None:
        """Go on from what :meth:`state` returned, or from nothing."""
        self._sums: dict[str, Any] = dict(sums or {})
        self.batches = batches

    def add(self, terms: LossTerms) -> None:
        """Count one batch."""
        for name, value in {
            "loss": terms.loss,
            **{f"parts/{k}": v for k, v in terms.parts.items()},
        }.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double()
        self.batches += 1

    def state(self) -> Json:
        """Return the sums as plain values, from which a resumed run goes on exactly.

        Raises:
            Diverged: If a sum is NaN or infinite.
        """
        sums = {name: float(value) for name, value in self._sums.items()}
        bad = sorted(name for name, value in sums.items() if not math.isfinite(value))
        if bad:
            own = [name for name in bad if not name.startswith(("loss", "parts/kd_"))]
            remedy = (
                "lower learning_rate, or check the frames for bad values"
                if own or bad == ["loss"]
                else "the student's own losses are sound, so look at the teacher's weights"
            )
            raise Diverged(f"{', '.join(bad)} became NaN or infinite; {remedy}")
        return {"sums": sums, "batches": self.batches}

    def means(self) -> Json:
        """Return ``loss`` and ``parts``; raises Diverged if one is NaN or infinite."""
        means = {name: value / self.batches for name, value in self.state()["sums"].items()}
        return {
            "loss": means.pop("loss"),
            "parts": {name.removeprefix("parts/"): value for name, value in means.items()},
        }


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line; readers may follow the file while it grows."""
    with path.open("a") as stream:
        stream.write(json.dumps(line, allow_nan=False) + "\n")


def rewind(path: Path, step: int) -> None:
    """Forget the lines after a step, which a resumed run is going to write again."""
    if path.is_file():
        lines = [
            json.dumps(line) + "\n"
            for line in records.read_json_lines(path)
            if line["step"] <= step
        ]
        records.write_bytes(path, "".join(lines).encode())
