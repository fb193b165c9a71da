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


@pytest.mark.parametrize(
    ("points", "boxes", "names", "message"),
    [
        (np.zeros((4, 2)), [], [], r"points of shape \(4, 2\)"),
        (np.zeros((4, 3)), [CAR], [], r"boxes of shape \(1, 7\) and 0 classes"),
        (np.zeros((4, 3)), [CAR[:6]], ["Vehicle"], r"boxes of shape \(1, 6\)"),
        (np.zeros((4, 3)), [CAR], ["Car"], "class 'Car' is none of Vehicle, Pedestrian"),
        (np.zeros((4, 3)), [[*CAR[:3], 0, *CAR[4:]]], ["Vehicle"], "above 0"),
        (np.zeros((4, 3)), [[np.nan, *CAR[1:]]], ["Vehicle"], "finite"),
    ],
)
def test_bad_frames_name_themselves(points, boxes, names, message) -> None:
    with pytest.raises(DataError, match="frame 3 of 'one'.*" + message):
        own_frame("one", 3, points, boxes, names)


def test_a_frame_without_boxes() -> None:
    assert own_frame("one", 0, np.zeros((5, 3))).labels.boxes.shape == (0, 7)


def test_points_that_are_not_finite_name_their_frame(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="frame one_000: 1 of 1 points hold NaN"):
        store_frames([own_frame("one", 0, [[np.nan, 0, 0]])], tmp_path)


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
            (folder / f"{number:03}.txt").write_text("Vehicle " + " ".join(map(str, CAR)) + "\n")
    own_dataset.convert(tmp_path / "mine", tmp_path / "data")
    run = pipeline.open_run("waymo20", str(tmp_path / "run"), str(tmp_path / "data"))
    store = pipeline.prepare_data(run)
    assert sorted(store.contents) == ["training", "validation"]
    points = store.split("training").points(0)
    np.testing.assert_allclose(points[:, :3], scene(0)[:, :3], atol=0.0013)
