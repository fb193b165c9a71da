"""The sparse 3D backbone against dense convolutions, its shapes, its order of channels, frames with
next to nothing in them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kdlib import zoo
from kdlib.config import (
    BackboneConfig,
    DecodeConfig,
    GridConfig,
    HeadConfig,
    ModelConfig,
    VoxelEncoderConfig,
)
from kdlib.errors import ConfigError
from kdlib.models.build import build
from kdlib.models.losses.detection import detector_loss
from kdlib.models.losses.loss_part import loss_terms
from kdlib.models.voxel_encoder import VoxelBackbone, bev_depth
from kdlib.types import GroundTruth, PointBatch, VoxelBatch

# 32 columns, 16 rows, 40 layers
GRID = GridConfig((-3.2, -1.6, -2.0, 3.2, 1.6, 4.0), (0.2, 0.2, 0.15), 5)
ENCODER = VoxelEncoderConfig(filters=(4, 4, 6, 8, 8, 6))
PLAIN = VoxelEncoderConfig(filters=(4, 5, 6, 8, 7, 6), residual=False)
CONFIG = ModelConfig(
    name="tiny_voxel",
    grid=GRID,
    encoder=ENCODER,
    backbone=BackboneConfig((1, 1), (1, 2), (8, 8), (1, 2), (8, 8)),
    head=HeadConfig(shared_channels=8, stride=8, decode=DecodeConfig(score_threshold=0.05)),
)


def clouds(*counts, seed=0, dtype=torch.float32):
    gen = torch.Generator().manual_seed(seed)
    size = torch.tensor([6.0, 3.0, 5.5, 1, 1], dtype=torch.float64)
    parts = [
        (torch.rand(n, 5, generator=gen, dtype=torch.float64) - 0.5) * size
        + torch.tensor([0, 0, 1.0, 0, 0])
        for n in counts
    ]
    index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return PointBatch(
        torch.cat(parts).to(dtype), index, len(counts), tuple(f"f{b}" for b in range(len(counts)))
    )


def fresh(config=CONFIG):
    """Build a model whose norms do something."""
    torch.manual_seed(0)
    model = build(config)
    gen = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.05 + 0.2 * torch.rand(value.shape, generator=gen))
        elif name.endswith("running_mean") or (".bn" in name and name.endswith("bias")):
            value.copy_(0.2 * torch.randn(value.shape, generator=gen))
    return model


class Dense:
    """The backbone on dense maps with a mask of active cells; dense convolutions, one layer after
    the other.
    """

    def __init__(self, net, values, active):
        self.state, self.values, self.active, self.sizes = net.state_dict(), values, active, []

    def norm(self, x, name):
        weight, bias, mean, var = (
            self.state[f"{name}.{part}"]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        shape = (1, -1, 1, 1, 1)
        x = (x - mean.view(shape)) / (var.view(shape) + 1e-3).sqrt() * weight.view(
            shape
        ) + bias.view(shape)
        return x * self.active

    def conv(self, x, name, stride=1, padding=1):
        weight = self.state[f"{name}.weight"].permute(0, 4, 1, 2, 3)
        if stride != 1:
            reach = torch.ones(1, 1, *weight.shape[2:], dtype=x.dtype)
            self.active = (F.conv3d(self.active, reach, stride=stride, padding=padding) > 0).to(
                x.dtype
            )
        return (
            F.conv3d(x, weight, self.state.get(f"{name}.bias"), stride=stride, padding=padding)
            * self.active
        )

    def layer(self, name, *how):
        self.values = self.norm(self.conv(self.values, f"{name}.0", *how), f"{name}.1").relu()

    def block(self, name):
        x = self.norm(self.conv(self.values, f"{name}.conv1"), f"{name}.bn1").relu()
        self.values = (self.norm(self.conv(x, f"{name}.conv2"), f"{name}.bn2") + self.values).relu()

    def run(self, residual):
        self.layer("conv_input")
        for number in range(2 if residual else 1):
            self.block(f"conv1.{number}") if residual else self.layer(f"conv1.{number}")
        for stage, padding in ((2, (1, 1, 1)), (3, (1, 1, 1)), (4, (0, 1, 1))):
            self.layer(f"conv{stage}.0", 2, padding)
            for number in (1, 2):
                self.block(f"conv{stage}.{number}") if residual else self.layer(
                    f"conv{stage}.{number}"
                )
            self.sizes.append(tuple(self.values.shape[2:]))
        self.layer("conv_out", (2, 1, 1), 0)
        return self.values


@pytest.mark.parametrize("encoder", [ENCODER, PLAIN], ids=["residual", "plain"])
def test_equals_dense_convolutions(encoder):
    model = fresh(replace(CONFIG, encoder=encoder)).double().eval()
    voxels = model.voxelize(clouds(60, 0, 25, dtype=torch.float64))
    with torch.no_grad():
        features = model.vfe(voxels)
        found = model.backbone_3d(features, voxels)[0].bev()
        values = torch.zeros(3, 41, 16, 32, 5, dtype=torch.float64)
        active = torch.zeros(3, 1, 41, 16, 32, dtype=torch.float64)
        b, z, y, x = voxels.coords.T
        values[b, z, y, x], active[b, 0, z, y, x] = features, 1.0
        dense = Dense(model.backbone_3d, values.permute(0, 4, 1, 2, 3), active)
        want = dense.run(encoder.residual)
    assert dense.sizes == [(21, 8, 16), (11, 4, 8), (5, 2, 4)] and want.shape == (3, 6, 2, 2, 4)
    for channel in range(6):
        for level in range(2):
            torch.testing.assert_close(
                found[:, channel * 2 + level], want[:, channel, level], rtol=1e-9, atol=1e-12
            )
    assert found[0].any() and not found[1].any()
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_heights():
    assert [bev_depth(n) for n in (40, 55, 56, 24, 39, 23)] == [2, 2, 3, 1, 1, 0]
    for model in (zoo.CP_VOXEL, zoo.CP_VOXEL_DEMO):
        assert bev_depth(model.grid.grid_size[2]) == 2


@pytest.mark.parametrize(
    "name, channels",
    [("cp_voxel", 256), ("cp_voxel_s", 256), ("cp_voxel_xs", 192), ("cp_voxel_xxs", 128)],
)
def test_channels_of_the_published_maps(name, channels):
    model = zoo.model(name)
    with torch.device("meta"):
        backbone = VoxelBackbone(model.encoder, model.grid)
    assert backbone.channels == channels and backbone.spatial_shape == (41, 1504, 1504)


def truth(frames):
    boxes = torch.tensor([[1.1, 0.9, 0, 2.0, 1.0, 1.5, 0.4], [-2.2, 0.1, 0, 0.8, 0.8, 1.7, 0.0]])
    return GroundTruth(boxes.expand(frames, -1, -1), torch.tensor([1, 2]).expand(frames, -1))


def test_a_frames_answer_does_not_depend_on_its_batch_mates():
    model = fresh().double().eval()
    batch = clouds(80, 0, 50, dtype=torch.float64)
    with torch.no_grad():
        together = model(batch).heads[0]
        for b in range(3):
            mine = batch.batch_index == b
            alone = PointBatch(
                batch.points[mine], torch.zeros(int(mine.sum()), dtype=torch.long), 1, ("f",)
            )
            single = model(alone).heads[0]
            torch.testing.assert_close(
                together.heatmap[b : b + 1], single.heatmap, rtol=1e-9, atol=1e-9
            )
            torch.testing.assert_close(
                together.regression[b : b + 1], single.regression, rtol=1e-9, atol=1e-9
            )


def test_training_reaches_every_parameter():
    model = fresh().train()
    prediction = model(clouds(200, 150))
    sum(
        (m - 1).square().mean()
        for m in (prediction.heads[0].heatmap, prediction.heads[0].regression)
    ).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # The constant a BatchNorm subtracts again has no effect, hence no gradient but rounding.
        before_a_norm = name.endswith(
            ("shared_conv.0.bias", ".0.0.bias", ".conv1.bias", ".conv2.bias")
        )
        assert before_a_norm or parameter.grad.any(), name


@pytest.mark.parametrize("counts", [(0, 0), (1,)], ids=["no point", "one point"])
def test_next_to_nothing_trains(counts):
    model = fresh().train()
    terms = loss_terms(
        detector_loss(model, model(clouds(*counts)), model.targets(truth(len(counts))))
    )
    terms.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_mixed_precision_keeps_metres_wide():
    model = fresh().eval()
    seen = {}
    names = {"vfe": model.vfe, "conv_input": model.backbone_3d.conv_input}
    for name, module in names.items():
        module.register_forward_hook(
            lambda m, i, o, name=name: seen.update({name: getattr(o, "features", o).dtype})
        )
    batch = clouds(200)
    with torch.no_grad():
        want = model(batch).heads[0].heatmap
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = model(batch)
            (found,) = model.detect(prediction)
    assert seen["vfe"] == seen["conv_input"] == torch.float32
    assert (
        prediction.heads[0].heatmap.dtype == torch.bfloat16 and found.boxes.dtype == torch.float32
    )
    torch.testing.assert_close(prediction.heads[0].heatmap.float(), want, rtol=0.05, atol=0.05)


def test_mixed_precision_trains():
    model = fresh().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss_terms(detector_loss(model, model(clouds(200, 150)), model.targets(truth(2))))
    terms.loss.backward()
    for name, parameter in model.named_parameters():
        assert (
            parameter.grad is not None
            and parameter.grad.isfinite().all()
            and parameter.grad.dtype == torch.float32
        ), name


def test_voxels_may_come_in_any_order():
    model = fresh().double().eval()
    voxels = model.voxelize(clouds(60, 40, dtype=torch.float64))
    order = torch.randperm(len(voxels.coords), generator=torch.Generator().manual_seed(0))
    mixed = VoxelBatch(voxels.features[order], voxels.coords[order], voxels.num_points[order], 2)
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode(mixed)[0], model.encode(voxels)[0], rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"grid": replace(GRID, voxel_size=(0.2, 0.2, 0.3))},
            ("20 cells in z vanish in the 3D backbone"),
        ),
        ({"grid": replace(GRID, voxel_size=(0.4, 0.2, 0.15))}, None),
        (
            {"grid": replace(GRID, voxel_size=(0.8, 0.2, 0.15))},
            ("8 of the 3D backbone need a grid divisible by 16, not 8 x 16"),
        ),
        (
            {"head": replace(CONFIG.head, stride=1)},
            ("do not bring every level to the head's stride of 1"),
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    if message is None:
        assert build(replace(CONFIG, **change))
        return
    with pytest.raises(ConfigError, match=f"'tiny_voxel': .*{message}"):
        build(replace(CONFIG, **change))
