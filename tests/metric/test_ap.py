from __future__ import annotations

import numpy as np
import pytest

from kdlib.metric.ap import average_precision, average_precisions, precision_recall


def ap(precision, recall):
    p, r = np.array(precision, np.float32), np.array(recall, np.float32)
    single = float(average_precision(p, r))
    assert average_precisions(p, r) == pytest.approx(single, abs=2e-7)
    return single


def test_one_cutoff_with_everything_found():
    # Recall 1 at precision 1; every filled point and the end at recall 0 take precision 1.
    assert ap([1.0], [1.0]) == pytest.approx(1.0)


def test_flat_curve():
    # From recall 0.4 down to 0 at precision 0.5; nothing above recall 0.4.
    assert ap([0.5], [0.4]) == pytest.approx(0.5 * 0.4)


def test_trapezoid_between_near_recalls():
    # (0.50, p 0.8) to (0.52, p 0.6): one trapezoid, then 0.8 down to recall 0.
    assert ap([0.8, 0.6], [0.50, 0.52]) == pytest.approx(0.02 * (0.8 + 0.6) / 2 + 0.50 * 0.8)


def test_wide_gaps_are_filled_with_the_lower_precision():
    # From 0.52 (p 0.6) to 0.40 (p 0.8): points at 0.47 and 0.42 still hold 0.6, the last 0.02 is a
    # trapezoid.
    assert ap([0.8, 0.6], [0.40, 0.52]) == pytest.approx(
        0.10 * 0.6 + 0.02 * (0.6 + 0.8) / 2 + 0.40 * 0.8
    )


def test_precision_never_falls_towards_low_recall():
    # 0.3 at recall 0.50 is hidden behind 0.6 at recall 0.52.
    assert ap([0.3, 0.6], [0.50, 0.52]) == pytest.approx(0.52 * 0.6)


def test_the_best_precision_of_equal_recalls_counts():
    assert ap([0.2, 0.9, 0.5], [0.6, 0.6, 0.6]) == pytest.approx(0.6 * 0.9)


def test_nothing_found_is_zero():
    assert ap([1.0, 1.0], [0.0, 0.0]) == 0.0
    assert ap([], []) == 0.0


def test_many_curves_at_once_equal_one_by_one():
    rng = np.random.default_rng(0)
    tp = np.sort(rng.integers(0, 60, (5, 3, 101)), axis=-1)[..., ::-1]
    fp, fn = rng.integers(0, 50, tp.shape), rng.integers(0, 30, tp.shape)
    curve = precision_recall(tp, fp, fn, tp * rng.random(tp.shape))
    many = average_precisions(curve.precision_heading, curve.recall)
    for i in np.ndindex(5, 3):
        assert many[i] == pytest.approx(
            float(average_precision(curve.precision_heading[i], curve.recall[i])), abs=3e-7
        )


def test_precision_and_recall_by_hand():
    curve = precision_recall(
        np.array([6, 0, 0]),
        np.array([2, 3, 0]),
        np.array([4, 9, 0]),
        np.array([4.5, 0, 0], np.float32),
    )
    np.testing.assert_allclose(curve.precision, [6 / 8, 1, 1])  # recall 0 makes both precisions 1
    np.testing.assert_allclose(curve.precision_heading, [4.5 / 8, 1, 1])
    np.testing.assert_allclose(curve.recall, [6 / 10, 0, 0], rtol=1e-7)
    assert curve.recall.dtype == np.float32
