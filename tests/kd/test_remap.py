"""Narrowing a teacher: equal width changes nothing, channels that do nothing are not missed, what
does not fit is named.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdlib import zoo
from kdlib.config import (
    AnchorHeadConfig,
    BackboneConfig,
    GridConfig,
    HeadConfig,
    ModelConfig,
    PillarEncoderConfig,
    TwoStageConfig,
    VoxelEncoderConfig,
)
from kdlib.errors import ConfigError
from kdlib.kd import remap as module
from kdlib.kd.channels import layers
from kdlib.kd.initialise import initialise
from kdlib.kd.remap import WAYS, Way, remap, spell
from kdlib.models.build import build
from kdlib.models.weights import save_weights
from kdlib.tools.checkpoints import foreign
from kdlib.types import PointBatch

GRID = GridConfig((-3.2, -1.6, -2.0, 3.2, 1.6, 4.0), (0.2, 0.2, 0.15), 5)
PILLARS = replace(GRID, voxel_size=(0.2, 0.2, 6.0))
WIDTHS = (1.0, 0.75, 0.5, 0.25)
RIGHT = ("first", "bn_scale", "bn_scale_signed", "l1")
WAYS_OF_LAYOUT = ("spconv2", "spconv1", "native")


def voxel(width, *, residual=True, anchors=False, levels=(12, 16)):
    filters = (8, 8, 8, 12, 12, 16)
    return ModelConfig(
        name="voxel",
        grid=GRID,
        encoder=VoxelEncoderConfig(filters, width, residual),
        backbone=BackboneConfig((1, 1), (1, 2), (8, 12), (1, 2), levels, width),
        head=AnchorHeadConfig(stride=8)
        if anchors
        else HeadConfig(shared_channels=int(8 * width), stride=8),
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
    "CP-Voxel": voxel,
    "SECOND": lambda width: voxel(width, residual=False, anchors=True),
    "CP-Pillar": pillar,
    "PointPillar": lambda width: pillar(width, anchors=True),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The models are so small that threads only wait for each other, for seconds if other work
    holds the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


every_kind = pytest.mark.parametrize("kind", KINDS)
every_right_way = pytest.mark.parametrize("how", RIGHT)


def random_model(config, seed=0):
    """Build a model in which no channel is like another: random scales, shifts and statistics,
    too.
    """
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


def positive_scales(model):
    """Make every norm's scale positive, so that a dead one is the least by sign, too."""
    with torch.no_grad():
        for layer in norms(model).values():
            layer.weight.abs_().add_(0.01)
    return model


def cloud(x=6.0, y=3.0):
    gen = torch.Generator().manual_seed(0)
    points = (torch.rand(300, 5, generator=gen, dtype=torch.float64) - 0.5) * torch.tensor(
        [x, y, 5.5, 1, 1]
    ).double()
    points[:, 2] += 1
    return PointBatch(points, torch.arange(2).repeat_interleave(150), 2, ("a", "b"))


def answer(model, points=None):
    (head,) = model(points or cloud()).heads
    return torch.cat([value.flatten() for value in vars(head).values()])


def norms(model):
    return {
        n: layer
        for n, layer in model.named_modules()
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)
    }


def silence(teacher, student, *, anywhere):
    """Make every channel of the teacher that the student has no room for exactly zero, and the
    weights that lead to it.

    It knows no rule of narrowing but one: where maps are added, the same channels must be silent in
    all of them.
    """
    rooms, tied, silenced = norms(student), {}, 0
    convolutions = {layer.norm: layer for layer in layers(teacher.state_dict())}
    tensors = teacher.state_dict()
    for name, norm in norms(teacher).items():
        kept, many = rooms[name].num_features, norm.num_features
        stage = name.removeprefix("backbone_3d.").partition(".")[0].replace("conv_input", "conv1")
        sums = (
            name.endswith(".bn2")
            or name == "backbone_3d.conv_input.1"
            or (stage in "conv2 conv3 conv4" and ".0.1" in name)
        )
        order = torch.randperm(many) if anywhere else torch.arange(many)
        dead = (
            tied.setdefault(stage, order) if sums and name.startswith("backbone_3d") else order
        )[kept:]
        layer = convolutions[name]
        weight = tensors[layer.weight]
        with torch.no_grad():
            norm.weight[dead] = 0
            norm.bias[dead] = 0
            weight.index_fill_(layer.axes(weight.dim())[0], dead, 0)
        silenced += len(dead)
    return silenced


