"""Areas shared by two rectangles, against arithmetic, a naive clipper and shapely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon

from kdlib.models.geometry.rotated_iou import paired_overlap

NUMBER = st.floats(-4, 4, allow_nan=False, width=32)
SIZE = st.floats(0.0625, 6, allow_nan=False, width=32)
HEADING = st.one_of(
    st.floats(-7, 7, width=32), st.sampled_from([0.0, np.pi / 2, np.pi, -np.pi / 2, 2 * np.pi])
)
RECTANGLE = st.tuples(NUMBER, NUMBER, SIZE, SIZE, HEADING)


def corners(rectangle):
    x, y, length, width, heading = (float(v) for v in rectangle)
    c, s = np.cos(heading), np.sin(heading)
    out = []
    for a, b in ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5)):
        out.append((x + a * length * c - b * width * s, y + a * length * s + b * width * c))
    return out


def clip_reference(first, second):
    """Sutherland-Hodgman and shoelace, in plain Python."""
    polygon, clip = corners(first), corners(second)
    for (ax, ay), (bx, by) in zip(clip, clip[1:] + clip[:1]):
        kept = []
        for p, q in zip(polygon, polygon[1:] + polygon[:1]):
            inside_p = (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax)
            inside_q = (bx - ax) * (q[1] - ay) - (by - ay) * (q[0] - ax)
            if inside_p >= 0:
                kept.append(p)
            if inside_p * inside_q < 0:
                t = inside_p / (inside_p - inside_q)
                kept.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        polygon = kept
    area = sum(p[0] * q[1] - q[0] * p[1] for p, q in zip(polygon, polygon[1:] + polygon[:1]))
    return 0.5 * area


def pair_areas(a, b):
    up = np.zeros((len(a), 2))
    boxes = [np.column_stack((x[:, :2], up[:, :1], x[:, 2:4], up[:, 1:], x[:, 4])) for x in (a, b)]
    return paired_overlap(*map(torch.from_numpy, boxes)).numpy()


def overlap(first, second):
    return pair_areas(np.array([first], float), np.array([second], float))[0]


@pytest.mark.parametrize(
    ("first", "second", "area"),
    [
        ((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3), 8.0),  # identical
        ((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3 + np.pi), 8.0),  # turned round
        ((0, 0, 4, 2, 0), (4, 0, 4, 2, 0), 0.0),  # touching sides
        ((0, 0, 4, 2, 0), (4, 2, 4, 2, 0), 0.0),  # touching corners
        ((0, 0, 4, 2, 0), (9, 9, 4, 2, 1), 0.0),  # apart
        ((0, 0, 4, 4, 0.7), (0.1, 0.2, 1, 1, -0.4), 1.0),  # contained
        ((0.1, 0.2, 1, 1, -0.4), (0, 0, 4, 4, 0.7), 1.0),
        ((0, 0, 2, 2, 0), (0, 0, 2, 2, np.pi / 4), 8 * (np.sqrt(2) - 1)),  # regular octagon
        ((0, 0, 4, 2, 0), (0, 0, 4, 2, np.pi / 2), 4.0),  # cross
        ((0, 0, 4, 2, 0.5), (0, 0, 3, 2, 0.5), 6.0),  # collinear edges
        ((0, 0, 4, 2, 0), (1, 0, 4, 2, 0), 6.0),
        ((0, 0, 4, 0, 0.2), (0, 0, 4, 2, 0.1), 0.0),  # no width
    ],
)
def test_known_areas(first, second, area):
    assert overlap(first, second) == pytest.approx(area, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(RECTANGLE, RECTANGLE)
def test_equals_the_naive_clipper_and_is_symmetric(first, second):
    area = overlap(first, second)
    assert area == pytest.approx(clip_reference(first, second), abs=1e-11)
    assert area == pytest.approx(overlap(second, first), abs=1e-11)


@settings(max_examples=200, deadline=None)
@given(RECTANGLE, st.tuples(SIZE, SIZE))
def test_rectangles_sharing_lines(first, size):
    second = (*first[:2], *size, first[4])
    expected = min(first[2], size[0]) * min(first[3], size[1])
    assert overlap(first, second) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_equals_shapely_on_many_random_pairs():
    rng = np.random.default_rng(3)
    a = np.column_stack(
        (rng.uniform(-3, 3, (4000, 2)), rng.uniform(0.1, 5, (4000, 2)), rng.uniform(-7, 7, 4000))
    )
    b = np.column_stack(
        (rng.uniform(-3, 3, (4000, 2)), rng.uniform(0.1, 5, (4000, 2)), rng.uniform(-7, 7, 4000))
    )
    expected = [Polygon(corners(p)).intersection(Polygon(corners(q))).area for p, q in zip(a, b)]
    np.testing.assert_allclose(pair_areas(a, b), expected, atol=1e-12)


@pytest.mark.parametrize("turn", [5e-324, 1e-310, 1e-200, 1e-16, -1e-310])
def test_a_turn_too_small_to_divide_by(turn):
    assert overlap((0, 0, 4, 2, turn), (1, 0.5, 4, 2, 0)) == pytest.approx(4.5, abs=1e-12)
