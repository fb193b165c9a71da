from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from kdlib.config import AugmentConfig, ObjectSamplingConfig
from kdlib.data.containment import collisions, owner_of_points
from kdlib.data.dataset import FrameDataset
from kdlib.data.object_bank import bank_path, build_bank
from kdlib.errors import ConfigError, DataError

RANGE = (-20.0, -20.0, -2.0, 20.0, 20.0, 4.0)


@pytest.fixture(scope="module")
def training(store):
    return store.split("training")


@pytest.fixture(scope="module")
def validation(store):
    return store.split("validation")


@pytest.fixture(scope="module")
def crowded(crowd, tmp_path_factory):
    """Frames with many boxes, few and none, and an object bank."""
    split = crowd(
        tmp_path_factory.mktemp("crowded"), {"a": [40, 40, 0, 40, 60], "b": [3, 1, 60, 0]}
    )
    build_bank(split, progress=False)
    return split


STILL = AugmentConfig(flip_x=False, flip_y=False, rotation=0.0, scaling=(1.0, 1.0))
OBJECTS = ObjectSamplingConfig(counts=(15, 10, 10))


def _equal(one, other):
    assert one.frame_id == other.frame_id
    for name in ("points", "boxes", "labels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_d21_evaluation_samples_are_the_frames_as_they_are(training):
    dataset = FrameDataset(training)
    assert len(dataset) == 7 and dataset.frame_ids == [f"a_{n:03d}" for n in range(3)] + [
        f"b_{n:03d}" for n in range(4)
    ]
    for number in range(7):
        sample = dataset[number]
        assert sample.frame_id == dataset.frame_ids[number] and sample.points.dtype == np.float32
        np.testing.assert_array_equal(sample.points, training.points(number)[:, :5])
    assert dataset[0].labels.tolist() == [1]  # the sign is gone
    assert dataset[1].labels.tolist() == [2, 3]  # the pedestrian without points stays
    assert dataset[2].boxes.shape == (0, 7) and dataset[2].labels.dtype == np.int64


def test_no_label_zone_points_stay(training):
    assert (training.points(0)[:, 5] == 1).any() and len(FrameDataset(training)[0].points) == len(
        training.points(0)
    )


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
    assert [dataset[n].frame_id for n in range(len(dataset))] == [
        training.frame_id(n) for n in frames
    ]


def test_training_drops_boxes_without_points_and_replaces_empty_frames(training):
    dataset = FrameDataset(training, drop_empty=True, seed=3)
    samples = [dataset[(0, n)] for n in range(len(dataset))]
    assert samples[0].frame_id == "a_000" and samples[1].labels.tolist() == [3]
    useful = {"a_000", "a_001", "b_000", "b_002"}
    assert {sample.frame_id for sample in samples} <= useful and all(
        len(sample.labels) for sample in samples
    )
    replaced = {dataset[(epoch, 2)].frame_id for epoch in range(30)}
    assert len(replaced) > 1


def test_training_drops_boxes_outside_the_range(training):
    dataset = FrameDataset(
        training, drop_empty=True, point_range=(-10.0, -10.0, -2.0, 10.0, 10.0, 4.0)
    )
    # its only box is 15 m away
    assert {dataset[(epoch, 3)].frame_id for epoch in range(20)}.isdisjoint({"b_000"})


def test_training_shuffles_points(training):
    plain, shuffled = (
        FrameDataset(training)[0].points,
        FrameDataset(training, drop_empty=True)[0].points,
    )
    assert not np.array_equal(plain, shuffled)
    np.testing.assert_array_equal(plain[np.lexsort(plain.T)], shuffled[np.lexsort(shuffled.T)])


def test_d20_samples_depend_on_seed_epoch_and_frame_alone(training):
    make = {"augment": AugmentConfig(), "drop_empty": True, "point_range": RANGE}
    one, other = FrameDataset(training, seed=1, **make), FrameDataset(training, seed=1, **make)
    for key in [(0, 0), (3, 2), (1, 5)]:
        other[(0, 1)]  # what was asked before does not matter
        _equal(one[key], other[key])
    assert not np.array_equal(one[(0, 0)].boxes, one[(1, 0)].boxes)
    assert not np.array_equal(
        one[(0, 0)].boxes, FrameDataset(training, seed=2, **make)[(0, 0)].boxes
    )
    fifth = FrameDataset(training, seed=1, interval=3, **make)
    _equal(fifth[(2, 1)], one[(2, 3)])  # the same frame under another interval
    _equal(one[0], one[(0, 0)])


def test_workers_give_the_same_batches(training):
    from torch.utils.data import DataLoader

    from kdlib.data.collate import collate
    from kdlib.data.sampler import StepSampler

    dataset = FrameDataset(training, augment=AugmentConfig(), drop_empty=True, point_range=RANGE)
    batches = [
        list(
            DataLoader(
                dataset,
                batch_sampler=StepSampler(len(dataset), 3, 2, 0),
                collate_fn=collate,
                num_workers=workers,
            )
        )
        for workers in (0, 2)
    ]
    assert len(batches[0]) == len(batches[1]) == 6
    for one, other in zip(*batches):
        assert one.points.frame_ids == other.points.frame_ids
        assert one.points.points.equal(other.points.points) and one.truth.boxes.equal(
            other.truth.boxes
        )


def test_pasted_objects_follow_the_frames_own_boxes_and_hit_nothing(crowded):
    plain = FrameDataset(crowded, augment=STILL, drop_empty=True)
    dataset = FrameDataset(crowded, augment=replace(STILL, objects=OBJECTS), drop_empty=True)
    for number in (0, 1, 3, 4, 5, 6, 7):
        before, after = plain[number], dataset[number]
        own = len(before.labels)
        assert after.frame_id == before.frame_id
        np.testing.assert_array_equal(after.boxes[:own], before.boxes)
        np.testing.assert_array_equal(after.labels[:own], before.labels)
        new = after.boxes[own:]
        assert (
            np.array_equal(collisions(new, new), np.eye(len(new), dtype=bool))
            and not collisions(new, before.boxes).any()
        )
        there = np.bincount(before.labels, minlength=4)
        assert (
            np.bincount(after.labels, minlength=4)[1:] <= np.maximum(there[1:], OBJECTS.counts)
        ).all()
        whole, put = (
            crowded.points(number)[:, :5],
            after.points[owner_of_points(after.points, new) >= 0],
        )
        kept = whole[owner_of_points(whole, new) < 0]
        expected = np.concatenate((kept, put))
        np.testing.assert_array_equal(
            after.points[np.lexsort(after.points.T)], expected[np.lexsort(expected.T)]
        )
        usable = crowded.num_points[crowded.box_rows(number)] > 0
        # signs included
        assert not collisions(new, crowded.boxes[crowded.box_rows(number)][usable]).any()
    assert len(dataset[5].labels) > len(plain[5].labels) + 5


def test_the_world_is_augmented_alike_with_and_without_objects(crowded):
    plain = FrameDataset(crowded, augment=AugmentConfig(), drop_empty=True)
    dataset = FrameDataset(crowded, augment=AugmentConfig(objects=OBJECTS), drop_empty=True)
    for key in [(0, 0), (3, 4), (1, 7)]:
        np.testing.assert_array_equal(dataset[key].boxes[: len(plain[key].boxes)], plain[key].boxes)


def test_a_frame_without_boxes_is_filled_rather_than_replaced(crowded):
    dataset = FrameDataset(
        crowded, augment=AugmentConfig(objects=OBJECTS), drop_empty=True, point_range=RANGE
    )
    for number in (2, 8):
        assert (
            dataset[number].frame_id == crowded.frame_id(number) and len(dataset[number].labels) > 3
        )


def test_objects_depend_on_seed_epoch_and_frame_alone_and_leave_the_annotations(crowded):
    boxes, types = crowded.boxes.copy(), crowded.types.copy()
    make = {"augment": AugmentConfig(objects=OBJECTS), "drop_empty": True, "point_range": RANGE}
    one, other = FrameDataset(crowded, seed=1, **make), FrameDataset(crowded, seed=1, **make)
    for key in [(0, 0), (3, 2), (1, 5)]:
        other[(0, 1)]
        _equal(one[key], other[key])
    still = {**make, "augment": replace(STILL, objects=OBJECTS)}
    one, other = FrameDataset(crowded, seed=1, **still), FrameDataset(crowded, seed=2, **still)
    assert not np.array_equal(one[(0, 5)].boxes, one[(1, 5)].boxes)
    assert not np.array_equal(one[(0, 5)].boxes, other[(0, 5)].boxes)
    np.testing.assert_array_equal(crowded.boxes, boxes)
    np.testing.assert_array_equal(crowded.types, types)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_share_the_object_bank(crowded, start):
    from torch.utils.data import DataLoader

    from kdlib.data.collate import collate
    from kdlib.data.sampler import StepSampler

    dataset = FrameDataset(
        crowded, augment=AugmentConfig(objects=OBJECTS), drop_empty=True, point_range=RANGE
    )
    sampler = StepSampler(len(dataset), 3, 2, 0)
    many = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=2,
        multiprocessing_context=start,
    )
    batches = list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)), list(many)
    assert len(batches[0]) == len(batches[1]) == 6
    for one, other in zip(*batches):
        assert one.points.points.equal(other.points.points) and one.truth.boxes.equal(
            other.truth.boxes
        )


