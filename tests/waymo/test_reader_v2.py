from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdlib.errors import DataError
from kdlib.waymo.components import complete_segments
from kdlib.waymo.segments import list_segments, read_segment

SEGMENT = "1234567890123456789_1000_000_1020_000"
TIME, LASER = "key.frame_timestamp_micros", "key.laser_name"
FIRST = "[LiDARComponent].range_image_return1"


def _read(folder):
    return list(read_segment(folder, SEGMENT))


def _same(a, b):
    for one, other in zip(a, b):
        np.testing.assert_array_equal(one.points, other.points)
        np.testing.assert_array_equal(one.pose, other.pose)
        assert (one.segment, one.index, one.timestamp_micros, one.labels.ids) == (
            other.segment,
            other.index,
            other.timestamp_micros,
            other.labels.ids,
        )
    assert len(a) == len(b)


@pytest.fixture(scope="module")
def golden_frames(golden_split):
    return _read(golden_split)


def test_frames_have_openpcdets_points_in_its_order(goldens, golden_frames):
    reference = np.load(goldens / "waymo_format" / "openpcdet.npz")
    assert [frame.timestamp_micros for frame in golden_frames] == [
        1550000000123456,
        1550000000223468,
    ]
    for number, frame in enumerate(golden_frames):
        golden = reference[f"f{number}_points"]
        assert frame.points.shape == golden.shape and frame.points.dtype == np.float32
        np.testing.assert_allclose(frame.points[:, :3], golden[:, :3], rtol=0, atol=1e-2)
        np.testing.assert_array_equal(frame.points[:, 3:], golden[:, 3:])
        assert frame.frame_id == f"{SEGMENT}_{number:03d}"


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10**6), group=st.sampled_from([1, 3, 100]))
def test_row_order_and_row_groups_do_not_matter(
    golden_frames, golden_split, tmp_path_factory, seed, group
):
    folder = tmp_path_factory.mktemp("rows") / "training"
    for component in ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box"):
        table = pq.read_table(golden_split / component / f"{SEGMENT}.parquet")
        order = random.Random(f"{seed}{component}").sample(range(table.num_rows), table.num_rows)
        columns = random.Random(seed).sample(table.column_names, table.num_columns)
        (folder / component).mkdir(parents=True)
        pq.write_table(
            table.take(order).select(columns),
            folder / component / f"{SEGMENT}.parquet",
            row_group_size=group,
        )
    _same(_read(folder), golden_frames)


def test_float32_transforms_and_no_index_column_are_read(edit, split, golden_frames):
    path = split / "vehicle_pose" / f"{SEGMENT}.parquet"
    table = pq.read_table(path).drop(["index"])
    name = "[VehiclePoseComponent].world_from_vehicle.transform"
    values = pa.array(
        np.concatenate([np.array(row, np.float32) for row in table.column(name).to_pylist()])
    )
    number = table.column_names.index(name)
    pq.write_table(
        table.set_column(number, name, pa.FixedSizeListArray.from_arrays(values, 16)), path
    )
    for frame, golden in zip(_read(split), golden_frames):
        assert frame.pose.dtype == np.float64
        # the pose itself is rounded to 2 mm
        np.testing.assert_allclose(frame.points, golden.points, rtol=0, atol=5e-3)


def test_segments_are_listed(golden_split):
    assert list_segments(golden_split) == [SEGMENT]


@pytest.mark.parametrize(
    "component", ["lidar", "lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box"]
)
def test_a_missing_component_is_named(split, component):
    (split / component / f"{SEGMENT}.parquet").unlink()
    for call in (list_segments, _read):
        with pytest.raises(DataError, match=rf"segment {SEGMENT} has no {component} file"):
            call(split)


def test_a_testing_split_may_lack_boxes(split):
    testing = split.rename(split.with_name("testing"))
    (testing / "lidar_box" / f"{SEGMENT}.parquet").unlink()
    assert list_segments(testing) == [SEGMENT]
    assert [len(frame.labels.ids) for frame in _read(testing)] == [0, 0]


def test_frames_without_boxes_are_frames(edit, split):
    edit("lidar_box", lambda rows: [row for row in rows if row[TIME] == 1550000000123456])
    assert [len(frame.labels.ids) for frame in _read(split)] == [6, 0]
    edit("lidar_box", lambda rows: [])
    assert [len(frame.labels.ids) for frame in _read(split)] == [0, 0]


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no Waymo v2 segments"):
        complete_segments(tmp_path / "training")


@pytest.mark.parametrize(
    "component", ["lidar", "lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box"]
)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(split, component, kept):
    path = split / component / f"{SEGMENT}.parquet"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DataError, match=f"{path} is damaged or no Parquet file"):
        _read(split)


