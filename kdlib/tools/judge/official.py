"""Waymo's own package: the Python that has it, and its metric run there on our boxes, in a child
process without a GPU.
"""

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
from numpy.typing import NDArray

from kdlib.errors import KdlibError
from kdlib.metric.objects import EvalBoxes

PACKAGE = "waymo_open_dataset"
VARIABLE = "KDLIB_OFFICIAL_PYTHON"
# what `make test-official` builds
BESIDE = Path(__file__).resolve().parents[3] / ".venv-official" / "bin" / "python"
CHILD = Path(__file__).with_name("official_child.py")
LONGEST = 4 * 3600.0  # seconds; the whole validation set takes the op a quarter of an hour
_MOST_TYPE = 4


class OfficialError(KdlibError):
    """The official metric cannot be had, or did not survive what it was given."""


@dataclass(frozen=True)
class MetricRun:
    """What one metric says of one set of boxes, and what it took."""

    # 'OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2/APH', ... as in EvalResult, in [0, 1]
    metrics: Mapping[str, float]
    seconds: float  # from boxes in memory to numbers
    peak_bytes: int  # most memory of the process, libraries included; all processes of it together
    version: str


def find_python(named: str | Path | None = None) -> Path:
    """Return a Python that should have the official package.

    It is the one named; else that of the environment variable KDLIB_OFFICIAL_PYTHON, else what
    ``make test-official`` built, else the running one if it has the package.

    Raises:
        OfficialError: If there is none, or a named one does not exist.
    """
    wanted = named or os.environ.get(VARIABLE)
    if wanted:
        path = Path(wanted)
        if not path.is_file():
            origin = "--python" if named else VARIABLE
            raise OfficialError(
                f"{origin} names the Python '{path}', which does not exist; "
                f"'make test-official' builds {BESIDE}"
            )
        return path
    if BESIDE.is_file():
        return BESIDE
    if importlib.util.find_spec(PACKAGE):
        return Path(sys.executable)
    raise OfficialError(
        f"no Python with the package {PACKAGE} was found: build one with 'make test-official' "
        "(it needs Python 3.10), or name "
        f"yours with --python or {VARIABLE}; the environment of environment.yml has it"
    )


def official_scores(
    sets: Sequence[EvalBoxes], *, python: str | Path | None = None, timeout: float = LONGEST
) -> list[MetricRun]:
    """Return the official op's scores of each set of boxes, by class and by distance, all from one
    child process.

    Frame numbers are the op's frame ids; the child is killed after ``timeout`` seconds.

    Raises:
        OfficialError: If there is no such Python (see :func:`find_python`), or the op fails,
            crashes or takes too long.
    """
    values: dict[str, Any] = {"sets": len(sets)}
    for number, boxes in enumerate(sets):
        for side in (boxes.predictions, boxes.truth):
            if len(side.kind) and not 0 <= side.kind.min() <= side.kind.max() <= _MOST_TYPE:
                raise OfficialError(
                    f"a box is of type {int(side.kind.max())}; the official tool aborts on types "
                    f"above {_MOST_TYPE}"
                )
        values |= {f"{number}/{name}": column for name, column in _columns(boxes).items()}
    answer = ask_official("metric", values, python, timeout)
    runs = []
    for part in answer["sets"]:
        rows = zip(part["names"], part["ap"], part["aph"])
        metrics = {
            f"{name}/{kind}": value
            for name, *row in rows
            for kind, value in zip(("AP", "APH"), row)
        }
        runs.append(MetricRun(metrics, part["seconds"], answer["peak_bytes"], answer["version"]))
    return runs


def _columns(boxes: EvalBoxes) -> dict[str, NDArray[Any]]:
    """Return the op's arguments in the op's types."""
    predictions, truth = boxes.predictions, boxes.truth
    return {
        "prediction_frame_id": predictions.frame.astype(np.int64),
        "prediction_type": predictions.kind.astype(np.uint8),
        "prediction_bbox": predictions.box,
        "prediction_score": predictions.score,
        "prediction_overlap_nlz": predictions.overlap_nlz,
        "ground_truth_frame_id": truth.frame.astype(np.int64),
        "ground_truth_type": truth.kind.astype(np.uint8),
        "ground_truth_bbox": truth.box,
        "ground_truth_difficulty": truth.difficulty.astype(np.uint8),
    }


def ask_official(
    task: str, values: Mapping[str, Any], python: str | Path | None = None, timeout: float = LONGEST
) -> dict[str, Any]:
    """Return what a task of ``official_child.py``, "metric" or "convert", answers to arrays,
    numbers and texts.

    Raises:
        OfficialError: If there is no official Python (see :func:`find_python`), or the task fails
            or takes too long (seconds).
    """
    interpreter = find_python(python)
    with tempfile.TemporaryDirectory(prefix="kdlib-official-") as folder:
        request, answer = Path(folder) / "request.npz", Path(folder) / "answer.json"
        np.savez(request, **values)
        run_child(interpreter, CHILD, [task, str(request), str(answer)], timeout)
        return dict(json.loads(answer.read_text()))


def run_child(
    interpreter: Path, script: Path, arguments: Sequence[str], timeout: float = LONGEST
) -> None:
    """Run a script in an official Python, without a GPU and quietly.

    Raises:
        OfficialError: If it does not end well; the message holds the last line it wrote.
    """
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONUTF8": "1",
    }
    command = [str(interpreter), str(script), *arguments]
    try:
        child = subprocess.run(
            command,
            check=False,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise OfficialError(
            f"the official tool was stopped after {timeout:.0f} s; evaluate fewer frames"
        ) from error
    except OSError as error:
        raise OfficialError(
            f"'{interpreter}' cannot be run ({error.strerror}); name a Python with --python"
        ) from error
    if child.returncode == 0:
        return
    lines = [line for line in child.stderr.splitlines() if line.strip()] or ["it wrote nothing"]
    if f"No module named '{PACKAGE}" in lines[-1] or "No module named 'tensorflow" in lines[-1]:
        raise OfficialError(
            f"'{interpreter}' lacks the package {PACKAGE}: name one that has it with --python or "
            f"{VARIABLE}; "
            "'make test-official' builds one"
        )
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        hint = (
            "the machine may be short of memory"
            if name == "SIGKILL"
            else ("it aborts on boxes it cannot take")
        )
        raise OfficialError(
            f"the official tool in '{interpreter}' died of {name} ({hint}); it "
            f"wrote last: {lines[-1]}"
        )
    raise OfficialError(f"the official tool in '{interpreter}' failed with: {lines[-1]}")
