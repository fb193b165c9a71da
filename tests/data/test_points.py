from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlib.data.points import POINT, decode_points, encode_points
from kdlib.errors import DataError

metres = st.floats(-79.5, 79.5, width=32)
point = st.tuples(
    metres,
    metres,
    st.floats(-32, 32, width=32),
    st.floats(0, 150_000, width=32),
    st.floats(0, 1.9375, width=32),
    st.sampled_from([-1, 1]),
)


@given(st.lists(point, max_size=20))
def test_quantisation_stays_within_its_bounds(rows):
    points = np.array(rows, np.float32).reshape(-1, 6)
    back = decode_points(encode_points(points))
    assert back.shape == points.shape and back.dtype == np.float32
    assert np.abs(back[:, :3].astype(float) - points[:, :3]).max(initial=0) < 0.002
    assert np.abs(back[:, 3] - np.tanh(points[:, 3])).max(initial=0) < 0.002
    assert np.abs(back[:, 4] - points[:, 4]).max(initial=0) <= 1 / 128
    np.testing.assert_array_equal(back[:, 5], points[:, 5])


@given(st.lists(point, max_size=20))
def test_what_was_stored_once_is_stored_the_same_again(rows):
    stored = encode_points(np.array(rows, np.float32).reshape(-1, 6))
    back = decode_points(stored)
    back[:, 3] = np.arctanh(np.minimum(back[:, 3], 254.6 / 255))
    np.testing.assert_array_equal(encode_points(back), stored)


def test_a_point_takes_eight_bytes():
    assert POINT.itemsize == 8


def test_points_out_of_reach_are_left_out_and_the_order_kept():
    points = np.zeros((5, 6), np.float32)
    points[:, 0] = (1, 80.1, 2, -80.1, 3)
    points[2, 2] = 33
    assert decode_points(encode_points(points))[:, 0] == pytest.approx([1, 3], abs=2e-3)


def test_the_limits_themselves_are_kept():
    points = np.array([[80, -80, 32.767, 0, 0, 1], [-80, 80, -32.767, 0, 0, -1]], np.float32)
    np.testing.assert_allclose(
        decode_points(encode_points(points))[:, :3], points[:, :3], atol=1e-3
    )


def test_extreme_intensities_and_elongations_saturate():
    points = np.array([[0, 0, 0, 139_264, 7, 1], [0, 0, 0, -1, -1, -1]], np.float32)
    np.testing.assert_allclose(
        decode_points(encode_points(points))[:, 3:], [[1, 127 / 64, 1], [0, 0, -1]]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", range(6))
def test_numbers_that_are_not_finite_are_an_error(column, value):
    points = np.zeros((3, 6), np.float32)
    points[1, column] = value
    with pytest.raises(DataError, match="1 of 3 points hold NaN or infinity"):
        encode_points(points)


def test_intensities_are_the_same_bytes_with_every_numpy():
    """At every step of the count, where the last bit of a tanh would decide, against the C
    library's.
    """
    steps = np.arctanh((np.arange(255) + 0.5) / 255).astype(np.float32).view(np.int32)
    values = (steps[:, None] + np.arange(-100, 101, dtype=np.int32)).view(np.float32).ravel()
    points = np.zeros((len(values), 6), np.float32)
    points[:, 3] = values
    np.testing.assert_array_equal(
        encode_points(points)["intensity"],
        [round(255 * math.tanh(value)) for value in values.tolist()],
    )


def test_no_points():
    assert decode_points(encode_points(np.zeros((0, 6), np.float32))).shape == (0, 6)
