from __future__ import annotations

import numpy as np
import pytest

from kdlib.metric.iou import find_candidates, metric_iou


def one(first, second):
    return float(metric_iou(np.array([first], np.float32), np.array([second], np.float32))[0])


BOX = (10.0, -4.0, 1.0, 4.0, 2.0, 1.5, 0.3)


def with_(**changes):
    names = ("x", "y", "z", "length", "width", "height", "heading")
    return tuple(changes.get(name, value) for name, value in zip(names, BOX))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (BOX, 1.0),
        (with_(heading=0.3 + np.pi), 1.0),
        (with_(z=1.0 + 0.75), 1 / 3),  # half the height shared: 0.5 / 1.5
        (with_(z=1.0 + 1.5), 0.0),  # touching
        (with_(z=4.0), 0.0),
        (with_(length=2.0), 0.5),
        (with_(length=0.01), 0.0),  # tiny: float32(0.01) <= 0.01
        (with_(height=0.0), 0.0),
        (with_(width=-2.0), 0.0),
        (with_(length=1e6), 0.0),  # huge
        (with_(x=float("nan")), 0.0),
        (with_(heading=float("nan")), 0.0),
        (with_(x=float("inf")), 0.0),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_iou_by_hand(other, expected):
    assert one(BOX, other) == pytest.approx(expected, rel=1e-6)
    assert one(other, BOX) == one(BOX, other)


def test_result_is_float32():
    assert metric_iou(np.array([BOX]), np.array([BOX])).dtype == np.float32


def test_candidates_are_all_pairs_of_a_group_above_the_threshold():
    rng = np.random.default_rng(0)
    count = 150

    def boxes():
        return np.column_stack(
            (
                rng.uniform(-6, 6, (count, 2)),
                rng.uniform(-0.3, 0.3, count),
                rng.uniform(1, 5, (count, 3)),
                rng.uniform(-4, 4, count),
            )
        ).astype(np.float32)

    first, second = boxes(), boxes()
    group_a, group_b = rng.integers(0, 3, count), rng.integers(0, 3, count)
    thresholds = np.where(group_a == 0, 0.05, 0.3).astype(np.float32)
    found = find_candidates(group_a, first, group_b, second, thresholds)
    expected = []
    for i in range(count):
        values = metric_iou(np.repeat(first[i : i + 1], count, 0), second)
        expected += [
            (i, j, values[j])
            for j in range(count)
            if group_a[i] == group_b[j] and values[j] >= thresholds[i]
        ]
    assert len(expected) > 50
    assert sorted(
        zip(found.prediction.tolist(), found.truth.tolist(), found.iou.tolist())
    ) == sorted(expected)
