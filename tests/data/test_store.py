from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from kdlib.data.store import Store, fingerprint, ground_truth_table, limit_table
from kdlib.errors import ConfigError, DataError
from kdlib.waymo.segments import read_segment


@pytest.fixture
def copy(store, tmp_path):
    """A store that may be damaged."""
    return shutil.copytree(store.path, tmp_path / "store")


def test_frames_come_back_as_the_reader_gave_them(store, source):
    for split, segments in (("training", ("a", "b")), ("validation", ("c",))):
        loaded = store.split(split)
        frames = [frame for segment in segments for frame in read_segment(source / split, segment)]
        assert len(loaded) == len(frames)
        for number, frame in enumerate(frames):
            points, labels = loaded.points(number), loaded.labels(number)
            assert loaded.frame_id(number) == frame.frame_id and labels.ids == frame.labels.ids
            assert loaded.timestamps[number] == frame.timestamp_micros
            np.testing.assert_allclose(points[:, :3], frame.points[:, :3], rtol=0, atol=0.002)
            np.testing.assert_allclose(points[:, 3], np.tanh(frame.points[:, 3]), atol=0.004)
            np.testing.assert_array_equal(points[:, 5], frame.points[:, 5])
            poses = pq.read_table(store.path / split / frame.segment / "frames.parquet").column(
                "pose"
            )
            np.testing.assert_array_equal(poses[frame.index].as_py(), frame.pose.ravel())
            np.testing.assert_allclose(labels.boxes, frame.labels.boxes, rtol=1e-6)
            for name in ("types", "difficulty", "num_points"):
                np.testing.assert_array_equal(getattr(labels, name), getattr(frame.labels, name))
            np.testing.assert_allclose(labels.velocity, frame.labels.velocity, rtol=1e-6)


def test_points_are_a_plain_npy_that_can_be_mapped(store):
    mapped = np.load(
        store.path / "training" / "a" / "points.npy", mmap_mode="r", allow_pickle=False
    )
    manifest = json.loads((store.path / "training" / "a" / "manifest.json").read_text())
    assert (
        len(mapped) == manifest["points"] == store.split("training").counts[:3].sum()
        and mapped.itemsize == 8
    )


def test_the_fingerprint_is_of_the_content(store, copy):
    assert Store.open(copy).fingerprint == store.fingerprint
    assert (
        len(
            {
                store.fingerprint,
                store.split("training").fingerprint,
                store.split("validation").fingerprint,
            }
        )
        == 3
    )
    assert fingerprint({"training": {"a": "1"}}) != fingerprint({"training": {"a": "2"}})


def test_a_folder_without_a_store_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"holds no finished store .*python -m kdlib prepare"):
        Store.open(tmp_path)


def test_another_version_is_an_error(copy):
    index = json.loads((copy / "store.json").read_text())
    (copy / "store.json").write_text(json.dumps({**index, "version": 99}))
    with pytest.raises(
        DataError,
        match="is a store of version 99, this is version 1; delete it and prepare again",
    ):
        Store.open(copy)


def test_a_segment_of_another_version_is_an_error(copy):
    path = copy / "training" / "a" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 0}))
    with pytest.raises(DataError, match="was written as version 0"):
        Store.open(copy)


def test_a_missing_segment_is_named(copy):
    shutil.rmtree(copy / "training" / "b")
    with pytest.raises(DataError, match=f"{copy / 'training' / 'b'} is missing"):
        Store.open(copy)


@pytest.mark.parametrize("name", ["points.npy", "frames.parquet", "boxes.parquet"])
def test_a_truncated_file_is_named(copy, name):
    path = copy / "training" / "a" / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{path} has .* bytes instead of"):
        Store.open(copy)


def test_a_missing_file_is_named(copy):
    (copy / "validation" / "c" / "boxes.parquet").unlink()
    with pytest.raises(DataError, match=r"boxes\.parquet is missing"):
        Store.open(copy)


def test_points_that_vanish_after_opening_are_an_error(copy):
    split = Store.open(copy).split("training")
    path = copy / "training" / "a" / "points.npy"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"ends after \d+ of \d+ points"):
        split.points(2)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        split.points(0)


def test_a_damaged_table_of_the_right_length_is_an_error(copy):
    path = copy / "training" / "a" / "frames.parquet"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=f"{path} is damaged"):
        Store.open(copy).split("training")


def test_a_damaged_index_is_an_error(copy):
    (copy / "store.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        Store.open(copy)


def test_an_unknown_split_is_an_error(store):
    with pytest.raises(DataError, match="has no split 'testing', it has: training, validation"):
        store.split("testing")


def test_the_ground_truth_table_by_hand(store, tmp_path):
    table = ground_truth_table(store.split("training"))
    names = (
        "frame_id x y z length width height heading type difficulty num_points speed_x speed_y"
    ).split()
    assert table.column_names == names
    rows = table.to_pylist()
    assert [(row["frame_id"], row["type"], row["num_points"]) for row in rows] == [
        ("a_000", 1, 10),
        ("a_001", 2, 0),
        ("a_001", 4, 10),
        ("b_000", 1, 10),
        ("b_001", 1, 0),
        ("b_002", 2, 10),
    ]
    first = [rows[0][name] for name in names[1:8]]
    assert (
        first == pytest.approx([5.0, 0.0, 1.0, 4.0, 2.0, 1.5, 0.3])
        and rows[0]["speed_x"] == 1.0
        and rows[0]["speed_y"] == 0.5
    )
    pq.write_table(table, tmp_path / "truth.parquet")
    back = pq.read_table(tmp_path / "truth.parquet")
    assert (
        back.equals(table)
        and json.loads(back.schema.metadata[b"frame_ids"]) == store.split("training").frame_ids()
    )


def test_the_ground_truth_table_takes_interval_and_classes(store):
    split = store.split("training")
    assert ground_truth_table(split, interval=3).column("frame_id").to_pylist() == [
        "a_000",
        "b_000",
    ]
    assert ground_truth_table(split, class_names=("Sign",)).column("frame_id").to_pylist() == [
        "a_000",
        "b_003",
    ]
    assert ground_truth_table(store.split("validation")).column("difficulty").to_pylist() == [0, 2]
    with pytest.raises(ConfigError, match="unknown class"):
        ground_truth_table(split, class_names=("Truck",))


def test_a_table_of_no_boxes_has_all_columns(store):
    table = ground_truth_table(store.split("validation"), class_names=("Cyclist",))
    assert table.num_rows == 0 and table.num_columns == 13


def test_tables_are_limited_to_a_square(store):
    table = ground_truth_table(store.split("training"))
    assert limit_table(table).num_rows == 6
    assert limit_table(table, half_width=15.0).num_rows == 6
    assert limit_table(table, half_width=14.9).num_rows == 5
