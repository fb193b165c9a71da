from __future__ import annotations

import pytest

from kdlib.tools.bench import metric
from kdlib.tools.bench.metric import bench_metric
from kdlib.tools.judge.official import MetricRun, find_python
from kdlib.tools.judge.side_by_side import SideBySide


def test_lines_follow_the_comparison(monkeypatch):
    ours = MetricRun({"a": 0.5}, 2.0, 400_000_000, "kdlib")
    official = MetricRun({"a": 0.5 + 2e-6}, 5.0, 900_000_000, "TensorFlow")
    monkeypatch.setattr(
        metric, "compare_with_official", lambda boxes, **_: SideBySide(3, 6, 3, ours, official)
    )
    outcome = bench_metric(3, 1, 2)
    assert outcome["ratio"] == 2.5 and outcome["kdlib_mb"] == 400
    met = {line.key: line.met for line in outcome.lines if line.target}
    assert met == {"ratio": True, "kdlib_mb": True, "difference": False}


@pytest.mark.official
def test_both_agree_on_a_small_crowd():
    outcome = bench_metric(10, 20, 40, python=find_python())
    assert outcome["difference"] <= 1e-6
    assert outcome["ratio"] == pytest.approx(outcome["official_s"] / outcome["kdlib_s"])


def test_a_score_of_nan_on_one_side_is_no_agreement():
    """Python's own max() passes over NaN."""
    sound = MetricRun({"a/AP": 0.5, "b/AP": 0.5}, 1.0, 1, "1.6.1")
    broken = MetricRun({"a/AP": 0.5, "b/AP": float("nan")}, 1.0, 1, "kdlib")
    judged = SideBySide(3, 6, 3, broken, sound)
    assert not judged.agrees and "THEY DISAGREE" in judged.summary()
