from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlib.config import FeatureKDConfig, KDConfig, VoxelEncoderConfig
from kdlib.kd.adapter import Adapter, feature_width, make_adapter
from kdlib.kd.objective import Distillation
from kdlib.models.build import build

FORMS = ("map", "foreground", "rois", "attention", "affinity", "local")


def recipe(**settings):
    return KDConfig(
        logit=None, label=None, feature=FeatureKDConfig(**settings), teacher_norm="running"
    )


def test_a_1x1_adapter_is_a_matrix_in_every_cell():
    adapter = Adapter(3, 5, 1, seed=0)
    with torch.no_grad():
        adapter.bias.copy_(torch.arange(5.0))
    maps, edges = torch.randn(2, 3, 4, 6), torch.randn(7, 2, 3)
    matrix = adapter.weight[:, :, 0, 0]
    assert torch.allclose(
        adapter(maps),
        torch.einsum("oi,bihw->bohw", matrix, maps) + torch.arange(5.0)[:, None, None],
        atol=1e-5,
    )
    assert torch.allclose(adapter(edges), edges @ matrix.T + torch.arange(5.0), atol=1e-5)
    assert adapter(edges[:0]).shape == (0, 2, 5)


def test_a_3x3_adapter_sees_neighbours_and_keeps_the_grid():
    adapter = Adapter(1, 1, 3, seed=0)
    one = torch.zeros(1, 1, 5, 5)
    one[0, 0, 2, 3] = 1.0
    out = adapter(one)
    assert out.shape == one.shape and torch.allclose(
        out[0, 0, 1:4, 2:5], adapter.weight[0, 0].flip(0, 1)
    )
    assert out[0, 0, :, :2].abs().max() == 0


def test_draws_are_kaiming_reproducible_and_private():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (Adapter(64, 128, 3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)
    assert (
        first.weight.std().item() == pytest.approx((64 * 9) ** -0.5, rel=0.02)
        and first.bias.abs().max() == 0
    )


def test_gradients():
    adapter = Adapter(2, 3, 3, seed=0).double()
    maps = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def through(maps, weight, bias):
        return torch.func.functional_call(adapter, {"weight": weight, "bias": bias}, (maps,))

    assert torch.autograd.gradcheck(through, (maps, adapter.weight, adapter.bias))


@pytest.mark.parametrize("form", FORMS)
def test_widths_are_those_of_what_is_compared(pair, form):
    student, teacher = pair()
    wide = build(
        replace(teacher.config, backbone=replace(teacher.config.backbone, upsample_filters=(8, 16)))
    )
    wide = build(replace(wide.config, encoder=replace(wide.config.encoder, filters=(8, 10))))
    adapter = make_adapter(student, wide, FeatureKDConfig(form), seed=1)
    width = 2 * 10 if form == "local" else 8 + 16
    assert feature_width(wide, form) == width and adapter.weight.shape == (width, 16, 1, 1)
    assert isinstance(
        make_adapter(student, student, FeatureKDConfig(form, adapter="none"), seed=1), nn.Identity
    )


def test_edges_of_voxels_have_the_last_stages_width_doubled(pair):
    config = pair()[0].config
    encoder = VoxelEncoderConfig((4, 4, 4, 8, 8, 16), width=0.5)
    voxel = replace(
        config,
        encoder=encoder,
        grid=replace(config.grid, voxel_size=(0.16, 0.16, 0.15)),
        backbone=replace(config.backbone, strides=(1, 2)),
        head=replace(config.head, stride=8),
    )
    assert feature_width(build(voxel), "local") == 16


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["none", "1x1"])
def test_it_trains_with_the_student_and_is_no_part_of_it(pair, batch, form, kind):
    student, teacher = pair()
    objective = Distillation(student, teacher, recipe(form=form, adapter=kind)).train()
    own, before = (
        set(student.state_dict()),
        {name: value.clone() for name, value in teacher.state_dict().items()},
    )
    extra = set() if kind == "none" else {"adapter.weight", "adapter.bias"}
    assert set(objective.state_dict()) == {f"student.{name}" for name in own} | extra
    assert {name for name, _ in objective.named_parameters()} == {
        f"student.{n}" for n, _ in student.named_parameters()
    } | extra
    terms = objective(batch())
    terms.parts["kd_feature"].backward()
    moved = [
        name
        for name, p in objective.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    ]
    assert extra <= set(moved) and any(name.startswith("student.vfe") for name in moved)
    assert not any("dense_head" in name for name in moved)  # a feature says nothing to the head
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_it_follows_the_student_between_types_and_modes(pair, batch):
    objective = Distillation(*pair(), recipe(form="map")).double()
    assert objective.adapter.weight.dtype == torch.float64
    objective.train()
    assert not objective.teacher.training and not objective.teacher.model.training


def test_the_seed_of_a_run_draws_it(pair):
    first, again, other = (
        Distillation(*pair(), recipe(form="map"), seed=seed).adapter.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_map_of_another_grid_is_adapted_on_its_own(pair, batch):
    """The term of the whole objective by hand: 3x3 on the student's cells, then bilinear to the
    teacher's, then the mean.
    """
    student, teacher = pair()
    objective = Distillation(student.eval(), teacher, recipe(form="map", adapter="3x3", weight=3.0))
    data = batch()
    with torch.no_grad():
        ours = F.conv2d(student(data.points).bev, objective.adapter.weight, padding=1)
        theirs = teacher(data.points).bev
        apart = F.interpolate(ours, size=(32, 32), mode="bilinear", align_corners=False) - theirs
    assert objective(data).parts["kd_feature"].item() == pytest.approx(
        3 * apart.square().mean().item(), rel=1e-5
    )
