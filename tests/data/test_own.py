"""Frames of any dataset as a store: the same points and boxes come back, and the notebooks' data
loader reads them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdlib.config import CLASS_NAMES
from kdlib.data.dataset import FrameDataset
from kdlib.data.object_bank import ObjectBank, bank_path
from kdlib.data.own import own_frame, store_frames
from kdlib.data.store import Store, ground_truth_table
from kdlib.errors import DataError
from kdlib.lab import pipeline
from kdlib.types import Frame

sys.path.insert(0, str(Path(__file__).parent))
import own_dataset

README = Path(__file__).resolve().parents[2] / "README.md"
CAR = [8.0, 2.0, 0.8, 4.0, 2.0, 1.6, 0.5]


def scene(seed: int, on_car: int = 12) -> np.ndarray:
    """x, y, z, tanh(intensity): a floor, and points at most a few centimetres around the car's
    centre.
    """
    rng = np.random.default_rng(seed)
    floor = np.column_stack((rng.uniform(-30, 30, (500, 2)), np.zeros(500), rng.uniform(0, 1, 500)))
    floor = floor[np.hypot(floor[:, 0] - CAR[0], floor[:, 1] - CAR[1]) > 4]
    car = np.column_stack(
        (np.array(CAR[:3]) + rng.normal(0, 0.1, (on_car, 3)), np.full(on_car, 0.5))
    )
    return np.concatenate((floor, car)).astype(np.float32)


def drive(name: str, count: int = 3) -> list[Frame]:
    return [
        own_frame(name, number, scene(number), [CAR], ["Vehicle"], ids=["a"])
        for number in range(count)
    ]


def test_what_was_stored_comes_back(tmp_path: Path) -> None:
    store = store_frames([*drive("one"), *drive("two", 2)], tmp_path / "store")
    split = Store.open(tmp_path / "store").split("training")
    assert (
        split.frame_ids() == ["one_000", "one_001", "one_002", "two_000", "two_001"]
        and store.path == tmp_path / "store"
    )
    points, labels = split.points(1), split.labels(1)
    np.testing.assert_allclose(points[:, :3], scene(1)[:, :3], atol=0.0013)
    np.testing.assert_allclose(points[:, 3], scene(1)[:, 3], atol=0.5 / 255 + 1e-6)
    assert (points[:, 4] == 0).all() and (points[:, 5] == -1).all()
    np.testing.assert_allclose(labels.boxes, [CAR], rtol=1e-7)
    assert (labels.ids, labels.num_points.tolist(), labels.difficulty.tolist()) == (
        ("a",),
        [12],
        [0],
    )
    assert split.timestamps[2] == 200_000
    bank = ObjectBank.open(bank_path(split), split.fingerprint)
    assert len(bank.boxes) > 0
    assert not any(path.name.endswith(".tmp") for path in tmp_path.rglob("*"))


def test_it_is_what_training_and_metric_read(tmp_path: Path) -> None:
    split = store_frames(drive("one"), tmp_path / "store", "validation").split("validation")
    sample = FrameDataset(split, CLASS_NAMES, 1)[0]
    np.testing.assert_allclose(sample.boxes, [CAR], rtol=1e-6)
    assert sample.labels.tolist() == [1] and sample.points.shape[1] == 5
    table = ground_truth_table(split)
    assert table.num_rows == 3 and table.column("num_points").to_pylist() == [12] * 3


def test_drives_are_added_and_replaced(tmp_path: Path) -> None:
    first = store_frames(drive("one"), tmp_path, "training").fingerprint
    store_frames(drive("two"), tmp_path, "training")
    both = store_frames(drive("three"), tmp_path, "validation")
    assert {split: sorted(names) for split, names in both.contents.items()} == {
        "training": ["one", "two"],
        "validation": ["three"],
    }
    store_frames(drive("one", 2), tmp_path, "training")
    assert (
        len(Store.open(tmp_path).split("training")) == 5
        and Store.open(tmp_path).fingerprint != first
    )


def test_simulated_stands_beside_nothing_else(tmp_path: Path) -> None:
    store_frames(drive("one"), tmp_path, simulated=True)
    with pytest.raises(DataError, match="is simulated"):
        store_frames(drive("two"), tmp_path)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "there is no frame to store"),
        ([*drive("one"), *drive("two"), *drive("one")], "frames of 'one' do not follow each other"),
        (drive("one")[1:], "frame 1 of 'one' came where 0 was due"),
        ([replace(drive("one")[0], segment="../one")], "cannot name a folder"),
    ],
)
def test_frames_out_of_order(tmp_path: Path, frames: list[Frame], message: str) -> None:
    with pytest.raises(DataError, match=message):
        store_frames(frames, tmp_path / "store")
    assert not (tmp_path / "store/store.json").exists() and not (tmp_path / "one").exists()


def refused(message: str, points=None, boxes=(CAR,), names=("Vehicle",), **others) -> None:
    """Check the sentence about a frame, and that it names the frame."""
    with pytest.raises(DataError, match="frame 3 of 'one'.*" + message):
        own_frame("one", 3, scene(3) if points is None else points, boxes, names, **others)


def changed(column: int, value: float) -> np.ndarray:
    points = scene(3)
    points[5, column] = value
    return points


def box(**changes: float) -> list[float]:
    names = ("x", "y", "z", "length", "width", "height", "heading")
    return [changes.get(name, value) for name, value in zip(names, CAR)]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((4, 2)), r"points of shape \(4, 2\)"),
        (scene(3).T, r"points of shape \(4, \d+\); .*transpose"),
        (np.zeros((2, 3, 4)), r"points of shape \(2, 3, 4\); .*reshape"),
        (np.zeros(5, [("x", "f4"), ("y", "f4")]), "points are records of x, y; stack the columns"),
        ([["a", 0, 0]], "points are no array of numbers"),
        (np.zeros((4, 3), complex), "points are no array of numbers"),
        (changed(2, np.nan), r"1 of \d+ points hold NaN or infinity in z; leave them out"),
        (changed(0, np.inf), r"1 of \d+ points hold NaN or infinity in x; leave them out"),
    ],
)
def test_points_of_another_form_name_themselves(points, message) -> None:
    refused(message, points)


@pytest.mark.parametrize(("value", "shown"), [(255, "255"), (65535, "65535"), (-1, "-1"), (2, "2")])
def test_intensity_on_another_scale_names_itself(value: float, shown: str) -> None:
    refused(f"intensity goes from .*{shown}.*; needed is its tanh, from 0 to 1", changed(3, value))


def test_an_elongation_that_is_something_else_names_itself() -> None:
    rings = np.column_stack((scene(3), np.arange(len(scene(3)))))
    refused("elongation goes from 0 to .*; needed is 0 to 2: leave the column out", rings)


@pytest.mark.parametrize(
    ("scale", "offset", "message"),
    [
        (1, (0, 0, 500), "0 of .* points lie within 80 m .* z from 500 to 50"),
        (1, (411_000, 1_180_000, 0), "x from 41.*map coordinates"),
        (1000, (0, 0, 0), "give metres in the vehicle frame"),
        (0.001, (0, 0, 0), "all .* points lie within 1 m of the origin"),
    ],
)
def test_points_of_another_unit_or_frame_name_themselves(scale, offset, message) -> None:
    points = scene(3)
    points[:, :3] = points[:, :3] * scale + np.array(offset)
    refused(message, points)


@pytest.mark.parametrize(
    ("boxes", "names", "message"),
    [
        ([CAR], [], r"boxes of shape \(1, 7\) and 0 classes"),
        ([CAR[:6]], ["Vehicle"], r"boxes of shape \(1, 6\)"),
        (np.array([CAR] * 3).T, ["Vehicle"] * 3, r"boxes of shape \(7, 3\).*; transpose them"),
        ([[*CAR, 0.1, 0.2]] * 7, ["Vehicle"] * 7, r"boxes of shape \(7, 9\)"),
        ([CAR], ["Car"], "class 'Car' is none of Vehicle, Pedestrian, .*class_names"),
        ([CAR], [1], "class '1' is none of Vehicle"),
        ([CAR], "Vehicle", "classes are one text, 'Vehicle'; give a list"),
        ([box(length=0)], ["Vehicle"], "length of box 0 is 0; sizes are metres, above 0"),
        ([box(width=1e-46)], ["Vehicle"], "width of box 0 is 1e-46; sizes are metres"),
        ([CAR, box(height=1600)], ["Vehicle"] * 2, "height of box 1 is 1600; sizes are metres"),
        ([box(x=np.nan)], ["Vehicle"], "x of box 0 is nan; every box needs finite numbers"),
        ([box(heading=1e30)], ["Vehicle"], "heading of box 0 is 1e.30; headings are radians"),
        ([CAR, box(x=411_000)], ["Vehicle"] * 2, "x of box 1 is 411000; boxes lie in the vehicle"),
        ([CAR, box(z=700)], ["Vehicle"] * 2, "z of box 1 is 700; boxes lie in the vehicle frame"),
    ],
)
def test_boxes_that_cannot_be_meant_name_themselves(boxes, names, message) -> None:
    refused(message, None, boxes, names)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a"], "1 ids for 2 boxes"),
        ("ab", "1 ids for 2 boxes"),
        (["a", None], "id None is neither text nor a whole number"),
        ([1.0, 2.0], "id 1.0 is neither text nor a whole number"),
        (["a", "a"], "id 'a' stands for 2 boxes"),
    ],
)
def test_ids_that_are_none_name_themselves(ids, message) -> None:
    refused(message, None, [CAR, box(x=-8.0)], ["Vehicle"] * 2, ids=ids)


def test_whole_numbers_are_ids() -> None:
    frame = own_frame("one", 0, scene(0), [CAR] * 2, ["Vehicle"] * 2, ids=[17, np.int64(4)])
    assert frame.labels.ids == ("17", "4")


@pytest.mark.parametrize(
    ("velocity", "message"),
    [
        ([[np.nan, 0]], "velocity x of box 0 is nan; give .* 0 where it is not known"),
        ([[0, 130]], "velocity y of box 0 is 130; give metres a second"),
        ([3.0], r"velocity of shape \(1,\) for 1 boxes; needed is \(1, 2\)"),
        ([[1.0, 2.0, 0.5]], r"velocity of shape \(1, 3\)"),
    ],
)
def test_velocities_that_cannot_be_meant_name_themselves(velocity, message) -> None:
    refused(message, velocity=velocity)


@pytest.mark.parametrize(
    ("pose", "message"),
    [
        (np.eye(4)[:3], r"pose of shape \(3, 4\); needed is \(4, 4\)"),
        (np.full((4, 4), np.nan), "pose holds NaN or infinity"),
        (np.eye(4) + np.eye(4, k=-1) * [9, 0, 5, 0], "the pose's last row .*; transpose it"),
        (np.diag([1000.0, 1000, 1000, 1]), "are no rotation .*without scale"),
        (np.diag([1.0, -1, 1, 1]), "are no rotation .*mirroring"),
    ],
)
def test_poses_that_are_none_name_themselves(pose, message) -> None:
    refused(message, pose=pose)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (1694.1, "timestamp_micros is 1694.1, not a whole number"),
        (-5, "timestamp_micros is -5, not a whole number from 0 on"),
        ("now", "timestamp_micros is 'now'"),
        (np.datetime64("2024-01-01"), "timestamp_micros is .*give microseconds"),
        (1_700_000_000_000_000_000, "after the year 2100; give microseconds"),
    ],
)
def test_timestamps_of_another_unit_name_themselves(time, message) -> None:
    refused(message, timestamp_micros=time)


@pytest.mark.parametrize("step", [0, 1, 100, -100_000])
def test_seconds_instead_of_microseconds_are_seen_in_a_drive(tmp_path: Path, step: int) -> None:
    times = [own_frame("one", n, scene(n), timestamp_micros=10**6 + step * n) for n in range(2)]
    with pytest.raises(DataError, match=r"frame 1 of 'one': timestamp_micros is .* microseconds"):
        store_frames(times, tmp_path)


@pytest.mark.parametrize("index", [0.0, -1, "0", True])
def test_an_index_that_is_none_names_itself(index) -> None:
    with pytest.raises(DataError, match=f"index is {index!r}, not a whole number from 0 on"):
        own_frame("one", index, scene(0))


@pytest.mark.parametrize("names", [(), ("Car", "car"), ("a,b",), ("",), (1, 2), ("x" * 3000,)])
def test_class_names_that_tables_cannot_hold(names) -> None:
    with pytest.raises(DataError, match=r"class_names are .*; give up to 127 different"):
        own_frame("one", 0, scene(0), class_names=names)


def warned(tmp_path: Path, *frames: Frame) -> str:
    with pytest.warns(UserWarning, match=f"{tmp_path}/training: ") as said:
        store_frames(frames, tmp_path)
    return "\n".join(str(each.message) for each in said)


def test_points_are_counted_after_the_cut_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    far = [120.0, *CAR[1:]]
    beyond = np.array([[120.0, 2.0, 0.8, 0.5]] * 60)
    frame = own_frame("one", 0, [*scene(0), *beyond], [CAR, far], ["Vehicle"] * 2)
    assert frame.labels.num_points.tolist() == [12, 0]
    said = warned(tmp_path, frame)
    assert "60 of 5" in said and "and were left out" in said
    assert "1 of 2 boxes lie beyond" in said
    split = Store.open(tmp_path).split("training")
    assert split.num_points.tolist() == [12, 0] and len(split.points(0)) == len(scene(0))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([box(z=0.0)], "lower faces of 1 of 1 boxes within 30 m lie more than 0.5 m off the road"),
        ([box(length=2.0, width=4.0)], "1 of 1 boxes are wider than long"),
        ([box(heading=90.0)], "1 of 1 boxes have a heading beyond 2 pi; if degrees, np.deg2rad"),
        ([box(x=-20.0, y=-70.0), CAR, box(y=60.0)], "2 of 3 boxes hold no point"),
        ([CAR, CAR], "1 of 2 boxes stand there twice"),
    ],
)
def test_boxes_that_are_rarely_meant_are_counted(tmp_path: Path, boxes, message) -> None:
    frame = own_frame("one", 0, scene(0), boxes, ["Vehicle"] * len(boxes))
    assert message in warned(tmp_path, frame)


def test_names_and_ids_that_no_file_can_hold_are_refused() -> None:
    for names in ({"Car", "Van"}, frozenset(("Car",))):
        with pytest.raises(DataError, match="a set; give a list"):
            own_frame("one", 0, scene(0), class_names=names)
    with pytest.raises(DataError, match="letters that cannot be printed"):
        own_frame("one", 0, scene(0), [CAR], ["Vehicle"], ids=["\ud800"])


def test_points_that_are_no_returns_are_counted(tmp_path: Path) -> None:
    padded = [*scene(0), *np.zeros((40, 4))]
    assert "40 of 5" in (said := warned(tmp_path, own_frame("one", 0, padded)))
    assert "lie at 0, 0, 0, as no return does" in said


def test_far_boxes_on_a_hill_are_nobodys_mistake(tmp_path: Path, recwarn) -> None:
    uphill = [box(x=50.0 + 8 * number, z=2.5) for number in range(3)]
    points = [*scene(0), *([50.0 + 8 * number, 2.0, 2.5, 0.5] for number in range(3))]
    store_frames([own_frame("one", 0, points, [CAR, *uphill], ["Vehicle"] * 4)], tmp_path)
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]


@pytest.mark.parametrize("frames", [None, 3, Path("frames")])
def test_what_are_no_frames(tmp_path: Path, frames) -> None:
    with pytest.raises(DataError, match="is no frame; make one of it with own_frame"):
        store_frames(frames, tmp_path)


def test_a_road_that_is_not_at_0_is_said(tmp_path: Path) -> None:
    below = scene(0) - np.array([0, 0, 1.73, 0])
    said = warned(tmp_path, own_frame("one", 0, below))
    assert "in 1 of 1 frames the road seems to lie at about z = -1.7" in said


def test_frames_as_they_should_be_are_stored_without_a_word(tmp_path: Path, recwarn) -> None:
    store_frames(drive("one"), tmp_path)
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)]


def test_a_frame_without_boxes() -> None:
    assert own_frame("one", 0, np.zeros((5, 3))).labels.boxes.shape == (0, 7)


def test_points_that_are_not_finite_name_their_frame(tmp_path: Path) -> None:
    frame = own_frame("one", 0, [[1, 0, 0]])
    broken = replace(frame, points=np.full((1, 6), np.nan, np.float32))
    with pytest.raises(DataError, match="frame one_000: 1 of 1 points hold NaN"):
        store_frames([broken], tmp_path)


def test_the_tutorial_is_this_file() -> None:
    assert Path(own_dataset.__file__).read_text().strip() in README.read_text()


def test_the_tutorial_makes_a_run_of_real_data_go(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        folder = tmp_path / "mine" / split / f"{split}_drive"
        folder.mkdir(parents=True)
        for number in range(2):
            # KITTI's origin is the sensor
            below = scene(number) - np.array([0, 0, 1.73, 0], np.float32)
            below.astype("<f4").tofile(folder / f"{number:03}.bin")
            (folder / f"{number:03}.txt").write_text("Car " + " ".join(map(str, CAR)) + "\n")
    own_dataset.convert(tmp_path / "mine", tmp_path / "data")
    profile = tmp_path / "mine.toml"
    profile.write_text('base = "own_small"\ndata = "data"\n[detector]\nclasses = ["Car"]\n')
    run = pipeline.open_run(str(profile), str(tmp_path / "run"))
    store = pipeline.prepare_data(run)
    assert sorted(store.contents) == ["training", "validation"]
    points = store.split("training").points(0)
    np.testing.assert_allclose(points[:, :3], scene(0)[:, :3], atol=0.0013)