def test_objects_need_a_bank_of_these_frames(crowd, crowded, tmp_path):
    split = crowd(tmp_path, {"a": [9]})
    with pytest.raises(DataError, match=r"no object bank .*'python -m kdlib prepare SRC"):
        FrameDataset(split, augment=AugmentConfig(objects=OBJECTS), drop_empty=True)
    shutil.copy(bank_path(crowded), bank_path(split))
    with pytest.raises(DataError, match="made from other frames"):
        FrameDataset(split, augment=AugmentConfig(objects=OBJECTS), drop_empty=True)
    with pytest.raises(ConfigError, match="counts"):
        FrameDataset(crowded, ("Vehicle",), augment=AugmentConfig(objects=OBJECTS), drop_empty=True)


def test_bad_settings_are_errors(training, validation):
    with pytest.raises(ConfigError, match=r"unknown class \['Tram'\]"):
        FrameDataset(training, ("Vehicle", "Tram"))
    with pytest.raises(ConfigError, match="at least 1"):
        FrameDataset(training, interval=0)
    with pytest.raises(ConfigError, match="seed"):
        FrameDataset(training, seed=-1)
    with pytest.raises(DataError, match=r"no frame of split 'validation' .* has a box of Cyclist"):
        FrameDataset(validation, ("Cyclist",), drop_empty=True)
    nowhere = FrameDataset(
        validation, drop_empty=True, point_range=(60.0, 60.0, -2.0, 70.0, 70.0, 4.0)
    )
    with pytest.raises(DataError, match="100 frames in a row have no box inside"):
        nowhere[0]


def test_the_dataset_needs_no_torch(store):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from kdlib.data.store import Store\n"
        "from kdlib.data.dataset import FrameDataset\nimport kdlib.data.sampler, "
        "kdlib.data.prepare\n"
        f"print(len(FrameDataset(Store.open({str(store.path)!r}).split('training'))[0].points))"
    )
    assert (
        int(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout
        )
        > 0
    )
