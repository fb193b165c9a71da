from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.waymo.range_image import (
    RangeImageError,
    as_image,
    as_transform,
    range_image_to_points,
    row_inclinations,
)

NAMES = {1: "TOP", 2: "FRONT", 3: "SIDE_LEFT", 4: "SIDE_RIGHT", 5: "REAR"}


@pytest.fixture(scope="module")
def images(goldens):
    """Every golden range image with all it needs, by the keys of the npz files; read with plain
    pyarrow.
    """
    folder = goldens / "waymo_format" / "v2" / "training"
    tables = {
        name: pq.read_table(next((folder / name).glob("*.parquet"))).to_pylist()
        for name in ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose")
    }
    time, laser = "key.frame_timestamp_micros", "key.laser_name"
    poses = {
        row[time]: np.reshape(row["[VehiclePoseComponent].world_from_vehicle.transform"], (4, 4))
        for row in tables["vehicle_pose"]
    }
    pixel = "[LiDARPoseComponent].range_image_return1"
    pixel_poses = {
        row[time]: np.array(row[f"{pixel}.values"], np.float32).reshape(row[f"{pixel}.shape"])
        for row in tables["lidar_pose"]
    }
    calibrations = {row[laser]: row for row in tables["lidar_calibration"]}
    found = {}
    for row in tables["lidar"]:
        prefix = "[LiDARCalibrationComponent]."
        calibration = calibrations[row[laser]]
        for number in (1, 2):
            name = f"[LiDARComponent].range_image_return{number}"
            image = np.array(row[f"{name}.values"], np.float32).reshape(row[f"{name}.shape"])
            key = f"f{sorted(poses).index(row[time])}_{NAMES[row[laser]]}_r{number}"
            found[key] = {
                "image": image,
                "extrinsic": np.reshape(calibration[prefix + "extrinsic.transform"], (4, 4)),
                "inclinations": row_inclinations(
                    calibration[prefix + "beam_inclination.values"],
                    calibration[prefix + "beam_inclination.min"],
                    calibration[prefix + "beam_inclination.max"],
                    image.shape[0],
                ),
                "pixel_pose": pixel_poses[row[time]] if row[laser] == 1 else None,
                "frame_pose": poses[row[time]],
            }
    return found


def test_points_match_the_official_float64_formula(goldens, images):
    reference = np.load(goldens / "waymo_format" / "official_v1_f64_xyz.npz")
    assert set(reference.files) == set(images) and len(images) == 20
    for key in reference.files:
        points = range_image_to_points(**images[key])
        assert points.dtype == np.float32 and len(points) == len(reference[key]), key
        np.testing.assert_allclose(points[:, :3], reference[key], rtol=0, atol=1e-4, err_msg=key)


def test_points_match_the_official_float32_output(goldens, images):
    reference = np.load(goldens / "waymo_format" / "official_v2_f32.npz")
    flags = np.load(goldens / "waymo_format" / "official_v1_nlz.npz")
    for key in reference.files:
        points = range_image_to_points(**images[key])
        # the official output is off by up to 7 mm there
        tolerance = 1e-2 if key.startswith("f1_TOP") else 1e-4
        np.testing.assert_allclose(
            points[:, :3], reference[key][:, 3:6], rtol=0, atol=tolerance, err_msg=key
        )
        np.testing.assert_array_equal(points[:, 3:5], reference[key][:, 1:3], err_msg=key)
        np.testing.assert_array_equal(points[:, 5], flags[key], err_msg=key)


def test_inclinations_follow_the_specified_formula(goldens):
    lasers = json.loads((goldens / "waymo_format" / "frames.json").read_text())[0]["context"][
        "laser_calibrations"
    ]
    side = next(laser for laser in lasers if laser["name"] == 2)
    low, high = side["beam_inclination_min"], side["beam_inclination_max"]
    rows = row_inclinations(None, low, high, 10)
    np.testing.assert_allclose(rows, [low + (9 - r + 0.5) / 10 * (high - low) for r in range(10)])
    np.testing.assert_array_equal(row_inclinations(np.array([1.0, 2.0, 3.0]), 0, 0, 3), [3, 2, 1])


def _one_pixel(value=10.0, **changes):
    image = np.full((2, 4, 4), -1, np.float32)
    image[1, 2] = (value, 0.5, 0.1, -1)
    values = {
        "image": image,
        "extrinsic": np.eye(4),
        "inclinations": np.zeros(2),
        "pixel_pose": None,
        "frame_pose": np.eye(4),
    }
    return {**values, **changes}


