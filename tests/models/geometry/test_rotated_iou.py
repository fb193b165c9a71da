"""Overlaps of rotated rectangles against shapely, and against arithmetic where shapely itself
fails.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch

from kdlib.models.geometry import rotated_iou
from kdlib.models.geometry.rotated_iou import (
    bev_iou,
    bev_overlap,
    paired_overlap,
    touching_pairs,
    volume_iou,
)


def random_boxes(rng, count, spread=6.0, smallest=0.3):
    centre = rng.uniform(-spread, spread, (count, 2))
    size = np.exp(rng.uniform(math.log(smallest), math.log(12), (count, 2)))
    z = np.column_stack((rng.uniform(-1, 1, count), rng.uniform(0.5, 3, count)))
    return np.column_stack(
        (centre, z[:, 0], size, z[:, 1], rng.uniform(-2 * math.pi, 2 * math.pi, count))
    )


def rectangles(boxes):
    """Shapely's rectangles of boxes (M, 7), from corners worked out here."""
    forward = np.stack((np.cos(boxes[:, 6]), np.sin(boxes[:, 6])), axis=1)
    left = np.stack((-forward[:, 1], forward[:, 0]), axis=1)
    along, across = 0.5 * boxes[:, 3:4] * forward, 0.5 * boxes[:, 4:5] * left
    corners = [
        boxes[:, :2] + a * along + b * across for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))
    ]
    return shapely.polygons(np.stack(corners, axis=1))


def reference(a, b):
    first, second = rectangles(a), rectangles(b)
    shared = shapely.area(shapely.intersection(first, second))
    return shared / (shapely.area(first) + shapely.area(second) - shared)


def paired_iou(a, b):
    """``bev_iou`` of a[i] with b[i], fifty pairs at a time."""
    parts = zip(torch.from_numpy(a).split(50), torch.from_numpy(b).split(50))
    return torch.cat([bev_iou(x, y).diagonal() for x, y in parts]).numpy()


def moved(boxes, **columns):
    out = boxes.copy()
    for name, value in columns.items():
        out[:, ("x", "y", "z", "dx", "dy", "dz", "heading").index(name)] = value
    return out


def test_ten_thousand_random_pairs():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 10_000, spread=4.0), random_boxes(rng, 10_000, spread=4.0)
    found = paired_iou(a, b)
    np.testing.assert_allclose(found, reference(a, b), rtol=0, atol=1e-5)
    assert (found > 0.01).sum() > 2000


@pytest.mark.parametrize("turn", [0.0, math.pi, -math.pi, 2 * math.pi])
def test_identical_and_flipped_boxes_are_one(turn):
    # Shapely answers 0 for a few of these: the corners coincide but for rounding.
    boxes = random_boxes(np.random.default_rng(1), 1000, spread=75)
    flipped = moved(boxes, heading=boxes[:, 6] + turn)
    np.testing.assert_allclose(paired_iou(boxes, flipped), 1, rtol=0, atol=1e-9)
    single = paired_iou(boxes.astype(np.float32), flipped.astype(np.float32))
    np.testing.assert_allclose(single, 1, rtol=0, atol=1e-5)


def test_quarter_turn_swaps_length_and_width():
    boxes = random_boxes(np.random.default_rng(2), 500)
    turned = moved(boxes, dx=boxes[:, 4], dy=boxes[:, 3], heading=boxes[:, 6] + math.pi / 2)
    np.testing.assert_allclose(paired_iou(boxes, turned), 1, rtol=0, atol=1e-9)


def test_contained_boxes_share_the_smaller_area():
    outer = random_boxes(np.random.default_rng(3), 500)
    inner = moved(outer, dx=0.5 * outer[:, 3], dy=0.25 * outer[:, 4])
    np.testing.assert_allclose(paired_iou(outer, inner), 0.125, rtol=0, atol=1e-9)
    np.testing.assert_allclose(paired_iou(inner, outer), 0.125, rtol=0, atol=1e-9)


