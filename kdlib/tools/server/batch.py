"""Runs profiles one after the other, or side by side over the GPUs of a machine or the workers of a
cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from kdlib import records
from kdlib.data.cluster import cluster_cores
from kdlib.errors import ConfigError, KdlibError
from kdlib.lab import execute, plan, profile_files, stopping
from kdlib.lab.folders import check_checkout, run_folder
from kdlib.lab.stopping import Request, Stopped
from kdlib.training.places import GPUS, SCHEDULER, VISIBLE

ATTENDED = "KDLIB_ATTENDED"  # a driver whose standard input ends with the process that started it
COMMAND = (sys.executable, "-m", "kdlib", "run")
_POLL_SECONDS = 0.2


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
        ConfigError: If a name or value is wrong, or the current folder lies in another checkout
            (before anything is executed).
        DataError: If no scheduler answers, or it has no worker.
        StageFailed: If a notebook of the only profile failed.
        RunsFailed: If some of several failed; the others are finished.
        Stopped: After SIGINT or SIGTERM, when nothing of any run is left at work.
    """
    if gpus and scheduler:
        raise ConfigError(
            "--gpus is for this machine and --scheduler for a cluster; give one of them"
        )
    if len(set(names)) != len(names):
        raise ConfigError(f"a profile is named twice: {', '.join(names)}")
    chosen = {name: profile_files.load(name, settings) for name in names}
    titles = {name: profile.name for name, profile in chosen.items()}
    if len(set(titles.values())) != len(names):
        raise ConfigError(f"two profiles have one name: {', '.join(titles.values())}")
    folders = {
        name: run_folder(title, out / title if out and len(names) > 1 else out)
        for name, title in titles.items()
    }
    check_checkout("this folder")
    overrides = overrides or {}
    plans = {
        name: plan.plan_stages(name, folder, overrides, settings)
        for name, folder in folders.items()
    }
    ids = gpu_ids(gpus) if gpus else ()
    if scheduler:
        cluster_cores(scheduler)  # whether one answers, before hours
    if len(names) > 1:
        for name, stages in plans.items():
            plan.check_run(chosen[name], folders[name], stages)
    _follow_starter()
    where = {GPUS: ",".join(ids)} if ids else {SCHEDULER: scheduler} if scheduler else {}
    if len(names) == 1:
        os.environ.update(where)
        return [execute.run_profile(names[0], folders[names[0]], overrides, settings)]
    words = [word for name, value in overrides.items() for word in ("-p", f"{name}={value}")]
    words += [word for text in settings for word in ("--set", text)]
    with stopping.heeded() as request:
        places = ids or [""] * (len(names) if scheduler else 1)
        failed = _run_drivers(folders, words, where, places, request)
    if request.count:
        raise Stopped(f"stopped; the same command goes on: {records.command()}", request.number)
    if failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise RunsFailed(
            f"{len(failed)} of {len(names)} runs failed, the same command continues them: {reasons}"
        )
    return list(folders.values())


def _run_drivers(
    folders: Mapping[str, Path],
    words: Sequence[str],
    where: Mapping[str, str],
    gpus: Sequence[str],
    request: Request,
) -> dict[str, str]:
    """Run a driver for each profile, as many at a time as there are GPUs ("" is none); return why
    which failed. Signals go to all drivers at work, and after one no other is started.
    """
    free = list(gpus)  # never empty where a driver begins: the pool has as many threads
    drivers: list[subprocess.Popen[str]] = []

    def run(name: str) -> str:
        if request.count:
            return "not begun"
        gpu = free.pop(0)
        try:
            # The notebooks' own work (evaluation) happens in the driver's kernel, which gets one of
            # the GPUs.
            variables = {**where, **({VISIBLE: gpu} if gpu else {})}
            drivers.append(_start(name, ("--out", str(folders[name]), *words), variables))
            return _drive(name, drivers[-1])
        finally:
            free.append(gpu)

    with ThreadPoolExecutor(len(gpus)) as pool:
        running = {name: pool.submit(run, name) for name in folders}
        told = dict[int, int]()  # signals so far, by the driver's number
        while wait(running.values(), _POLL_SECONDS).not_done:
            for number, driver in enumerate(drivers):
                if told.get(number, 0) < request.count:
                    told[number] = request.count
                    driver.send_signal(request.number)
    reasons = {name: future.result() for name, future in running.items()}
    return {name: why for name, why in reasons.items() if why}


def _start(name: str, words: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start one driver, in a session of its own: a terminal's Ctrl-C comes through this process
    alone.
    """
    own = {ATTENDED: "1", "PYTHONUNBUFFERED": "1", records.COMMAND: records.command()}
    return subprocess.Popen(
        (*COMMAND, name, *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, **own, **variables},
    )


def _drive(name: str, process: subprocess.Popen[str]) -> str:
    """Show the lines of a driver with its name before them; return in words why it failed, or
    nothing. Its last sentence is told in words alone, not twice.
    """
    last = ""
    with process:
        for line in map(str.rstrip, process.stdout or ()):
            if last:
                print(f"{name} | {last}", flush=True)
            last = line if line.startswith("kdlib: ") else ""
            if not last:
                print(f"{name} | {line}", flush=True)
    if process.returncode == 0:
        if last:
            print(f"{name} | {last}", flush=True)
        return ""
    return last.removeprefix("kdlib: ") or f"its driver ended with code {process.returncode}"


def _follow_starter() -> None:
    """End with the process that started this driver, however that ended; its trainings go on and
    are found again.
    """
    if os.environ.pop(ATTENDED, ""):

        def wait() -> None:
            sys.stdin.buffer.read()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()