def same(found, want):
    torch.testing.assert_close(found, want, rtol=0, atol=1e-11 * float(want.abs().max()))


# ---- equal width


@every_kind
def test_first_of_equal_width_is_a_copy(kind):
    teacher, student = random_model(KINDS[kind](1.0)), random_model(KINDS[kind](1.0), seed=1)
    report = initialise(student, teacher.state_dict(), "first")
    assert all(
        torch.equal(value, student.state_dict()[name])
        for name, value in teacher.state_dict().items()
    )
    assert {row.reason for row in report.rows} == {"copied"}
    with torch.no_grad():
        assert torch.equal(answer(student.eval()), answer(teacher.eval()))
        for parameter in student.parameters():
            parameter.add_(1)
    assert not torch.equal(
        student.dense_head.state_dict().popitem()[1], teacher.dense_head.state_dict().popitem()[1]
    )


@pytest.mark.parametrize("how", RIGHT[1:])
@every_kind
def test_equal_width_is_the_same_network_reordered(kind, how):
    """One axis that does not follow its group would change every answer."""
    teacher, student = random_model(KINDS[kind](1.0)), random_model(KINDS[kind](1.0), seed=1)
    report = initialise(student, teacher.state_dict(), how)
    reordered = sum(row.reason == "channels reordered" for row in report.rows)
    assert reordered > 0.5 * report.total
    assert report.summary().endswith(f"from the teacher, {reordered} channels reordered")
    with torch.no_grad():
        for training in (False, True):  # stored statistics, then those of the batch
            same(answer(student.train(training)), answer(teacher.train(training)))


@pytest.mark.parametrize("name", ["cp_pillar_demo", "cp_voxel_demo"])
def test_width_1_of_the_demos_models_answers_alike(name):
    """Pains 11: the whole models, in the precision they run in."""
    teacher = random_model(zoo.model(name)).float().eval()
    points = cloud(24.0, 24.0)
    points = replace(points, points=points.points.float())
    with torch.no_grad():
        want = answer(teacher, points)
        for how in ("first", "bn_scale", "l1"):
            student = random_model(zoo.model(name), seed=1).float().eval()
            initialise(student, teacher.state_dict(), how)
            found = answer(student, points)
            assert torch.equal(found, want) == (how == "first")
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


# ---- channels that do nothing


@every_right_way
@every_kind
def test_channels_that_do_nothing_are_not_missed(kind, how):
    """The decisive one: BEV levels, joined maps, residual sums and pillar halves all have to be
    met.
    """
    teacher, student = (
        positive_scales(random_model(KINDS[kind](1.0))),
        random_model(KINDS[kind](0.5), seed=1),
    )
    assert silence(teacher, student, anywhere=how != "first") > 20
    report = initialise(student, teacher.state_dict(), how)
    assert report.copied == report.total == len(student.state_dict())
    with torch.no_grad():
        for training in (False, True):  # stored statistics, then those of the batch
            same(answer(student.train(training)), answer(teacher.train(training)))


@pytest.mark.parametrize("width", WIDTHS)
@every_right_way
@pytest.mark.parametrize("kind", ["CP-Voxel", "CP-Pillar"])
def test_at_every_width(kind, how, width):
    teacher, student = (
        positive_scales(random_model(KINDS[kind](1.0))),
        random_model(KINDS[kind](width), seed=1),
    )
    silence(teacher, student, anywhere=how != "first")
    found = remap(teacher.state_dict(), student.state_dict(), how)
    assert {n: v.shape for n, v in found.tensors.items()} == {
        n: v.shape for n, v in student.state_dict().items()
    }
    initialise(student, teacher.state_dict(), how)
    with torch.no_grad():
        same(answer(student.eval()), answer(teacher.eval()))


