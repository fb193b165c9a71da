"""Slimming to the first channels: what is kept, that a teacher without use for the rest loses nothing, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdlib import zoo
from kdlib.config import (
    AnchorHeadConfig,
    BackboneConfig,
    GridConfig,
    HeadConfig,
    ModelConfig,
    PillarEncoderConfig,
    VoxelEncoderConfig,
)
from kdlib.errors import ConfigError
from kdlib.kd import slim as module
from kdlib.kd.initialise import initialise
from kdlib.kd.slim import slim
from kdlib.models.detector import build
from kdlib.types import PointBatch

GRID = GridConfig((-3.2, -1.6, -2.0, 3.2, 1.6, 4.0), (0.2, 0.2, 0.15), 5)
PILLARS = replace(GRID, voxel_size=(0.2, 0.2, 6.0))
WIDE, SLIM = 1.0, 0.5


def voxel(width, *, residual=True, anchors=False, levels=(12, 16)):
    filters = (4, 4, 8, 8, 12, 10)
    return ModelConfig(
        name="voxel",
        grid=GRID,
        encoder=VoxelEncoderConfig(filters, width, residual),
        backbone=BackboneConfig((1, 1), (1, 2), (8, 12), (1, 2), levels, width),
        head=AnchorHeadConfig(stride=8) if anchors else HeadConfig(shared_channels=int(8 * width), stride=8),
    )


def pillar(width, *, anchors=False):
    return ModelConfig(
        name="pillar",
        grid=PILLARS,
        encoder=PillarEncoderConfig(filters=(int(8 * width), int(16 * width))),
        backbone=BackboneConfig((1, 1, 1), (1, 2, 2), (8, 12, 8), (1, 2, 4), (8, 4, 12), width),
        head=AnchorHeadConfig() if anchors else HeadConfig(shared_channels=int(8 * width)),
    )


KINDS = {
    "CP-Voxel": (voxel, {}),
    "SECOND": (voxel, {"residual": False, "anchors": True}),
    "CP-Pillar": (pillar, {}),
    "PointPillar": (pillar, {"anchors": True}),
}


def random_model(config, seed=0):
    torch.manual_seed(seed)
    model = build(config).double()
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and value.dim() == 1:
            value.normal_()
        elif name.endswith("num_batches_tracked"):
            value.fill_(5)
    return model


def cloud():
    gen = torch.Generator().manual_seed(0)
    points = (torch.rand(300, 5, generator=gen, dtype=torch.float64) - 0.5) * torch.tensor([6.0, 3.0, 5.5, 1, 1]).double()
    points[:, 2] += 1
    return PointBatch(points, torch.arange(2).repeat_interleave(150), 2, ("a", "b"))


def answer(model):
    (head,) = model(cloud()).heads
    return torch.cat([value.flatten() for value in vars(head).values()])


def silence(teacher, student):
    """Make every normalised channel of the teacher that the student has no room for exactly zero; knows no rule of slimming."""
    norms = dict(student.named_modules())
    silenced = 0
    for name, layer in teacher.named_modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            kept = norms[name].num_features
            with torch.no_grad():
                layer.weight[kept:] = 0
                layer.bias[kept:] = 0
            silenced += layer.num_features - kept
    return silenced


@pytest.mark.parametrize("training", [False, True], ids=["stored statistics", "batch statistics"])
@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_do_nothing_are_not_missed(kind, training):
    """The decisive one: BEV levels, concatenated maps, residual sums and pillar halves all have to be met."""
    make, how = KINDS[kind]
    teacher, student = random_model(make(WIDE, **how)), random_model(make(SLIM, **how), seed=1)
    assert silence(teacher, student) > 20
    report = initialise(student, teacher.state_dict(), "first")
    assert report.copied == report.total == len(student.state_dict())
    with torch.no_grad():
        want = answer(teacher.train(training))
        torch.testing.assert_close(answer(student.train(training)), want, rtol=0, atol=1e-12 * float(want.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_rules_it_would_be_another_network(kind, monkeypatch):
    make, how = KINDS[kind]
    teacher, student = random_model(make(WIDE, **how)), random_model(make(SLIM, **how), seed=1)
    silence(teacher, student)
    fixed = tuple(rule for rule in module.RULES if rule.parts is None)
    monkeypatch.setattr(module, "RULES", fixed)
    initialise(student, teacher.state_dict(), "first")
    with torch.no_grad():
        want = answer(teacher.eval())
        assert (answer(student.eval()) - want).abs().max() > 1e-2 * want.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_width_is_a_copy(kind):
    make, how = KINDS[kind]
    teacher, student = random_model(make(WIDE, **how)), random_model(make(WIDE, **how), seed=1)
    report = initialise(student, teacher.state_dict(), "first")
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())
    assert {row.reason for row in report.rows} == {"copied"}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert not torch.equal(student.dense_head.state_dict().popitem()[1], teacher.dense_head.state_dict().popitem()[1])


def numbered(model):
    """A state dict in which every number is its own position."""
    return {name: torch.arange(value.numel()).view(value.shape) for name, value in model.state_dict().items()}


def kept(value, shape, axis):
    """Which indices of an axis of a numbered tensor are left."""
    stride = 1
    for length in shape[axis + 1 :]:
        stride *= length
    first = value.select(0, 0) if axis else value
    while first.dim() > 1:
        first = first.select(-1, 0) if axis in (0, 1) else first.select(0, 0)
    return (first // stride % shape[axis]).tolist()


PUBLISHED = {
    "cp_voxel_s": (zoo.CP_VOXEL, (*range(128), *range(256, 384)), range(256)),
    "cp_voxel_xs": (zoo.CP_VOXEL, (*range(128), *range(256, 384)), range(192)),
    "cp_voxel_xxs": (zoo.CP_VOXEL_XS, (*range(64), *range(128, 192)), range(128)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_the_published_students_keep(name):
    """Spec 13 item 10: all tensors, their shapes, and the inputs at the two places where channels are composed."""
    source, concatenated, levels = PUBLISHED[name]
    with torch.device("meta"):
        wide, narrow = build(source), build(zoo.model(name))
    teacher = numbered(wide)
    student = narrow.state_dict()
    found = slim(teacher, student)
    assert list(found) == list(student) and len(found) == 279
    assert all(found[key].shape == student[key].shape for key in student)
    shared, first = "dense_head.shared_conv.0.weight", "backbone_2d.blocks.0.1.weight"
    assert kept(found[shared], teacher[shared].shape, 1) == list(concatenated)
    assert kept(found[first], teacher[first].shape, 1) == list(levels)
    sparse = "backbone_3d.conv4.1.conv1.weight"
    width = student[sparse].shape[4]
    assert kept(found[sparse], teacher[sparse].shape, 4) == list(range(width))
    assert kept(found[sparse], teacher[sparse].shape, 0) == list(range(width))
    up = "backbone_2d.deblocks.1.0.weight"
    assert torch.equal(found[up], teacher[up][: student[up].shape[0], : student[up].shape[1]])


def test_a_tiny_net_by_hand():
    teacher = {
        "backbone_2d.blocks.0.1.weight": torch.arange(16.0).view(4, 4, 1, 1),
        "backbone_2d.deblocks.0.0.weight": torch.arange(8.0).view(4, 2, 1, 1),
        "backbone_2d.deblocks.1.0.weight": torch.arange(12.0).view(4, 3, 1, 1),
        "dense_head.shared_conv.0.weight": torch.arange(10.0).view(2, 5, 1, 1),
        "dense_head.shared_conv.0.bias": torch.tensor([7.0, 8.0]),
        "dense_head.heads_list.0.hm.1.weight": torch.arange(6.0).view(3, 2, 1, 1),
        "norm.num_batches_tracked": torch.tensor(9),
    }
    shapes = [(2, 3, 1, 1), (2, 1, 1, 1), (2, 2, 1, 1), (1, 3, 1, 1), (1,), (3, 1, 1, 1), ()]
    student = {name: torch.zeros(shape) for name, shape in zip(teacher, shapes)}
    found = [value.flatten().tolist() for value in slim(teacher, student).values()]
    assert found == [[0, 1, 2, 4, 5, 6], [0, 2], [0, 1, 3, 4], [0, 2, 3], [7], [0, 2, 4], [9]]


def states(wide=None, narrow=None):
    return build(wide or voxel(WIDE)).state_dict(), build(narrow or voxel(SLIM)).state_dict()


def test_what_differs_in_more_than_width_is_refused():
    teacher, student = states()
    with pytest.raises(ConfigError, match=r"conv_input\.0\.weight: axis \d has \d+ in the student, \d+ .* at least as wide"):
        slim(student, teacher)
    with pytest.raises(ConfigError, match=r"teacher has no tensor 'extra'"):
        slim(teacher, {**student, "extra": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"student has no tensor 'extra'"):
        slim({**teacher, "extra": torch.zeros(1)}, student)
    config = voxel(SLIM)
    four = replace(config, encoder=replace(config.encoder, point_features=4))
    with pytest.raises(ConfigError, match=r"conv_input\.0\.weight: axis 4 has 4 in the student, 5 in the teacher; must be equal"):
        slim(*states(narrow=four))
    one = replace(config, class_names=("Vehicle",), head=replace(config.head, heads=(("Vehicle",),)))
    with pytest.raises(ConfigError, match=r"hm\.1\.weight: axis 0 has 1 in the student, 3 in the teacher; must be equal"):
        slim(*states(narrow=one))
    flat = replace(config, grid=replace(GRID, voxel_size=(0.2, 0.2, 0.25)))
    with pytest.raises(ConfigError, match=r"BEV map has 1\.0 levels in the student, 2\.0 in the teacher"):
        slim(*states(narrow=flat))
    uneven = voxel(SLIM, levels=(28, 20))
    with pytest.raises(ConfigError, match=r"axis 1 has 14 in the student, 12 in the teacher; .* at least as wide"):
        slim(*states(narrow=uneven))
    kernel = dict(student)
    kernel["backbone_2d.blocks.0.1.weight"] = torch.zeros(4, 10, 1, 1)
    with pytest.raises(ConfigError, match=r"blocks\.0\.1\.weight: axis 2 has 1 in the student, 3 in the teacher; must be equal"):
        slim(teacher, kernel)


def test_counters_may_be_missing():
    teacher, student = states()
    bare = {name: value for name, value in teacher.items() if not name.endswith(("global_step", "num_batches_tracked"))}
    found = slim(bare, student)
    assert set(found) == set(bare) and all(torch.equal(value, slim(teacher, student)[name]) for name, value in found.items())


def test_the_teacher_stays_as_it_is():
    teacher, student = random_model(voxel(WIDE)), random_model(voxel(SLIM), seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    report = initialise(student, teacher.state_dict(), "first")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert "of them by their first channels" in str(report).splitlines()[0] and len(str(report).splitlines()) == 1
