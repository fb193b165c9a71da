"""The command line: one verb per use, each a thin call into the package; a user's mistake is one sentence and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from kdlib.errors import KdlibError

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def _print(values: Any) -> None:
    print(json.dumps(values, indent=2))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, what is missing, and the exact remedy."""
    from kdlib import doctor as examination

    checks = examination.checks()
    if as_json:
        _print({"checks": [check.to_dict() for check in checks]})
    else:
        examination.show(checks)
    raise typer.Exit(1 if any(check.status == "fail" for check in checks) else 0)


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder for the Waymo files; they go to OUT/SPLIT/COMPONENT/SEGMENT.parquet.")],
    segments: Annotated[int, typer.Option(min=1, help="Number of segments.")],
    frames: Annotated[int, typer.Option(min=1, help="Frames per segment, 10 a second.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same files.")],
    scale: Annotated[str, typer.Option(help="'full' has Waymo's resolution, 'demo' trains on a laptop.")] = "demo",
    split: Annotated[str, typer.Option(help="training or validation")] = "training",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 means all cores.")] = 0,
) -> None:
    """Write simulated LiDAR segments as genuine Waymo v2 Parquet files."""
    from kdlib.simulate import simulate as make

    names = make(out, segments=segments, frames=frames, seed=seed, scale=scale, split=split, workers=workers)
    print(f"{len(names)} simulated segments of {frames} frames in {out / split}")


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="Waymo v2 folder holding training/ and validation/.")],
    out: Annotated[Path, typer.Argument(help="Folder of the prepared store.")],
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 means all cores.")] = 0,
    as_json: Json = False,
) -> None:
    """Turn Waymo files into the store training reads; continues where an interrupted call stopped."""
    from kdlib.data.prepare import prepare as make

    report = make(source, out, workers=workers or os.cpu_count() or 1, progress=not as_json)
    if as_json:
        _print(report.to_dict())
    else:
        print(report)


@app.command()
def train(run_dir: Annotated[Path, typer.Argument(help="Run folder with its job.json.")]) -> None:
    """Train one model; what the notebooks start as a child process. Continues from the newest checkpoint."""
    from kdlib.training.loop import train as fit

    fit(run_dir)


@app.command()
def run(
    profile: Annotated[str, typer.Argument(help="smoke, demo, waymo20 or waymo100")],
    out: Annotated[Optional[Path], typer.Option(help="Run folder; default reports/runs/PROFILE.")] = None,  # noqa: UP045
    parameter: Annotated[Optional[list[str]], typer.Option("-p", help="NAME=VALUE for the notebooks.")] = None,  # noqa: UP045
) -> None:
    """Run the notebooks of a profile headlessly and write one report; finished stages are kept."""
    from kdlib import execute

    execute.run_profile(profile, out, execute.parse_overrides(parameter or []))


@app.command()
def publish(run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Copy a finished run's numbers and pictures into reports/ and its table into the READMEs."""
    from kdlib.publish import publish as copy

    print(f"published to {copy(run_dir.resolve())}")


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="A model of the zoo.")],
    as_json: Json = False,
) -> None:
    """Count parameters, multiply-accumulates (both conventions) and activations of a model's dense part."""
    from kdlib.costs import dense_cost

    values = dense_cost(model)
    if as_json:
        _print(values)
    else:
        for name, value in values.items():
            print(f"{name:28} {value:>14,.3f}" if isinstance(value, float) else f"{name:28} {value:>14}")


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Option(help="Parquet table of predicted boxes.")],
    ground_truth: Annotated[Path, typer.Option(help="Parquet table of annotated boxes.")],
    as_json: Json = False,
) -> None:
    """Score predictions with the Waymo detection metric: AP and APH per class, level and range."""
    from kdlib.evaluation.waymo_metrics import evaluate_files

    result = evaluate_files(predictions, ground_truth)
    if as_json:
        _print(result.to_dict())
    else:
        print(result.table())


def main() -> None:
    """Run the command line; a :class:`KdlibError` or a failing disk ends in one sentence, not in a traceback."""
    try:
        app()
    except KdlibError as error:
        print(f"kdlib: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"kdlib: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        sys.exit(1)
