"""Counts against multiplications done one by one, and against the published tables."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlib import zoo
from kdlib.models.build import build
from kdlib.profiling.cost import CostError, measure_cost, measure_dense_cost
from kdlib.profiling.layer_rules import LayerCost, rule
from kdlib.types import PointBatch


def cost_of(layer: nn.Module, *given: torch.Tensor) -> LayerCost:
    count = rule(layer)
    assert count is not None
    with torch.no_grad():
        return count(layer, given, layer(*given))


def products_of_conv(size: int, kernel: int, stride: int, padding: int) -> int:
    """Positions times taps of one channel pair in 2D, padding included, as a convolution over a
    padded map does them.
    """
    count = 0
    outputs = (size + 2 * padding - kernel) // stride + 1
    for _ in itertools.product(range(outputs), repeat=2):
        for _ in itertools.product(range(kernel), repeat=2):
            count += 1
    return count


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"),
    [(3, 1, 1, 1), (3, 2, 1, 1), (1, 1, 0, 1), (2, 2, 0, 2)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_convolution(kernel: int, stride: int, padding: int, groups: int, bias: bool) -> None:
    layer = nn.Conv2d(4, 6, kernel, stride, padding, groups=groups, bias=bias)
    cost = cost_of(layer, torch.zeros(2, 4, 8, 8))
    products = 2 * products_of_conv(8, kernel, stride, padding) * 6 * (4 // groups)
    outputs = 2 * 6 * ((8 + 2 * padding - kernel) // stride + 1) ** 2
    assert cost == LayerCost(products, outputs, products + bias * outputs, outputs)


@pytest.mark.parametrize("up", [1, 2, 4])
def test_transposed_convolution_by_scattering(up: int) -> None:
    layer = nn.ConvTranspose2d(3, 5, up, stride=up, bias=False)
    given = torch.randn(1, 3, 4, 4)
    products, answer = 0, torch.zeros(1, 5, 4 * up, 4 * up)
    for y, x, i, o, dy, dx in itertools.product(
        range(4), range(4), range(3), range(5), range(up), range(up)
    ):
        answer[0, o, y * up + dy, x * up + dx] += (
            given[0, i, y, x] * layer.weight[i, o, dy, dx].detach()
        )
        products += 1
    cost = cost_of(layer, given)
    assert torch.allclose(answer, layer(given), atol=1e-5)
    assert cost.macs == products
    assert cost.published_macs == products * up**2
    assert cost.acts == cost.published_acts == answer.numel()


def test_linear_and_normalisation() -> None:
    assert cost_of(nn.Linear(7, 3), torch.zeros(10, 7)) == LayerCost(210, 30, 210, 30)
    assert cost_of(nn.BatchNorm2d(4).eval(), torch.zeros(2, 4, 3, 3)) == LayerCost(0, 0, 144, 0)
    assert rule(nn.ReLU()) is None


@pytest.mark.parametrize(
    ("name", "giga", "mega"),
    [
        ("cp_pillar", 337.118, 284.837),
        ("cp_pillar_v0.4", 212.05, 179.17),
        ("cp_pillar_v0.48", 152.42, 128.79),
        ("cp_pillar_v0.64", 84.28, 71.21),
    ],
)
def test_dense_part_equals_the_published_convention(name: str, giga: float, mega: float) -> None:
    config = zoo.model(name)
    nx, ny, _ = config.grid.grid_size
    report = measure_dense_cost(build(config), (1, 64, ny, nx))
    assert report.published_macs / 1e9 == pytest.approx(giga, rel=1e-4)
    assert report.published_acts / 1e6 == pytest.approx(mega, rel=1e-4)


def test_true_count_leaves_out_transposed_overcount_normalisation_and_bias() -> None:
    report = measure_dense_cost(build(zoo.CP_PILLAR), (1, 64, 464, 464))
    assert (report.published_macs - report.macs) / 1e9 == pytest.approx(
        116.4 + 0.565 + 0.085, abs=0.1
    )
    # per frame
    assert measure_dense_cost(build(zoo.CP_PILLAR), (2, 64, 464, 464)).macs == report.macs


@pytest.fixture(scope="module")
def scan() -> PointBatch:
    """Two frames of +-20 m."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(3000, 5, generator=generator) * torch.tensor(
        [40.0, 40.0, 4.0, 1.0, 1.0]
    ) - torch.tensor([20, 20, 1.5, 0, 0])
    return PointBatch(points, torch.arange(3000) // 1500, 2, ("a_000", "a_001"))


def test_pillar_encoder_equals_the_published_convention(scan: PointBatch) -> None:
    config = replace(
        zoo.CP_PILLAR_DEMO, encoder=zoo.CP_PILLAR.encoder, backbone=zoo.CP_PILLAR.backbone
    )
    model = build(config)
    pillars, slots = len(model.voxelize(scan).coords), config.grid.max_points
    report = measure_cost(model, scan, encoder_only=True)
    assert all(row.name == "vfe" or row.name.startswith("vfe.") for row in report.rows)
    assert report.published_macs == pillars * slots * 4640 / 2
    assert report.published_acts == pillars * slots * 96 / 2
    # What kdlib computes is the points and, in a pillar that is not full, one empty slot.
    held = model.voxelize(scan).num_points
    rows = int((held + 1).clamp(max=slots).sum())
    assert report.macs == rows * 4448 / 2
    assert report.acts == rows * 96 / 2
    assert report.parameters == 11 * 32 + 64 * 64 + 2 * (32 + 64)


def test_b10_whole_model_is_the_sum_of_its_parts_and_is_left_as_it_was(scan: PointBatch) -> None:
    model = build(zoo.CP_PILLAR_DEMO).train()
    model.backbone_2d.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    report = measure_cost(model, scan)
    parts = [
        measure_cost(model, scan, encoder_only=True),
        measure_dense_cost(model, (1, 16, 128, 128)),
    ]
    assert sum(part.macs for part in parts) == report.macs
    assert (
        sum(part.parameters for part in parts)
        == report.parameters
        == sum(p.numel() for p in model.parameters())
    )
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_full_parameter_count() -> None:
    assert sum(p.numel() for p in build(zoo.CP_PILLAR).parameters()) == 5_224_043


def test_report_is_plain_json(scan: PointBatch) -> None:
    report = measure_cost(build(zoo.CP_PILLAR_DEMO), scan)
    rows = json.loads(json.dumps([row.to_dict() for row in report.rows]))
    assert sum(row["macs"] for row in rows) == 2 * report.macs


def test_a_layer_without_a_rule_is_named() -> None:
    model = nn.Module()
    model.backbone_2d = nn.Sequential(nn.Conv2d(1, 1, 1), nn.PReLU())
    model.dense_head = nn.Identity()
    with pytest.raises(CostError, match=r"'backbone_2d\.1' is a PReLU"):
        measure_dense_cost(model, (1, 1, 4, 4))
    with pytest.raises(CostError, match="no part 'backbone_2d'"):
        measure_dense_cost(nn.Identity(), (1, 1, 4, 4))


def test_repeated_calls_of_a_shared_layer_add_up() -> None:
    model = nn.Module()
    shared = nn.Conv2d(2, 2, 1, bias=False)
    model.backbone_2d = nn.Sequential(shared, shared)
    model.dense_head = nn.Identity()
    assert measure_dense_cost(model, (1, 2, 4, 4)).macs == 2 * 64
