from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from kdlib.config import AugmentConfig
from kdlib.data.dataset import FrameDataset
from kdlib.errors import ConfigError, DataError

RANGE = (-20.0, -20.0, -2.0, 20.0, 20.0, 4.0)


@pytest.fixture(scope="module")
def training(store):
    return store.split("training")


@pytest.fixture(scope="module")
def validation(store):
    return store.split("validation")


def _equal(one, other):
    assert one.frame_id == other.frame_id
    for name in ("points", "boxes", "labels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_evaluation_samples_are_the_frames_as_they_are(training):
    dataset = FrameDataset(training)
    assert len(dataset) == 7 and dataset.frame_ids == [f"a_{n:03d}" for n in range(3)] + [f"b_{n:03d}" for n in range(4)]
    for number in range(7):
        sample = dataset[number]
        assert sample.frame_id == dataset.frame_ids[number] and sample.points.dtype == np.float32
        np.testing.assert_array_equal(sample.points, training.points(number)[:, :5])
    assert dataset[0].labels.tolist() == [1]  # the sign is gone
    assert dataset[1].labels.tolist() == [2, 3]  # the pedestrian without points stays
    assert dataset[2].boxes.shape == (0, 7) and dataset[2].labels.dtype == np.int64


def test_no_label_zone_points_stay(training):
    assert (training.points(0)[:, 5] == 1).any() and len(FrameDataset(training)[0].points) == len(training.points(0))


def test_evaluation_points_are_cut_to_the_range_in_file_order_and_boxes_are_not(training):
    dataset = FrameDataset(training, point_range=(-8.0, -8.0, -2.0, 8.0, 8.0, 4.0))
    whole = training.points(3)[:, :5]
    expected = whole[(np.abs(whole[:, :2]) <= 8).all(1)]
    assert 0 < len(expected) < len(whole)
    np.testing.assert_array_equal(dataset[3].points, expected)
    assert len(dataset[3].labels) == 1


def test_an_empty_scan_is_an_empty_sample(validation):
    sample = FrameDataset(validation, point_range=RANGE)[1]
    assert sample.points.shape == (0, 5) and sample.boxes.shape == (0, 7)


@pytest.mark.parametrize(("interval", "frames"), [(2, [0, 2, 4, 6]), (5, [0, 5]), (100, [0])])
def test_the_interval_runs_over_the_concatenated_segments(training, interval, frames):
    dataset = FrameDataset(training, interval=interval)
    assert [dataset[n].frame_id for n in range(len(dataset))] == [training.frame_id(n) for n in frames]


def test_training_drops_boxes_without_points_and_replaces_empty_frames(training):
    dataset = FrameDataset(training, drop_empty=True, seed=3)
    samples = [dataset[(0, n)] for n in range(len(dataset))]
    assert samples[0].frame_id == "a_000" and samples[1].labels.tolist() == [3]
    useful = {"a_000", "a_001", "b_000", "b_002"}
    assert {sample.frame_id for sample in samples} <= useful and all(len(sample.labels) for sample in samples)
    replaced = {dataset[(epoch, 2)].frame_id for epoch in range(30)}
    assert len(replaced) > 1


def test_training_drops_boxes_outside_the_range(training):
    dataset = FrameDataset(training, drop_empty=True, point_range=(-10.0, -10.0, -2.0, 10.0, 10.0, 4.0))
    assert {dataset[(epoch, 3)].frame_id for epoch in range(20)}.isdisjoint({"b_000"})  # its only box is 15 m away


def test_training_shuffles_points(training):
    plain, shuffled = FrameDataset(training)[0].points, FrameDataset(training, drop_empty=True)[0].points
    assert not np.array_equal(plain, shuffled)
    np.testing.assert_array_equal(plain[np.lexsort(plain.T)], shuffled[np.lexsort(shuffled.T)])


def test_samples_depend_on_seed_epoch_and_frame_alone(training):
    make = {"augment": AugmentConfig(), "drop_empty": True, "point_range": RANGE}
    one, other = FrameDataset(training, seed=1, **make), FrameDataset(training, seed=1, **make)
    for key in [(0, 0), (3, 2), (1, 5)]:
        other[(0, 1)]  # what was asked before does not matter
        _equal(one[key], other[key])
    assert not np.array_equal(one[(0, 0)].boxes, one[(1, 0)].boxes)
    assert not np.array_equal(one[(0, 0)].boxes, FrameDataset(training, seed=2, **make)[(0, 0)].boxes)
    fifth = FrameDataset(training, seed=1, interval=3, **make)
    _equal(fifth[(2, 1)], one[(2, 3)])  # the same frame under another interval
    _equal(one[0], one[(0, 0)])


def test_workers_give_the_same_batches(training):
    from torch.utils.data import DataLoader

    from kdlib.data.collate import collate
    from kdlib.data.sampler import StepSampler

    dataset = FrameDataset(training, augment=AugmentConfig(), drop_empty=True, point_range=RANGE)
    batches = [
        list(DataLoader(dataset, batch_sampler=StepSampler(len(dataset), 3, 2, 0), collate_fn=collate, num_workers=workers))
        for workers in (0, 2)
    ]
    assert len(batches[0]) == len(batches[1]) == 6
    for one, other in zip(*batches):
        assert one.points.frame_ids == other.points.frame_ids
        assert one.points.points.equal(other.points.points) and one.truth.boxes.equal(other.truth.boxes)


def test_bad_settings_are_errors(training, validation):
    with pytest.raises(ConfigError, match=r"unknown class \['Tram'\]"):
        FrameDataset(training, ("Vehicle", "Tram"))
    with pytest.raises(ConfigError, match="at least 1"):
        FrameDataset(training, interval=0)
    with pytest.raises(ConfigError, match="seed"):
        FrameDataset(training, seed=-1)
    with pytest.raises(DataError, match=r"no frame of split 'validation' .* has a box of Cyclist"):
        FrameDataset(validation, ("Cyclist",), drop_empty=True)
    nowhere = FrameDataset(validation, drop_empty=True, point_range=(60.0, 60.0, -2.0, 70.0, 70.0, 4.0))
    with pytest.raises(DataError, match="100 frames in a row have no box inside"):
        nowhere[0]


def test_the_dataset_needs_no_torch(store):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from kdlib.data.store import Store\n"
        "from kdlib.data.dataset import FrameDataset\nimport kdlib.data.sampler, kdlib.data.prepare\n"
        f"print(len(FrameDataset(Store.open({str(store.path)!r}).split('training'))[0].points))"
    )
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) > 0
