"""``python -m kdlib bench ...``: what each measurement takes from the command line, and how it
prints.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

if TYPE_CHECKING:
    from kdlib.tools.bench.measurements import Benchmark

bench = typer.Typer(
    help="Measure speed and memory on this machine, beside what kdlib replaces; by itself: speed."
)

_Json = Annotated[bool, Option("--json", help="Print one JSON object instead of a table.")]
_Out = Annotated[
    Path | None,
    Option(help="Also write the JSON object to this file, and the table beside it as Markdown."),
]
_Python = Annotated[str | None, Option(help="A Python with the official Waymo package.")]
_Store = Annotated[Path | None, Option(help="Prepared store. Default: a small simulated one.")]
_Device = Annotated[str, Option(help="As torch names it: cpu, cuda, cuda:1; default: torch's own.")]
_Rounds = Annotated[int, Option(min=1, help="Timed turns, after warm-up; medians count.")]
_Compile = Annotated[bool, Option(help="Also measure torch.compile, whose warm-up takes minutes.")]


def _print(benchmark: Benchmark, as_json: bool, out: Path | None) -> None:
    # The page says how to make it again: the command as it was typed, the page itself without its
    # folder.
    words = [out.name if out is not None and word == str(out) else word for word in sys.argv[1:]]
    page = benchmark.page(" ".join(["python -m kdlib", *words]))
    _print_and_write(benchmark.to_dict(), benchmark.text(), page, as_json, out)


def _print_and_write(
    values: Mapping[str, Any], text: str, page: str, as_json: bool, out: Path | None
) -> None:
    from kdlib import records

    if out is not None:
        records.write_json(out.with_suffix(".json"), values)
        records.write_bytes(out.with_suffix(".md"), page.encode())
    print(json.dumps(values, indent=2) if as_json else text)


@bench.callback(invoke_without_command=True)
def _bare(context: typer.Context, as_json: _Json = False, out: _Out = None) -> None:
    """Measure speed and memory on this machine, beside what kdlib replaces; by itself: speed."""
    if context.invoked_subcommand is None:
        _speed(as_json=as_json, out=out)


@bench.command("speed")
def _speed(
    rounds: _Rounds = 15,
    store: _Store = None,
    teacher: Annotated[
        Path | None,
        Option(
            help=(
                "The demo teacher's weights. Default: those shipped; fresh ones, which find "
                "no boxes, without them."
            )
        ),
    ] = None,
    compile_too: _Compile = True,
    as_json: _Json = False,
    out: _Out = None,
) -> None:
    """Ratios that matter: operators, distillation and its parts, loader, settings."""
    from kdlib.tools.bench.speed import bench_speed
    from kdlib.tools.bench.steps import demo_teacher

    _print(
        bench_speed(
            rounds, store=store, teacher=teacher or demo_teacher(), compile_too=compile_too
        ),
        as_json,
        out,
    )


@bench.command("steps")
def _steps(
    pair: Annotated[str, Option(help="A pair of the zoo.")] = "cp_pillar_demo_v0.64_sparsekd",
    device: _Device = "",
    rounds: _Rounds = 15,
    store: _Store = None,
    batch: Annotated[int, Option(min=1, help="Frames of a batch.")] = 4,
    compile_too: _Compile = True,
    as_json: _Json = False,
    out: _Out = None,
) -> None:
    """Training samples per second alone and distilled, and peak memory: fp32, bf16 and compiled."""
    from kdlib.tools.bench.steps import bench_steps

    _print(bench_steps(pair, device, rounds, store, batch, compile_too), as_json, out)


@bench.command("data")
def _data(
    frames: Annotated[int, Option(min=1, help="Frames of each simulated segment.")] = 10,
    rounds: Annotated[int, Option(min=1, help="Repetitions; the median counts.")] = 3,
    scale: Annotated[str, Option(help="'full' has Waymo's resolution.")] = "full",
    keep: Annotated[
        Path | None, Option(help="Keep the simulated files here, to be used again.")
    ] = None,
    python: _Python = None,
    seconds: Annotated[
        float, Option(min=0.0, help="Least time of each of kdlib's own measurements.")
    ] = 2.0,
    as_json: _Json = False,
    out: _Out = None,
) -> None:
    """Conversion against the official path, prepare, bytes a point, loader, memory."""
    from kdlib.tools.bench.data import bench_data

    _print(bench_data(frames, rounds, scale, keep, python, seconds), as_json, out)


@bench.command("metric")
def _metric(
    frames: Annotated[int, Option(min=1)] = 1000,
    labels: Annotated[int, Option(min=1, help="Labelled boxes of a frame.")] = 100,
    predictions: Annotated[int, Option(min=1, help="Predicted boxes of a frame.")] = 200,
    workers: Annotated[int, Option(min=1, help="Processes of kdlib's metric.")] = 1,
    python: _Python = None,
    as_json: _Json = False,
    out: _Out = None,
) -> None:
    """The metric against the official op on random boxes: time, memory, agreement."""
    from kdlib.tools.bench.metric import bench_metric

    _print(bench_metric(frames, labels, predictions, workers, python), as_json, out)


@bench.command("models")
def _models(
    name: Annotated[
        list[str] | None, Option("--model", help="A model of the zoo; repeat. Default: ten.")
    ] = None,
    device: _Device = "",
    frames: Annotated[int, Option(min=1, help="Simulated full-size sweeps, used in turn.")] = 3,
    repeats: Annotated[int, Option(min=1, help="Timed passes.")] = 10,
    warmup: Annotated[int, Option(min=0, help="Passes before.")] = 3,
    mixed: Annotated[bool, Option(help="Also with automatic mixed precision.")] = True,
    compiled: Annotated[
        bool, Option(help="Also with backbone and heads compiled by torch.")
    ] = False,
    as_json: _Json = False,
    out: _Out = None,
) -> None:
    """Cost in both conventions and latency by stage, beside the published cells."""
    from kdlib.tools.bench.models import bench_models, costs_page, costs_text

    values = bench_models(name or (), device, frames, repeats, warmup, mixed, compiled)
    _print_and_write(values, costs_text(values), costs_page(values), as_json, out)


@bench.command("sparse")
def _sparse(
    model: Annotated[
        str, Option(help="A voxel model of the zoo, whose layers are run.")
    ] = "cp_voxel",
    rounds: Annotated[int, Option(min=1, help="Repetitions; the best counts.")] = 5,
    as_json: _Json = False,
    out: _Out = None,
) -> None:
    """Sparse convolution on the processor against spconv's wheel, a full-size sweep."""
    # Threads that spin while they wait take the processor from each other on a busy machine (ten
    # times slower, measured), those that sleep at once wake up late on a quiet one (a fifth): spin
    # a little. OpenMP reads this when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    from kdlib.tools.bench.sparse import bench_sparse

    _print(bench_sparse(model, rounds), as_json, out)
