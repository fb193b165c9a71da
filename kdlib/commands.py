"""The verbs around a trained detector: look at a scan, fly through a run, take the network away; each a thin call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Weights = Annotated[Optional[Path], typer.Option(help="A .safetensors file instead of the model's own.")]  # noqa: UP045
Arm = Annotated[Optional[str], typer.Option(help="Of a run: teacher, alone, init or full; default: the distilled student.")]  # noqa: UP045


def view(
    scan: Annotated[Path, typer.Argument(help="A scan: .bin (KITTI, nuScenes, Waymo), .npy, .pcd or .ply.")],
    model: Annotated[
        str, typer.Option(help="Folder of a run or training, .safetensors file, or model of the zoo.")
    ] = "cp_pillar_demo",
    weights: Weights = None,
    arm: Arm = None,
    layout: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="kitti, nuscenes, waymo, xyz or xyzi: columns, axes, sensor height; found from the file."),
    ] = None,
    height: Annotated[Optional[float], typer.Option(help="Of the sensor above the road, metres.")] = None,  # noqa: UP045
    scale: Annotated[float, typer.Option(help="Metres in one unit of the file; 0.001 for millimetres.")] = 1.0,
    score: Annotated[float, typer.Option(help="Boxes at or above it are shown.")] = 0.3,
    overlap: Annotated[
        float, typer.Option(help="Of two boxes that overlap by more (IoU from above), the better one is shown.")
    ] = 0.2,
    out: Annotated[Optional[Path], typer.Option(help="The picture, .png; default SCAN_boxes.png.")] = None,  # noqa: UP045
    window: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--window/--no-window", help="An open3d window; default: where there is a display and no --out."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Detect in a scan of your own; print the boxes and what was assumed, show both in a window or a picture."""
    from kdlib.view import view as look

    seen = look(
        scan,
        model,
        weights=weights,
        arm=arm,
        layout=layout,
        height=height,
        scale=scale,
        score=score,
        overlap=overlap,
        out=out,
        window=window,
    )
    print(json.dumps(seen.to_dict(), indent=2) if as_json else seen.text())


def export(
    model: Annotated[str, typer.Argument(help="Folder of a run or training, .safetensors file, or model of the zoo.")],
    out: Annotated[Path, typer.Option(help="The file to write: .onnx, or .pt2 of torch.export; its .json goes beside.")],
    weights: Weights = None,
    arm: Arm = None,
    frames: Annotated[int, typer.Option(min=0, help="Simulated frames on which file and network are compared.")] = 2,
    as_json: Json = False,
) -> None:
    """Write a detector as ONNX or torch.export: pillar models from pillars to boxes, of voxel models the 2D half."""
    from kdlib.export.write import export as write
    from kdlib.trained import find

    written = write(find(model, weights, arm), out, frames)
    print(json.dumps(written.to_dict(), indent=2) if as_json else written.text())


def fly(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run with teacher and students; it is only read.")],
    out: Annotated[Path, typer.Option(help="The film, .gif.")] = Path("fly.gif"),
    data: Annotated[Optional[Path], typer.Option(help="Folder with the run's store; default data/PROFILE.")] = None,  # noqa: UP045
    segment: Annotated[Optional[str], typer.Option(help="Beginning of its name; default: the one with most objects.")] = None,  # noqa: UP045
    arm: Arm = None,
    score: Annotated[float, typer.Option(help="Boxes at or above it are drawn.")] = 0.3,
    images: Annotated[int, typer.Option(min=1, help="Pictures in the film, ten a second.")] = 40,
    limit: Annotated[float, typer.Option(help="Megabytes the file may have; the pictures shrink to fit.")] = 1.5,
) -> None:
    """Film a validation segment of a run: teacher left, student right, ground truth in both, the camera moving."""
    from kdlib.fly import fly as make

    made = make(run_dir, out, data=data, segment=segment, arm=arm, score=score, images=images, limit=int(1e6 * limit))
    print(made.text())


def status(
    runs: Annotated[Optional[Path], typer.Argument(metavar="[RUNS_DIR]", help="Runs, one run or one training.")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option(help="The page, .html; default RUNS_DIR/status.html.")] = None,  # noqa: UP045
    watch: Annotated[Optional[float], typer.Option(metavar="SECONDS", help="Look again so often, until Ctrl-C.")] = None,  # noqa: UP045
    as_json: Json = False,
) -> None:
    """Say of all runs (default: reports/runs) what is done, at work, failed and waiting; write it as a page, too."""
    from kdlib.status.show import show

    show(runs, out, watch, as_json)


def history(
    run: Annotated[Path, typer.Argument(help="Folder of a run or of a training.")],
    csv: Annotated[Optional[Path], typer.Option(metavar="FILE", help="Write one table of all trainings.")] = None,  # noqa: UP045
    tensorboard: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="DIR", help="Write event files for 'tensorboard --logdir DIR'."),
    ] = None,
) -> None:
    """Write the losses, learning rates and speeds of a run's trainings as CSV or for TensorBoard."""
    from kdlib import tracking

    if csv is None and tensorboard is None:
        raise typer.BadParameter("say where to: --csv FILE, --tensorboard DIR, or both")
    if csv is not None:
        print(f"{tracking.write_csv(run, csv)} lines written to {csv}")
    if tensorboard is not None:
        print(f"{tracking.write_tensorboard(run, tensorboard)} scalars written to {tensorboard}")


def add_to(app: typer.Typer) -> None:
    """Give an application these verbs."""
    for verb in (view, fly, export, status, history):
        app.command()(verb)
