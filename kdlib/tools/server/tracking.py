"""A run's histories go in; one CSV table, or TensorBoard's event files, come out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.errors import ConfigError

HISTORY = "history.jsonl"
_FIRST = ("training", "step", "steps", "epoch", "loss")  # columns; the others follow by name


def histories(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the history of every training below a run folder, or of the one training it is, by folder name.

    Raises:
        ConfigError: If there is none.
        DataError: If a line before the last one is damaged.
    """
    paths = sorted(path for pattern in ("", "*/", "*/*/") for path in folder.glob(pattern + HISTORY))
    found = {
        str(path.parent.relative_to(folder)) if path.parent != folder else folder.resolve().name: records.read_json_lines(path)
        for path in paths
    }
    if not found:
        raise ConfigError(f"{folder} holds no {HISTORY}; name the folder of a run or of a training that has begun")
    return found


def flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of a history with its parts as ``loss/PART``; what is None is left out."""
    values = {name: value for name, value in line.items() if name != "parts" and value is not None}
    return values | {f"loss/{name}": value for name, value in line.get("parts", {}).items()}


def write_csv(folder: Path, out: Path) -> int:
    """Write all histories as one table, a row for each line, and return how many rows; a value that is missing stays empty.

    Raises:
        ConfigError: See :func:`histories`.
    """
    rows = [{"training": name, **flat(line)} for name, lines in histories(folder).items() for line in lines]
    others = sorted({column for row in rows for column in row} - set(_FIRST))
    text = io.StringIO()
    table = csv.DictWriter(text, [*_FIRST, *others], restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    records.write_bytes(out, text.getvalue().encode())
    return len(rows)


def _scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in flat(line).items():
        if name == "loss":
            yield "loss/total", value
        elif name.startswith("loss/"):
            yield name, value
        elif name in ("lr", "grad_norm", "epoch"):
            yield f"optimiser/{name}", value
        elif name in ("samples_per_second", "memory_mb"):
            yield f"machine/{name}", value


def write_tensorboard(folder: Path, out: Path) -> int:
    """Write a TensorBoard log of every training into ``out/TRAINING`` and return how many scalars; earlier ones are replaced.

    Raises:
        ConfigError: If TensorBoard is not installed, or see :func:`histories`.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(f"TensorBoard's writer cannot be used ({error}); pip install tensorboard, or take --csv") from error
    written = 0
    for name, lines in histories(folder).items():
        home = out / name
        # A second call must not add to the first one's curves.
        for old in home.glob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(str(home)) as writer:
            began = (folder / name / HISTORY if (folder / name / HISTORY).is_file() else folder / HISTORY).stat().st_mtime
            began -= lines[-1].get("seconds", 0.0) if lines else 0.0
            for line in lines:
                for tag, value in _scalars(line):
                    writer.add_scalar(tag, value, line["step"], walltime=began + line.get("seconds", 0.0))
                    written += 1
    return written
