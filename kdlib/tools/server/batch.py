"""Profiles go in, finished run folders come out: one after the other, or side by side over GPUs or the workers of a cluster."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdlib import records
from kdlib.errors import ConfigError, KdlibError
from kdlib.lab import execute
from kdlib.training.places import GPUS, SCHEDULER, VISIBLE

ATTENDED = "KDLIB_ATTENDED"  # a driver whose standard input ends with the process that started it
DRIVER = (sys.executable, "-m", "kdlib", "run")
_POLL = 0.2  # seconds


class RunsFailed(KdlibError):
    """Some of several runs did not finish; the others did."""


def gpu_ids(count: int) -> tuple[str, ...]:
    """Return the ids of the first so many GPUs, of those CUDA_VISIBLE_DEVICES leaves where it is set.

    Raises:
        ConfigError: If there are fewer.
    """
    visible = os.environ.get(VISIBLE)
    if visible is None:
        ids, source = [str(number) for number in range(len(records.hardware()["gpus"]))], "nvidia-smi lists"
    else:
        ids, source = [name.strip() for name in visible.split(",") if name.strip()], f"{VISIBLE}='{visible}' leaves"
    if count > len(ids):
        raise ConfigError(
            f"--gpus {count}, but {source} {len(ids)} on this machine; ask for fewer, or leave --gpus out for the CPU"
        )
    return tuple(ids[:count])


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_profiles(
    names: Sequence[str],
    out: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    gpus: int = 0,
    scheduler: str | None = None,
) -> list[Path]:
    """Run profiles; a second call goes on where the first one stopped.

    Without GPUs or scheduler they run one after the other. With them they run side by side, and all their trainings (arms, seeds)
    share the GPUs, one on each, or the workers of the cluster.

    Args:
        names: Of the profiles.
        out: The run folder, where there is one profile; otherwise the folder of the run folders.
        overrides: Notebook parameters, for all of them.
        gpus: How many GPUs of this machine to train on; 0 means the profile's own way.
        scheduler: Address of a running Dask scheduler, whose workers see the same files.

    Returns:
        The run folders.

    Raises:
        ConfigError: If a name or value is wrong (before anything is executed).
        StageFailed: If a notebook of the only profile failed.
        RunsFailed: If some of several failed; the others are finished.
    """
    if gpus and scheduler:
        raise ConfigError("--gpus is for this machine and --scheduler for a cluster; give one of them")
    if len(set(names)) != len(names):
        raise ConfigError(f"a profile is named twice: {', '.join(names)}")
    folders = {name: execute.run_folder(name, out / name if out and len(names) > 1 else out) for name in names}
    for name, folder in folders.items():
        execute.plan_stages(name, folder, overrides or {})
    ids = gpu_ids(gpus) if gpus else ()
    _follow_starter()
    where = {GPUS: ",".join(ids)} if ids else {SCHEDULER: scheduler} if scheduler else {}
    with _environment(where):
        if len(names) == 1:
            return [execute.run_profile(names[0], folders[names[0]], overrides)]
        if where:
            failed = _side_by_side(folders, overrides or {}, ids)
        else:
            failed = _in_turn(folders, overrides or {})
    if failed:
        some = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise RunsFailed(f"{len(failed)} of {len(names)} runs failed, the same command continues them: {some}")
    return list(folders.values())


def _in_turn(folders: Mapping[str, Path], overrides: Mapping[str, str]) -> dict[str, str]:
    failed = {}
    for name, folder in folders.items():
        print(f"profile {name}", flush=True)
        try:
            execute.run_profile(name, folder, overrides)
        except KdlibError as error:
            print(f"profile {name} failed: {error}", flush=True)
            failed[name] = _first_line(str(error))
    return failed


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


@dataclass
class _Driver:
    """One of several drivers at work; its lines are shown with its name before them."""

    name: str
    process: subprocess.Popen[str]
    last: str = ""
    reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.startswith("kdlib: "):
                self.last = line.removeprefix("kdlib: ").rstrip()
            print(f"{self.name} | {line.rstrip()}", flush=True)

    def why(self) -> str:
        """Say in words why it failed; empty if it did not."""
        self.reader.join()
        code = self.process.returncode
        return "" if code == 0 else self.last or f"its driver ended with code {code}"


def _start(name: str, folder: Path, overrides: Mapping[str, str], gpu: str) -> _Driver:
    words = [word for key, value in overrides.items() for word in ("-p", f"{key}={value}")]
    # The notebooks' own work (evaluation) happens in the driver's kernel, which gets one of the GPUs.
    variables = {**os.environ, ATTENDED: "1", "PYTHONUNBUFFERED": "1", **({VISIBLE: gpu} if gpu else {})}
    process = subprocess.Popen(
        (*DRIVER, name, "--out", str(folder), *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=variables,
    )
    return _Driver(name, process)


def _side_by_side(folders: Mapping[str, Path], overrides: Mapping[str, str], ids: Sequence[str]) -> dict[str, str]:
    """Run a driver for each profile, as many at a time as there are GPUs; return why which failed."""
    waiting, active, failed = list(folders), dict[str, _Driver](), {}
    room = list(ids) or [""] * len(waiting)
    held: dict[str, str] = {}
    while waiting or active:
        while waiting and room:
            name = waiting.pop(0)
            held[name] = room.pop(0)
            active[name] = _start(name, folders[name], overrides, held[name])
        for name, driver in list(active.items()):
            if driver.process.poll() is None:
                continue
            del active[name]
            room.append(held.pop(name))
            if why := driver.why():
                failed[name] = why
        time.sleep(_POLL)
    return failed


def _follow_starter() -> None:
    """End with the process that started this driver, however that ended; its trainings go on and are found again."""
    if os.environ.pop(ATTENDED, ""):

        def wait() -> None:
            sys.stdin.buffer.read()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()
