from __future__ import annotations

import math

import pytest
import torch

from kdlib.kd.roi_grid import roi_grid_pool, roi_points
from kdlib.models.geometry.boxes import points_in_boxes

REGION = (-4.0, -8.0, 4.0, 8.0)


def ramp(rows, columns, dtype=torch.float64):
    """A map (1, 2, rows, columns) that holds the x and y of its cells' centres."""
    x = REGION[0] + (torch.arange(columns, dtype=dtype) + 0.5) * (REGION[2] - REGION[0]) / columns
    y = REGION[1] + (torch.arange(rows, dtype=dtype) + 0.5) * (REGION[3] - REGION[1]) / rows
    return torch.stack((x.expand(rows, columns), y[:, None].expand(rows, columns)))[None]


def box(x=0.0, y=0.0, length=2.0, width=1.0, heading=0.0):
    return torch.tensor([x, y, 0.0, length, width, 1.0, heading], dtype=torch.float64)


def naive_sample(image, x, y):
    """Bilinear, zeros outside, at one place in metres; image is (rows, columns)."""
    rows, columns = image.shape
    u = (x - REGION[0]) / (REGION[2] - REGION[0]) * columns - 0.5
    v = (y - REGION[1]) / (REGION[3] - REGION[1]) * rows - 0.5
    total = 0.0
    for row in (math.floor(v), math.floor(v) + 1):
        for column in (math.floor(u), math.floor(u) + 1):
            if 0 <= row < rows and 0 <= column < columns:
                total += float(image[row, column]) * (1 - abs(v - row)) * (1 - abs(u - column))
    return total


def naive_pool(image, one, size):
    x, y, _, length, width, _, heading = one.tolist()
    out = torch.zeros(size, size, dtype=image.dtype)
    for row in range(size):
        for column in range(size):
            along, across = (
                ((column + 0.5) / size - 0.5) * length,
                ((row + 0.5) / size - 0.5) * width,
            )
            place = (x + along * math.cos(heading) - across * math.sin(heading),)
            place += (y + along * math.sin(heading) + across * math.cos(heading),)
            out[row, column] = naive_sample(image, *place)
    return out


def test_places_by_hand():
    got = roi_points(box(1.0, 2.0, 4.0, 2.0), 2)
    assert got.tolist() == [[[0.0, 1.5], [2.0, 1.5]], [[0.0, 2.5], [2.0, 2.5]]]
    # length now along y, width along -x
    turned = roi_points(box(1.0, 2.0, 4.0, 2.0, math.pi / 2), 2)
    assert torch.allclose(
        turned,
        torch.tensor([[[1.5, 1.0], [1.5, 3.0]], [[0.5, 1.0], [0.5, 3.0]]], dtype=torch.float64),
    )
    with pytest.raises(ValueError, match="7 numbers"):
        roi_points(torch.zeros(2, 8), 3)


def test_places_lie_inside_their_box():
    torch.manual_seed(0)
    boxes = (
        torch.rand(20, 7, dtype=torch.float64) * torch.tensor([8.0, 8.0, 1.0, 4.0, 2.0, 1.0, 6.0])
        + 0.3
    )
    places = roi_points(boxes, 7)
    for one, some in zip(boxes, places):
        flat = torch.cat((some.reshape(-1, 2), one[2].expand(49, 1)), dim=1)
        assert points_in_boxes(flat, one[None]).all()


@pytest.mark.parametrize("size", [1, 2, 7])
def test_equals_plain_loops_inside_on_the_border_and_outside(size):
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 16, 8, dtype=torch.float64)
    boxes = torch.stack(
        (
            # inside, over the far corner
            torch.stack((box(0.3, -2.1, 3.0, 1.5, 0.7), box(3.9, 7.9, 2.0, 1.0, 2.0))),
            torch.stack((box(-4.0, 0.0, 1.0, 1.0, -1.0), box(30.0, 0.0))),  # on the border, outside
        )
    )
    got = roi_grid_pool(maps, boxes, REGION, size)
    assert got.shape == (2, 2, 3, size, size)
    for frame in range(2):
        for number in range(2):
            for channel in range(3):
                want = naive_pool(maps[frame, channel], boxes[frame, number], size)
                assert torch.allclose(got[frame, number, channel], want, atol=1e-12)
    assert got[1, 1].abs().max() == 0


@pytest.mark.parametrize("cells", [(16, 8), (32, 16), (48, 20)])
def test_d14_a_ramp_reads_its_own_coordinates_at_both_ends_on_any_grid(cells):
    """The original drifts by up to a cell towards the far edge."""
    boxes = torch.stack(
        [box(x, y, 1.0, 0.6, 0.4) for x in (-3.0, 0.1, 3.0) for y in (-7.0, 0.2, 7.0)]
    )[None]
    got = roi_grid_pool(ramp(*cells), boxes, REGION, 5)
    assert torch.allclose(got[0].permute(0, 2, 3, 1), roi_points(boxes[0], 5), atol=1e-12)


def test_frames_read_their_own_map():
    maps = torch.stack((torch.zeros(1, 16, 8), torch.ones(1, 16, 8)))
    got = roi_grid_pool(maps, box().float().expand(2, 3, 7), REGION, 4)
    assert torch.allclose(got[0], torch.zeros(())) and torch.allclose(got[1], torch.ones(()))


def test_gradients_reach_the_map():
    torch.manual_seed(0)
    maps = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    boxes = torch.stack((box(0.2, 0.3, 3.0, 2.0, 0.5), box(4.0, 8.0)))[None]
    assert torch.autograd.gradcheck(lambda m: roi_grid_pool(m, boxes, REGION, 3), (maps,))


def test_no_boxes_leave_nothing_that_still_hangs_on_the_map():
    maps = torch.randn(2, 3, 6, 6, requires_grad=True)
    got = roi_grid_pool(maps, torch.zeros(2, 0, 7), REGION, 7)
    assert got.shape == (2, 0, 3, 7, 7)
    got.sum().backward()
    assert maps.grad.abs().max() == 0


def test_inputs_stay():
    maps, boxes = torch.randn(1, 2, 6, 6), box().float()[None, None]
    before = maps.clone(), boxes.clone()
    roi_grid_pool(maps, boxes, REGION, 3)
    assert torch.equal(maps, before[0]) and torch.equal(boxes, before[1])
