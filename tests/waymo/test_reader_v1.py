"""Frames of a v1 file: the goldens, the v2 files of the same segment, and everything a record can
contradict.
"""

from __future__ import annotations

import warnings
import zlib

import numpy as np
import pytest

from kdlib.errors import DataError
from kdlib.waymo import tfrecord
from kdlib.waymo.frame_proto import pack_matrix, parse_frame, unpack_matrix
from kdlib.waymo.reader_v1 import frames_v1, segment_name
from kdlib.waymo.reader_v2 import frames_v2

SEGMENT = "1234567890123456789_1000_000_1020_000"
TIMES = [1550000000123456, 1550000000223468]
LASERS = ("TOP", "FRONT", "SIDE_LEFT", "SIDE_RIGHT", "REAR")


@pytest.fixture(scope="module")
def golden(goldens):
    return next((goldens / "waymo_format").glob("*.tfrecord"))


@pytest.fixture(scope="module")
def golden_frames(golden):
    return list(frames_v1(golden, SEGMENT))


@pytest.fixture
def rewrite(golden, tmp_path):
    """Return a file of the golden frames after ``change(list of Frame messages)``, and read it."""

    def make(change):
        frames = [parse_frame(payload) for payload in tfrecord.iter_payloads(golden)]
        changed = change(frames)
        frames = frames if changed is None else changed
        path = tmp_path / "changed.tfrecord"
        with open(path, "wb") as file:
            for frame in frames:
                tfrecord.write_record(file, frame.SerializeToString())
        return path

    return make


@pytest.fixture
def broken(rewrite):
    """Assert that a change is an error which names the file and says something."""

    def check(change, said, error=DataError):
        path = rewrite(change)
        with pytest.raises(error, match=said) as caught:
            list(frames_v1(path, SEGMENT))
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)

    return check


def same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b):
        assert (one.segment, one.index, one.timestamp_micros) == (
            other.segment,
            other.index,
            other.timestamp_micros,
        )
        for x, y in ((one.points, other.points), (one.pose, other.pose)):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        assert one.labels.ids == other.labels.ids
        for name in ("boxes", "types", "difficulty", "num_points", "velocity"):
            x, y = getattr(one.labels, name), getattr(other.labels, name)
            assert x.dtype == y.dtype and x.shape == y.shape
            np.testing.assert_array_equal(x, y)


def laser(frame, name):
    return next(entry for entry in frame.lasers if entry.name == name)


def test_points_equal_the_float64_reference_and_features_exactly(goldens, golden_frames):
    folder = goldens / "waymo_format"
    xyz, official, zones = (
        np.load(folder / f"official_{name}.npz") for name in ("v1_f64_xyz", "v2_f32", "v1_nlz")
    )
    for number, frame in enumerate(golden_frames):
        keys = [f"f{number}_{name}_r{echo}" for name in LASERS for echo in (1, 2)]
        points = np.concatenate([xyz[key] for key in keys])
        assert frame.points.shape == (len(points), 6)
        np.testing.assert_allclose(frame.points[:, :3], points, rtol=0, atol=1e-4)
        # range, intensity, elongation, x, y, z
        features = np.concatenate([official[key] for key in keys])
        np.testing.assert_array_equal(frame.points[:, 3:5], features[:, 1:3])
        np.testing.assert_array_equal(
            frame.points[:, 5], np.concatenate([zones[key] for key in keys])
        )


def test_frames_are_openpcdets(goldens, golden_frames):
    reference = np.load(goldens / "waymo_format" / "openpcdet.npz")
    kinds = ["unknown", "Vehicle", "Pedestrian", "Sign", "Cyclist"]
    assert [frame.timestamp_micros for frame in golden_frames] == TIMES
    for number, frame in enumerate(golden_frames):
        assert frame.frame_id == f"{SEGMENT}_{number:03d}"
        golden = {
            key[3:]: reference[key] for key in reference.files if key.startswith(f"f{number}_")
        }
        np.testing.assert_array_equal(frame.points[:, 3:], golden["points"][:, 3:])
        order, labels = np.argsort(golden["obj_ids"]), frame.labels
        assert list(labels.ids) == golden["obj_ids"][order].tolist()
        assert [kinds[kind] for kind in labels.types] == golden["name"][order].tolist()
        np.testing.assert_array_equal(labels.boxes, golden["gt_boxes_lidar"][order, :7])
        np.testing.assert_array_equal(labels.difficulty, golden["difficulty"][order])
        np.testing.assert_array_equal(labels.num_points, golden["num_points_in_gt"][order])


def test_v1_and_v2_are_equal_to_the_last_bit(golden_frames, golden_split):
    same(golden_frames, list(frames_v2(golden_split, SEGMENT)))


def test_the_segment_is_known_from_inside_the_file(golden):
    assert segment_name(golden) == SEGMENT
    path = golden.with_name("absent.tfrecord")
    with pytest.raises(DataError, match="does not exist"):
        segment_name(path)


