"""The command line: official names in JSON, and for every mistake one sentence, an exit code,
nothing half-written.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from typer.main import get_command

from kdlib import cli, records
from kdlib.data.store import Store, ground_truth_table
from kdlib.lab import execute, pipeline, profiles
from kdlib.lab.pipeline import Run
from kdlib.models.weights import read_weights
from kdlib.tools import doctor
from kdlib.training.job import TrainJob

VERBS = sorted(get_command(cli.app).commands)


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    def refused(self, *words: str) -> None:
        """Check for one sentence on stderr that names all words; only progress may stand before
        it.
        """
        assert self.code not in (0, None), self.out
        assert "Traceback" not in self.err
        sentences = [line for line in self.err.splitlines() if line.startswith("kdlib: ")]
        assert len(sentences) == 1, self.err
        assert self.err.splitlines()[-1] == sentences[0]
        assert all(word in sentences[0] for word in words), sentences[0]
        assert self.out == ""


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """Run ``kdlib ARGUMENTS`` through ``main``."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["kdlib", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return Answer(ended.value.code or 0, out, err)

    return run


def child(*arguments: object, file_size: int = resource.RLIM_INFINITY) -> Answer:
    """Run ``python -m kdlib`` as a process that may write files of a certain size only: the next
    best thing to a full disk.
    """
    done = subprocess.run(
        [sys.executable, "-m", "kdlib", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size)),
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if "tmp" in path.name or "partial" in path.name]


@pytest.fixture
def waymo(smoke_data: Path, tmp_path: Path) -> Path:
    """A copy of the simulated files, to be damaged."""
    return Path(shutil.copytree(smoke_data / "waymo", tmp_path / "waymo"))


@pytest.fixture
def tables(smoke_run: Run, tmp_path: Path) -> tuple[Path, Path]:
    """Ground truth of the validation split, and predictions that say the same; what no laser hit is
    nobody's to find.
    """
    truth = ground_truth_table(smoke_run.store.split("validation"))
    seen = truth.filter(pc.greater(truth.column("num_points"), 0))
    keep = ["frame_id", "x", "y", "z", "length", "width", "height", "heading", "type"]
    predictions = seen.select(keep).append_column("score", pa.array(np.full(seen.num_rows, 0.9)))
    pq.write_table(truth, tmp_path / "truth.parquet")
    pq.write_table(predictions.replace_schema_metadata(None), tmp_path / "predictions.parquet")
    return tmp_path / "predictions.parquet", tmp_path / "truth.parquet"


# ---- what works


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str, call: Callable[..., Answer]) -> None:
    answer = call(verb, "--help")
    assert answer.code == 0 and "Usage" in answer.out
    assert get_command(cli.app).commands[verb].help


def test_help_of_run_names_all_profiles(call: Callable[..., Answer]) -> None:
    shown = re.sub(r"[\s│]+", " ", call("run", "--help").out)
    assert f"Profiles: {', '.join(profiles.PROFILES)}." in shown


def test_the_promised_verbs_exist() -> None:
    assert {"stop", "simulate", "prepare", "run", "evaluate", "doctor", "train"} <= set(VERBS)


