"""``python -m kdlib status``, ``stop`` and ``history``: what they take from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

server = typer.Typer()

_File = Path | None
_Json = Annotated[bool, Option("--json", help="Print one JSON object instead of text.")]


class RunCommand(TyperCommand):
    """``run``, whose help names all profiles; they are looked up only when it is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help with the profiles at its end."""
        from kdlib.lab.profiles import PROFILES

        self.epilog = f"Profiles: {', '.join(PROFILES)}."
        super().format_help(ctx, formatter)


@server.command("status")
def _status(
    runs: Annotated[
        _File, Argument(metavar="[RUNS_DIR]", help="Runs, one run or one training.")
    ] = None,
    out: Annotated[_File, Option(help="The page, .html; default RUNS_DIR/status.html.")] = None,
    watch: Annotated[
        float | None, Option(metavar="SECONDS", help="Look again so often, until Ctrl-C.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Say of all runs what is done, at work, failed and waiting; write it as a page, too."""
    from kdlib.tools.server.status.show import show_status

    show_status(runs, out, watch, as_json)


@server.command("stop")
def _stop(
    runs: Annotated[
        list[Path], Argument(metavar="RUN...", help="A run, a training, or a folder of runs.")
    ],
    now: Annotated[
        bool, Option("--now", help="End them at once, back to the last checkpoint.")
    ] = False,
) -> None:
    """Stop runs and trainings at a checkpoint, from which the same command goes on."""
    from kdlib.tools.server.stop import stop_runs

    raise typer.Exit(0 if stop_runs(runs, now) else 1)


@server.command("history")
def _history(
    run: Annotated[Path, Argument(help="Folder of a run or of a training.")],
    csv: Annotated[_File, Option(metavar="FILE", help="Write one table of all trainings.")] = None,
    tensorboard: Annotated[
        _File, Option(metavar="DIR", help="Write event files for 'tensorboard --logdir DIR'.")
    ] = None,
) -> None:
    """Write losses, learning rates and speeds of trainings as CSV or for TensorBoard."""
    from kdlib.tools.server import tracking

    if csv is None and tensorboard is None:
        raise typer.BadParameter("say where to: --csv FILE, --tensorboard DIR, or both")
    if csv is not None:
        print(f"{tracking.write_csv(run, csv)} lines written to {csv}")
    if tensorboard is not None:
        print(f"{tracking.write_tensorboard(run, tensorboard)} scalars written to {tensorboard}")
