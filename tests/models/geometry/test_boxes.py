"""Corners, memberships and angles against hand values and shapely."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch

from kdlib.models.geometry.boxes import corners_3d, corners_bev, points_in_boxes, wrap_angle

# turned to +y
QUARTER = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.0, math.pi / 2]], dtype=torch.float64)


def test_corners_by_hand():
    expected = torch.tensor([[[0.0, 4.0], [0.0, 0.0], [2.0, 0.0], [2.0, 4.0]]], dtype=torch.float64)
    torch.testing.assert_close(corners_bev(QUARTER), expected, rtol=0, atol=1e-12)
    solid = corners_3d(QUARTER)
    assert solid.shape == (1, 8, 3)
    torch.testing.assert_close(solid[:, :4, :2], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(solid[:, 4:, :2], expected, rtol=0, atol=1e-12)
    assert solid[0, :, 2].tolist() == [2.5] * 4 + [3.5] * 4


def test_corners_keep_leading_axes_and_dtype():
    boxes = torch.rand(2, 3, 7)
    assert corners_bev(boxes).shape == (2, 3, 4, 2) and corners_3d(boxes).shape == (2, 3, 8, 3)
    assert corners_bev(boxes).dtype == torch.float32
    assert corners_3d(boxes[:0]).shape == (0, 3, 8, 3)


def test_points_on_the_border_are_inside():
    points = torch.tensor(
        [[1.0, 4.0, 3.0], [1.0, 2.0, 3.5], [2.0, 2.0, 2.5], [1.0, 2.0, 3.6], [2.1, 2.0, 3.0]],
        dtype=torch.float64,
    )
    # The quarter turn is not exact in floating point, so the box may be a hair wider than the
    # border.
    box = QUARTER + torch.tensor([0, 0, 0, 1e-9, 1e-9, 0, 0])
    assert points_in_boxes(points, box)[:, 0].tolist() == [True, True, True, False, False]


def test_points_in_boxes_equals_shapely():
    rng = np.random.default_rng(0)
    boxes = np.column_stack(
        (rng.uniform(-5, 5, (20, 3)), rng.uniform(0.1, 6, (20, 3)), rng.uniform(-7, 7, 20))
    )
    points = rng.uniform(-8, 8, (500, 5))
    found = points_in_boxes(torch.from_numpy(points), torch.from_numpy(boxes)).numpy()
    flat = shapely.polygons(corners_bev(torch.from_numpy(boxes)).numpy())
    expected = shapely.covers(flat[None], shapely.points(points[:, None, :2]))
    expected &= np.abs(points[:, None, 2] - boxes[:, 2]) <= boxes[:, 5] / 2
    np.testing.assert_array_equal(found, expected)
    assert found.any() and not found.all()


def test_wrapped_angles_lie_in_minus_pi_to_pi():
    given = torch.tensor([0.0, math.pi, -math.pi, 3 * math.pi, 7.0, -7.0], dtype=torch.float64)
    expected = torch.tensor(
        [0.0, -math.pi, -math.pi, -math.pi, 7.0 - 2 * math.pi, 2 * math.pi - 7.0],
        dtype=torch.float64,
    )
    torch.testing.assert_close(wrap_angle(given), expected)
    many = torch.linspace(-40, 40, 100_001)
    wrapped = wrap_angle(many)
    assert float(wrapped.min()) >= -math.pi - 1e-6 and float(wrapped.max()) < math.pi
    torch.testing.assert_close(wrapped.cos(), many.cos(), rtol=0, atol=1e-5)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"7 numbers.*\(3, 8\)"):
        corners_bev(torch.zeros(3, 8))
    with pytest.raises(ValueError, match="7 numbers"):
        points_in_boxes(torch.zeros(2, 3), torch.zeros(1, 6))