def test_doctors_exit_code(call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    warning = doctor.Check("GPU", "warn", "none", "buy one")
    monkeypatch.setattr(doctor, "examine", lambda: [warning])
    answer = call("doctor")
    assert answer.code == 0 and "buy one" in answer.out
    monkeypatch.setattr(
        doctor, "examine", lambda: [warning, doctor.Check("torch", "fail", "lost", "install it")]
    )
    answer = call("doctor", "--json")
    assert answer.code == 1
    assert [check["status"] for check in json.loads(answer.out)["checks"]] == ["warn", "fail"]


def test_simulate_prepare_evaluate(call: Callable[..., Answer], tmp_path: Path) -> None:
    source, out = tmp_path / "waymo", tmp_path / "store"
    made = call(
        "simulate",
        "--out",
        source,
        "--segments",
        1,
        "--frames",
        2,
        "--seed",
        3,
        "--split",
        "validation",
        "--workers",
        1,
    )
    assert made.code == 0 and "1 simulated segments of 2 frames" in made.out
    prepared = call("prepare", source, out, "--workers", 1, "--json")
    assert prepared.code == 0
    values = json.loads(prepared.out)
    assert values["splits"]["validation"]["frames"] == 2 and values["missing_splits"] == [
        "training"
    ]
    split = Store.open(out).split("validation")
    truth = ground_truth_table(split)
    pq.write_table(truth, tmp_path / "truth.parquet")
    keep = [
        name
        for name in truth.column_names
        if name not in ("difficulty", "num_points", "speed_x", "speed_y")
    ]
    predictions = truth.select(keep).append_column("score", pa.array(np.ones(truth.num_rows)))
    pq.write_table(predictions, tmp_path / "predictions.parquet")
    scored = call(
        "evaluate",
        "--predictions",
        tmp_path / "predictions.parquet",
        "--ground-truth",
        tmp_path / "truth.parquet",
        "--json",
    )
    assert scored.code == 0 and scored.err == ""
    metrics = json.loads(scored.out)
    assert metrics["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2/APH"] == pytest.approx(1, abs=1e-4)


KINDS = ("VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST")
SHARDS = [
    *(f"OBJECT_TYPE_TYPE_{kind}" for kind in KINDS),
    *(
        f"RANGE_TYPE_{kind}_{part}"
        for kind in KINDS
        for part in ("[0, 30)", "[30, 50)", "[50, +inf)")
    ),
]
OFFICIAL = {
    f"{shard}_LEVEL_{level}/{kind}"
    for shard in SHARDS
    for level in (1, 2)
    for kind in ("AP", "APH")
}
MEANS = {"LEVEL_1/mAP", "LEVEL_1/mAPH", "LEVEL_2/mAP", "LEVEL_2/mAPH"}


def test_perfect_predictions_give_one_under_the_official_names(
    call: Callable[..., Answer], tables: tuple[Path, Path]
) -> None:
    answer = call("evaluate", "--predictions", tables[0], "--ground-truth", tables[1], "--json")
    assert answer.code == 0 and answer.err == ""
    metrics = json.loads(answer.out)
    assert set(metrics) == OFFICIAL | MEANS
    for name in ("LEVEL_2/mAPH", "LEVEL_1/mAP", "RANGE_TYPE_VEHICLE_[0, 30)_LEVEL_1/AP"):
        assert metrics[name] == pytest.approx(1, abs=1e-4)
    text = call("evaluate", "--predictions", tables[0], "--ground-truth", tables[1])
    assert text.code == 0 and "OBJECT_TYPE_TYPE_VEHICLE" in text.out and "100.00" in text.out


def test_no_predictions_give_zero(call: Callable[..., Answer], tables: tuple[Path, Path]) -> None:
    pq.write_table(pq.read_table(tables[0]).slice(0, 0), tables[0])
    answer = call("evaluate", "--predictions", tables[0], "--ground-truth", tables[1], "--json")
    assert answer.code == 0
    assert set(json.loads(answer.out).values()) == {0.0}


def test_headings_turned_by_pi(call: Callable[..., Answer], tables: tuple[Path, Path]) -> None:
    table = pq.read_table(tables[0])
    turned = pa.array(table.column("heading").to_numpy() + np.pi)
    pq.write_table(
        table.set_column(table.column_names.index("heading"), "heading", turned), tables[0]
    )
    metrics = json.loads(
        call("evaluate", "--predictions", tables[0], "--ground-truth", tables[1], "--json").out
    )
    assert metrics["LEVEL_2/mAP"] == pytest.approx(1, abs=1e-4)
    assert metrics["LEVEL_2/mAPH"] == pytest.approx(0, abs=1e-4)


# ---- what does not


def test_predictions_for_frames_nobody_labelled(
    call: Callable[..., Answer], tables: tuple[Path, Path]
) -> None:
    table = pq.read_table(tables[0])
    names = ["elsewhere_000", *table.column("frame_id").to_pylist()[1:]]
    pq.write_table(table.set_column(0, "frame_id", pa.array(names)), tables[0])
    answer = call("evaluate", "--predictions", tables[0], "--ground-truth", tables[1], "--json")
    answer.refused("elsewhere_000", "predictions.parquet", "truth.parquet")


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("damage", ["missing", "cut", "text"])
def test_tables_that_cannot_be_read(
    call: Callable[..., Answer], tables: tuple[Path, Path], which: int, damage: str
) -> None:
    path = tables[which]
    whole = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(
        whole[: len(whole) // 2] if damage == "cut" else b"frame_id,x,y\n"
    )
    call("evaluate", "--predictions", tables[0], "--ground-truth", tables[1]).refused(str(path))


def test_column_that_is_missing(call: Callable[..., Answer], tables: tuple[Path, Path]) -> None:
    pq.write_table(pq.read_table(tables[0]).drop(["score"]), tables[0])
    call("evaluate", "--predictions", tables[0], "--ground-truth", tables[1]).refused(
        "predictions.parquet", "'score'"
    )


@pytest.mark.parametrize("damage", ["cut", "empty", "component"])
def test_waymo_files_that_are_damaged(
    call: Callable[..., Answer], waymo: Path, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "store"
    path = sorted((waymo / "training" / "lidar").glob("*.parquet"))[-1]
    if damage == "component":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else path.stat().st_size // 2])
    call("prepare", waymo, out, "--workers", 1, "--json").refused(path.stem, "lidar")
    assert not (out / "store.json").exists() and not leftovers(out)


def test_a_damaged_file_leaves_the_earlier_store(
    call: Callable[..., Answer], waymo: Path, smoke_data: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(smoke_data / "store", tmp_path / "store"))
    before = contents(out)
    path = next((waymo / "validation" / "lidar_box").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:1000])
    call("prepare", waymo, out, "--workers", 1).refused(path.name)
    assert contents(out) == before
    Store.open(out)


def test_a_point_that_is_not_a_number(
    call: Callable[..., Answer], waymo: Path, tmp_path: Path
) -> None:
    path = next((waymo / "training" / "lidar").glob("*.parquet"))
    table = pq.read_table(path)
    name = "[LiDARComponent].range_image_return1.values"
    values = table.column(name).to_pylist()
    values[0][0] = float("nan")
    position = table.column_names.index(name)
    pq.write_table(
        table.set_column(
            position, table.schema.field(name), pa.array(values, table.schema.field(name).type)
        ),
        path,
    )
    call("prepare", waymo, tmp_path / "store", "--workers", 1).refused(path.name)
    assert not (tmp_path / "store" / "store.json").exists()


def test_source_that_is_not_there(call: Callable[..., Answer], tmp_path: Path) -> None:
    call("prepare", tmp_path / "nowhere", tmp_path / "store").refused("nowhere", "training")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "smokey"], ["smokey", "smoke", "demo", "waymo20", "waymo100"]),
        (["run", "smoke", "-p", "SEED=1"], ["SEED", "SEEDS"]),
        (["run", "smoke", "-p", "REPEATS=many"], ["REPEATS", "many", "int"]),
        (["run", "smoke", "-p", "REPEATS"], ["REPEATS", "NAME=VALUE"]),
        (["run", "smoke", "-p", "REPEATS=1", "-p", "REPEATS=2"], ["REPEATS", "twice"]),
        (["profile", "cp_pilar"], ["cp_pilar", "cp_pillar_v0.64"]),
        (["train", "nowhere"], ["nowhere/job.json", "does not exist"]),
        (
            "simulate --out x --segments 1 --frames 1 --seed 1 --scale huge".split(),
            ["huge", "demo", "full"],
        ),
        (
            "simulate --out x --segments 1 --frames 1 --seed 1 --split train".split(),
            ["train", "validation"],
        ),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_names_that_do_not_exist(
    arguments: list[str],
    words: list[str],
    call: Callable[..., Answer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        execute, "execute", lambda stage, folder: pytest.fail(f"{stage.name} was executed")
    )
    extra = ["--out", str(tmp_path / "run")] if arguments[0] == "run" else []
    call(*arguments, *extra).refused(*words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["simulate"], ["evaluate", "--predictions", "p"], ["nonsense"], ["run"], ["prepare", "x"]],
)
def test_usage_errors(arguments: list[str], call: Callable[..., Answer]) -> None:
    answer = call(*arguments)
    assert answer.code == 2 and answer.out == "" and "Traceback" not in answer.err


