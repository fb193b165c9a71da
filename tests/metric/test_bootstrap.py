from __future__ import annotations

import json

import numpy as np
import pytest

from kdlib.errors import ConfigError
from kdlib.metric.ap import average_precision, precision_recall
from kdlib.metric.bootstrap import METRICS, bootstrap
from kdlib.metric.waymo_metrics import evaluate_boxes

SIZES = np.array([[4.5, 2, 1.7], [0.8, 0.8, 1.7], [1.8, 0.8, 1.7]])
TYPES = np.array([1, 2, 4])


@pytest.fixture(scope="module")
def result(eval_boxes):
    def evaluated(quality, seed, segments=6, frames=5, objects=12, truth_seed=0, **options):
        """An evaluation in which a share ``quality`` of the objects is found, misses and alarms
        drawn by seed.
        """
        fixed, rng = np.random.default_rng(truth_seed), np.random.default_rng([seed, 1])
        count = segments * frames * objects
        which = fixed.integers(0, 3, count)
        boxes = np.column_stack(
            (
                fixed.uniform(-70, 70, (count, 2)),
                np.zeros(count),
                SIZES[which],
                fixed.uniform(-3, 3, count),
            )
        )
        ids = np.array(
            [
                f"seg-{s}_{f:03d}"
                for s in range(segments)
                for f in range(frames)
                for _ in range(objects)
            ]
        )
        found = rng.random(count) < quality
        alarm = rng.random(count) < 0.3
        alarms = boxes[alarm] + np.array([0, 0, 30, 0, 0, 0, 0])
        boxes_by_frame, names = eval_boxes(
            prediction_frame=np.concatenate((ids[found], ids[alarm])),
            prediction_box=np.concatenate(
                (boxes[found] + rng.normal(0, 0.02, (found.sum(), 7)), alarms)
            ),
            prediction_type=TYPES[np.concatenate((which[found], which[alarm]))],
            score=np.concatenate(
                (rng.uniform(0.3, 1, found.sum()), rng.uniform(0, 0.7, alarm.sum()))
            ),
            truth_frame=ids,
            truth_box=boxes,
            truth_type=TYPES[which],
            difficulty=fixed.integers(1, 3, count),
        )
        return evaluate_boxes(boxes_by_frame, tuple(names.tolist()), ranges=False, **options)

    return evaluated


def test_identical_arms_do_not_differ(result):
    results = [result(0.6, seed) for seed in range(3)]
    report = bootstrap({"a": results, "b": results}, resamples=200)
    difference = report.difference("b", "a")
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert report.arm("a") == report.arm("b").__class__(**{**vars(report.arm("b")), "name": "a"})


def test_a_better_arm_is_better(result):
    report = bootstrap(
        {
            "base": [result(0.5, seed) for seed in range(3)],
            "better": [result(0.75, seed) for seed in range(3)],
        },
        resamples=300,
    )
    difference = report.difference("better", "base")
    assert difference.low > 0.1
    assert difference.low <= difference.mean <= difference.high
    turned = report.difference("base", "better")
    assert (turned.low, turned.high) == (-difference.high, -difference.low)
    for name in ("base", "better"):
        arm = report.arm(name)
        assert arm.low < arm.mean < arm.high
        assert arm.mean == pytest.approx(np.mean(arm.values)) and arm.std == pytest.approx(
            np.std(arm.values, ddof=1)
        )


def test_a_resample_is_the_metric_of_the_drawn_segments(result):
    """Known answer: score every drawn multiset of segments with the official accumulation."""
    evaluated = result(0.6, 0)
    report = bootstrap({"a": [evaluated]}, resamples=40, seed=5)
    counts, ids = evaluated.frames.counts, evaluated.frames.frame_ids
    segments = np.array([name.rpartition("_")[0] for name in ids])
    names = list(dict.fromkeys(segments))
    rng = np.random.default_rng(5)
    values = []
    for weight in rng.multinomial(6, np.full(6, 1 / 6), size=40):
        frames = np.concatenate(
            [np.flatnonzero(segments == names[i]) for i in np.repeat(np.arange(6), weight)]
        )
        classes = []
        for breakdown in (0, 1, 3):
            tp, fp, fn, ha = (
                a[frames, breakdown].sum(axis=0)
                for a in (counts.tp, counts.fp, counts.fn2, counts.sum_ha)
            )
            curve = precision_recall(tp, fp, fn, ha)
            classes.append(float(average_precision(curve.precision_heading, curve.recall)))
        values.append(np.mean(classes))
    low, high = np.percentile(values, (2.5, 97.5))
    assert report.arm("a").low == pytest.approx(low, abs=1e-5)
    assert report.arm("a").high == pytest.approx(high, abs=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_every_mean_can_be_resampled(result, metric):
    evaluated = result(0.6, 0)
    arm = bootstrap({"a": [evaluated]}, metric=metric, resamples=200).arm("a")
    assert arm.values == (evaluated.metrics[metric],)
    assert arm.low < evaluated.metrics[metric] < arm.high
    assert np.isnan(arm.std), "one seed has no spread"


def test_deterministic_by_seed(result):
    arms = {"a": [result(0.6, 0), result(0.6, 1)], "b": [result(0.7, 2)]}
    first, again, other = (
        bootstrap(arms, resamples=100, seed=seed).to_dict() for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert json.loads(json.dumps(first))["arms"][0]["name"] == "a"


def test_results_that_cannot_be_compared_are_refused(result):
    good = result(0.6, 0)
    with pytest.raises(ConfigError, match="result 0 of arm 'b' was evaluated on other frames"):
        bootstrap({"a": [good], "b": [result(0.6, 0, segments=5)]})
    with pytest.raises(
        ConfigError, match="result 1 of arm 'a' was evaluated on other frames or ground truth"
    ):
        bootstrap({"a": [good, result(0.6, 0, truth_seed=1)]})
    with pytest.raises(ConfigError, match="keep_frames=True"):
        bootstrap({"a": [result(0.6, 0, keep_frames=False)]})
    with pytest.raises(ConfigError, match="at least one arm"):
        bootstrap({})
    with pytest.raises(ConfigError, match="cannot bootstrap 'mAPH'"):
        bootstrap({"a": [good]}, metric="mAPH")
    with pytest.raises(ConfigError, match="resamples"):
        bootstrap({"a": [good]}, resamples=0)
