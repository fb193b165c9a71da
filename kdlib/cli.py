"""The command line: one verb per use, each a thin call into the package; a user's mistake is one
sentence and exit code 2.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from kdlib.errors import ConfigError, KdlibError
from kdlib.tools.bench.commands import bench
from kdlib.tools.scans.commands import TRAINED, Arm, Weights, scans
from kdlib.tools.server.commands import RunCommand, server

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.add_typer(bench, name="bench")
app.add_typer(scans)
app.add_typer(server)

_File = Path | None
_Words = list[str] | None
_Json = Annotated[bool, Option("--json", help="Print one JSON object instead of text.")]
_Workers = Annotated[int, Option(min=0, help="Processes; 0 means all cores.")]
_Scheduler = Annotated[
    str | None,
    Option(
        metavar="ADDRESS",
        help="A running Dask cluster on the same file system, to work on instead.",
    ),
]
_Kernels = Annotated[
    str | None,
    Option(help="Layout of sparse kernels: spconv2, spconv1 or native; found from the shapes."),
]
_Model = Annotated[str, Argument(help="A model of the zoo.")]


def _show(as_json: bool, report: Any, text: str | None = None) -> None:
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else text or report)


@app.command("doctor")
def _doctor(as_json: _Json = False) -> None:
    """Say what this machine can do, what is missing, and the exact remedy."""
    from kdlib.tools import doctor

    checks = doctor.examine()
    values = {"checks": [asdict(check) for check in checks]}
    # colours only for a terminal
    typer.echo(json.dumps(values, indent=2) if as_json else doctor.checks_text(checks))
    raise typer.Exit(1 if any(check.status == "fail" for check in checks) else 0)


@app.command("simulate")
def _simulate(
    out: Annotated[Path, Option(help="Folder for the Waymo files; they go to OUT/SPLIT.")],
    segments: Annotated[int, Option(min=1, help="Number of segments.")],
    frames: Annotated[int, Option(min=1, help="Frames per segment, 10 a second.")],
    seed: Annotated[int, Option(min=0, help="Same seed, same files.")],
    scale: Annotated[
        str, Option(help="'full' has Waymo's resolution, 'demo' trains on a laptop.")
    ] = "demo",
    split: Annotated[str, Option(help="training or validation")] = "training",
    workers: _Workers = 0,
    file_format: Annotated[
        str, Option("--format", help="'v2' writes Parquet files, 'v1' TFRecord.")
    ] = "v2",
) -> None:
    """Write simulated LiDAR segments as genuine Waymo files, of either format."""
    from kdlib.simulate import simulate as make

    names = make(
        out, segments, frames, seed, scale, split=split, workers=workers, format=file_format
    )
    print(f"{len(names)} simulated segments of {frames} frames in {out / split}")


@app.command("prepare")
def _prepare(
    source: Annotated[
        Path, Argument(help="Waymo folder, v1 or v2, holding training/ and validation/.")
    ],
    out: Annotated[_File, Argument(help="Folder of the prepared store.")] = None,
    workers: _Workers = 0,
    scheduler: _Scheduler = None,
    split: Annotated[_Words, Option(help="Repeat; default: training and validation.")] = None,
    objects: Annotated[
        bool, Option(help="Also collect training objects, for pasting into other frames.")
    ] = True,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Only say what it will take: disk, memory, time.")
    ] = False,
    force: Annotated[
        bool, Option("--force", help="Begin even if the disk seems too small.")
    ] = False,
    verify: Annotated[
        bool,
        Option("--verify", help="Check a finished store instead: prepare --verify [SRC] STORE"),
    ] = False,
    as_json: _Json = False,
) -> None:
    """Turn Waymo files into the store training reads; goes on after an interruption."""
    if verify:
        from kdlib.tools.server.verify import verify as check

        checked = check(out or source, source if out else None, workers, progress=not as_json)
        _show(as_json, checked)
        raise typer.Exit(0 if checked.sound else 1)
    if out is None:
        raise typer.BadParameter("name the folder of the prepared store, too", param_hint="OUT")
    from kdlib.data import prepare as preparing

    splits = split or preparing.SPLITS
    if dry_run:
        _show(as_json, preparing.estimate_prepare(source, out, splits, workers, scheduler, objects))
        return
    try:
        report = preparing.prepare(
            source,
            out,
            splits,
            workers,
            progress=not as_json,
            scheduler=scheduler,
            objects=objects,
            force=force,
        )
    except KeyboardInterrupt:
        print(
            "kdlib: interrupted; finished segments are kept, the same command continues",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    _show(as_json, report)


@app.command("train")
def _train(
    run_dir: Annotated[Path, Argument(help="Run folder with its job.json.")],
    devices: Annotated[
        int | None,
        Option(
            min=1,
            help=(
                "Processes that share every batch, one a GPU; torchrun and srun say it themselves."
            ),
        ),
    ] = None,
) -> None:
    """Train one model, from its newest checkpoint; what notebooks start as a child process."""
    from kdlib.training.loop import train

    train(run_dir, devices)


@app.command("run", cls=RunCommand)
def _run(
    profile: Annotated[
        list[str],
        Argument(
            metavar="PROFILE...",
            help="One of those listed below, a TOML file of your own, or several.",
        ),
    ],
    out: Annotated[
        _File, Option(help="Run folder (of several: their folder); default reports/runs.")
    ] = None,
    parameter: Annotated[_Words, Option("-p", help="NAME=VALUE for the notebooks.")] = None,
    setting: Annotated[
        _Words,
        Option(
            "--set",
            metavar="PATH=VALUE",
            help="One setting of the profile, as student.epochs=3 or kd.logit.weight=20; repeat.",
        ),
    ] = None,
    gpus: Annotated[
        int, Option(min=0, help="GPUs of this machine to train on, one training on each.")
    ] = 0,
    scheduler: _Scheduler = None,
) -> None:
    """Run the notebooks of profiles headlessly, with a report; finished stages are kept."""
    from kdlib.lab import plan
    from kdlib.tools.server import batch

    overrides = plan.parse_overrides(parameter or [])
    try:
        batch.run_profiles(profile, out, overrides, gpus, scheduler, setting or [])
    except KeyboardInterrupt:
        print("kdlib: interrupted before anything was started", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command("publish")
def _publish(run_dir: Annotated[Path, Argument(help="Folder of a finished run.")]) -> None:
    """Copy a finished run's numbers and pictures into reports/ and its table into the READMEs."""
    from kdlib.lab.publish import publish_run

    print(f"published to {publish_run(run_dir.resolve())}")


