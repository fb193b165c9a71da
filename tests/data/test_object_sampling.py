from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity

from kdlib.config import (
    CLASS_NAMES,
    AugmentConfig,
    ObjectSamplingConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from kdlib.data.containment import owner_of_points
from kdlib.data.object_bank import ObjectBank, build_bank
from kdlib.data.object_sampling import ObjectSampler, draw_objects
from kdlib.errors import ConfigError, DataError
from kdlib.lab import profiles

NONE = np.zeros((0, 7), np.float32)


@pytest.fixture(scope="module")
def bank(crowd, tmp_path_factory):
    split = crowd(tmp_path_factory.mktemp("bank"), {"a": [30] * 12})
    return ObjectBank.open(build_bank(split, progress=False), split.fingerprint)


def _rectangle(box):
    x, y, _, length, width, _, heading = (float(v) for v in box)
    flat = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.translate(affinity.rotate(flat, heading, origin=(0, 0), use_radians=True), x, y)


def _boxes(rng, count, reach):
    size = rng.uniform((0.5, 0.5, 1), (5, 2, 2), (count, 3))
    return np.c_[
        rng.uniform(-reach, reach, (count, 2)), np.zeros(count), size, rng.uniform(-4, 4, count)
    ].astype(np.float32)


def _naive(candidates, bank_boxes, counts, boxes, labels, rng):
    """The published rule, one pair of polygons at a time."""
    occupied, rows, new = [_rectangle(box) for box in boxes], [], []
    for label, (usable, count) in enumerate(zip(candidates, counts), start=1):
        missing = min(count - sum(labels == label), len(usable))
        if missing <= 0:
            continue
        drawn = usable[rng.choice(len(usable), missing, replace=False)]
        shapes = [_rectangle(bank_boxes[row]) for row in drawn]
        free = [
            not any(
                shape.intersection(other).area > 0
                for other in occupied + shapes[:n] + shapes[n + 1 :]
            )
            for n, shape in enumerate(shapes)
        ]
        occupied += [shape for shape, kept in zip(shapes, free) if kept]
        rows += [row for row, kept in zip(drawn, free) if kept]
        new += [label] * sum(free)
    return rows, new


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.tuples(*[st.integers(0, 30)] * 3),
    counts=st.tuples(*[st.integers(0, 15)] * 3),
    scene=st.integers(0, 12),
    reach=st.floats(1, 40),
)
def test_the_draw_is_the_naive_one_and_nothing_overlaps(seed, sizes, counts, scene, reach):
    rng = np.random.default_rng(seed)
    bank_boxes, boxes = _boxes(rng, sum(sizes), reach), _boxes(rng, scene, reach)
    labels = rng.integers(0, 4, scene)
    candidates = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:2])
    rows, new = draw_objects(
        candidates, bank_boxes, counts, boxes, labels, np.random.default_rng(seed)
    )
    expected = _naive(candidates, bank_boxes, counts, boxes, labels, np.random.default_rng(seed))
    assert (rows.tolist(), new.tolist()) == ([int(row) for row in expected[0]], expected[1])
    assert len(set(rows.tolist())) == len(rows)
    pasted = [_rectangle(bank_boxes[row]) for row in rows]
    for n, shape in enumerate(pasted):
        assert not any(
            shape.intersection(other).area > 0
            for other in pasted[:n] + [_rectangle(box) for box in boxes]
        )
    for label, count in enumerate(counts, start=1):
        there = int((labels == label).sum())
        assert there + int((new == label).sum()) <= max(count, there)


def test_of_two_colliding_candidates_both_go():
    boxes = np.array(
        [[0, 0, 0, 4, 2, 1, 0], [1, 0, 0, 4, 2, 1, 0], [20, 0, 0, 4, 2, 1, 0]], np.float32
    )
    rows, _ = draw_objects(
        [np.arange(3)], boxes, (3,), NONE, np.zeros(0, np.int64), np.random.default_rng(0)
    )
    assert rows.tolist() == [2]


def test_a_later_class_gives_way_to_an_earlier_one_and_to_boxes_of_no_class():
    found = np.array(
        [[0, 0, 0, 4, 2, 1, 0], [1, 0, 0, 4, 2, 1, 0], [20, 0, 0, 4, 2, 1, 0]], np.float32
    )
    sign = np.array([[21, 0, 3, 1, 1, 1, 0.5]], np.float32)
    rows, new = draw_objects(
        [np.array([0]), np.array([1]), np.array([2])],
        found,
        (1, 1, 1),
        sign,
        np.zeros(1, np.int64),
        np.random.default_rng(0),
    )
    assert rows.tolist() == [0] and new.tolist() == [1]


def test_every_usable_object_gets_its_turn(bank):
    sampler = ObjectSampler(bank, CLASS_NAMES, ObjectSamplingConfig())
    seen = np.zeros(len(bank), np.int64)
    for frame in range(400):
        seen[sampler.draw(NONE, np.zeros(0, np.int64), np.random.default_rng(frame)).rows] += 1
    usable = np.concatenate(sampler.candidates)
    assert (bank.counts[usable] >= 5).all() and not seen[
        np.setdiff1d(np.arange(len(bank)), usable)
    ].any()
    assert (seen[usable] > 0).all()


