from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from kdlib import zoo
from kdlib.config import AugmentConfig, GridConfig, ObjectSamplingConfig, TrainConfig
from kdlib.data.object_bank import bank_path, build_bank
from kdlib.data.prepare import prepare
from kdlib.data.store import Store, StoreSplit
from kdlib.errors import ConfigError, DataError
from kdlib.simulate import simulate
from kdlib.training.job import RunDir, TrainJob
from kdlib.training.loop import train
from kdlib.training.preflight import check_split, count_boxes

TYPES = [1, 2, 4, 1, 3, 1]  # one box a frame
X = [5.0, 10.0, 15.0, 18.0, 5.0, 30.0]


@pytest.fixture
def split(tmp_path) -> StoreSplit:
    """Three segments of two frames, one box in each frame; the last box is beyond the demo's
    range.
    """
    frames = len(TYPES)
    boxes = np.tile(np.array([0, 0, 1, 4, 2, 1.5, 0], np.float32), (frames, 1))
    boxes[:, 0] = X
    return StoreSplit(
        path=tmp_path / "store",
        name="training",
        segments=("a", "b", "c"),
        fingerprint="f" * 16,
        segment_of=np.repeat(np.arange(3, dtype=np.int32), 2),
        index=np.tile(np.arange(2, dtype=np.int32), 3),
        timestamps=np.arange(frames),
        offsets=np.zeros(frames, np.int64),
        counts=np.zeros(frames, np.int64),
        first_box=np.arange(frames + 1),
        boxes=boxes,
        types=np.array(TYPES, np.int8),
        difficulty=np.zeros(frames, np.int8),
        num_points=np.full(frames, 10, np.int32),
        velocity=np.zeros((frames, 2), np.float32),
    )


def job(model=zoo.CP_PILLAR_DEMO, **train) -> TrainJob:
    return TrainJob(model, TrainConfig(**{"interval": 1, **train}), "store")


def test_counts_by_hand(split):
    assert check_split(job(), split) == []
    assert count_boxes(job(), split) == {"Vehicle": (3, 2), "Pedestrian": (1, 1), "Cyclist": (1, 1)}


def test_boxes_without_points_do_not_count(split):
    bare = replace(split, num_points=np.array([10, 0, 10, 0, 10, 10], np.int32))
    assert count_boxes(job(), bare) == {"Vehicle": (2, 1), "Pedestrian": (0, 0), "Cyclist": (1, 1)}
    assert check_split(job(), bare) == [
        ("no box of class Pedestrian in the 6 frames: the model will not learn it")
    ]


def test_the_interval_is_judged(split):
    assert count_boxes(job(interval=2), split) == {
        "Vehicle": (1, 1),
        "Pedestrian": (0, 0),
        "Cyclist": (1, 1),
    }
    assert "interval 4 skips 1 of 3 segments altogether" in check_split(job(interval=4), split)
    with pytest.raises(
        ConfigError,
        match=(
            r"interval 6 leaves one of the 6 frames in split 'training' of .*store; store more "
            r"than 6 frames, or lower the interval"
        ),
    ):
        check_split(job(interval=6), split)


def test_a_batch_larger_than_the_data_is_a_warning(split):
    assert check_split(job(batch_size=8), split) == ["the 6 frames are fewer than one batch of 8"]


def test_no_frames(split):
    with pytest.raises(
        DataError,
        match=(r"split 'training' of .*store has no frames; run 'python " r"-m kdlib prepare'"),
    ):
        check_split(job(), replace(split, index=split.index[:0]))


@pytest.mark.parametrize(
    ("difficulty", "message"), [(0, "nor a difficulty"), (2, "although some have a difficulty")]
)
def test_labels_of_an_old_release(split, difficulty, message):
    bare = replace(
        split, num_points=split.num_points * 0, difficulty=np.full(6, difficulty, np.int8)
    )
    with pytest.raises(
        DataError, match=f"none of the 6 boxes .* has a number of points, {message}.*v1.2"
    ):
        check_split(job(), bare)


def test_boxes_of_own_frames_without_points_are_not_waymos(split):
    bare = replace(split, num_points=split.num_points * 0, own=True)
    with pytest.raises(DataError, match=r"none of the 6 boxes .* lie in one vehicle frame") as said:
        check_split(job(), bare)
    assert "Waymo" not in str(said.value)


def test_a_range_beyond_what_stores_hold_is_a_warning(split):
    (line,) = check_split(job(wide()), split)
    assert line == "stores hold points to 80 m in x and y: own_wide learns nothing beyond"


def wide():
    grid = GridConfig((-81.92, -81.92, -2.0, 81.92, 81.92, 4.0), (0.32, 0.32, 6.0), 20)
    return replace(zoo.CP_PILLAR_DEMO, name="own_wide", grid=grid)


def narrow(low: float, high: float):
    grid = GridConfig((low, -20.48, -2.0, high, 20.48, 4.0), (0.32, 0.32, 6.0), 20)
    return replace(zoo.CP_PILLAR_DEMO, grid=grid)


def test_the_models_range_must_meet_the_data(split):
    near = job(narrow(0.0, 6.4))
    assert [inside for _, inside in count_boxes(near, split).values()] == [1, 0, 0]
    lines = check_split(near, split)
    assert [
        re.match(r"only 0 of 1 boxes of class (\w+) lie in the model's range", line)[1]
        for line in lines
    ] == [
        "Pedestrian",
        "Cyclist",
    ]
    with pytest.raises(
        ConfigError,
        match=(
            r"none of the 5 boxes .* lies in the range \(-6.4, .* "
            r"choose a model of another range"
        ),
    ):
        check_split(job(narrow(-6.4, 0.0)), split)


def test_object_sampling_needs_a_count_for_each_class(split):
    with pytest.raises(
        ConfigError, match=(r"2 counts \(15, 10\) for 3 classes Vehicle, " r"Pedestrian, Cyclist")
    ):
        check_split(
            job(augment=AugmentConfig(objects=ObjectSamplingConfig(counts=(15, 10)))), split
        )


def test_object_sampling_needs_a_bank_of_these_frames(tmp_path):
    simulate(
        tmp_path / "waymo", segments=1, frames=2, seed=3, scale="demo", workers=1, progress=False
    )
    prepare(tmp_path / "waymo", tmp_path / "store", workers=1, progress=False)
    split = Store.open(tmp_path / "store").split("training")
    pasting = job(
        batch_size=1, augment=AugmentConfig(objects=ObjectSamplingConfig(min_points=10**6))
    )
    bank_path(split).unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"has no object bank .*prepare"):
        check_split(pasting, split)
    build_bank(split, progress=False)
    lines = check_split(pasting, split)
    assert (
        sum(line.endswith("of at least 1000000 points: none will be pasted") for line in lines) == 3
    )
    with pytest.raises(DataError, match="was made from other frames"):
        check_split(pasting, replace(split, fingerprint="e" * 16))


def test_training_asks_first(tmp_path):
    simulate(
        tmp_path / "waymo", segments=1, frames=2, seed=3, scale="demo", workers=1, progress=False
    )
    prepare(tmp_path / "waymo", tmp_path / "store", workers=1, progress=False)
    run = RunDir(tmp_path / "run")
    replace(job(interval=2), store=str(tmp_path / "store")).write(run.path)
    with pytest.raises(ConfigError, match="interval 2 leaves one of the 2 frames"):
        train(run.path)
    assert not run.history.exists() and not run.owner.exists()