def test_a_single_pixel_by_hand():
    point = range_image_to_points(**_one_pixel())[0]
    azimuth = np.pi * (2 * (4 - 2 - 0.5) / 4 - 1)
    np.testing.assert_allclose(
        point, [10 * np.cos(azimuth), 10 * np.sin(azimuth), 0, 0.5, 0.1, -1], atol=1e-6
    )


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_range_that_is_not_above_zero_is_no_point(value):
    assert range_image_to_points(**_one_pixel(value)).shape == (0, 6)


def test_an_image_without_pixels_gives_no_points():
    assert range_image_to_points(
        np.zeros((0, 0, 4), np.float32), np.eye(4), np.zeros(0), None, np.eye(4)
    ).shape == (0, 6)


def test_a_tiny_range_is_a_point():
    assert len(range_image_to_points(**_one_pixel(1e-3))) == 1


@settings(max_examples=50, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    origin=st.tuples(*[st.floats(-60_000, 60_000)] * 3),
    step=st.tuples(*[st.floats(-2, 2)] * 3),
)
def test_pixel_poses_match_matrices_in_float64(angles, origin, step):
    def rotation(roll, pitch, yaw):
        (sr, sp, sy), (cr, cp, cy) = np.sin([roll, pitch, yaw]), np.cos([roll, pitch, yaw])
        rx = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
        ry = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
        rz = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
        return rz @ ry @ rx

    angles, origin = np.array(angles, np.float32), np.array(origin)
    frame = np.eye(4)
    frame[:3, :3], frame[:3, 3] = rotation(*(angles + 0.1)), origin
    pose = np.zeros((2, 4, 6), np.float32)  # missing pixels have no pose, as in the released files
    pose[1, 2] = (*angles, *(origin + step).astype(np.float32))
    if not pose[1, 2].any():
        pose[1, 2, 0] = 1e-3
    points = range_image_to_points(**_one_pixel(pixel_pose=pose, frame_pose=frame))
    flat = range_image_to_points(**_one_pixel())[0, :3].astype(np.float64)
    stored = pose[1, 2].astype(np.float64)
    expected = frame[:3, :3].T @ (rotation(*stored[:3]) @ flat + stored[3:] - origin)
    np.testing.assert_allclose(points[0, :3], expected, rtol=0, atol=1e-4)


def test_a_zero_pose_under_a_valid_pixel_is_an_error():
    with pytest.raises(RangeImageError, match="1 valid pixels have an all-zero pose"):
        range_image_to_points(**_one_pixel(pixel_pose=np.zeros((2, 4, 6), np.float32)))


def test_pixel_poses_of_another_shape_are_an_error():
    with pytest.raises(
        RangeImageError, match=(r"pixel poses of shape \(2, 3, 6\) for a range " r"image of 2 x 4")
    ):
        range_image_to_points(**_one_pixel(pixel_pose=np.ones((2, 3, 6), np.float32)))


@pytest.mark.parametrize(("channel", "value"), [(0, np.nan), (0, np.inf), (1, np.nan), (2, np.inf)])
def test_nan_and_infinity_are_errors(channel, value):
    values = _one_pixel()
    values["image"][1, 2, channel] = value
    with pytest.raises(RangeImageError, match=r"NaN|not finite"):
        range_image_to_points(**values)


def test_a_table_of_another_length_is_an_error():
    with pytest.raises(RangeImageError, match="64 beam inclinations for a range image of 16 rows"):
        row_inclinations(np.zeros(64), 0, 0, 16)


@pytest.mark.parametrize(
    ("count", "shape"), [(31, (2, 4, 4)), (32, (8, 4)), (24, (2, 4, 3)), (33, (2, 4, 4))]
)
def test_a_shape_that_does_not_fit_is_an_error(count, shape):
    with pytest.raises(RangeImageError, match="range image of shape"):
        as_image(np.zeros(count, np.float32), shape, 4)


def test_transforms_are_checked():
    np.testing.assert_array_equal(as_transform(np.eye(4).ravel()), np.eye(4))
    with pytest.raises(RangeImageError, match="16 numbers, not 12"):
        as_transform(np.zeros(12))
    with pytest.raises(RangeImageError, match="last row"):
        as_transform(np.ones(16))
    with pytest.raises(RangeImageError, match="not finite"):
        as_transform(np.where(np.arange(16) == 3, np.nan, np.eye(4).ravel()))
