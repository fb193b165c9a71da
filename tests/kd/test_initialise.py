"""Initialisation: what is copied under which way, the table that says so, the command, and a
training that starts from it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch import nn

from kdlib import cli, zoo
from kdlib.config import Initialisation, TrainConfig
from kdlib.errors import ConfigError, DataError
from kdlib.kd.initialise import initialise
from kdlib.kd.remap import WAYS, remap
from kdlib.lab import pipeline
from kdlib.lab.trained import TrainedWeights
from kdlib.models.build import build
from kdlib.models.weights import load_weights, read_card, read_weights, save_weights
from kdlib.tools.checkpoints import foreign
from kdlib.tools.checkpoints.convert import initialise_file
from kdlib.training.job import TeacherSource, TrainJob
from kdlib.training.loop import build_objective

EVERY_WAY = get_args(Initialisation)
WIDE, NARROW = zoo.CP_VOXEL_DEMO, zoo.CP_VOXEL_DEMO_XS


def net(middle, seed, last=2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, middle), nn.Linear(middle, last)
    )


def trained(config, seed=0):
    """Build a model whose channels differ in importance."""
    torch.manual_seed(seed)
    model = build(config)
    for value in model.state_dict().values():
        if value.dim() == 1 and value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def teacher(tmp_path):
    """Weights of the voxel demo's teacher."""
    path = tmp_path / "teacher.safetensors"
    save_weights(path, trained(WIDE), {"model": WIDE.name})
    return path


# ---- by name and shape


def test_a_twin_is_copied_whole_and_independent():
    student, teacher = net(5, 0), net(5, 1)
    report = initialise(student, teacher.state_dict(), "matching")
    assert report.copied == report.total == len(student.state_dict())
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in student.state_dict().items())
    before = teacher[0].weight.clone()
    with torch.no_grad():
        student[0].weight.add_(1)
    assert torch.equal(teacher[0].weight, before)


def test_only_matching_tensors_are_copied_and_the_rest_is_listed():
    student, teacher = net(5, 0), net(6, 1)
    own = {k: v.clone() for k, v in student.state_dict().items()}
    given = {**teacher.state_dict(), "extra.weight": torch.zeros(2)}
    del given["3.bias"]
    report = initialise(student, given, "matching")
    rows = {row.name: row for row in report.rows}
    assert rows["0.weight"].reason == "copied" and torch.equal(student[0].weight, teacher[0].weight)
    assert rows["2.weight"].reason == "shapes differ" and torch.equal(
        student[2].weight, own["2.weight"]
    )
    assert (
        rows["3.bias"].reason == "only in the student"
        and rows["extra.weight"].reason == "only in the teacher"
    )
    assert str(report).startswith(
        f"initialisation 'matching': {report.copied} of {report.total} student tensors copied"
    )
    assert "2.weight: shapes differ (student (5, 4), teacher (6, 4))" in str(report)


def test_none_copies_nothing():
    student = net(5, 0)
    own = {k: v.clone() for k, v in student.state_dict().items()}
    report = initialise(student, net(5, 1).state_dict(), "none")
    assert (
        report.copied == 0
        and {row.reason for row in report.rows} == {"not asked for"}
        and "\n" not in str(report)
    )
    assert all(torch.equal(v, own[k]) for k, v in student.state_dict().items())


def test_nothing_to_copy_is_an_error_even_if_a_counter_fits():
    teacher = {"1.num_batches_tracked": torch.tensor(3), "other.weight": torch.zeros(2)}
    with pytest.raises(ConfigError, match="none of the teacher's 2 tensors"):
        initialise(net(5, 0), teacher, "matching")


def test_unknown_way_is_an_error():
    with pytest.raises(
        ConfigError, match="unknown initialisation 'fnav9'; use one of none, matching, first"
    ):
        initialise(net(5, 0), {}, "fnav9")


# ---- by channels


def test_every_way_of_choosing_channels_is_a_setting():
    assert set(WAYS) | {"none", "matching"} == set(EVERY_WAY)


@pytest.mark.parametrize("how", WAYS)
def test_the_student_holds_what_remap_gives_and_the_report_says_so(how):
    wide, student = trained(WIDE).state_dict(), build(NARROW)
    found = remap(wide, student.state_dict(), how)
    report = initialise(student, wide, how)
    assert all(
        torch.equal(value, found.tensors[name]) for name, value in student.state_dict().items()
    )
    assert report.copied == report.total == 279 and report.groups == found.kept
    assert str(report) == report.summary()
    assert report.summary() == (
        f"initialisation '{how}': 279 of 279 student tensors copied from the teacher, 232 narrowed"
    )


