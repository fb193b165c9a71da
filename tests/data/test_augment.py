from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.config import AugmentConfig
from kdlib.data.augment import (
    Augmentation,
    augment_boxes,
    augment_points,
    boxes_in_range,
    draw,
    points_in_range,
    wrap_heading,
)

RANGE = (-20.0, -20.0, -2.0, 20.0, 20.0, 4.0)
augmentations = st.builds(
    Augmentation,
    flip_x=st.booleans(),
    flip_y=st.booleans(),
    angle=st.floats(-math.pi, math.pi),
    scale=st.floats(0.5, 2),
)
near = st.floats(-70, 70, width=32)
box = st.tuples(
    near, near, near, *[st.floats(0.125, 12, width=32)] * 3, st.floats(-3.125, 3.125, width=32)
)


def _corners(boxes):
    """Reference: the eight corners, one box at a time, in float64."""
    found = []
    for x, y, z, dx, dy, dz, heading in boxes.astype(np.float64):
        for sx in (-0.5, 0.5):
            for sy in (-0.5, 0.5):
                for sz in (-0.5, 0.5):
                    u, v = sx * dx, sy * dy
                    found.append(
                        (
                            x + u * math.cos(heading) - v * math.sin(heading),
                            y + u * math.sin(heading) + v * math.cos(heading),
                            z + sz * dz,
                        )
                    )
    return np.array(found).reshape(len(boxes), 8, 3)


def _front(boxes):
    """Middle of each box's front face: knows the heading, which the set of corners does not."""
    ahead = boxes[:, 3] / 2
    return np.stack(
        (boxes[:, 0] + ahead * np.cos(boxes[:, 6]), boxes[:, 1] + ahead * np.sin(boxes[:, 6])), 1
    )


@settings(deadline=None)
@given(drawn=augmentations, rows=st.lists(box, min_size=1, max_size=4))
def test_points_and_boxes_move_together(drawn, rows):
    boxes = np.array(rows, np.float32)
    moved = augment_boxes(boxes, drawn)
    np.testing.assert_allclose(
        augment_points(_pad(_front(boxes)), drawn)[:, :2], _front(moved), atol=1e-3
    )
    corners = augment_points(_corners(boxes).reshape(-1, 3).astype(np.float32), drawn).reshape(
        len(boxes), 8, 3
    )
    for one, other in zip(corners, _corners(moved)):
        distance = np.linalg.norm(one[:, None] - other[None], axis=2)
        assert distance.min(axis=1).max() < 1e-3


def _pad(xy):
    return np.concatenate((xy, np.zeros((len(xy), 3))), axis=1).astype(np.float32)


@given(drawn=augmentations, rows=st.lists(box, max_size=4))
def test_inputs_are_left_alone_and_headings_wrapped(drawn, rows):
    boxes = np.array(rows, np.float32).reshape(-1, 7)
    before = boxes.copy()
    moved = augment_boxes(boxes, drawn)
    augment_points(boxes, drawn)
    np.testing.assert_array_equal(boxes, before)
    assert (
        moved.dtype == np.float32
        and (moved[:, 6] >= -math.pi).all()
        and (moved[:, 6] < math.pi).all()
    )


@given(rows=st.lists(box, max_size=4), angle=st.floats(-3, 3), scale=st.floats(0.9, 1.1))
def test_turning_and_scaling_can_be_undone(rows, angle, scale):
    boxes = np.array(rows, np.float32).reshape(-1, 7)
    there = augment_boxes(
        augment_boxes(boxes, Augmentation(angle=angle)), Augmentation(scale=scale)
    )
    back = augment_boxes(
        augment_boxes(there, Augmentation(scale=1 / scale)), Augmentation(angle=-angle)
    )
    np.testing.assert_allclose(back, boxes, atol=2e-4)


@given(
    rows=st.lists(box, max_size=4),
    flips=st.sampled_from([(True, False), (False, True), (True, True)]),
)
def test_flipping_twice_is_nothing(rows, flips):
    boxes, drawn = np.array(rows, np.float32).reshape(-1, 7), Augmentation(*flips)
    np.testing.assert_allclose(augment_boxes(augment_boxes(boxes, drawn), drawn), boxes, atol=1e-5)


