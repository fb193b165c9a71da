"""The command line: one verb per use, each a thin call into the package; a user's mistake is one sentence and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from kdlib import commands
from kdlib.bench.commands import bench
from kdlib.errors import KdlibError

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(bench, name="bench")

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
    out: Annotated[Path, typer.Option(help="Folder for the Waymo files; they go to OUT/SPLIT.")],
    segments: Annotated[int, typer.Option(min=1, help="Number of segments.")],
    frames: Annotated[int, typer.Option(min=1, help="Frames per segment, 10 a second.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same files.")],
    scale: Annotated[str, typer.Option(help="'full' has Waymo's resolution, 'demo' trains on a laptop.")] = "demo",
    split: Annotated[str, typer.Option(help="training or validation")] = "training",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 means all cores.")] = 0,
    file_format: Annotated[str, typer.Option("--format", help="'v2' writes Parquet files, 'v1' TFRecord.")] = "v2",
) -> None:
    """Write simulated LiDAR segments as genuine Waymo files, of either format."""
    from kdlib.simulate import simulate as make

    names = make(out, segments, frames, seed, scale, split=split, workers=workers, format=file_format)
    print(f"{len(names)} simulated segments of {frames} frames in {out / split}")


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="Waymo folder, v1 or v2, holding training/ and validation/.")],
    out: Annotated[Optional[Path], typer.Argument(help="Folder of the prepared store.")] = None,  # noqa: UP045
    workers: Annotated[int, typer.Option(min=0, help="Processes, 1 GB each; 0 means all cores.")] = 0,
    scheduler: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="ADDRESS", help="A running Dask cluster on the same file system, instead."),
    ] = None,
    split: Annotated[Optional[list[str]], typer.Option(help="Repeat; default: training and validation.")] = None,  # noqa: UP045
    objects: Annotated[bool, typer.Option(help="Also collect training objects, for pasting into other frames.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it will take: disk, memory, time.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Begin even if the disk seems too small.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check a finished store instead: prepare --verify [SRC] STORE")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn Waymo files into the store training reads; continues where an interrupted call stopped."""
    if verify:
        from kdlib.data.verify import verify as check

        checked = check(out or source, source if out else None, workers, progress=not as_json)
        _print(checked.to_dict()) if as_json else print(checked)
        raise typer.Exit(0 if checked.sound else 1)
    if out is None:
        raise typer.BadParameter("name the folder of the prepared store, too", param_hint="OUT")
    from kdlib.data import prepare as preparing

    splits = split or preparing.SPLITS
    if dry_run:
        expected = preparing.plan(source, out, splits, workers, scheduler, objects)
        _print(expected.to_dict()) if as_json else print(expected)
        return
    try:
        report = preparing.prepare(
            source, out, splits, workers, progress=not as_json, scheduler=scheduler, objects=objects, force=force
        )
    except KeyboardInterrupt:
        print("kdlib: interrupted; finished segments are kept, the same command continues", file=sys.stderr)
        raise typer.Exit(130) from None
    _print(report.to_dict()) if as_json else print(report)


@app.command()
def train(
    run_dir: Annotated[Path, typer.Argument(help="Run folder with its job.json.")],
    devices: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Processes that share every batch, one a GPU; torchrun and srun say it themselves."),
    ] = None,
) -> None:
    """Train one model; what the notebooks start as a child process. Continues from the newest checkpoint."""
    from kdlib.training.supervise import train as fit

    fit(run_dir, devices)


@app.command()
def run(
    profile: Annotated[list[str], typer.Argument(metavar="PROFILE...", help="smoke, demo, waymo20 or waymo100; or several.")],
    out: Annotated[Optional[Path], typer.Option(help="Run folder (of several: their folder); default reports/runs.")] = None,  # noqa: UP045
    parameter: Annotated[Optional[list[str]], typer.Option("-p", help="NAME=VALUE for the notebooks.")] = None,  # noqa: UP045
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of this machine to train on, one training on each.")] = 0,
    scheduler: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="ADDRESS", help="A running Dask cluster on the same file system to train on, instead."),
    ] = None,
) -> None:
    """Run the notebooks of profiles headlessly and write a report of each; finished stages are kept."""
    from kdlib import batch, execute

    batch.run_profiles(profile, out, execute.parse_overrides(parameter or []), gpus, scheduler)