def uneven(kind, draw):
    """Draw a student with a width of its own for every group a configuration can set."""
    wide = KINDS[kind](1.0)
    some = lambda filters: tuple(draw(st.integers(1, f)) for f in filters)  # noqa: E731
    backbone = replace(
        wide.backbone,
        filters=some(wide.backbone.filters),
        upsample_filters=some(wide.backbone.upsample_filters),
    )
    head = (
        wide.head
        if kind in ("SECOND", "PointPillar")
        else replace(wide.head, shared_channels=draw(st.integers(1, 8)))
    )
    if "Pillar" in kind:
        filters = (2 * draw(st.integers(1, 4)), draw(st.integers(1, 16)))
        return replace(
            wide, encoder=PillarEncoderConfig(filters=filters), backbone=backbone, head=head
        )
    filters = some(wide.encoder.filters)
    filters = (filters[0], filters[0], *filters[2:]) if wide.encoder.residual else filters
    return replace(
        wide, encoder=replace(wide.encoder, filters=filters), backbone=backbone, head=head
    )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    data=st.data(),
    kind=st.sampled_from(list(KINDS)),
    how=st.sampled_from(RIGHT),
    seed=st.integers(0, 99),
)
def test_a_width_of_its_own_for_every_group(data, kind, how, seed):
    teacher = positive_scales(random_model(KINDS[kind](1.0), seed))
    student = random_model(uneven(kind, data.draw), seed + 1)
    silence(teacher, student, anywhere=how != "first")
    initialise(student, teacher.state_dict(), how)
    with torch.no_grad():
        same(answer(student.eval()), answer(teacher.eval()))


@pytest.mark.parametrize("how", ["first_naive", "first_legacy", "bn_scale_legacy", "l1_legacy"])
def test_d09_d11_the_faulty_ways_are_other_networks(how):
    """The same teacher, the same dead channels: the ablations must not be right by accident."""
    teacher, student = positive_scales(random_model(voxel(1.0))), random_model(voxel(0.5), seed=1)
    silence(teacher, student, anywhere=not how.startswith("first"))
    initialise(student, teacher.state_dict(), how)
    with torch.no_grad():
        want, found = answer(teacher.train()), answer(student.train())
        off = float((found - want).abs().max() / want.abs().max())
    assert off > 0.05


# ---- which channels


@pytest.mark.parametrize("how", WAYS)
def test_d08_every_way_gives_every_tensor(how):
    """The original's FNAV1 and BN_SCALE raised at once."""
    teacher, student = random_model(voxel(1.0)).state_dict(), build(voxel(0.75)).state_dict()
    found = remap(teacher, student, how).tensors
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in student.items()
    }


@pytest.mark.parametrize("how", ["bn_scale", "bn_scale_signed"])
def test_b04_scales_decide_in_descending_order(how):
    """The original's BN_SCALE raised for want of an argument."""
    teacher = random_model(pillar(1.0)).state_dict()
    scale = teacher["backbone_2d.blocks.1.2.weight"]
    kept = remap(teacher, build(pillar(0.5)).state_dict(), how).kept["blocks.1.1"]
    scores = scale.abs() if how == "bn_scale" else scale
    assert list(kept) == scores.argsort(descending=True)[:6].tolist()
    assert set(kept) != set(
        (scale if how == "bn_scale" else scale.abs()).argsort(descending=True)[:6].tolist()
    )


