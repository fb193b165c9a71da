"""What a number's card says about its making: package versions, git commit, hardware; plain JSON values come out."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("kdlib", "torch", "lightning", "safetensors", "numpy", "pyarrow", "open3d", "open3d-cpu", "spconv-cu118")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a result; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the git commit of the checkout kdlib runs from, with '+' where it has changes; empty outside a checkout."""
    where = Path(__file__).resolve().parents[1]
    if not (where / ".git").exists():
        return ""
    options: dict[str, Any] = {"cwd": where, "capture_output": True, "text": True, "timeout": 10}
    try:
        head = subprocess.run(("git", "rev-parse", "HEAD"), check=False, **options)
        dirty = subprocess.run(("git", "status", "--porcelain", "-uno"), check=False, **options)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else ""


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def _accelerators() -> tuple[str, ...]:
    try:
        query = subprocess.run(
            ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"),
            check=False,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in query.stdout.splitlines() if line.strip()) if query.returncode == 0 else ()


def hardware() -> dict[str, Any]:
    """Return CPU model, cores this process may use, RAM and GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": list(_accelerators()),
        "system": f"{platform.system()} {platform.release()}",
    }


def card() -> dict[str, Any]:
    """Return all of it: versions, commit, hardware, and the command that ran."""
    return {
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
        "command": " ".join(Path(a).name for a in sys.argv[:3]),
    }
