"""One door for both formats: what lies in a folder decides, and a file's name decides nothing."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest

from kdlib.errors import DataError
from kdlib.waymo import tfrecord
from kdlib.waymo.frame_proto import parse_frame
from kdlib.waymo.segments import detect_format, list_segments, read_segment, segment_files

SEGMENT = "1234567890123456789_1000_000_1020_000"


@pytest.fixture(scope="module")
def golden(goldens):
    return next((goldens / "waymo_format").glob("*.tfrecord"))


@pytest.fixture
def records(tmp_path, golden):
    """A v1 split of one segment."""
    folder = tmp_path / "training"
    folder.mkdir()
    shutil.copy(golden, folder / golden.name)
    return folder


def renamed(source, target, name):
    """Write a file of the same frames under another context name."""
    with open(target, "wb") as file:
        for payload in tfrecord.iter_payloads(source):
            frame = parse_frame(payload)
            frame.context.name = name.encode()
            tfrecord.write_record(file, frame.SerializeToString())


def test_the_format_is_what_lies_there(records, golden_split):
    assert (detect_format(records), detect_format(golden_split)) == ("v1", "v2")
    assert list_segments(records) == list_segments(golden_split) == [SEGMENT]
    assert set(segment_files(golden_split, SEGMENT)) == {
        "lidar",
        "lidar_pose",
        "lidar_calibration",
        "vehicle_pose",
        "lidar_box",
    }
    (path,) = records.glob("*.tfrecord")
    assert segment_files(records, SEGMENT) == {"tfrecord": path}


def test_both_give_the_same_frames(records, golden_split):
    for one, other in zip(
        read_segment(records, SEGMENT), read_segment(golden_split, SEGMENT), strict=True
    ):
        np.testing.assert_array_equal(one.points, other.points)
        assert (one.frame_id, one.labels.ids) == (other.frame_id, other.labels.ids)


@pytest.mark.parametrize(
    "name", ["training_segment-{}.tfrecord", "individual_files_training_x.tfrecord", "a.tfrecord"]
)
def test_the_name_of_a_file_means_nothing(records, name):
    (path,) = records.glob("*.tfrecord")
    path = path.rename(records / name.format("999_1_000_21_000"))
    assert list_segments(records) == [SEGMENT] and segment_files(records, SEGMENT) == {
        "tfrecord": path
    }
    assert len(list(read_segment(records, SEGMENT))) == 2


def test_segments_are_sorted_by_their_own_names(records, golden):
    renamed(golden, records / "z.tfrecord", "0_first")
    renamed(golden, records / "a.tfrecord", "z_last")
    assert list_segments(records) == ["0_first", SEGMENT, "z_last"]
    assert segment_files(records, "z_last") == {"tfrecord": records / "a.tfrecord"}
    assert next(read_segment(records, "0_first")).segment == "0_first"


def test_two_files_of_one_segment_are_an_error(records, golden):
    shutil.copy(golden, records / "copy.tfrecord")
    for call in (
        list_segments,
        lambda folder: segment_files(folder, SEGMENT),
        lambda folder: read_segment(folder, SEGMENT),
    ):
        with pytest.raises(
            DataError,
            match=(
                rf"copy\.tfrecord and .*{golden.name} are both of "
                rf"segment {SEGMENT}; remove one"
            ),
        ):
            call(records)


def test_two_formats_in_one_folder_are_an_error(records, golden_split):
    shutil.copytree(golden_split / "lidar_box", records / "lidar_box")
    for call in (detect_format, list_segments, lambda folder: read_segment(folder, SEGMENT)):
        with pytest.raises(
            DataError,
            match=(r"holds both .*tfrecord \(v1\) and " r"lidar_box/.*parquet \(v2\); move one"),
        ):
            call(records)


def test_folders_without_segments_are_errors(tmp_path, records):
    with pytest.raises(
        DataError,
        match=(
            r"holds no Waymo segments; expected SEGMENT.tfrecord "
            r"\(v1\) or lidar/SEGMENT.parquet"
        ),
    ):
        detect_format(tmp_path)  # one too high
    with pytest.raises(DataError, match="is no folder"):
        list_segments(tmp_path / "validation")
    with pytest.raises(
        DataError, match=(r"none of its 1 \.tfrecord files is of segment other; " r"download it")
    ):
        read_segment(records, "other")


def test_hidden_files_are_passed_over(records, golden):
    (records / ".segment-1.tfrecord").write_bytes(b"left over")
    (records / ".segment-1.tfrecord.12.part").write_bytes(b"left over")
    assert list_segments(records) == [SEGMENT]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"text", "truncated at byte 4"),
        (b"\x1f\x8b" + bytes(100), "is this even a TFRecord file"),
    ],
)
def test_a_damaged_file_is_named_when_listing(records, content, said):
    path = records / "damaged.tfrecord"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}.*{said}.* again"):
        list_segments(records)


def test_a_link_to_nothing_is_named(records):
    (records / "link.tfrecord").symlink_to(records / "gone")
    with pytest.raises(DataError, match=r"link\.tfrecord does not exist"):
        list_segments(records)


def test_a_file_that_changed_is_looked_into_again(records, golden):
    (path,) = records.glob("*.tfrecord")
    assert list_segments(records) == [SEGMENT]
    renamed(golden, path, SEGMENT[:-1] + "1")  # the same length
    os.utime(path, ns=(1, 1))
    assert list_segments(records) == [SEGMENT[:-1] + "1"]


def test_listing_reads_no_more_than_the_beginning(records, golden, monkeypatch):
    for number in range(50):
        renamed(golden, records / f"{number}.tfrecord", f"segment_{number}")
    monkeypatch.setattr(tfrecord, "index", None)
    read = tfrecord.first_payload
    sizes = []

    def counting(*args, **more):
        sizes.append(len(payload := read(*args, **more)))
        return payload

    monkeypatch.setattr(tfrecord, "first_payload", counting)
    assert len(list_segments(records)) == 51
    assert len(list_segments(records)) == 51
    assert len(sizes) == 51 and max(sizes) <= 4096
