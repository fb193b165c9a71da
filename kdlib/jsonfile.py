"""JSON records of a folder: values in, files out that are whole or absent; reading says which file is damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from kdlib.errors import DataError

COMPLETE = "complete.json"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary one, so that a reader sees the old content or the new, never half of it.

    Raises:
        OSError: If the disk is full or read-only; the old file is untouched and the temporary one removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> list[Path]:
    """Remove what :func:`write_bytes` leaves in a folder when its process is killed; only processes that are gone count."""
    left = []
    for path in Path(folder).glob(".*.tmp"):
        writer = path.name.split(".")[-2]
        if path.is_file() and writer.isdigit() and not psutil.pid_exists(int(writer)):
            path.unlink(missing_ok=True)
            left.append(path)
    return left


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write one JSON object, atomically.

    Raises:
        ValueError: If a value is NaN or infinite, which JSON cannot hold.
        OSError: See :func:`write_bytes`.
    """
    write_bytes(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        DataError: If the file is missing or holds no JSON object.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); delete it and repeat the step that writes it") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__} where a JSON object belongs")
    return values


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line; a last line still being written is left out, a missing file has no lines.

    Raises:
        DataError: If a line before the last one is damaged.
    """
    path = Path(path)
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").split("\n")
    found = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) - 1:
                break
            raise DataError(f"{path}, line {number + 1} is not JSON ({error})") from error
    return found


def mark_complete(folder: Path, key: str) -> None:
    """Say that everything in a folder was made under this key; to be called last."""
    write(Path(folder) / COMPLETE, {"key": key})


def is_complete(folder: Path, key: str) -> bool:
    """Return whether a folder was finished under exactly this key."""
    mark = Path(folder) / COMPLETE
    return mark.is_file() and read(mark).get("key") == key