def job(run: Run, folder: Path, **changes: object) -> TrainJob:
    """A job of two steps in a folder of its own."""
    schedule = replace(run.profile.student, checkpoint_steps=1)
    made = TrainJob(
        run.profile.student_model, schedule, str(run.data / "store"), max_steps=2, name="tiny"
    )
    made = replace(made, **changes)
    made.write(folder)
    return made


def test_job_that_makes_no_sense(
    call: Callable[..., Answer], smoke_run: Run, tmp_path: Path
) -> None:
    job(smoke_run, tmp_path)
    values = records.read_json(tmp_path / "job.json")
    records.write_json(tmp_path / "job.json", {**values, "epochs": 3})
    call("train", tmp_path).refused("TrainJob", "epochs", "max_steps")
    records.write_json(
        tmp_path / "job.json", {**values, "train": {**values["train"], "epochs": "three"}}
    )
    call("train", tmp_path).refused("TrainConfig.epochs", "three")
    (tmp_path / "job.json").write_text('{"model": {')
    call("train", tmp_path).refused("job.json", "not JSON")


def test_half_written_weights(call: Callable[..., Answer], smoke_run: Run, tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    half.write_bytes(pipeline.chosen_teacher(smoke_run).weights.read_bytes()[:5000])
    job(smoke_run, tmp_path / "run", init_weights=str(half))
    call("train", tmp_path / "run").refused("half.safetensors", "no complete safetensors file")
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("damage", ["version", "segment", "index"])
def test_store_of_another_version_or_damaged(
    call: Callable[..., Answer], smoke_run: Run, smoke_data: Path, tmp_path: Path, damage: str
) -> None:
    store = Path(shutil.copytree(smoke_data / "store", tmp_path / "store"))
    job(smoke_run, tmp_path / "run", store=str(store))
    index = records.read_json(store / "store.json")
    if damage == "version":
        records.write_json(store / "store.json", {**index, "version": 99})
    elif damage == "index":
        (store / "store.json").write_text("{")
    else:
        next((store / "training").glob("*/points.npy")).write_bytes(b"half")
    words = {
        "version": ["version 99", "prepare again"],
        "segment": ["prepare"],
        "index": ["store.json", "not JSON"],
    }[damage]
    call("train", tmp_path / "run").refused(str(store), *words)
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_half_written_checkpoint_is_named_and_passed_over(smoke_run: Run, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    job(smoke_run, whole)
    assert child("train", whole).code == 0
    job(smoke_run, broken)
    saved = sorted((whole / "checkpoints").glob("*.safetensors"))
    (broken / "checkpoints").mkdir()
    (broken / "checkpoints" / saved[-1].name).write_bytes(saved[-1].read_bytes()[:3000])
    answer = child("train", broken)
    assert answer.code == 0, answer.err
    assert saved[-1].name in answer.out + answer.err and "Traceback" not in answer.err
    first, second = (read_weights(folder / "weights.safetensors") for folder in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_full_disk(smoke_data: Path, tmp_path: Path) -> None:
    """Files above 100 kB cannot be written: a sentence, no half store, and the same command works
    once there is room.
    """
    store, source = tmp_path / "store", tmp_path / "waymo"
    answer = child(
        "prepare", smoke_data / "waymo", store, "--workers", 1, "--json", file_size=100_000
    )
    answer.refused(str(store))
    assert not (store / "store.json").exists() and not leftovers(store)
    answer = child(
        "simulate",
        "--out",
        source,
        "--segments",
        1,
        "--frames",
        2,
        "--seed",
        1,
        "--workers",
        1,
        file_size=100_000,
    )
    assert answer.code != 0 and answer.out == "" and "Traceback" not in answer.err
    assert [
        line
        for line in answer.err.splitlines()
        if line.startswith("kdlib: ") and str(source) in line
    ]
    assert not [path for path in source.rglob("*") if path.is_file()]
    assert child("prepare", smoke_data / "waymo", store, "--workers", 1).code == 0
    assert Store.open(store).fingerprint == Store.open(smoke_data / "store").fingerprint


def test_disk_errors_are_one_sentence(
    call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(execute, "run_profile", full)
    call("run", "smoke").refused("No space left on device", str(tmp_path / "x"))


def test_json_is_one_object(
    call: Callable[..., Answer], tables: tuple[Path, Path], smoke_data: Path, tmp_path: Path
) -> None:
    for arguments in (
        ("prepare", smoke_data / "waymo", tmp_path / "store", "--workers", 1, "--json"),
        ("evaluate", "--predictions", tables[0], "--ground-truth", tables[1], "--json"),
        ("profile", "cp_pillar_v0.64", "--json"),
    ):
        answer = call(*arguments)
        assert answer.code == 0
        assert isinstance(json.loads(answer.out), dict)
        assert not re.search(r"nan|inf", answer.out.lower().replace("+inf)", ""))
