"""Records of a run: JSON files that are whole or absent, completion marks, results with the card of
their making.

A card says what a number rests on: package versions, git commit, hardware, the command that ran.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from kdlib.errors import DataError
from kdlib.types import Json

COMPLETE = "complete.json"
COMMAND = "KDLIB_COMMAND"  # in the environment of what a command starts: how it was typed
PACKAGES = (
    "kdlib",
    "torch",
    "lightning",
    "safetensors",
    "numpy",
    "pyarrow",
    "open3d",
    "open3d-cpu",
    "spconv-cu118",
)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Hand out a temporary file's path; what is written there takes the place of ``path`` at the
    end, whole or not at all.

    Raises:
        OSError: If the disk is full or read-only; the old file is untouched and the temporary one
            removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, so that a reader sees the old content or the new; see
    :func:`replacing`.
    """
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what :func:`replacing` leaves in a folder when its process is killed; only processes
    that are gone count.
    """
    left = []
    for path in folder.glob(".*.tmp"):
        writer = path.name.split(".")[-2]
        if path.is_file() and writer.isdigit() and _is_gone(int(writer)):
            path.unlink(missing_ok=True)
            left.append(path)
    return left


def _is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write one JSON object, atomically.

    Raises:
        ValueError: If a value is NaN or infinite, which JSON cannot hold.
        OSError: See :func:`write_bytes`.
    """
    write_bytes(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Json:
    """Read one JSON object; raises DataError if the file is missing or holds no JSON object."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON ({error}); delete it and repeat the step that writes it"
        ) from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__} where a JSON object belongs")
    return values


def read_json_lines(path: Path) -> list[Json]:
    """Read a file of one JSON object per line; a last line still being written is left out, a
    missing file has no lines.

    Raises:
        DataError: If a line before the last one is damaged.
    """
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").split("\n")
    values = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                values.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise DataError(f"{path}, line {number} is not JSON ({error})") from error
    return values


def mark_complete(folder: Path, key: str) -> None:
    """Say that everything in a folder was made under this key; to be called last."""
    write_json(folder / COMPLETE, {"key": key})


def is_complete(folder: Path, key: str) -> bool:
    """Return whether a folder was finished under exactly this key."""
    mark = folder / COMPLETE
    return mark.is_file() and read_json(mark).get("key") == key


def this_process() -> Json:
    """Return what a file says of the process that works on something: pid, host, and when it
    began.
    """
    process = psutil.Process()
    return {"pid": process.pid, "host": socket.gethostname(), "created": process.create_time()}


def living_process(path: Path) -> Json | None:
    """Return what :func:`this_process` once wrote into a file, None if that process is gone or
    there is no such file.

    Another machine's processes cannot be looked up: they count as living until somebody deletes the
    file.
    """
    try:
        owner = read_json(path)
        if owner["host"] != socket.gethostname():
            return owner
        process = psutil.Process(int(owner["pid"]))
        # numbers of processes are used again
        same = abs(process.create_time() - owner["created"]) < 2
        return owner if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (DataError, KeyError, psutil.NoSuchProcess):
        return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a result; those not installed
    are left out.
    """
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def _output(*command: str, cwd: Path | None = None) -> str:
    """Return what a command prints; nothing where it fails, hangs or is not installed."""
    try:
        return subprocess.run(
            command, cwd=cwd, check=True, capture_output=True, text=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def commit() -> str:
    """Return the git commit of the checkout kdlib runs from, with '+' where it has changes; empty
    outside a checkout.
    """
    where = Path(__file__).resolve().parents[1]
    head = _output("git", "rev-parse", "HEAD", cwd=where) if (where / ".git").exists() else ""
    changed = head and _output("git", "status", "--porcelain", "-uno", cwd=where)
    return f"{head}+" if changed else head


def _cpu_model() -> str:
    model = re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return model[1].strip() if model else platform.machine()


@lru_cache(maxsize=1)
def _accelerators() -> tuple[str, ...]:
    query = "--query-gpu=name,memory.total,driver_version"
    return tuple(_output("nvidia-smi", query, "--format=csv,noheader").splitlines())


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> Json:
    """Return CPU model, cores this process may use, RAM and GPUs."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": list(_accelerators()),
        "system": f"{platform.system()} {platform.release()}",
    }


def in_kernel() -> bool:
    """Return whether this process is a notebook's kernel."""
    return Path(sys.argv[0]).name == "ipykernel_launcher.py"


def command() -> str:
    """Return the command that was typed: this process's own, or that of the run it works for."""
    if COMMAND in os.environ:
        return os.environ[COMMAND]
    if Path(sys.argv[0]).name in ("__main__.py", "kdlib"):
        return shlex.join(["python", "-m", "kdlib", *sys.argv[1:]])
    if in_kernel():
        return "a notebook, run by hand"
    return " ".join(Path(word).name for word in sys.argv[:3])


def provenance() -> Json:
    """Return all of it: versions, commit, hardware, and the command that ran."""
    return {
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
        "command": command(),
    }


def write_result(run_dir: Path, values: Mapping[str, Any]) -> Path:
    """Write ``result.json``: the values and, under ``card``, :func:`provenance`.

    Raises:
        ValueError: If a value is NaN or infinite.
        OSError: If the disk refuses; an earlier result is untouched.
    """
    path = run_dir / "result.json"
    write_json(path, {**values, "card": provenance()})
    return path


def table_rows(frame: Any) -> list[Json]:
    """Return a pandas table as JSON rows; NaN, which JSON lacks, becomes None."""
    return [
        {key: None if value != value else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


def read_history(run_dir: Path) -> list[Json]:
    """Return the lines of a training's history, see :func:`read_json_lines`."""
    return read_json_lines(run_dir / "history.jsonl")