def test_the_name_is_found_behind_other_fields(golden, tmp_path):
    path = tmp_path / "unusual.tfrecord"
    with open(path, "wb") as file:
        for payload in tfrecord.iter_payloads(golden):
            # an image first
            tfrecord.write_record(file, b"\x22\x83\x80\x01" + bytes(16387) + payload)
    assert segment_name(path) == SEGMENT
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="corrupted record at 12"):
        segment_name(path)


def test_order_of_lasers_labels_and_fields_does_not_matter(golden_frames, rewrite):
    def shuffle(frames):
        for frame in frames:
            for rows in (frame.lasers, frame.laser_labels, frame.context.laser_calibrations):
                rows.sort(key=lambda row: zlib.crc32(row.SerializeToString()))

    same(list(frames_v1(rewrite(shuffle), SEGMENT)), golden_frames)


def test_files_without_camera_are_read(golden_frames, rewrite):
    def strip(frames):
        for frame in frames:
            frame.DiscardUnknownFields()

    same(list(frames_v1(rewrite(strip), SEGMENT)), golden_frames)


def test_absent_motion_and_difficulty_are_zero(rewrite):
    def strip(frames):
        for frame in frames:
            for label in frame.laser_labels:
                label.ClearField("metadata")
                label.ClearField("detection_difficulty_level")

    for frame in frames_v1(rewrite(strip), SEGMENT):
        assert (
            not frame.labels.velocity.any()
            and not frame.labels.difficulty.any()
            and len(frame.labels.ids) == 6
        )


def test_a_testing_file_has_no_boxes(golden_frames, rewrite):
    def strip(frames):
        for frame in frames:
            del frame.laser_labels[:]

    frames = list(frames_v1(rewrite(strip), SEGMENT))
    assert [frame.labels.boxes.shape for frame in frames] == [(0, 7)] * 2
    np.testing.assert_array_equal(frames[1].points, golden_frames[1].points)


def test_an_absent_second_return_is_no_points(golden_frames, rewrite):
    def strip(frames):
        for frame in frames:
            for entry in frame.lasers:
                entry.ClearField("ri_return2")

    frames = list(frames_v1(rewrite(strip), SEGMENT))
    assert 0 < len(frames[0].points) < len(golden_frames[0].points)


def test_an_empty_scan_is_a_frame_without_points(rewrite):
    def empty(frames):
        for frame in frames:
            for entry in frame.lasers:
                for echo in (entry.ri_return1, entry.ri_return2):
                    image = unpack_matrix(echo.range_image_compressed, 4)
                    echo.range_image_compressed = pack_matrix(np.full_like(image, -1))

    frames = list(frames_v1(rewrite(empty), SEGMENT))
    assert [frame.points.shape for frame in frames] == [(0, 6)] * 2 and len(
        frames[0].labels.ids
    ) == 6


def test_a_file_without_records_is_an_error(broken):
    broken(lambda frames: frames.clear(), "holds no frame")