def test_touching_boxes_share_nothing():
    a = random_boxes(np.random.default_rng(4), 500)
    step = 0.5 * a[:, 3] + 0.5
    b = moved(a, x=a[:, 0] + step * np.cos(a[:, 6]), y=a[:, 1] + step * np.sin(a[:, 6]), dx=1.0)
    np.testing.assert_allclose(paired_iou(a, b), 0, rtol=0, atol=1e-9)


def test_nearly_parallel_boxes():
    """Slopes near 0 or infinity, where a careless quotient is noise."""
    rng = np.random.default_rng(5)
    a = random_boxes(rng, 2000)
    b = moved(a, x=a[:, 0] + rng.uniform(-1, 1, 2000), y=a[:, 1] + rng.uniform(-1, 1, 2000))
    b[:, 6] += 10.0 ** rng.uniform(-16, -4, 2000) * rng.choice((-1, 1), 2000)
    b[:, 3:5] *= rng.choice((1.0, 1 + 1e-9, 0.5), (2000, 2))
    straight = moved(b, heading=a[:, 6])
    # 1e-4 rad over 12 m
    np.testing.assert_allclose(paired_iou(a, b), reference(a, straight), rtol=0, atol=2e-3)
    tiny = np.abs(b[:, 6] - a[:, 6]) < 1e-8
    np.testing.assert_allclose(
        paired_iou(a, b)[tiny], reference(a, straight)[tiny], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("iou", [bev_iou, volume_iou])
def test_boxes_without_size_are_zero_and_never_nan(iou):
    flat = torch.zeros(4, 7, dtype=torch.float64)
    flat[1, 3], flat[2, 4], flat[3, 3:6] = 2.0, 2.0, 1.0
    found = iou(flat, flat)
    assert torch.equal(found, torch.diag(torch.tensor([0, 0, 0, 1.0], dtype=torch.float64)))
    assert not iou(flat, moved_torch(flat, 0.1)).isnan().any()


def moved_torch(boxes, angle):
    turned = boxes.clone()
    turned[:, 6] += angle
    return turned


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_boxes_are_as_good_as_large_ones(dtype):
    tiny = torch.tensor([[70.0, -30.0, 1.0, 1e-4, 1e-4, 1e-4, 0.7]], dtype=dtype)
    torch.testing.assert_close(
        bev_iou(tiny, tiny), torch.ones(1, 1, dtype=dtype), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        volume_iou(tiny, tiny), torch.ones(1, 1, dtype=dtype), rtol=0, atol=1e-5
    )


def test_volumes():
    rng = np.random.default_rng(6)
    a, b = random_boxes(rng, 300, spread=2), random_boxes(rng, 300, spread=2)
    shared = shapely.area(shapely.intersection(rectangles(a), rectangles(b)))
    top = np.minimum(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
    shared *= np.clip(top - np.maximum(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2), 0, None)
    expected = shared / (a[:, 3:6].prod(1) + b[:, 3:6].prod(1) - shared)
    found = volume_iou(torch.from_numpy(a), torch.from_numpy(b)).diagonal()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_work_in_pieces_changes_nothing(monkeypatch):
    rng = np.random.default_rng(7)
    a, b = torch.from_numpy(random_boxes(rng, 90)), torch.from_numpy(random_boxes(rng, 70))
    whole = bev_overlap(a, b)
    monkeypatch.setattr(rotated_iou, "_PAIRS", 11)
    monkeypatch.setattr(rotated_iou, "_ROWS", 7)
    assert torch.equal(bev_overlap(a, b), whole)
    first, second = touching_pairs(a, b)
    assert torch.equal(first * 70 + second, (first * 70 + second).sort().values)


def test_nothing_in_nothing_out():
    none, some = torch.zeros(0, 7), torch.ones(3, 7)
    assert bev_iou(none, some).shape == (0, 3) and volume_iou(some, none).shape == (3, 0)
    assert paired_overlap(none, none).shape == (0,)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"equal shapes.*\(1, 7\).*\(2, 7\)"):
        paired_overlap(torch.zeros(1, 7), torch.zeros(2, 7))
    with pytest.raises(ValueError, match="b need 7 numbers"):
        bev_iou(torch.zeros(1, 7), torch.zeros(2, 8))
