"""Runs profiles one after the other, or side by side over the GPUs of a machine or the workers of a
cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kdlib import records
from kdlib.errors import ConfigError, KdlibError
from kdlib.lab import execute, profile_files
from kdlib.lab.folders import run_folder
from kdlib.training.places import GPUS, SCHEDULER, VISIBLE

ATTENDED = "KDLIB_ATTENDED"  # a driver whose standard input ends with the process that started it
COMMAND = (sys.executable, "-m", "kdlib", "run")


class RunsFailed(KdlibError):
    """Some of several runs did not finish; the others did."""


def gpu_ids(count: int) -> tuple[str, ...]:
    """Return the ids of the first so many GPUs, of those CUDA_VISIBLE_DEVICES leaves where it is
    set.

    Raises:
        ConfigError: If there are fewer.
    """
    visible = os.environ.get(VISIBLE)
    if visible is None:
        ids, source = (
            [str(number) for number in range(len(records.hardware()["gpus"]))],
            "nvidia-smi lists",
        )
    else:
        ids, source = (
            [name.strip() for name in visible.split(",") if name.strip()],
            f"{VISIBLE}='{visible}' leaves",
        )
    if count > len(ids):
        raise ConfigError(
            f"--gpus {count}, but {source} {len(ids)} on this machine; ask for fewer, or leave "
            "--gpus out for the CPU"
        )
    return tuple(ids[:count])


def run_profiles(
    names: Sequence[str],
    out: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    gpus: int = 0,
    scheduler: str | None = None,
    settings: Sequence[str] = (),
) -> list[Path]:
    """Run profiles and return their run folders; a second call goes on where the first one stopped.

    Without GPUs or scheduler they run one after the other. With them they run side by side, and all
    their trainings (arms, seeds) share so many GPUs of this machine, one on each, or the workers of
    a Dask cluster that see the same files.

    ``out`` is the run folder, of several profiles the folder of their run folders; ``overrides``
    are notebook parameters for all, ``settings`` those of profiles (see
    :func:`kdlib.lab.profile_files.load`).

    Raises:
        ConfigError: If a name or value is wrong (before anything is executed).
        StageFailed: If a notebook of the only profile failed.
        RunsFailed: If some of several failed; the others are finished.
    """
    if gpus and scheduler:
        raise ConfigError(
            "--gpus is for this machine and --scheduler for a cluster; give one of them"
        )
    if len(set(names)) != len(names):
        raise ConfigError(f"a profile is named twice: {', '.join(names)}")
    titles = {name: profile_files.load(name, settings).name for name in names}
    if len(set(titles.values())) != len(names):
        raise ConfigError(f"two profiles have one name: {', '.join(titles.values())}")
    folders = {
        name: run_folder(title, out / title if out and len(names) > 1 else out)
        for name, title in titles.items()
    }
    overrides = overrides or {}
    for name, folder in folders.items():
        execute.plan_stages(name, folder, overrides, settings)
    ids = gpu_ids(gpus) if gpus else ()
    _follow_starter()
    where = {GPUS: ",".join(ids)} if ids else {SCHEDULER: scheduler} if scheduler else {}
    if len(names) == 1:
        os.environ.update(where)
        return [execute.run_profile(names[0], folders[names[0]], overrides, settings)]
    words = [word for name, value in overrides.items() for word in ("-p", f"{name}={value}")]
    words += [word for text in settings for word in ("--set", text)]
    failed = _run_drivers(folders, words, where, ids or [""] * (len(names) if scheduler else 1))
    if failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise RunsFailed(
            f"{len(failed)} of {len(names)} runs failed, the same command continues them: {reasons}"
        )
    return list(folders.values())


def _run_drivers(
    folders: Mapping[str, Path], words: Sequence[str], where: Mapping[str, str], gpus: Sequence[str]
) -> dict[str, str]:
    """Run a driver for each profile, as many at a time as there are GPUs ("" is none); return why
    which failed.
    """
    free = list(gpus)  # never empty where a driver begins: the pool has as many threads

    def run(name: str) -> str:
        gpu = free.pop(0)
        try:
            # The notebooks' own work (evaluation) happens in the driver's kernel, which gets one of
            # the GPUs.
            return _drive(
                name,
                ("--out", str(folders[name]), *words),
                {**where, **({VISIBLE: gpu} if gpu else {})},
            )
        finally:
            free.append(gpu)

    with ThreadPoolExecutor(len(gpus)) as pool:
        reasons = dict(zip(folders, pool.map(run, folders)))
    return {name: why for name, why in reasons.items() if why}


def _drive(name: str, words: Sequence[str], variables: Mapping[str, str]) -> str:
    """Run one driver, its lines shown with its name before them; return in words why it failed, or
    nothing.
    """
    last = ""
    with subprocess.Popen(
        (*COMMAND, name, *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, ATTENDED: "1", "PYTHONUNBUFFERED": "1", **variables},
    ) as process:
        for line in process.stdout or ():
            print(f"{name} | {line.rstrip()}", flush=True)
            if line.startswith("kdlib: "):
                last = line.removeprefix("kdlib: ").rstrip()
    return (
        ""
        if process.returncode == 0
        else last or (f"its driver ended with code {process.returncode}")
    )


def _follow_starter() -> None:
    """End with the process that started this driver, however that ended; its trainings go on and
    are found again.
    """
    if os.environ.pop(ATTENDED, ""):

        def wait() -> None:
            sys.stdin.buffer.read()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()