def test_where_maps_are_added_the_shares_of_all_layers_count():
    teacher = random_model(voxel(1.0)).state_dict()
    writers = [
        teacher[f"backbone_3d.{name}.weight"].abs()
        for name in ("conv2.0.1", "conv2.1.bn2", "conv2.2.bn2")
    ]
    want = sum(scale / scale.sum() for scale in writers).argsort(descending=True)[:4].tolist()
    assert list(remap(teacher, build(voxel(0.5)).state_dict(), "bn_scale").kept["conv2.0"]) == want


def test_d11_sums_of_weights_go_by_the_inputs_that_are_kept():
    """Dense and sparse alike; the original's ignored the choice for sparse convolutions."""
    teacher, student = random_model(voxel(1.0)).state_dict(), build(voxel(0.5)).state_dict()
    kept = remap(teacher, student, "l1").kept
    shared = teacher["backbone_2d.blocks.1.1.weight"].abs()[:, list(kept["blocks.0.4"])]
    assert list(kept["blocks.1.1"]) == shared.sum((1, 2, 3)).argsort(descending=True)[:6].tolist()
    sparse = teacher["backbone_3d.conv_out.0.weight"].abs()
    of_kept = (
        sparse[..., list(kept["conv4.0"])].sum((1, 2, 3, 4)).argsort(descending=True)[:8].tolist()
    )
    of_all = sparse.sum((1, 2, 3, 4)).argsort(descending=True)[:8].tolist()
    assert list(kept["conv_out"]) == of_kept != of_all
    assert list(remap(teacher, student, "l1_legacy").kept["conv_out"]) == of_all
    up = teacher["backbone_2d.deblocks.1.0.weight"].abs()[list(kept["blocks.1.4"])]
    assert list(kept["deblocks.1"]) == up.sum((0, 2, 3)).argsort(descending=True)[:8].tolist()


def test_d11_the_original_leaves_equal_shapes_unpermuted():
    """Its neighbours are reordered all the same: a network of equal width is wired wrongly (spec
    8.3).
    """
    config = voxel(1.0)
    teacher, student = (
        random_model(config),
        random_model(replace(config, backbone=replace(config.backbone, width=0.5)), seed=1),
    )
    own = teacher.state_dict()
    found = remap(own, student.state_dict(), "bn_scale_legacy")
    assert torch.equal(
        found.tensors["backbone_3d.conv_out.0.weight"], own["backbone_3d.conv_out.0.weight"]
    )
    first, kept = (
        "backbone_2d.blocks.0.1.weight",
        own["backbone_3d.conv_out.1.weight"].abs().argsort(descending=True),
    )
    outputs = own["backbone_2d.blocks.0.2.weight"].abs().argsort(descending=True)[:4]
    assert torch.equal(found.tensors[first], own[first][outputs][:, torch.cat((kept, 16 + kept))])


def test_the_originals_scored_ways_know_no_pillar_layers():
    teacher = random_model(pillar(1.0)).state_dict()
    assert all(
        torch.equal(remap(teacher, teacher, "l1_legacy").tensors[name], value)
        for name, value in teacher.items()
    )
    with pytest.raises(ConfigError, match=r"pfn_layers\.1\.linear\.weight: SparseKD has no rule"):
        remap(teacher, build(pillar(0.5)).state_dict(), "l1_legacy")


def numbered(model):
    """A state dict in which every number is its own position."""
    return {
        name: torch.arange(value.numel()).view(value.shape)
        for name, value in model.state_dict().items()
    }