@app.command("profile")
def _profile(
    model: _Model,
    frame: Annotated[
        list[Path] | None,
        Option(
            help=(
                "Sweep to count sparse layers on (.npy, .bin, .pcd.bin); repeat. Default: a "
                "simulated one."
            )
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Count parameters, multiply-accumulates (both conventions) and activations by layer."""
    from kdlib.profiling import model_profile

    values = model_profile.profile_model(model, frame or [])
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        model_profile.print_profile(values)


@app.command("import-checkpoint")
def _import_checkpoint(
    file: Annotated[Path, Argument(help="A .pth of OpenPCDet or SparseKD, or a bare state dict.")],
    model: Annotated[str, Option(help="The model of the zoo it was trained as.")],
    out: Annotated[_File, Option(help="Default: FILE with the ending .safetensors.")] = None,
    layout: _Kernels = None,
    rename: Annotated[_Words, Option(help="OLD=NEW beginnings of names; repeat.")] = None,
    drop: Annotated[_Words, Option(help="Beginning of names to leave out; repeat.")] = None,
    take: Annotated[
        str | None, Option(help="Which of several sets of weights, as ema_state_dict.")
    ] = None,
) -> None:
    """Turn another code base's checkpoint into weights of ours, exactly or not at all."""
    from kdlib.tools.checkpoints.convert import import_file

    names = {"rename": rename or [], "drop": drop or []}
    print(import_file(file, model, out, layout=layout, take=take, **names))


@app.command("export-checkpoint")
def _export_checkpoint(
    weights: Annotated[Path, Argument(help="Weights of ours, .safetensors.")],
    out: Annotated[Path, Argument(help="The .pth to write.")],
    model: Annotated[str, Option(help="The model of the zoo they belong to.")],
    layout: Annotated[
        str, Option(help="Of sparse kernels: spconv2, spconv1 or native.")
    ] = "spconv2",
) -> None:
    """Write our weights as a checkpoint that OpenPCDet and SparseKD load."""
    from kdlib.tools.checkpoints.convert import export_file

    print(export_file(weights, model, out, layout=layout))


@app.command("initialise")
def _initialise(
    student: _Model,
    teacher: Annotated[str, Option("--from", help="The model of the zoo it starts from.")],
    weights: Annotated[
        _File,
        Option(
            help=(
                "The teacher's: ours, or a .pth of OpenPCDet or SparseKD. Default: "
                "fresh ones, to see shapes."
            )
        ),
    ] = None,
    out: Annotated[_File, Option(help="Write the student's first weights, .safetensors.")] = None,
    how: Annotated[
        str, Option(help="first, bn_scale, l1, matching ...; a wrong one lists them all.")
    ] = "first",
    layout: _Kernels = None,
    as_json: _Json = False,
) -> None:
    """Say which channels of a teacher a student starts from; with --out, write them."""
    from kdlib.tools.checkpoints.convert import initialise_file

    report = initialise_file(student, teacher, weights, out, how, layout)
    what = (
        f"written to {out}"
        if out
        else "nothing is written" + ("" if weights else "; fresh weights, only shapes count")
    )
    _show(as_json, report, f"{report.table()}\n{what}")


@app.command("evaluate")
def _evaluate(
    predictions: Annotated[Path, Option(help="Parquet table of predicted boxes.")],
    ground_truth: Annotated[Path, Option(help="Parquet table of annotated boxes.")],
    official: Annotated[
        bool, Option("--official", help="Also run Waymo's own metric; print both side by side.")
    ] = False,
    python: Annotated[_File, Option(help="The Python that has it; default .venv-official.")] = None,
    export: Annotated[_File, Option(help="Write the leaderboard's Objects file, .bin.")] = None,
    workers: Annotated[
        int, Option(min=0, help="Processes; 0 means all cores. One does 4,000 frames a second.")
    ] = 1,
    all_classes: Annotated[
        bool, Option("--all-classes", help="Average classes without a label, too, as 0.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Score predictions with the Waymo detection metric: AP and APH per class, level and range."""
    from kdlib.tools.judge.evaluate import evaluate

    judged = evaluate(
        predictions,
        ground_truth,
        workers=workers or os.cpu_count() or 1,
        official=official,
        python=python,
        export=export,
        all_classes=all_classes,
    )
    _show(as_json, judged, judged.text())
    for hint in judged.hints if as_json else ():  # beside the one object, not in it
        print(f"kdlib: hint: {hint}", file=sys.stderr)
    raise typer.Exit(1 if judged.comparison and not judged.comparison.agrees else 0)


@app.command("export")
def _export(
    model: Annotated[str, Argument(help=TRAINED)],
    out: Annotated[
        Path,
        Option(help="The file to write: .onnx, or .pt2 of torch.export; its .json goes beside."),
    ],
    weights: Weights = None,
    arm: Arm = None,
    frames: Annotated[
        int, Option(min=0, help="Simulated frames on which file and network are compared.")
    ] = 2,
    as_json: _Json = False,
) -> None:
    """Write a detector as ONNX or torch.export; of voxel models, the 2D half."""
    from kdlib.tools.export.write import export_detector
    from kdlib.tools.scans.trained import find_weights

    _show(as_json, export_detector(find_weights(model, weights, arm), out, frames))


def main() -> None:
    """Run the command line; a warning, a :class:`KdlibError` or a failing disk is one sentence."""
    # without the line of code that warns
    warnings.formatwarning = lambda message, *_, **__: f"kdlib: warning: {message}\n"
    try:
        if "" in sys.argv[1:]:  # a path would quietly mean the current folder
            raise ConfigError("an argument is empty; is a variable of the shell not set?")
        app()
    except KdlibError as error:
        print(f"kdlib: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"kdlib: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        sys.exit(1)
