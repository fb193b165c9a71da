from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from kdlib.metric.assignment import kuhn_munkres, weights_from_iou
from kdlib.metric.counts import (
    CUTOFFS,
    count_frames,
    heading_accuracy,
    wrap_by_remainder,
)
from kdlib.metric.iou import metric_iou
from kdlib.metric.shards import OBJECT_TYPE, RANGE, WAYMO, centre_distance

SIZES = np.array([[1, 1, 1], [4.5, 2, 1.7], [0.8, 0.8, 1.7], [0.4, 0.9, 0.8], [1.8, 0.8, 1.7]])


def random_columns(seed, frames=6, truths=14, predictions=30, ties=False):
    """Crowded frames: objects overlap, predictions compete; with ties, boxes are duplicated and
    turned by pi.
    """
    rng = np.random.default_rng(seed)
    kind = rng.integers(1, 5, frames * truths)
    boxes = np.column_stack(
        (
            rng.uniform(-9, 9, (len(kind), 2)),
            rng.normal(0, 0.1, len(kind)),
            SIZES[kind],
            rng.uniform(-4, 4, len(kind)),
        )
    )
    frame = np.repeat(np.arange(frames), truths)
    source = (
        rng.integers(0, truths, frames * predictions)
        + np.repeat(np.arange(frames), predictions) * truths
    )
    noise = (
        rng.normal(0, 1, (len(source), 7))
        * 0.1
        * np.column_stack((SIZES[kind[source]], SIZES[kind[source]], np.ones(len(source))))
    )
    found = boxes[source] + (0 if ties else noise)
    if ties:
        found[:, 6] += np.pi * rng.integers(0, 2, len(source))
    return {
        "prediction_frame": np.repeat(np.arange(frames), predictions),
        "prediction_box": found,
        "prediction_type": kind[source],
        "score": np.round(rng.random(len(source)), 2 if ties else 6),
        "overlap_nlz": rng.random(len(source)) < 0.1,
        "truth_frame": frame,
        "truth_box": boxes,
        "truth_type": kind,
        "difficulty": rng.integers(1, 3, len(kind)),
    }


def shard_of(generator, kind, box):
    if generator is OBJECT_TYPE:
        return kind - 1
    distance = np.sqrt(float(box[0]) ** 2 + float(box[1]) ** 2 + float(box[2]) ** 2)
    return (kind - 1) * 3 + (0 if distance < 30 else 1 if distance < 50 else 2)


def naive_counts(boxes, generator, solve):
    """Sections 4 to 6 word by word: one assignment per frame, shard and cutoff."""
    shape = (boxes.frames, len(generator.names), len(CUTOFFS))
    tp, fp, fn1, fn2 = (np.zeros(shape, int) for _ in range(4))
    sum_ha = np.zeros(shape, np.float32)
    pd, gt = boxes.predictions, boxes.truth
    shard_p = np.array([shard_of(generator, k, b) for k, b in zip(pd.kind, pd.box)], int)
    shard_g = np.array([shard_of(generator, k, b) for k, b in zip(gt.kind, gt.box)], int)
    for f, s, c in np.ndindex(*shape):
        rows = np.flatnonzero((pd.frame == f) & (shard_p == s) & (pd.score >= CUTOFFS[c]))
        columns = np.flatnonzero((gt.frame == f) & (shard_g == s))
        pairs = {}
        if len(rows) and len(columns):
            iou = metric_iou(
                np.repeat(pd.box[rows], len(columns), 0), np.tile(gt.box[columns], (len(rows), 1))
            )
            iou = iou.reshape(len(rows), len(columns))
            weights = np.where(
                iou >= np.float32((0.0, *WAYMO.thresholds))[pd.kind[rows]][:, None],
                weights_from_iou(iou),
                0,
            )
            pairs = dict(solve(weights))
        for i, row in enumerate(rows):
            if i in pairs:
                tp[f, s, c] += 1
                sum_ha[f, s, c] += heading_accuracy(
                    pd.box[row : row + 1, 6], gt.box[columns[pairs[i]], 6:7]
                )[0]
            elif not pd.overlap_nlz[row]:
                fp[f, s, c] += 1
        for j, column in enumerate(columns):
            if j not in pairs.values():
                fn1[f, s, c] += gt.difficulty[column] <= 1
                fn2[f, s, c] += gt.difficulty[column] <= 2
    return tp, fp, fn1, fn2, sum_ha