def test_flips_by_hand():
    boxes = np.array([[1, 2, 3, 4, 2, 1, 0.5]], np.float32)
    np.testing.assert_allclose(
        augment_boxes(boxes, Augmentation(flip_x=True)), [[1, -2, 3, 4, 2, 1, -0.5]], atol=1e-6
    )
    np.testing.assert_allclose(
        augment_boxes(boxes, Augmentation(flip_y=True)),
        [[-1, 2, 3, 4, 2, 1, math.pi - 0.5]],
        atol=1e-6,
    )
    turned = augment_boxes(boxes, Augmentation(angle=math.pi / 2, scale=2))
    np.testing.assert_allclose(turned, [[-4, 2, 6, 8, 4, 2, 0.5 + math.pi / 2]], atol=1e-5)


def test_other_features_are_not_touched():
    points = np.arange(10, dtype=np.float32).reshape(2, 5)
    np.testing.assert_array_equal(
        augment_points(points, Augmentation(True, True, 1.0, 1.1))[:, 3:], points[:, 3:]
    )


@given(st.floats(-1e3, 1e3))
def test_headings_wrap_as_specified(angle):
    wrapped = float(wrap_heading(np.array([angle]))[0])
    assert -math.pi <= wrapped < math.pi
    assert math.cos(wrapped) == pytest.approx(math.cos(angle), abs=1e-6) and math.sin(
        wrapped
    ) == pytest.approx(math.sin(angle), abs=1e-6)


@pytest.mark.parametrize("angle", [math.pi, -math.pi, 3 * math.pi, np.float32(math.pi)])
def test_half_turns_stay_in_the_interval(angle):
    assert -math.pi <= float(wrap_heading(np.array([angle]))[0]) < math.pi


def test_draws_are_within_their_limits_and_repeat():
    config = AugmentConfig()
    drawn = [draw(config, np.random.default_rng(seed)) for seed in range(400)]
    assert drawn == [draw(config, np.random.default_rng(seed)) for seed in range(400)]
    assert all(abs(d.angle) <= math.pi / 4 and 0.95 <= d.scale <= 1.05 for d in drawn)
    for flag in ("flip_x", "flip_y"):
        assert 140 < sum(getattr(d, flag) for d in drawn) < 260
    off = draw(AugmentConfig(False, False, 0.0, (1.0, 1.0)), np.random.default_rng(0))
    assert off == Augmentation()


def test_the_point_range_is_inclusive_and_ignores_z():
    points = np.array([[20, -20, 99], [20.001, 0, 0], [0, -20.001, 0], [-20, 20, -99]], np.float32)
    assert points_in_range(points, RANGE).tolist() == [True, False, False, True]
    edge = np.array([[74.24, -74.24, 0]], np.float32)
    assert points_in_range(edge, (-74.24, -74.24, -2, 74.24, 74.24, 4)).all()


@given(st.lists(box, max_size=6))
def test_boxes_are_kept_for_one_corner(rows):
    boxes = np.array(rows, np.float32).reshape(-1, 7)
    corners = _corners(boxes)
    slack = 1e-3
    low, high = np.array(RANGE[:3]), np.array(RANGE[3:])
    surely = ((corners > low + slack) & (corners < high - slack)).all(2).any(1)
    possibly = ((corners > low - slack) & (corners < high + slack)).all(2).any(1)
    kept = boxes_in_range(boxes, RANGE)
    assert (kept | ~surely).all() and (possibly | ~kept).all()


def test_the_box_range_is_inclusive_in_three_dimensions():
    boxes = np.array(
        [
            [21, 0, 1, 2, 2, 2, 0],
            [21.01, 0, 1, 2, 2, 2, 0],
            [0, 0, 5, 2, 2, 2, 0],
            [0, 0, 5.01, 2, 2, 2, 0],
        ],
        np.float32,
    )
    assert boxes_in_range(boxes, RANGE).tolist() == [True, False, True, False]
