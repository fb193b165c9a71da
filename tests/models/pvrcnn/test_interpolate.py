"""Bilinear reading and the mean of three points against hand values, torch's own sampling, loops
and numerical gradients.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdlib.models.pvrcnn.interpolate import bilinear, three_point


def test_cells_and_the_places_between_them():
    values = torch.tensor([[[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]])
    xy = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.0], [0.0, 0.5], [1.25, 0.75]])
    assert bilinear(values, xy)[:, 0].tolist() == [0.0, 1.0, 0.5, 5.0, 8.75]


def test_inside_the_map_it_is_torchs_grid_sample():
    gen = torch.Generator().manual_seed(0)
    values = torch.randn(5, 7, 9, generator=gen, dtype=torch.float64)
    xy = torch.rand(200, 2, generator=gen, dtype=torch.float64) * torch.tensor(
        [8.0, 6.0], dtype=torch.float64
    )
    grid = xy / torch.tensor([8.0, 6.0], dtype=torch.float64) * 2 - 1
    expected = F.grid_sample(values[None], grid[None, None], align_corners=True)[0, :, 0].t()
    torch.testing.assert_close(bilinear(values, xy), expected)


@pytest.mark.parametrize(
    "xy", [(2.0, 0.5), (2.5, 0.5), (-0.5, 0.5), (0.5, 1.0), (0.5, -0.1), (9.0, 9.0), (-7.0, -7.0)]
)
def test_beyond_the_outer_cells_both_corners_are_one_and_their_weights_cancel(xy):
    assert bilinear(torch.ones(1, 2, 3), torch.tensor([xy])).item() == 0


def test_places_keep_their_precision_on_a_16_bit_map():
    values = torch.arange(188.0).expand(1, 188, 188).bfloat16()
    assert bilinear(values, torch.tensor([[100.25, 3.5]])).item() == 100.25


def test_bilinear_gradient():
    values = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    xy = torch.tensor([[0.3, 1.7], [1.0, 2.0], [5.0, -1.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: bilinear(v, xy), values)


def test_three_point_equals_a_loop():
    gen = torch.Generator().manual_seed(0)
    features = torch.randn(20, 6, generator=gen, dtype=torch.float64)
    index = torch.randint(0, 20, (50, 3), generator=gen)
    distance = torch.rand(50, 3, generator=gen, dtype=torch.float64)
    for row, at, far in zip(three_point(features, index, distance), index, distance):
        weights = [1 / (d.item() + 1e-8) for d in far]
        expected = sum(w / sum(weights) * features[i] for w, i in zip(weights, at))
        torch.testing.assert_close(row, expected)


def test_a_point_on_the_place_itself_outweighs_the_others():
    mixed = three_point(
        torch.tensor([[1.0], [5.0], [9.0]]),
        torch.tensor([[1, 0, 2]]),
        torch.tensor([[0.0, 1.0, 2.0]]),
    )
    assert mixed.item() == pytest.approx(5, abs=1e-6)


def test_no_point_is_zero_and_gives_no_gradient():
    features = torch.ones(2, 3, requires_grad=True)
    mixed = three_point(features, torch.full((4, 3), -1), torch.zeros(4, 3))
    mixed.sum().backward()
    assert mixed.count_nonzero() == 0 and features.grad.count_nonzero() == 0
    assert (
        three_point(torch.zeros(0, 3), torch.full((4, 3), -1), torch.zeros(4, 3)).tolist()
        == [[0.0] * 3] * 4
    )
    assert three_point(
        torch.ones(2, 3), torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3)
    ).shape == (0, 3)


def test_three_point_gradient():
    features = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 1, 2], [3, 3, 3], [4, 0, 4], [-1, -1, -1]])
    distance = torch.rand(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: three_point(f, index, distance), features)
