"""Teachers from foreign files, and what cannot be narrowed: the message names the tensor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from narrow_models import GRID, KINDS, WAYS_OF_LAYOUT, WIDTHS, numbered, random_model, voxel

from kdlib.errors import ConfigError
from kdlib.kd.initialise import initialise
from kdlib.kd.remap import WAYS, remap
from kdlib.models.build import build
from kdlib.models.weights import save_weights
from kdlib.tools.checkpoints import foreign

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- foreign checkpoints


@pytest.mark.parametrize("layout", WAYS_OF_LAYOUT)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["CP-Voxel", "SECOND"])
def test_b03_every_width_from_every_layout(kind, width, layout, tmp_path):
    """The original guessed the layout from the student's shapes: narrowing a 3D backbone of spconv
    2 raised (B3).
    """
    teacher = random_model(KINDS[kind](1.0)).float()
    save_weights(tmp_path / "ours.safetensors", teacher, {})
    foreign.export_checkpoint(
        tmp_path / "ours.safetensors", teacher, tmp_path / "theirs.pth", layout=layout
    )
    student = build(KINDS[kind](width)).state_dict()
    for tag in (layout, None):  # given, then to be found
        imported = foreign.import_checkpoint(
            tmp_path / "theirs.pth", build(KINDS[kind](1.0)), layout=tag
        )
        for how in ("first", "bn_scale", "l1"):
            found, want = (
                remap(imported.tensors, student, how).tensors,
                remap(teacher.state_dict(), student, how).tensors,
            )
            assert all(
                found[name].shape == student[name].shape and torch.equal(found[name], want[name])
                for name in student
            )


def test_d10_what_is_stored_is_told_from_the_teacher_not_from_the_student():
    """Of a student of a quarter of the width nothing but its shapes is looked at: the teacher's
    kernels keep their axes.
    """
    teacher = numbered(build(voxel(1.0)))
    name = "backbone_3d.conv4.0.0.weight"
    for width in WIDTHS:
        student = build(voxel(width)).state_dict()
        out, inputs = student[name].shape[0], student[name].shape[4]
        assert torch.equal(remap(teacher, student).tensors[name], teacher[name][:out, ..., :inputs])


# ---- what is refused


def states(wide=None, narrow=None):
    return build(wide or voxel(1.0)).state_dict(), build(narrow or voxel(0.5)).state_dict()


@pytest.mark.parametrize("how", WAYS)
def test_what_differs_in_more_than_width_is_refused(how):
    teacher, student = states()
    with pytest.raises(
        ConfigError,
        match=(
            r"conv_input\.0\.weight: axis \d has \d+ in the " r"student, \d+ .* at least as wide"
        ),
    ):
        remap(student, teacher, how)
    with pytest.raises(ConfigError, match=r"teacher has no tensor 'extra'"):
        remap(teacher, {**student, "extra": torch.zeros(1)}, how)
    with pytest.raises(ConfigError, match=r"student has no tensor 'extra'"):
        remap({**teacher, "extra": torch.zeros(1)}, student, how)
    with pytest.raises(ConfigError, match=r"extra: nothing says what its axes are made of"):
        remap({**teacher, "extra": torch.zeros(1)}, {**student, "extra": torch.zeros(1)}, how)
    config = voxel(0.5)
    four = replace(config, encoder=replace(config.encoder, point_features=4))
    one = replace(
        config, class_names=("Vehicle",), head=replace(config.head, heads=(("Vehicle",),))
    )
    for narrow, where in (
        (four, r"conv_input\.0\.weight: axis 4 has 4 in the student, 5"),
        (one, r"hm\.1\.weight: axis 0 has 1 in the student, 3"),
    ):
        with pytest.raises(
            ConfigError, match=rf"{where} in the teacher; its entries mean something"
        ):
            remap(*states(narrow=narrow), how)
    flat = replace(config, grid=replace(GRID, voxel_size=(0.2, 0.2, 0.25)))
    with pytest.raises(
        ConfigError,
        match=(
            r"blocks\.0\.1\.weight: the BEV map has 1 levels in " r"the student, 2 in the teacher"
        ),
    ):
        remap(*states(narrow=flat), how)
    with pytest.raises(
        ConfigError,
        match=(r"axis 1 has 14 in the student, 12 in the teacher; .* " r"at least as wide"),
    ):
        remap(*states(narrow=voxel(0.5, levels=(28, 20))), how)


def test_tensors_that_do_not_fit_their_own_network_are_named():
    teacher, student = states()
    odd = {**student, "backbone_2d.blocks.0.1.weight": torch.zeros(4, 16, 1, 1)}
    with pytest.raises(
        ConfigError,
        match=(
            r"blocks\.0\.1\.weight: axis 2 has 1 in the student, 3 "
            r"in the teacher; its entries mean something"
        ),
    ):
        remap(teacher, odd)
    odd = {**student, "backbone_2d.blocks.0.2.bias": torch.zeros(3)}
    with pytest.raises(
        ConfigError, match=(r"blocks\.0\.2\.bias: axis 0 has 3, blocks\.0\.1 " r"together 4")
    ):
        remap(teacher, odd)
    odd = {**student, "backbone_2d.blocks.0.2.bias": torch.zeros(4, 1)}
    with pytest.raises(ConfigError, match=r"blocks\.0\.2\.bias: student \(4, 1\), teacher \(8,\)"):
        remap(teacher, odd)
    with pytest.raises(ConfigError, match=r"'matching' narrows nothing; use one of first, "):
        remap(teacher, student, "matching")


def test_counters_may_be_missing():
    teacher, student = states()
    bare = {
        name: value
        for name, value in teacher.items()
        if not name.endswith(("global_step", "num_batches_tracked"))
    }
    found, want = remap(bare, student).tensors, remap(teacher, student).tensors
    assert set(found) == set(bare) and all(
        torch.equal(value, want[name]) for name, value in found.items()
    )


@pytest.mark.parametrize("how", WAYS)
def test_the_teacher_stays_as_it_is(how):
    teacher, student = random_model(voxel(1.0)), random_model(voxel(0.5), seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    initialise(student, teacher.state_dict(), how)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
