from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdlib.errors import DataError
from kdlib.waymo.annotations import (
    DIFFICULTY,
    LABEL_COLUMNS,
    LIDAR_BOX_NUMBERS,
    NUM_POINTS,
    SPEEDS,
    TYPE,
    difficulty_level,
    labels_by_frame,
)
from kdlib.waymo.components import OBJECT, TIME


def convert(table):
    return {name: converter(table.column(name)) for name, converter in LABEL_COLUMNS.items()}


def _row(**changes):
    box = dict(zip(LIDAR_BOX_NUMBERS, (1.0, 2.0, 0.5, 4.0, 2.0, 1.5, 0.3)))
    motion = dict(zip(SPEEDS, (3.0, 0.0, 0.0)))
    row = {TIME: 7, OBJECT: "a", TYPE: 1, NUM_POINTS: 10, DIFFICULTY: None, **box, **motion}
    return {**row, **changes}


def _labels(rows, poses=None):
    kinds = {
        TIME: pa.int64(),
        OBJECT: pa.string(),
        TYPE: pa.int8(),
        NUM_POINTS: pa.int64(),
        DIFFICULTY: pa.int8(),
    }
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in LABEL_COLUMNS])
    columns = convert(pa.Table.from_pylist(rows, schema=schema))
    return labels_by_frame(columns, poses or {7: np.eye(4)})


def test_golden_labels_match_openpcdet(goldens, golden_split):
    reference = np.load(goldens / "waymo_format" / "openpcdet.npz")
    table = pq.read_table(next((golden_split / "lidar_box").glob("*.parquet")))
    frames = pq.read_table(next((golden_split / "vehicle_pose").glob("*.parquet"))).to_pylist()
    poses = {
        row[TIME]: np.reshape(row["[VehiclePoseComponent].world_from_vehicle.transform"], (4, 4))
        for row in sorted(frames, key=lambda row: row[TIME])
    }
    kinds = ["unknown", "Vehicle", "Pedestrian", "Sign", "Cyclist"]
    for number, labels in enumerate(labels_by_frame(convert(table), poses).values()):
        golden = {
            key[3:]: reference[key] for key in reference.files if key.startswith(f"f{number}_")
        }
        order = np.argsort(golden["obj_ids"])
        assert list(labels.ids) == golden["obj_ids"][order].tolist()
        assert [kinds[kind] for kind in labels.types] == golden["name"][order].tolist()
        np.testing.assert_array_equal(labels.boxes, golden["gt_boxes_lidar"][order, :7])
        np.testing.assert_array_equal(labels.difficulty, golden["difficulty"][order])
        np.testing.assert_array_equal(labels.num_points, golden["num_points_in_gt"][order])
        # OpenPCDet sets the vertical speed (at most 0.2 m/s here) to 0 before turning, and the car
        # is tilted by a degree
        np.testing.assert_allclose(
            labels.velocity, golden["gt_boxes_lidar"][order, 7:9], atol=0.2 * np.sin(0.02) + 1e-6
        )


def test_velocity_is_turned_into_the_vehicle_frame():
    pose = np.eye(4)
    pose[:2, :2] = [[0, -1], [1, 0]]  # the car looks along world +y
    np.testing.assert_allclose(_labels([_row()], {7: pose})[7].velocity, [[0, -3]], atol=1e-12)


def test_nulls_mean_standing_still_and_unset():
    labels = _labels([_row(**dict.fromkeys(SPEEDS))])[7]
    assert labels.velocity.tolist() == [[0, 0]] and labels.difficulty.tolist() == [0]


def test_unknown_types_are_dropped_and_signs_kept():
    labels = _labels(
        [
            _row(**{TYPE: kind, OBJECT: name})
            for kind, name in ((0, "a"), (None, "b"), (3, "c"), (4, "d"))
        ]
    )[7]
    assert labels.ids == ("c", "d") and labels.types.tolist() == [3, 4]


def test_frames_without_boxes_have_empty_labels():
    assert _labels([]) == {}
    assert _labels([_row(**{TYPE: 0})])[7].boxes.shape == (0, 7)


@pytest.mark.parametrize("name", LIDAR_BOX_NUMBERS)
def test_a_box_without_all_its_numbers_is_an_error(name):
    with pytest.raises(DataError, match="box 'a' at time 7 is not seven finite numbers"):
        _labels([_row(**{name: None})])


def test_a_box_without_size_is_an_error():
    with pytest.raises(DataError, match="size above 0"):
        _labels([_row(**{LIDAR_BOX_NUMBERS[3]: 0.0})])


def test_other_contradictions_are_errors():
    with pytest.raises(DataError, match="time 8, for which there is no vehicle pose"):
        _labels([_row(**{TIME: 8})])
    with pytest.raises(DataError, match="two boxes"):
        _labels([_row(), _row()])
    with pytest.raises(DataError, match="is empty in 1 of 1"):
        _labels([_row(**{NUM_POINTS: None})])


def test_difficulty_level_by_hand():
    difficulty, points = np.array([0, 0, 0, 1, 2, 1, 2]), np.array([6, 5, 0, 3, 300, 0, 0])
    assert difficulty_level(difficulty, points).tolist() == [1, 2, 0, 1, 2, 0, 0]