def test_the_least_number_of_points_counts_when_drawing(bank):
    strict = ObjectSampler(bank, CLASS_NAMES, ObjectSamplingConfig(min_points=12))
    rows = np.concatenate(strict.candidates)
    assert (
        0
        < len(rows)
        < sum(
            len(c)
            for c in ObjectSampler(bank, CLASS_NAMES, ObjectSamplingConfig(min_points=1)).candidates
        )
    )
    assert (bank.counts[rows] >= 12).all()


def test_labels_are_positions_in_the_models_classes(bank):
    sampler = ObjectSampler(bank, ("Cyclist", "Vehicle"), ObjectSamplingConfig(counts=(6, 4)))
    pasted = sampler.draw(NONE, np.zeros(0, np.int64), np.random.default_rng(0))
    np.testing.assert_array_equal(bank.types[pasted.rows], np.array([4, 1])[pasted.labels - 1])
    assert set(pasted.labels) == {1, 2}


@pytest.mark.parametrize("width", [0.0, 0.5])
def test_pasted_points_replace_those_of_the_scene(bank, width):
    sampler = ObjectSampler(
        bank, CLASS_NAMES, ObjectSamplingConfig(extra_width=(width, width, width))
    )
    rng = np.random.default_rng(1)
    scene = np.c_[
        rng.uniform((-32, -32, -1), (32, 32, 3), (60_000, 3)), rng.random((60_000, 2))
    ].astype(np.float32)
    before = scene.copy()
    pasted = sampler.draw(NONE, np.zeros(0, np.int64), rng)
    assert len(pasted.rows) > 10
    points = sampler.paste(scene, pasted)
    np.testing.assert_array_equal(scene, before)
    counts = bank.counts[pasted.rows]
    objects, rest = points[: counts.sum()], points[counts.sum() :]
    np.testing.assert_array_equal(objects, bank.points(pasted.rows))
    np.testing.assert_array_equal(
        owner_of_points(objects, pasted.boxes), np.repeat(np.arange(len(counts)), counts)
    )
    grown = pasted.boxes + np.float32([0, 0, 0, width, width, width, 0])
    removed = owner_of_points(scene, grown) >= 0
    assert removed.sum() > 50 and not (owner_of_points(rest, grown) >= 0).any()
    np.testing.assert_array_equal(rest, scene[~removed])


def test_nothing_drawn_changes_nothing(bank):
    sampler = ObjectSampler(bank, CLASS_NAMES, ObjectSamplingConfig(counts=(0, 0, 0)))
    pasted = sampler.draw(NONE, np.zeros(0, np.int64), np.random.default_rng(0))
    assert pasted.boxes.shape == (0, 7) and pasted.labels.dtype == np.int64
    scene = np.ones((4, 5), np.float32)
    np.testing.assert_array_equal(sampler.paste(scene, pasted), scene)


def test_objects_fall_into_an_empty_scan(bank):
    sampler = ObjectSampler(bank, CLASS_NAMES, ObjectSamplingConfig())
    pasted = sampler.draw(NONE, np.zeros(0, np.int64), np.random.default_rng(0))
    assert (
        len(sampler.paste(np.zeros((0, 5), np.float32), pasted)) == bank.counts[pasted.rows].sum()
    )


def test_an_empty_bank_or_class_gives_nothing(crowd, tmp_path):
    split = crowd(tmp_path, {"a": [0]})
    sampler = ObjectSampler(
        ObjectBank.open(build_bank(split, progress=False), split.fingerprint),
        CLASS_NAMES,
        ObjectSamplingConfig(),
    )
    assert len(sampler.draw(NONE, np.zeros(0, np.int64), np.random.default_rng(0)).rows) == 0
    boxes = np.array([[0, 0, 0, 1, 1, 1, 0]], np.float32)
    none = np.zeros(0, np.int64)
    rows, new = draw_objects(
        [none, np.array([0]), none], boxes, (1, 1, 1), NONE, none, np.random.default_rng(0)
    )
    assert rows.tolist() == [0] and new.tolist() == [2]


def test_classes_must_fit(bank):
    with pytest.raises(ConfigError, match=r"counts \(15, 10, 10\) for the classes Vehicle"):
        ObjectSampler(bank, ("Vehicle",), ObjectSamplingConfig())
    poor = SimpleNamespace(class_names=("Vehicle",), path=bank.path)
    with pytest.raises(
        DataError,
        match=(
            r"without Pedestrian, Cyclist; delete it and make it " r"with 'python -m kdlib prepare"
        ),
    ):
        ObjectSampler(poor, CLASS_NAMES, ObjectSamplingConfig())


def test_published_schedules_paste_objects_and_the_demo_does_not():
    for name, objects in {
        "waymo20": ObjectSamplingConfig(),
        "waymo100": ObjectSamplingConfig(),
        "demo": None,
        "smoke": None,
    }.items():
        profile = profiles.profile(name)
        assert profile.student.augment.objects == profile.teacher.augment.objects == objects


def test_the_setting_survives_json():
    config = TrainConfig(
        augment=AugmentConfig(
            objects=ObjectSamplingConfig(counts=(1, 2, 3), extra_width=(0.1, 0.2, 0.3))
        )
    )
    assert from_dict(TrainConfig, to_dict(config)) == config
    assert from_dict(TrainConfig, to_dict(TrainConfig())) == TrainConfig()
