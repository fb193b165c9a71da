"""Which channels of a teacher a student gets, way by way, and how the choice is worded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from narrow_models import every_right_way, numbered, pillar, random_model, voxel

from kdlib import zoo
from kdlib.config import (
    TwoStageConfig,
)
from kdlib.errors import ConfigError
from kdlib.kd import remap as module
from kdlib.kd.remap import WAYS, Way, remap, spell
from kdlib.models.build import build

pytestmark = pytest.mark.usefixtures("one_thread")

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
    narrow = "1,1 1 2,2 2 1,2,1,1 1 1,1,1,1 1 3,1,1,1 3".split()
    shapes = [*(tuple(map(int, shape.split(","))) for shape in narrow), ()]
    student = {name: torch.zeros(shape) for name, shape in zip(teacher, shapes)}
    want = {  # of every tensor, all its numbers
        "first": "1 | 1 | 0 2 4 6 | 0.5 0.1 | 0 1 | 3 | 0 | 1 | 0 2 4 | 7 8 9 | 9",
        "bn_scale": "2 | -3 | 9 11 1 3 | 2 0.5 | 5 3 | 4 | 3 | 9 | 1 3 5 | 7 8 9 | 9",
        "bn_scale_signed": "1 | 1 | 8 10 0 2 | 2 0.5 | 5 3 | 4 | 3 | 9 | 1 3 5 | 7 8 9 | 9",
        "l1": "2 | -3 | 9 11 5 7 | 2 0.1 | 5 4 | 4 | 3 | 9 | 1 3 5 | 7 8 9 | 9",
        "first_naive": "1 | 1 | 0 1 4 5 | 0.5 0.1 | 0 1 | 3 | 0 | 1 | 0 2 4 | 7 8 9 | 9",
    }
    for how, row in want.items():
        values = [[float(number) for number in cell.split()] for cell in row.split("|")]
        narrowed = remap(teacher, student, how).tensors
        assert [value.flatten().tolist() for value in narrowed.values()] == values, how


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