def test_a_way_that_fails_leaves_the_student_as_it_is():
    student = trained(WIDE)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(ConfigError, match="at least as wide"):
        initialise(student, build(NARROW).state_dict(), "first")
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


# ---- the table


def test_the_table_has_a_line_for_every_tensor():
    lines = initialise_file(NARROW.name, WIDE.name).table().splitlines()
    assert len(lines) == 279 + 2
    cells = {line.split("  ")[0]: line for line in lines}
    composed = cells["backbone_2d.blocks.0.1.weight"]
    assert (
        "32 x 128 x 3 x 3" in composed
        and "16 x 64 x 3 x 3" in composed
        and " narrowed " in composed
    )
    assert composed.endswith(
        "axis 0: first 16 of 32 (blocks.0.1), axis 1: first 64 of 128 (conv_out x 2 levels)"
    )
    joined = cells["dense_head.shared_conv.0.weight"]
    assert joined.endswith("axis 1: 0-31 64-95, 64 of 128 (deblocks.0 + deblocks.1)")
    assert "(conv2.0), axis 4: first 4 of 8 (conv_input)" in cells["backbone_3d.conv2.0.0.weight"]
    assert cells["global_step"].split() == ["global_step", "1", "1", "copied"]


def test_the_table_as_json():
    values = initialise_file(NARROW.name, WIDE.name, how="first").to_dict()
    assert (values["how"], values["copied"], values["total"], len(values["tensors"])) == (
        "first",
        279,
        279,
        279,
    )
    row = next(row for row in values["tensors"] if row["name"] == "dense_head.shared_conv.0.weight")
    assert (row["teacher"], row["student"], row["reason"]) == (
        [16, 128, 3, 3],
        [8, 64, 3, 3],
        "narrowed",
    )
    assert [axis["groups"] for axis in row["axes"]] == [
        ["shared_conv"],
        ["deblocks.0", "deblocks.1"],
    ]
    assert row["axes"][1]["kept"] == 64 and len(row["axes"][1]["digest"]) == 6
    assert (
        values["groups"]["deblocks.1"] == list(range(32))
        and json.loads(json.dumps(values)) == values
    )


def test_a_dry_run_draws_nothing_from_torchs_generator():
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    initialise_file(NARROW.name, WIDE.name)
    assert torch.equal(torch.rand(3), want)


# ---- the command


