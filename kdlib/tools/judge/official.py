"""Boxes in, Waymo's own AP and APH out: its metric op, run in a Python that has it, in a child process without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdlib.errors import KdlibError
from kdlib.metric.objects import EvalBoxes

PACKAGE = "waymo_open_dataset"
VARIABLE = "KDLIB_OFFICIAL_PYTHON"
BESIDE = Path(__file__).resolve().parents[3] / ".venv-official" / "bin" / "python"  # what `make test-official` builds
CHILD = Path(__file__).with_name("official_child.py")
LONGEST = 4 * 3600.0  # seconds; the whole validation set takes the op a quarter of an hour
_MOST_TYPE = 4


class OfficialError(KdlibError):
    """The official metric cannot be had, or did not survive what it was given."""


@dataclass(frozen=True)
class OfficialScores:
    """What the official op says of one set of boxes, and what it took."""

    metrics: Mapping[str, float]  # 'OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2/APH', ... as in EvalResult
    seconds: float  # of the op, from tensors to numbers
    peak_bytes: int  # most memory of its process, all sets
    idle_bytes: int  # of that, what importing TensorFlow alone takes
    version: str


def find_python(named: str | Path | None = None) -> Path:
    """Return a Python that should have the official package.

    Args:
        named: The interpreter to take; else the environment variable KDLIB_OFFICIAL_PYTHON, else what ``make test-official``
            built, else the running one if it has the package.

    Raises:
        OfficialError: If there is none, or a named one does not exist.
    """
    wanted = named or os.environ.get(VARIABLE)
    if wanted:
        path = Path(wanted)
        if not path.is_file():
            origin = "--python" if named else VARIABLE
            raise OfficialError(f"{origin} names the Python '{path}', which does not exist; 'make test-official' builds {BESIDE}")
        return path
    if BESIDE.is_file():
        return BESIDE
    if importlib.util.find_spec(PACKAGE):
        return Path(sys.executable)
    raise OfficialError(
        f"no Python with the package {PACKAGE} was found: build one with 'make test-official' (it needs Python 3.10), or name "
        f"yours with --python or {VARIABLE}; the environment of environment.yml has it"
    )


def official_scores(
    scenes: Sequence[EvalBoxes], *, ranges: bool = True, python: str | Path | None = None, timeout: float = LONGEST
) -> list[OfficialScores]:
    """Return the official op's scores of each set of boxes, all from one child process.

    Args:
        scenes: Boxes by frame; frame numbers are the op's frame ids.
        ranges: Also break every class down by distance.
        python: See :func:`find_python`.
        timeout: Seconds until the child is killed.

    Raises:
        OfficialError: If there is no such Python, or the op fails, crashes or takes too long.
    """
    for scene in scenes:
        _check_types(scene)
    interpreter = find_python(python)
    with tempfile.TemporaryDirectory(prefix="kdlib-official-") as folder:
        boxes, scores = Path(folder) / "boxes.npz", Path(folder) / "scores.json"
        arrays: dict[str, Any] = {"ranges": ranges, "sets": len(scenes)}
        for number, scene in enumerate(scenes):
            arrays |= {f"{number}/{name}": column for name, column in _columns(scene).items()}
        np.savez(boxes, **arrays)
        run_child(interpreter, CHILD, [str(boxes), str(scores)], timeout)
        found = json.loads(scores.read_text())
    return [_scores(part, found) for part in found["sets"]]


def run_child(interpreter: Path, script: Path, arguments: Sequence[str], timeout: float = LONGEST) -> None:
    """Run a script in an official Python, without a GPU and quietly.

    Raises:
        OfficialError: If it does not end well; the message holds the last line it wrote.
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUTF8": "1"}
    command = [str(interpreter), str(script), *arguments]
    try:
        child = subprocess.run(
            command, check=False, env=environment, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise OfficialError(f"the official tool was stopped after {timeout:.0f} s; evaluate fewer frames") from error
    except OSError as error:
        raise OfficialError(f"'{interpreter}' cannot be run ({error.strerror}); name a Python with --python") from error
    if child.returncode == 0:
        return
    lines = [line for line in child.stderr.splitlines() if line.strip()] or ["it wrote nothing"]
    if f"No module named '{PACKAGE}" in lines[-1] or "No module named 'tensorflow" in lines[-1]:
        raise OfficialError(
            f"'{interpreter}' lacks the package {PACKAGE}: name one that has it with --python or {VARIABLE}; "
            "'make test-official' builds one"
        )
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        hint = "the machine may be short of memory" if name == "SIGKILL" else "it aborts on boxes it cannot take"
        raise OfficialError(f"the official tool in '{interpreter}' died of {name} ({hint}); it wrote last: {lines[-1]}")
    raise OfficialError(f"the official tool in '{interpreter}' failed with: {lines[-1]}")


def _check_types(scene: EvalBoxes) -> None:
    for side in (scene.predictions, scene.truth):
        if len(side.kind) and not 0 <= side.kind.min() <= side.kind.max() <= _MOST_TYPE:
            raise OfficialError(f"a box is of type {int(side.kind.max())}; the official tool aborts on types above {_MOST_TYPE}")


def _columns(scene: EvalBoxes) -> dict[str, np.ndarray[Any, Any]]:
    found, truth = scene.predictions, scene.truth
    return {
        "pd_frame": found.frame.astype(np.int64),
        "pd_box": found.box.astype(np.float32),
        "pd_type": found.kind.astype(np.uint8),
        "pd_score": found.score.astype(np.float32),
        "pd_nlz": found.overlap_nlz.astype(np.bool_),
        "gt_frame": truth.frame.astype(np.int64),
        "gt_box": truth.box.astype(np.float32),
        "gt_type": truth.kind.astype(np.uint8),
        "gt_difficulty": truth.difficulty.astype(np.uint8),
    }


def _scores(part: Mapping[str, Any], child: Mapping[str, Any]) -> OfficialScores:
    metrics: dict[str, float] = {}
    for name, ap, aph in zip(part["names"], part["ap"], part["aph"]):
        metrics[f"{name}/AP"], metrics[f"{name}/APH"] = ap, aph
    return OfficialScores(metrics, part["seconds"], child["peak_bytes"], child["idle_bytes"], child["version"])
