"""The folder of a notebook stage: results go in with their card, a completion mark says under which key they were made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdlib import jsonfile, provenance
from kdlib.jsonfile import is_complete, mark_complete

__all__ = ["is_complete", "mark_complete", "read_history", "records", "save_result"]


def save_result(run_dir: Path, values: Mapping[str, Any], *, config_hash: str = "", seed: int | None = None) -> Path:
    """Write ``result.json``: the values and, under ``card``, configuration hash, seed, versions, commit and hardware.

    Raises:
        ValueError: If a value is NaN or infinite.
        OSError: If the disk refuses; an earlier result is untouched.
    """
    path = Path(run_dir) / "result.json"
    card = {
        **({"config_hash": config_hash} if config_hash else {}),
        **({} if seed is None else {"seed": seed}),
        **provenance.card(),
    }
    jsonfile.write(path, {**values, "card": card})
    return path


def records(frame: Any) -> list[dict[str, Any]]:
    """Return a pandas table as JSON rows; NaN, which JSON lacks, becomes None."""
    rows: list[dict[str, Any]] = frame.to_dict("records")
    return [{key: None if value != value else value for key, value in row.items()} for row in rows]


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run folder's (or file's) history; a half-written last line is left out.

    Raises:
        DataError: If a line before the last one is damaged.
    """
    path = Path(path)
    return jsonfile.read_lines(path / "history.jsonl" if path.is_dir() else path)