@pytest.fixture
def call(monkeypatch, capsys):
    """Run ``kdlib initialise ARGUMENTS``; return exit code, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kdlib", "initialise", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


def test_command_prints_a_table_and_writes_nothing(call, tmp_path):
    code, out, _ = call("cp_voxel_demo_xs", "--from", "cp_voxel_demo")
    assert code == 0 and "fresh weights, only shapes count" in out and not list(tmp_path.iterdir())
    code, out, _ = call("cp_voxel_demo_xs", "--from", "cp_voxel_demo", "--json")
    assert code == 0 and json.loads(out)["copied"] == 279


@pytest.mark.parametrize("how", ["first", "l1", "matching"])
def test_command_writes_the_student(call, teacher, tmp_path, how):
    target = tmp_path / "student.safetensors"
    code, out, _ = call(
        NARROW.name, "--from", WIDE.name, "--weights", teacher, "--how", how, "--out", target
    )
    assert code == 0 and out.splitlines()[-1] == f"written to {target}"
    student = build(NARROW)
    load_weights(target, student)
    if how != "matching":
        want = remap(read_weights(teacher), student.state_dict(), how).tensors
        assert all(torch.equal(value, want[name]) for name, value in student.state_dict().items())
    first = target.read_bytes()
    call(NARROW.name, "--from", WIDE.name, "--weights", teacher, "--how", how, "--out", target)
    assert target.read_bytes() == first  # fresh tensors of 'matching' included
    card = read_card(target)
    assert (card["model"], card["initialised_from"], card["initialisation"]) == (
        NARROW.name,
        WIDE.name,
        how,
    )
    assert card["source"] == "teacher.safetensors" and len(card["source_sha256"]) == 64


@pytest.mark.parametrize("layout", ("spconv2", "spconv1", "native"))
def test_b03_command_takes_foreign_checkpoints_of_every_layout(call, teacher, tmp_path, layout):
    theirs = tmp_path / "theirs.pth"
    foreign.export_checkpoint(teacher, build(WIDE), theirs, layout=layout)
    for tag in ([], ["--layout", layout]):
        target = tmp_path / f"student{len(tag)}.safetensors"
        assert (
            call(
                NARROW.name,
                "--from",
                WIDE.name,
                "--weights",
                theirs,
                "--how",
                "bn_scale",
                "--out",
                target,
                *tag,
            )[0]
            == 0
        )
        want = remap(read_weights(teacher), build(NARROW).state_dict(), "bn_scale").tensors
        assert all(torch.equal(value, want[name]) for name, value in read_weights(target).items())


def test_command_refuses_in_one_sentence(call, teacher, tmp_path):
    out, pair = tmp_path / "out.safetensors", (NARROW.name, "--from", WIDE.name)
    cases = [
        ((*pair, "--out", out), "--weights"),
        ((*pair, "--weights", teacher, "--out", teacher), "holds the teacher's weights"),
        ((*pair, "--how", "best"), "bn_scale"),
        ((*pair, "--weights", teacher, "--layout", "spconv3", "--out", out), "spconv1"),
        ((*pair, "--weights", tmp_path / "none.pth", "--out", out), "none.pth does not exist"),
        (("cp_voxel_demo_xs", "--from", "cp_pillar_demo"), "has no tensor"),
        (("cp_voxel_demo", "--from", "cp_voxel_demo_xs"), "at least as wide"),
        (("nobody", "--from", "cp_voxel_demo"), "nobody"),
    ]
    for arguments, words in cases:
        code, printed, err = call(*arguments)
        assert (
            code == 2
            and printed == ""
            and err.startswith("kdlib: ")
            and err.count("\n") == 1
            and words in err
        ), arguments
    assert not out.exists()
    with pytest.raises(DataError, match="does not fit the model"):
        initialise_file(NARROW.name, NARROW.name, teacher)


# ---- a training that starts from it


@pytest.mark.parametrize("how", EVERY_WAY)
@pytest.mark.parametrize("given", [True, False], ids=["from a file", "from the teacher"])
def test_a_training_starts_by_every_way(how, given, teacher, capsys):
    kd = replace(zoo.pair("cp_voxel_demo_xs_sparsekd").kd, initialisation=how)
    job = TrainJob(
        NARROW,
        TrainConfig(),
        "store",
        kd=kd,
        teacher=TeacherSource(WIDE, str(teacher)),
        init_weights=str(teacher) if given else None,
        initialisation=how,
    )
    objective = build_objective(job)
    assert f"initialisation '{how}'" in capsys.readouterr().out
    if how in WAYS:
        want = remap(read_weights(teacher), build(NARROW).state_dict(), how).tensors
        assert all(
            torch.equal(value, want[name]) for name, value in objective.student.state_dict().items()
        )


@pytest.mark.parametrize("how", ["none", "matching", "first"])
@pytest.mark.parametrize("pair", zoo.PAIRS)
def test_starting_weights_of_every_pair(pair, how, monkeypatch):
    """Only XXS starts from another model than its teacher, which is trained for it unless nothing
    is taken from it.
    """
    recipe = zoo.pair(pair)
    recipe = replace(recipe, kd=replace(recipe.kd, initialisation=how))
    profile = SimpleNamespace(pair=recipe, kd=recipe.kd, training_split="training")
    run = SimpleNamespace(profile=profile, folder=Path("run"), data=Path("data"))
    launched = []

    def launch(_run, jobs):
        launched.extend(job.model for job in jobs.values())
        return dict.fromkeys(jobs, SimpleNamespace(weights=Path("start.safetensors")))

    monkeypatch.setattr(pipeline, "launch_all", launch)
    given = TrainedWeights(recipe.teacher, Path("teacher.safetensors"), "scratch")
    found = pipeline.starting_weights(run, given, TrainConfig())
    other = pair == "cp_voxel_xxs_sparsekd" and how != "none"
    assert found == Path("start.safetensors" if other else "teacher.safetensors")
    assert launched == ([zoo.CP_VOXEL_XS] if other else [])