def test_a_cut_file_is_an_error_before_the_first_frame(golden, tmp_path):
    path = tmp_path / "cut.tfrecord"
    path.write_bytes(golden.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated record at 72026"):
        next(frames_v1(path, SEGMENT))


def test_records_out_of_order_or_doubled_are_errors(broken):
    broken(
        lambda frames: frames[::-1],
        (rf"record 1: its time {TIMES[0]} does not come after the " rf"{TIMES[1]}"),
    )
    broken(
        lambda frames: [frames[0], frames[0]],
        (rf"record 1: its time {TIMES[0]} does not come " r"after"),
    )


def test_a_frame_of_another_segment_is_an_error(broken, golden):
    def mix(frames):
        frames[1].context.name = b"somewhere_else"

    broken(mix, rf"record 1: is of segment somewhere_else, not of {SEGMENT}")
    with pytest.raises(DataError, match=f"record 0: is of segment {SEGMENT}, not of other"):
        next(frames_v1(golden, "other"))


def test_uneven_timing_is_a_warning_and_even_timing_none(golden, rewrite):
    def shift(frames):
        frames[1].timestamp_micros += 300_000

    with pytest.warns(UserWarning, match=r"1 frames are not 95 to 105 ms .*400.0 ms"):
        assert len(list(frames_v1(rewrite(shift), SEGMENT))) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(frames_v1(golden, SEGMENT))


def test_releases_without_lidar_are_named(broken):
    def strip(frames):
        for frame in frames:  # as one public sample is: five messages, nothing in them
            for entry in frame.lasers:
                entry.Clear()

    broken(strip, r"frame \d+: has no lidar images; they were stripped")

    def remove(frames):
        for frame in frames:
            del frame.lasers[:]

    broken(remove, "has no lidar images")

    def one(frames):
        laser(frames[1], 2).ClearField("ri_return1")
        laser(frames[1], 2).ClearField("ri_return2")

    broken(one, rf"frame {TIMES[1]}: laser FRONT: both returns are empty")


def test_releases_without_point_counts_are_named(broken):
    def strip(frames):
        for frame in frames:
            for label in frame.laser_labels:
                label.ClearField("num_lidar_points_in_box")

    broken(strip, "none of its .* boxes says how many points it holds; download release 1.2")


def _image(frame, name, change, echo="ri_return1", part="range_image_compressed", channels=4):
    target = getattr(laser(frame, name), echo)
    image = unpack_matrix(getattr(target, part), channels).copy()
    setattr(target, part, pack_matrix(change(image)))


def _nan(image):
    image[0, 0, 0] = np.nan
    return image


POSE = "range_image_pose_compressed"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: _image(f, 2, _nan), "laser FRONT: 1 ranges are NaN"),
        (
            lambda f: _image(f, 1, lambda image: image[:, :-1], part=POSE, channels=6),
            "laser TOP: pixel poses of shape",
        ),
        (
            lambda f: _image(f, 1, np.zeros_like, part=POSE, channels=6),
            ("laser TOP: .* all-zero pose"),
        ),
        (
            lambda f: _image(f, 1, lambda image: image[..., :5], part=POSE, channels=6),
            "laser TOP: .*at least 6 channels",
        ),
        (
            lambda f: _image(f, 1, lambda image: image[:-1]),
            ("laser TOP: 16 beam inclinations for a range image of 15 rows"),
        ),
        (
            lambda f: laser(f, 1).ri_return1.ClearField(POSE),
            "laser TOP: has no pose image; its points would be up to a metre off",
        ),
        (
            lambda f: setattr(laser(f, 3).ri_return1, "range_image_compressed", b"xyz"),
            "laser SIDE_LEFT: .* cannot be inflated",
        ),
        (lambda f: f.lasers.add().CopyFrom(f.lasers[0]), "has a laser twice"),
        (
            lambda f: f.context.laser_calibrations.add().CopyFrom(f.context.laser_calibrations[0]),
            "two calibrations of laser",
        ),
        (lambda f: f.context.ClearField("laser_calibrations"), "laser TOP: has no calibration"),
        (
            lambda f: f.context.laser_calibrations[0].ClearField("beam_inclination_min"),
            "beam inclinations are missing",
        ),
        (
            lambda f: f.context.laser_calibrations[0].extrinsic.transform.pop(),
            ("a transform needs 16 numbers, not 15"),
        ),
        (lambda f: f.ClearField("pose"), "a transform needs 16 numbers, not 0"),
        (lambda f: f.pose.transform.__setitem__(12, 1.0), "last row of a transform"),
        (lambda f: f.laser_labels[0].box.ClearField("heading"), "not seven finite numbers"),
        (lambda f: f.laser_labels[0].ClearField("box"), "not seven finite numbers"),
        (lambda f: setattr(f.laser_labels[0].box, "width", 0.0), "size above 0"),
        (lambda f: f.laser_labels.add().CopyFrom(f.laser_labels[0]), "an object has two boxes"),
        (lambda f: setattr(f.laser_labels[0], "id", b"\xff"), "an object id is no text"),
        (lambda f: f.ClearField("context"), "its context name is"),
        (lambda f: setattr(f.context, "name", b"../up"), "its context name is"),
    ],
)
def test_contradictions_name_file_frame_and_laser(broken, change, said):
    def second(frames):
        change(frames[1])

    broken(second, said)


def without_laser(rows):
    kept = [entry for entry in rows if entry.name != 4]
    del rows[:]
    rows.extend(kept)


def test_a_laser_that_comes_and_goes_is_an_error(broken):
    def remove(frames):
        without_laser(frames[1].lasers)
        without_laser(frames[1].context.laser_calibrations)

    broken(
        remove,
        (
            rf"frame {TIMES[1]}: has lasers \[1, 2, 3, 5\], the frames before have \[1, "
            r"2, 3, 4, 5\]"
        ),
    )


def test_a_calibrated_laser_without_images_is_an_error(broken):
    def remove(frames):
        for frame in frames:
            without_laser(frame.lasers)

    broken(remove, r"has a calibration but no range images of laser SIDE_RIGHT")


def test_other_tfrecords_are_not_frames(tmp_path):
    path = tmp_path / "examples.tfrecord"
    with open(path, "wb") as file:
        # a tf.train.Example
        tfrecord.write_record(file, b"\x0a\x10\x0a\x0e\x0a\x03key\x12\x07\x0a\x05\x0a\x03abc")
    for call in (segment_name, lambda some: next(frames_v1(some, SEGMENT))):
        with pytest.raises(DataError, match=f"{path}: .*context name is"):
            call(path)
    with open(path, "wb") as file:
        tfrecord.write_record(file, b"just text")
    for call in (segment_name, lambda some: next(frames_v1(some, SEGMENT))):
        with pytest.raises(DataError, match=f"{path}: .*holds no Waymo frame"):
            call(path)


def test_reading_may_stop_and_begin_again(golden, golden_frames):
    frames = frames_v1(golden, SEGMENT)
    same([next(frames)], golden_frames[:1])
    frames.close()
    same(list(frames_v1(golden, SEGMENT)), golden_frames)