def kept(value, shape, axis):
    """Which indices of an axis of a numbered tensor are left."""
    stride = 1
    for length in shape[axis + 1 :]:
        stride *= length
    first = value.select(0, 0) if axis else value
    while first.dim() > 1:
        first = first.select(-1, 0) if axis in (0, 1) else first.select(0, 0)
    return (first // stride % shape[axis]).tolist()


SHARED, FIRST = "dense_head.shared_conv.0.weight", "backbone_2d.blocks.0.1.weight"
PUBLISHED = {
    "cp_voxel_s": (zoo.CP_VOXEL, (*range(128), *range(256, 384)), 128, 128),
    "cp_voxel_xs": (zoo.CP_VOXEL, (*range(128), *range(256, 384)), 96, 128),
    "cp_voxel_xxs": (zoo.CP_VOXEL_XS, (*range(64), *range(128, 192)), 64, 96),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_d09_what_the_published_students_keep(name):
    """Spec 8.2 and 13 item 10: all tensors, their shapes, and the inputs at the two places where
    channels are composed.
    """
    source, concatenated, ours, theirs = PUBLISHED[name]
    with torch.device("meta"):
        wide, narrow = build(source), build(zoo.model(name))
    teacher = numbered(wide)
    student = narrow.state_dict()
    found = remap(teacher, student).tensors
    assert list(found) == list(student) and len(found) == 279
    assert all(found[key].shape == student[key].shape for key in student)
    assert kept(found[SHARED], teacher[SHARED].shape, 1) == list(concatenated)
    assert kept(found[FIRST], teacher[FIRST].shape, 1) == [
        c * 2 + d for c in range(ours) for d in range(2)
    ]
    sparse = "backbone_3d.conv4.1.conv1.weight"
    width = student[sparse].shape[4]
    assert kept(found[sparse], teacher[sparse].shape, 4) == list(range(width))
    assert kept(found[sparse], teacher[sparse].shape, 0) == list(range(width))
    up = "backbone_2d.deblocks.1.0.weight"
    assert torch.equal(found[up], teacher[up][: student[up].shape[0], : student[up].shape[1]])
    # The original: channel d * C + c (spec 8.2), right for S alone.
    legacy = remap(teacher, student, "first_legacy").tensors
    assert kept(legacy[FIRST], teacher[FIRST].shape, 1) == [
        d * theirs + c for d in range(2) for c in range(ours)
    ]
    assert torch.equal(legacy[FIRST], found[FIRST]) == (name == "cp_voxel_s")
    assert all(torch.equal(value, legacy[key]) for key, value in found.items() if key != FIRST)
    # FNAV1: the first inputs of the joined maps are all of the first level's.
    naive = remap(teacher, student, "first_naive").tensors
    assert kept(naive[SHARED], teacher[SHARED].shape, 1) == list(range(len(concatenated)))
    assert all(torch.equal(value, naive[key]) for key, value in found.items() if key != SHARED)


@every_right_way
@pytest.mark.parametrize(
    "name",
    [name for name, pair in zoo.PAIRS.items() if not isinstance(pair.teacher, TwoStageConfig)],
)
def test_every_published_pair_at_full_size(name, how):
    """Shapes; that nothing depends on values but the order is what the small models are for."""
    pair = zoo.pair(name)
    with torch.device("meta"):
        student = build(pair.student).state_dict()
    source = pair.initialise_from or pair.teacher
    if how == "first":
        with torch.device("meta"):
            teacher = build(source).state_dict()
    else:
        teacher = build(source).state_dict()
    found = remap(teacher, student, how).tensors
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in student.items()
    }


def test_a_tiny_pillar_net_by_hand():
    def vector(*values):
        return torch.tensor(values, dtype=torch.float64)

    teacher = {
        "vfe.pfn_layers.0.linear.weight": vector(1, 2).view(2, 1),
        "vfe.pfn_layers.0.norm.weight": vector(1, -3),
        "vfe.pfn_layers.1.linear.weight": torch.arange(12.0, dtype=torch.float64).view(3, 4),
        "vfe.pfn_layers.1.norm.weight": vector(0.5, 0.1, 2),
        "backbone_2d.blocks.0.1.weight": torch.arange(6.0, dtype=torch.float64).view(2, 3, 1, 1),
        "backbone_2d.blocks.0.2.weight": vector(3, 4),
        "backbone_2d.deblocks.0.0.weight": torch.arange(4.0, dtype=torch.float64).view(2, 2, 1, 1),
        "backbone_2d.deblocks.0.1.weight": vector(1, 9),
        "dense_head.conv_cls.weight": torch.arange(6.0, dtype=torch.float64).view(3, 2, 1, 1),
        "dense_head.conv_cls.bias": vector(7, 8, 9),
        "norm.num_batches_tracked": torch.tensor(9),
    }
    shapes = [
        (1, 1),
        (1,),
        (2, 2),
        (2,),
        (1, 2, 1, 1),
        (1,),
        (1, 1, 1, 1),
        (1,),
        (3, 1, 1, 1),
        (3,),
        (),
    ]
    student = {name: torch.zeros(shape) for name, shape in zip(teacher, shapes)}
    want = {
        "first": [
            [1],
            [1],
            [0, 2, 4, 6],
            [0.5, 0.1],
            [0, 1],
            [3],
            [0],
            [1],
            [0, 2, 4],
            [7, 8, 9],
            [9],
        ],
        "bn_scale": [
            [2],
            [-3],
            [9, 11, 1, 3],
            [2, 0.5],
            [5, 3],
            [4],
            [3],
            [9],
            [1, 3, 5],
            [7, 8, 9],
            [9],
        ],
        "bn_scale_signed": [
            [1],
            [1],
            [8, 10, 0, 2],
            [2, 0.5],
            [5, 3],
            [4],
            [3],
            [9],
            [1, 3, 5],
            [7, 8, 9],
            [9],
        ],
        "l1": [
            [2],
            [-3],
            [9, 11, 5, 7],
            [2, 0.1],
            [5, 4],
            [4],
            [3],
            [9],
            [1, 3, 5],
            [7, 8, 9],
            [9],
        ],
        "first_naive": [
            [1],
            [1],
            [0, 1, 4, 5],
            [0.5, 0.1],
            [0, 1],
            [3],
            [0],
            [1],
            [0, 2, 4],
            [7, 8, 9],
            [9],
        ],
    }
    for how, values in want.items():
        assert [
            value.flatten().tolist() for value in remap(teacher, student, how).tensors.values()
        ] == values, how


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
    with pytest.raises(
        ConfigError,
        match=(
            r"conv_input\.0\.weight: axis 4 has 4 in the student, "
            r"5 in the teacher; must be equal"
        ),
    ):
        remap(*states(narrow=four), how)
    one = replace(
        config, class_names=("Vehicle",), head=replace(config.head, heads=(("Vehicle",),))
    )
    with pytest.raises(
        ConfigError,
        match=(r"hm\.1\.weight: axis 0 has 1 in the student, 3 in the " r"teacher; must be equal"),
    ):
        remap(*states(narrow=one), how)
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
            r"in the teacher; must be equal"
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


# ---- a choice in words


def test_choices_in_words():
    assert spell((0, 1, 2), 3) == "all 3"
    assert spell((0, 1), 3) == "first 2 of 3"
    assert spell((0, 1, 4, 5), 8) == "0-1 4-5, 4 of 8"
    assert spell((2, 0, 1), 3) == "2 0-1, 3 of 3"
    long = spell((6, 4, 2, 0), 8)
    assert long.startswith("6 4 2 ... #") and long.endswith(", 4 of 8")
    assert long != spell((6, 4, 2, 1), 8)


def test_a_criterion_of_ones_own_is_one_function(monkeypatch):
    """The least weights instead of the most: what OFA does unless told otherwise (spec 8.4)."""
    least = Way(lambda teacher, layer, inputs: -module.weight_sum(teacher, layer, inputs))
    monkeypatch.setattr(module, "WAYS", {**WAYS, "least": least})
    teacher = random_model(pillar(1.0)).state_dict()
    narrow = build(pillar(0.5)).state_dict()
    sums = teacher["vfe.pfn_layers.0.linear.weight"].abs().sum(1)
    assert (
        list(remap(teacher, narrow, "least").kept["pillar layer 0"]) == sums.argsort()[:2].tolist()
    )