def test_damage_inside_a_file_is_named(split):
    path = split / "lidar" / f"{SEGMENT}.parquet"
    content = bytearray(path.read_bytes())
    content[2000:30000] = bytes(28000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}"):
        _read(split)


def test_a_missing_column_is_named(split):
    path = split / "lidar" / f"{SEGMENT}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop([f"{FIRST}.shape"]), path)
    with pytest.raises(
        DataError, match=(r"has no column " r"'\[LiDARComponent\]\.range_image_return1\.shape'")
    ):
        _read(split)


def _set(rows, chosen, name, value):
    return [{**row, name: value} if chosen(row) else row for row in rows]


def test_nan_in_a_point_cloud_is_an_error(edit, split):
    def spoil(rows):
        for row in rows:
            if row[LASER] == 2:
                row[f"{FIRST}.values"][0] = float("nan")
        return rows

    path = edit("lidar", spoil)
    with pytest.raises(
        DataError, match=(rf"{path}: frame \d+, laser FRONT: 1 ranges are NaN or " r"infinite")
    ):
        _read(split)


def test_an_empty_scan_is_a_frame_without_points(edit, split):
    def empty(rows):
        for row in rows:
            for number in (1, 2):
                values = row[f"[LiDARComponent].range_image_return{number}.values"]
                row[f"[LiDARComponent].range_image_return{number}.values"] = [-1.0] * len(values)
        return rows

    edit("lidar", empty)
    frames = _read(split)
    assert [frame.points.shape for frame in frames] == [(0, 6), (0, 6)] and len(
        frames[0].labels.ids
    ) == 6


def test_a_null_second_return_is_no_points(edit, split, golden_frames):
    name = "[LiDARComponent].range_image_return2"
    edit(
        "lidar",
        lambda rows: [{**row, f"{name}.values": None, f"{name}.shape": None} for row in rows],
    )
    assert 0 < len(_read(split)[0].points) < len(golden_frames[0].points)


@pytest.mark.parametrize(
    ("component", "change", "message"),
    [
        (
            "lidar",
            lambda rows: _set(rows, lambda r: r[LASER] == 1, f"{FIRST}.shape", [16, 121, 4]),
            "laser TOP: range image of shape",
        ),
        ("lidar", lambda rows: rows[:-1], r"has lasers \[.*\], others have"),
        ("lidar", lambda rows: [*rows, rows[0]], r"\(frame, laser\) \(.*\) has two rows"),
        (
            "lidar",
            lambda rows: [row for row in rows if row[TIME] == rows[0][TIME]],
            "is not in both lidar and vehicle_pose",
        ),
        (
            "lidar",
            lambda rows: _set(rows, lambda r: True, "key.segment_context_name", "other"),
            "rows of segment 'other'",
        ),
        ("lidar_pose", lambda rows: rows[:1], "has no pose image of the TOP laser"),
        ("vehicle_pose", lambda rows: [], "holds no frame"),
        ("vehicle_pose", lambda rows: [*rows, rows[0]], "frame .* has two rows"),
        (
            "vehicle_pose",
            lambda rows: _set(
                rows,
                lambda r: True,
                "[VehiclePoseComponent].world_from_vehicle.transform",
                [1.0] * 16,
            ),
            "last row",
        ),
        ("lidar_calibration", lambda rows: rows[1:], "has no row in lidar_calibration"),
        (
            "lidar_calibration",
            lambda rows: _set(
                rows,
                lambda r: r[LASER] == 1,
                "[LiDARCalibrationComponent].beam_inclination.values",
                [0.0] * 64,
            ),
            "64 beam inclinations for a range image of 16 rows",
        ),
        (
            "lidar_box",
            lambda rows: _set(rows, lambda r: True, "[LiDARBoxComponent].box.heading", None),
            "not seven finite numbers",
        ),
    ],
)
def test_contradictions_are_named(edit, split, component, change, message):
    edit(component, change)
    with pytest.raises(DataError, match=message) as error:
        _read(split)
    assert str(split) in str(error.value)


def test_a_zero_pose_under_a_valid_pixel_is_an_error(edit, split):
    name = "[LiDARPoseComponent].range_image_return1.values"
    edit("lidar_pose", lambda rows: [{**row, name: [0.0] * len(row[name])} for row in rows])
    with pytest.raises(DataError, match=r"laser TOP: .* all-zero pose"):
        _read(split)


def test_uneven_timing_is_a_warning(edit, split):
    later = 1550000000523468

    def shift(rows):
        return _set(rows, lambda r: r[TIME] == 1550000000223468, TIME, later)

    for component in ("lidar", "lidar_pose", "vehicle_pose", "lidar_box"):
        edit(component, shift)
    with pytest.warns(UserWarning, match=r"1 frames are not 95 to 105 ms .*400.0 ms"):
        assert _read(split)[1].timestamp_micros == later