@app.command()
def publish(run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Copy a finished run's numbers and pictures into reports/ and its table into the READMEs."""
    from kdlib.publish import publish as copy

    print(f"published to {copy(run_dir.resolve())}")


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="A model of the zoo.")],
    frame: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="Sweep to count sparse layers on (.npy, .bin, .pcd.bin); repeat. Default: a simulated one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Count parameters, multiply-accumulates (both conventions) and activations, per layer and in total."""
    from kdlib import counting

    values = counting.profile(model, frame or [])
    if as_json:
        _print(values)
    else:
        counting.show(values)


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A .pth of OpenPCDet or SparseKD, or a bare state dict.")],
    model: Annotated[str, typer.Option(help="The model of the zoo it was trained as.")],
    out: Annotated[Optional[Path], typer.Option(help="Default: FILE with the ending .safetensors.")] = None,  # noqa: UP045
    layout: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of sparse kernels: spconv2, spconv1 or native; found from the shapes."),
    ] = None,
    rename: Annotated[Optional[list[str]], typer.Option(help="OLD=NEW beginnings of names; repeat.")] = None,  # noqa: UP045
    drop: Annotated[Optional[list[str]], typer.Option(help="Beginning of names to leave out; repeat.")] = None,  # noqa: UP045
) -> None:
    """Turn another code base's checkpoint into weights of ours, exactly or not at all, and say what went where."""
    from kdlib.imports import import_file

    print(import_file(file, model, out, layout=layout, rename=rename or [], drop=drop or []))


@app.command("export-checkpoint")
def export_checkpoint(
    weights: Annotated[Path, typer.Argument(help="Weights of ours, .safetensors.")],
    out: Annotated[Path, typer.Argument(help="The .pth to write.")],
    model: Annotated[str, typer.Option(help="The model of the zoo they belong to.")],
    layout: Annotated[str, typer.Option(help="Of sparse kernels: spconv2, spconv1 or native.")] = "spconv2",
) -> None:
    """Write our weights as a checkpoint that OpenPCDet and SparseKD load."""
    from kdlib.imports import export_file

    print(export_file(weights, model, out, layout=layout))


@app.command()
def initialise(
    student: Annotated[str, typer.Argument(help="A model of the zoo.")],
    teacher: Annotated[str, typer.Option("--from", help="The model of the zoo it starts from.")],
    weights: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The teacher's: ours, or a .pth of OpenPCDet or SparseKD. Default: fresh ones, to see shapes."),
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="Write the student's first weights, .safetensors.")] = None,  # noqa: UP045
    how: Annotated[str, typer.Option(help="first, bn_scale, l1, matching ...; a wrong one lists them all.")] = "first",
    layout: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of sparse kernels: spconv2, spconv1 or native; found from the shapes."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which channels of a teacher a student starts from, tensor by tensor; with --out, write them."""
    from kdlib.kd.start import start

    report = start(student, teacher, weights, out, how, layout)
    if as_json:
        _print(report.to_dict())
    else:
        print(report.table())
        print(f"written to {out}" if out else "nothing is written" + ("" if weights else "; fresh weights, only shapes count"))


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Option(help="Parquet table of predicted boxes.")],
    ground_truth: Annotated[Path, typer.Option(help="Parquet table of annotated boxes.")],
    official: Annotated[bool, typer.Option("--official", help="Also run Waymo's own metric; print both side by side.")] = False,
    python: Annotated[Optional[Path], typer.Option(help="The Python that has it; default .venv-official.")] = None,  # noqa: UP045
    export: Annotated[Optional[Path], typer.Option(help="Write the leaderboard's Objects file, .bin.")] = None,  # noqa: UP045
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 means all cores. One does 4,000 frames a second.")] = 1,
    as_json: Json = False,
) -> None:
    """Score predictions with the Waymo detection metric: AP and APH per class, level and range."""
    from kdlib.evaluation.judge import judge

    judged = judge(
        predictions, ground_truth, workers=workers or os.cpu_count() or 1, official=official, python=python, export=export
    )
    if as_json:
        _print(judged.to_dict())
    else:
        print(judged.text())
    raise typer.Exit(1 if judged.comparison and not judged.comparison.agrees else 0)


commands.add_to(app)


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
