"""``python -m kdlib view`` and ``fly``: what they take from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

scans = typer.Typer()

TRAINED = "Folder of a run or training, .safetensors file, or model of the zoo."
Weights = Annotated[Path | None, Option(help="A .safetensors file instead of the model's own.")]
Arm = Annotated[
    str | None,
    Option(help="Of a run: teacher, alone, init, full or own; default: the distilled student."),
]
_Score = Annotated[float, Option(help="Boxes at or above it are shown.")]


@scans.command("view")
def _view(
    scan: Annotated[
        Path,
        Argument(
            help="A scan: .bin (KITTI, nuScenes), .npy, .npz, .pcd, .ply, .las, .laz or text."
        ),
    ],
    model: Annotated[str, Option(help=TRAINED)] = "cp_pillar_demo",
    weights: Weights = None,
    arm: Arm = None,
    layout: Annotated[
        str | None,
        Option(
            help=(
                "kitti, nuscenes, waymo, xyz or xyzi: columns, axes, sensor "
                "height; found from the file."
            )
        ),
    ] = None,
    height: Annotated[float | None, Option(help="Of the sensor above the road, metres.")] = None,
    scale: Annotated[
        float, Option(help="Metres in one unit of the file; 0.001 for millimetres.")
    ] = 1.0,
    score: _Score = 0.3,
    overlap: Annotated[
        float,
        Option(help="Of two boxes that overlap by more (IoU from above), the better one is shown."),
    ] = 0.2,
    out: Annotated[Path | None, Option(help="The picture, .png; default SCAN_boxes.png.")] = None,
    window: Annotated[
        bool | None,
        Option(
            "--window/--no-window",
            help="An open3d window; default: where there is a display and no --out.",
        ),
    ] = None,
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON object instead of text.")
    ] = False,
) -> None:
    """Detect in a scan of your own; print and show the boxes, say what was assumed."""
    from kdlib.tools.scans.view import view as look

    where: dict[str, Any] = {
        "weights": weights,
        "arm": arm,
        "layout": layout,
        "height": height,
        "scale": scale,
    }
    seen = look(scan, model, **where, score=score, overlap=overlap, out=out, window=window)
    print(json.dumps(seen.to_dict(), indent=2) if as_json else seen)


@scans.command("fly")
def _fly(
    run_dir: Annotated[
        Path, Argument(help="Folder of a run with teacher and students; it is only read.")
    ],
    out: Annotated[Path, Option(help="The film, .gif.")] = Path("fly.gif"),
    data: Annotated[
        Path | None, Option(help="Folder with the run's store; default data/PROFILE.")
    ] = None,
    segment: Annotated[
        str | None, Option(help="Beginning of its name; default: the one with most objects.")
    ] = None,
    arm: Arm = None,
    score: _Score = 0.3,
    images: Annotated[int, Option(min=1, help="Pictures in the film, ten a second.")] = 40,
    limit: Annotated[
        float, Option(help="Megabytes the file may have; the pictures shrink to fit.")
    ] = 1.5,
) -> None:
    """Film a segment of a run: teacher left, student right, ground truth in both."""
    from kdlib.tools.scans.fly import fly as make

    print(
        make(
            run_dir,
            out,
            data=data,
            segment=segment,
            arm=arm,
            score=score,
            images=images,
            limit=int(1e6 * limit),
        )
    )
