"""Hands the histories of a run on: as one CSV table, or as TensorBoard's event files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kdlib import records
from kdlib.errors import ConfigError

HISTORY = "history.jsonl"
_FIRST = ["training", "step", "steps", "epoch", "loss"]  # columns; the others follow by name
_TAGS = {
    "lr": "optimiser/lr",
    "grad_norm": "optimiser/grad_norm",
    "epoch": "optimiser/epoch",
    "samples_per_second": "machine/samples_per_second",
    "memory_mb": "machine/memory_mb",
}


def _histories(folder: Path) -> dict[str, Path]:
    """Return the history file of every training below a run folder, or of the one training it is,
    by folder name.
    """
    if (folder / HISTORY).is_file():
        return {folder.resolve().name: folder / HISTORY}
    paths = sorted(path for pattern in ("*/", "*/*/") for path in folder.glob(pattern + HISTORY))
    if not paths:
        raise ConfigError(
            f"{folder} holds no {HISTORY}; name the folder of a run or of a training that has begun"
        )
    return {str(path.parent.relative_to(folder)): path for path in paths}


def write_csv(folder: Path, out: Path) -> int:
    """Write all histories as one table, a row for each line, and return how many rows; a value that
    is missing stays empty.

    Raises:
        ConfigError: If the folder has no history.
        DataError: If a line before the last one of a history is damaged.
    """
    files = _histories(folder)
    lines = [
        {"training": name, **line}
        for name, path in files.items()
        for line in records.read_json_lines(path)
    ]
    table = pd.json_normalize(lines, sep="/").rename(
        columns=lambda name: name.replace("parts/", "loss/")
    )
    table = table.reindex(columns=[*_FIRST, *sorted(set(table.columns) - set(_FIRST))])
    records.write_bytes(out, table.to_csv(index=False).encode())
    return len(table)


def write_tensorboard(folder: Path, out: Path) -> int:
    """Write a TensorBoard log of every training into ``out/TRAINING`` and return how many scalars;
    earlier ones are replaced.

    Raises:
        ConfigError: If TensorBoard is not installed, or see :func:`write_csv`.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"TensorBoard's writer cannot be used ({error}); pip install tensorboard, or take --csv"
        ) from error
    written = 0
    for name, path in _histories(folder).items():
        # A second call must not add to the first one's curves.
        for old in (out / name).glob("events.out.tfevents.*"):
            old.unlink()
        lines, ended = records.read_json_lines(path), path.stat().st_mtime
        with SummaryWriter(str(out / name)) as writer:
            for line in lines:
                when = ended - lines[-1]["seconds"] + line["seconds"]
                parts = {f"loss/{name}": value for name, value in line["parts"].items()}
                others = {tag: line[name] for name, tag in _TAGS.items() if line[name] is not None}
                scalars = {"loss/total": line["loss"], **parts, **others}
                for tag, value in scalars.items():
                    writer.add_scalar(tag, value, line["step"], walltime=when)
                written += len(scalars)
    return written
