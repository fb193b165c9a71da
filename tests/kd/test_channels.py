"""The graph of channels: what every axis of every published model is made of, and the compositions
that are easy to get wrong.
"""

from __future__ import annotations

import pytest
import torch

from kdlib import zoo
from kdlib.config import TwoStageConfig
from kdlib.errors import ConfigError
from kdlib.kd.channels import FIXED, AxisSource, bev_levels, layers
from kdlib.models.build import build


def state(name):
    with torch.device("meta"):
        return build(zoo.model(name)).state_dict()


def axes(name, wiring="true"):
    tensors = state(name)
    return {
        key: found for layer in layers(tensors, wiring) for key, found in layer.tensors(tensors)
    }


@pytest.mark.parametrize(
    "name", [name for name, model in zoo.MODELS.items() if not isinstance(model, TwoStageConfig)]
)
def test_every_tensor_and_every_long_axis_is_known(name):
    """A rule that is missing would leave an axis as wide as the teacher's; the only such axes mean
    something.
    """
    found = axes(name)
    for key, value in state(name).items():
        if key.endswith(("num_batches_tracked", "global_step")):
            assert key not in found
            continue
        kernels = {1, 2, 3} if value.dim() == 5 else {2, 3} if value.dim() == 4 else set()
        assert set(range(value.dim())) - kernels == set(found[key]), key
        meant = {axis for axis, source in found[key].items() if source == FIXED}
        points = key in ("vfe.pfn_layers.0.linear.weight", "backbone_3d.conv_input.0.weight")
        answers = (
            key.startswith(("dense_head.conv_", "dense_head.heads_list"))
            and ".0." not in key.partition("heads_list.0.")[2]
        )
        assert meant == ({1 if value.dim() == 2 else 4} if points else {0} if answers else set()), (
            key
        )


@pytest.mark.parametrize("name", zoo.MODELS)
def test_what_writes_a_group_and_what_reads_it_agree(name):
    tensors = state(name)
    widths = {}
    for layer in layers(tensors):
        weight = tensors[layer.weight]
        outputs, inputs = layer.axes(weight.dim())
        if layer.inputs != FIXED:  # written before it is read
            assert layer.inputs.width(widths) == weight.shape[inputs], layer.name
        if layer.output is not None:
            assert (
                widths.setdefault(layer.output, weight.shape[outputs]) == weight.shape[outputs]
            ), layer.name
            assert f"{layer.norm}.running_var" in tensors


def test_a_stage_of_residual_blocks_is_one_group():
    writers = {}
    for layer in layers(state("cp_voxel")):
        writers.setdefault(layer.output, []).append(layer.name.removeprefix("backbone_3d."))
    assert writers["conv_input"] == ["conv_input.0", "conv1.0.conv2", "conv1.1.conv2"]
    assert writers["conv3.0"] == ["conv3.0.0", "conv3.1.conv2", "conv3.2.conv2"]
    assert writers["conv3.1 inside"] == ["conv3.1.conv1"]
    assert all(
        len(found) == 1
        for group, found in writers.items()
        if group and not group.startswith("conv")
    )


def test_d11_the_originals_sums_are_groups_of_their_own():
    outputs = [layer.output for layer in layers(state("cp_voxel"), "legacy") if layer.output]
    assert len(outputs) == len(set(outputs))
    plain = [layer.output for layer in layers(state("second"))]
    assert plain == [layer.output for layer in layers(state("second"), "legacy")]


def test_composed_axes():
    voxel, pillar, anchors = axes("cp_voxel"), axes("cp_pillar"), axes("pointpillar")
    first, shared = "backbone_2d.blocks.0.1.weight", "dense_head.shared_conv.0.weight"
    assert voxel[first][1] == AxisSource(("conv_out",), levels=2)
    assert axes("cp_voxel", "legacy")[first][1] == AxisSource(("conv_out", "conv_out"))
    assert (
        voxel[shared][1]
        == AxisSource(("deblocks.0", "deblocks.1"))
        == axes("cp_voxel", "legacy")[shared][1]
    )
    assert axes("cp_voxel", "flat")[shared][1].flat
    assert pillar["vfe.pfn_layers.1.linear.weight"][1] == AxisSource(
        ("pillar layer 0", "pillar layer 0")
    )
    assert axes("cp_pillar", "legacy")["vfe.pfn_layers.1.linear.weight"][1].flat
    assert pillar[first][1] == AxisSource(("pillar layer 1",))
    assert pillar[shared][1] == AxisSource(("deblocks.0", "deblocks.1", "deblocks.2"))
    assert {anchors[f"dense_head.conv_{name}.weight"][1] for name in ("cls", "box", "dir_cls")} == {
        pillar[shared][1]
    }
    deblock = voxel["backbone_2d.deblocks.1.0.weight"]
    assert deblock == {0: AxisSource(("blocks.1.16",)), 1: AxisSource(("deblocks.1",))}


def test_entries_by_hand():
    kept, widths = {"a": (2, 0), "b": (1,)}, {"a": 3, "b": 2}
    assert AxisSource(("a",)).entries(kept, widths) == [2, 0]
    assert AxisSource(("a",), levels=2).entries(kept, widths) == [4, 5, 0, 1]
    assert AxisSource(("a", "a")).entries(kept, widths) == [2, 0, 5, 3]
    assert AxisSource(("b", "a")).entries(kept, widths) == [1, 4, 2]
    assert (AxisSource(("b", "a")).width(widths), AxisSource(("a",), levels=2).width(widths)) == (
        5,
        6,
    )
    assert (str(AxisSource(("b", "a"))), str(AxisSource(("a",), levels=2))) == (
        "b + a",
        "a x 2 levels",
    )


def test_levels_of_the_bev_map():
    assert {
        name: bev_levels(state(name)) for name in ("cp_voxel", "cp_voxel_xxs", "cp_pillar")
    } == {
        "cp_voxel": 2,
        "cp_voxel_xxs": 2,
        "cp_pillar": 1,
    }
    tensors = dict(state("cp_voxel"))
    tensors["backbone_2d.blocks.0.1.weight"] = torch.zeros(128, 200, 3, 3)
    with pytest.raises(
        ConfigError,
        match=(
            r"blocks\.0\.1\.weight: its 200 inputs are no whole " r"number of levels of the 128"
        ),
    ):
        layers(tensors)


def test_what_is_no_detector_is_refused():
    with pytest.raises(
        ConfigError,
        match=(
            r"no detector: .* neither vfe\.pfn_layers\.0\.linear\.weight nor "
            r"backbone_3d\.conv_input"
        ),
    ):
        layers({"0.weight": torch.zeros(2, 2)})
