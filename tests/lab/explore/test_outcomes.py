"""Which objects were found: every box in exactly one layer, matched one to one within its class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.lab.explore.outcomes import judge_layers
from kdlib.viz.layers import BoxLayer, layer

CAR = np.array([10.0, 2.0, 0.8, 4.0, 2.0, 1.6, 0.3])


def truth(boxes: np.ndarray, labels: np.ndarray) -> BoxLayer:
    return layer("truth", boxes, labels)


def found(boxes: np.ndarray, labels: np.ndarray) -> BoxLayer:
    return layer("student", boxes, labels, np.full(len(boxes), 0.9))


def counts(objects: BoxLayer, boxes: BoxLayer, iou: float | None = None) -> tuple[int, ...]:
    return tuple(len(one) for one in judge_layers(objects, boxes, iou))


def moved(share: float) -> np.ndarray:
    """The car moved along its length, so that its 3D IoU with itself is (1 - share) / (1 +
    share).
    """
    step = share * CAR[3]
    return CAR + np.array([step * np.cos(CAR[6]), step * np.sin(CAR[6]), 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("share", "iou", "hit"), [(0.17, None, 1), (0.18, None, 0), (0.33, 0.5, 1), (0.34, 0.5, 0)]
)
def test_limit_is_the_3d_iou(share: float, iou: float | None, hit: int) -> None:
    # (1 - s) / (1 + s): 0.709, 0.695, 0.504, 0.493; a vehicle's own limit is 0.7
    one, other = truth(CAR[None], np.array([1])), found(moved(share)[None], np.array([1]))
    assert counts(one, other, iou) == ((1, 1, 0, 0) if hit else (0, 0, 1, 1))


def test_classes_do_not_match_each_other() -> None:
    assert counts(truth(CAR[None], np.array([1])), found(CAR[None], np.array([3]))) == (0, 0, 1, 1)


def test_two_boxes_on_one_object_are_one_hit_and_one_false_alarm() -> None:
    judged = judge_layers(
        truth(CAR[None], np.array([1])), found(np.stack((moved(0.1), CAR)), np.array([1, 1]))
    )
    np.testing.assert_allclose(judged.hits.boxes, CAR[None])
    assert str(judged) == "1 found, 0 missed, 1 false alarm"


def test_as_many_matches_as_possible() -> None:
    # the box between both objects overlaps the first most, which only the other box can be given as
    # well
    objects = np.stack((CAR, moved(0.6)))
    boxes = np.stack((moved(0.25), moved(-0.3)))
    assert counts(truth(objects, np.array([1, 1])), found(boxes, np.array([1, 1])), 0.4) == (
        2,
        2,
        0,
        0,
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), objects=st.integers(0, 8), boxes=st.integers(0, 8))
def test_every_box_is_in_one_layer(seed: int, objects: int, boxes: int) -> None:
    rng = np.random.default_rng(seed)

    def some(count: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = np.tile(CAR, (count, 1)) + rng.normal(0, 1, (count, 7)) * np.array(
            [3, 3, 0.1, 0.2, 0.1, 0.1, 1]
        )
        return drawn, rng.integers(1, 4, count)

    judged = judge_layers(truth(*some(objects)), found(*some(boxes)), 0.3)
    assert len(judged.found) + len(judged.missed) == objects
    assert len(judged.hits) + len(judged.false_alarms) == boxes
    assert len(judged.found) == len(judged.hits)
