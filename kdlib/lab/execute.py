"""Runs a chain of notebooks through papermill: finished stages are kept, a failed one stops it
loudly.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.errors import KdlibError
from kdlib.lab import occupancy, profile_files, runlog, stopping
from kdlib.lab.folders import NOTEBOOKS, PROJECT, run_folder
from kdlib.lab.occupancy import RUN
from kdlib.lab.plan import Stage, check_run, is_kept, plan_stages
from kdlib.lab.runlog import RunLog
from kdlib.lab.stopping import Request, Stopped
from kdlib.types import Json

_POLL_SECONDS = 0.2


class StageFailed(KdlibError):
    """A notebook of the chain did not finish; the executed copy shows where."""


def _own_kernel(log: RunLog) -> type:
    """Return a kernel manager that starts this very Python with this very kdlib, whatever kernels
    are installed and wherever another checkout was.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))

    class OwnKernel(AsyncKernelManager):
        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            environment = {**os.environ, **(options.pop("env", None) or {}), "PYTHONPATH": path}
            await super().start_kernel(env=environment, stderr=log, **options)

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    return OwnKernel


def _literal(path: Path) -> str:
    """Return a path as papermill takes it, for which braces are places of parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def execute(stage: Stage, folder: Path, log: RunLog, request: Request) -> None:
    """Run one notebook through papermill into the run folder and mark it complete; what it prints
    goes to the log. A signal that the request notes ends notebook and trainings.

    StageFailed if a cell raised, the kernel died, or the last cell did not write ``result.json``.
    Stopped after a signal.
    """
    if request.count:
        raise _stopped(stage, request)
    home = folder / stage.name
    home.mkdir(parents=True, exist_ok=True)
    result = home / "result.json"
    # the mark first: it must never stand without its result
    for old in (home / records.COMPLETE, result):
        old.unlink(missing_ok=True)
    # In a thread of its own the notebook's client takes no signal for itself.
    with ThreadPoolExecutor(1) as pool:
        executed = pool.submit(_through_papermill, stage, folder, log)
        while not wait([executed], _POLL_SECONDS).done:
            if request.count:
                say = partial(print, file=log)
                stopping.stop_run(folder, request, lambda: not executed.done(), say)
    if request.count and executed.exception():
        raise _stopped(stage, request)
    executed.result()
    if not result.is_file():
        raise StageFailed(
            f"{stage.name} ended without writing {result}; its last cell must call save_result"
        )
    records.mark_complete(home, stage.key)


def _stopped(stage: Stage, request: Request) -> Stopped:
    return Stopped(
        f"stopped; the same command goes on with {stage.name}, and its trainings from their "
        f"checkpoints: {records.command()}",
        request.number,
    )


def _through_papermill(stage: Stage, folder: Path, log: RunLog) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    executed = folder / f"{stage.name}.ipynb"
    try:
        papermill.execute_notebook(
            _literal(NOTEBOOKS / f"{stage.name}.ipynb"),
            _literal(executed),
            parameters=stage.parameters,
            kernel_name="python3",  # says the language; the manager says which Python
            kernel_manager_class=_own_kernel(log),
            progress_bar=False,
            stdout_file=log,
            cwd=str(folder),
            extra_arguments=["--log-level=CRITICAL"],
            store_widget_state=False,  # megabytes that a static picture stands in for
        )
    except PapermillExecutionError as error:
        where = f"{stage.name} stopped at cell {error.exec_count}"
        raise StageFailed(f"{where}: {error.ename}: {error.evalue} (see {executed})") from error
    except RuntimeError as error:
        # the latter while it starts
        if not isinstance(error, DeadKernelError) and "Kernel died" not in str(error):
            raise
        raise StageFailed(
            f"{stage.name}: its kernel died, perhaps for want of memory (see {executed} and "
            f"{folder / runlog.LOG})"
        ) from error


def run_profile(
    profile: str,
    out: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
) -> Path:
    """Run the chain of a profile, write its report and return the folder of all that; a second call
    does no work twice.

    ``profile`` and ``settings`` are those of :func:`kdlib.lab.profile_files.load`.

    Raises:
        ConfigError: If a name or value is wrong (before anything is executed).
        StageFailed: If a notebook failed.
        Stopped: After SIGINT or SIGTERM, when nothing of the run is left at work.
        FolderBusy: If another process runs in this folder.
    """
    from kdlib.lab.report import write_run_report

    chosen = profile_files.load(profile, settings)
    folder = run_folder(chosen.name, out)
    stages = plan_stages(profile, folder, overrides or {}, settings)
    if root := stages[0].parameters.get("DATA_ROOT"):
        chosen = replace(chosen, data=root)
    check_run(chosen, folder, stages)
    with (
        stopping.heeded() as request,
        occupancy.hold(folder),
        runlog.opened(folder) as log,
    ):
        profile_files.save(chosen, folder)
        states: dict[str, Json] = {stage.name: {"state": "waiting"} for stage in stages}

        def note(stage: Stage, state: str, words: str, **facts: Any) -> None:
            states[stage.name] = {"state": state, **facts}
            records.write_json(folder / RUN, {"profile": chosen.name, "stages": states})
            print(f"{stage.name}: {words}", file=log)

        for stage in stages:
            if is_kept(stage, folder):
                note(stage, "kept", "kept from an earlier run")
                continue
            start, me = time.time(), records.this_process()
            note(
                stage,
                "running",
                "running",
                since=time.strftime("%Y-%m-%d %H:%M:%S"),
                pid=me["pid"],
                host=me["host"],
            )
            try:
                execute(stage, folder, log, request)
            except (StageFailed, Stopped) as error:
                # The sentence itself is for whoever called, and for the log.
                state = "stopped" if isinstance(error, Stopped) else "failed"
                note(stage, state, state, message=str(error))
                log.note(f"kdlib: {error}")
                raise
            seconds = round(time.time() - start)
            note(stage, "done", f"done in {seconds} s", seconds=seconds)
        write_run_report(folder, chosen)
        print(f"report: {folder / 'report.html'}", file=log)
    return folder