def scipy_pairs(weights):
    return [
        (r, c) for r, c in zip(*linear_sum_assignment(weights, maximize=True)) if weights[r, c] > 0
    ]


@pytest.mark.parametrize(
    ("generator", "ties"), [(OBJECT_TYPE, False), (RANGE, False), (OBJECT_TYPE, True)]
)
def test_counts_equal_one_assignment_per_frame_shard_and_cutoff(eval_boxes, generator, ties):
    columns = random_columns(4, frames=3, ties=ties)
    if generator is RANGE:
        for side in ("prediction_box", "truth_box"):
            columns[side][:, 0] += 30.0  # across the border
    boxes, _ = eval_boxes(**columns)
    got = count_frames(boxes, (generator,))
    expected = naive_counts(boxes, generator, kuhn_munkres if ties else scipy_pairs)
    for name, values in zip(("tp", "fp", "fn1", "fn2", "sum_ha"), expected):
        np.testing.assert_array_equal(getattr(got, name), values, err_msg=name)


def test_chunks_change_nothing(eval_boxes):
    boxes, _ = eval_boxes(**random_columns(1))
    whole = count_frames(boxes, (OBJECT_TYPE, RANGE))
    for most_frames, most_pairs in ((1, 10**6), (4, 10**6), (64, 500)):
        parts = [
            count_frames(chunk, (OBJECT_TYPE, RANGE))
            for chunk in boxes.chunks(most_frames, most_pairs)
        ]
        for name in ("tp", "fp", "fn1", "fn2", "sum_ha"):
            np.testing.assert_array_equal(
                np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name)
            )


def test_cutoffs_are_float32():
    assert CUTOFFS.dtype == np.float32 and len(CUTOFFS) == 101
    assert CUTOFFS[7] == np.float32(0.07) and CUTOFFS[-1] == 1.0


def test_a_score_on_the_grid_passes_its_cutoff(eval_boxes):
    box = np.array([[5, 0, 0, 4, 2, 1.5, 0]])
    for cutoff in (0, 7, 29, 58, 100):
        boxes, _ = eval_boxes(
            prediction_frame=np.array([0]),
            prediction_box=box,
            prediction_type=np.array([1]),
            score=np.array([cutoff / 100]),
            truth_frame=np.array([0]),
            truth_box=box,
            truth_type=np.array([1]),
            difficulty=np.array([1]),
        )
        assert count_frames(boxes, (OBJECT_TYPE,)).tp[0, 0].tolist() == [1] * (cutoff + 1) + [0] * (
            100 - cutoff
        )


def test_range_borders_and_distance():
    box = np.zeros((4, 7), np.float32)
    box[:, 0] = (29.999, 30.0, 50.0, 0.0)
    box[3, 2] = 31.0  # height counts
    assert RANGE.shard(np.array([1, 1, 2, 4]), box).tolist() == [0, 1, 5, 10]
    assert centre_distance(box)[3] == 31.0
    assert OBJECT_TYPE.shard(np.array([0, 3]), box[:2]).tolist() == [-1, 2]


def test_heading_accuracy_by_hand():
    prediction = np.array([0.0, np.pi, 3.0, 0.0, 7.0, 0.0])
    truth = np.array([0.0, 0.0, -3.0, np.pi / 2, 7.0 - 2 * np.pi, -np.pi / 4])
    expected = [1.0, 0.0, 1 - (2 * np.pi - 6) / np.pi, 0.5, 1.0, 0.75]
    np.testing.assert_allclose(heading_accuracy(prediction, truth), expected, atol=1e-6)
    assert heading_accuracy(prediction, truth).dtype == np.float32


def test_wrap_heading_stays_in_the_half_open_interval():
    wrapped = wrap_by_remainder(np.linspace(-20, 20, 1001))
    assert (wrapped >= -np.pi).all() and (wrapped < np.pi).all()
    assert wrap_by_remainder(np.array([np.pi]))[0] == -np.pi
