"""Equal arms gain nothing, better ones do; a sentence follows its interval as it is printed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlib.errors import ConfigError
from kdlib.lab import profiles
from kdlib.lab.comparison import Comparison, Contrast, compare_arms
from kdlib.lab.gain import Gain, summary
from kdlib.lab.profile import ARMS
from kdlib.lab.scoring import score_frame
from kdlib.metric.box_tables import predictions_table
from kdlib.metric.waymo_metrics import EvalResult, evaluate_tables
from kdlib.viz import curves

FRAMES = [f"segment{s}_{f:03d}" for s in range(4) for f in range(3)]
TYPES = (1, 2, 4)
EACH = 6  # objects of a class in a frame
SMOKE = profiles.profile("smoke")
TITLES = {"teacher": "teacher", **ARMS}
limits = st.floats(-90, 90, allow_nan=False)


def objects(frames: list[str] = FRAMES, kinds: tuple[int, ...] = TYPES) -> tuple:
    ids, boxes, types = [], [], []
    for frame in frames:
        for row, kind in enumerate(kinds):
            for column in range(EACH):
                ids.append(frame)
                boxes.append([6.0 * column + 1, 6.0 * row, 1.0, 4.0, 2.0, 1.5, 0.3])
                types.append(kind)
    return ids, np.array(boxes), np.array(types)


def truth_table(*what: object) -> pa.Table:
    ids, boxes, types = objects(*what)
    columns = dict(zip(("x", "y", "z", "length", "width", "height", "heading"), boxes.T))
    extra = {"difficulty": np.zeros(len(ids), np.int64), "num_points": np.full(len(ids), 50)}
    return pa.table(
        {
            "frame_id": ids,
            **columns,
            "type": types,
            **extra,
            "speed_x": boxes[:, 0],
            "speed_y": boxes[:, 0],
        }
    )


def scored(found: int, frames: list[str] = FRAMES, kinds: tuple[int, ...] = TYPES) -> EvalResult:
    """A detector that finds the first ``found`` of every six objects."""
    ids, boxes, types = objects(frames, kinds)
    kept = np.arange(len(ids)) % EACH < found
    names = np.array(ids)[kept].tolist()
    table = predictions_table(
        names, boxes[kept], types[kept], np.full(kept.sum(), 0.9), None, frames
    )
    return evaluate_tables(table, truth_table(frames, kinds))


@pytest.fixture(scope="module")
def results() -> dict[int, EvalResult]:
    return {found: scored(found) for found in (0, 2, 3, 4, 6)}


def compared(results: dict[int, EvalResult], teacher: int, **arms: tuple[int, ...]) -> Comparison:
    students = {
        arm: {seed: results[found] for seed, found in enumerate(each, 1)}
        for arm, each in arms.items()
    }
    return compare_arms(
        SMOKE, TITLES, {"teacher": {0: results[teacher]}, **students}, resamples=200
    )


def test_equal_arms_gain_nothing(results: dict[int, EvalResult]) -> None:
    found = compared(results, 3, alone=(3, 3), init=(3, 3), full=(3, 3))
    assert [v["met"] for v in found.verdicts()] == [False, False, False]
    assert all(
        "+0.00 points, 95 % interval +0.00 to +0.00" in v["result"] for v in found.verdicts()
    )
    table = found.difference_table()
    assert len(table) == 6 and not table["a gain"].any()
    assert (table["LEVEL_2 mAPH"] == 0).all()


def test_better_arms_gain(results: dict[int, EvalResult]) -> None:
    found = compared(results, 6, alone=(2, 3), init=(3, 4), full=(4, 6))
    assert [v["met"] for v in found.verdicts()] == [True, True, True]
    table = found.table().set_index("arm")
    assert list(table.index) == [
        "teacher",
        "student alone",
        "initialised from the teacher",
        "full SparseKD",
    ]
    assert table.loc["teacher", "LEVEL_2 mAPH"] == pytest.approx(100, abs=0.1)
    assert table.loc["student alone", "LEVEL_2 mAPH"] == pytest.approx(100 * (2 + 3) / 12, abs=1)
    assert table.loc["student alone", "std over seeds"] == pytest.approx(
        100 / 6 / math.sqrt(2), abs=1
    )
    assert table.loc["teacher", "seeds"] == 1 and math.isnan(table.loc["teacher", "std over seeds"])
    assert table.loc["full SparseKD", "seeds"] == 2
    gains = found.difference_table().set_index("difference")
    assert gains.index[0] == "teacher − student alone"
    assert gains.loc["full SparseKD − student alone", "LEVEL_2 mAPH"] == pytest.approx(
        100 * 5 / 12, abs=1
    )
    assert bool(gains.loc["full SparseKD − student alone", "a gain"])


def test_a_worse_full_recipe_is_said_plainly(results: dict[int, EvalResult]) -> None:
    verdicts = compared(results, 6, alone=(3, 3), init=(4, 4), full=(2, 2)).verdicts()
    assert [v["met"] for v in verdicts] == [True, False, False]
    assert verdicts[1]["wish"] == "full SparseKD at least 2 above student alone"
    assert verdicts[1]["result"].startswith("-16.")


def test_a_gain_needs_its_interval(results: dict[int, EvalResult]) -> None:
    """The full arm is better on average and worse with one of its seeds: margin met, interval
    not.
    """
    verdicts = compared(results, 6, alone=(2, 2), init=(4, 2), full=(2, 6)).verdicts()
    assert "full SparseKD at least 0.5 above initialised" in verdicts[2]["wish"]
    assert float(verdicts[2]["result"].split()[0]) > 0.5 and verdicts[2]["met"] is False


def test_verdicts_of_missing_arms_are_left_out(results: dict[int, EvalResult]) -> None:
    assert len(compared(results, 6, alone=(2,), full=(4,)).verdicts()) == 2
    assert compared(results, 6, full=(4,)).verdicts() == []


def test_one_segment_has_no_interval_and_one_class_is_the_mean() -> None:
    """A dataset of one drive, one class and one seed: its score, and nothing that is not known."""
    drive = FRAMES[:3]
    each = {found: scored(found, drive, (1,)) for found in (2, 3, 4, 6)}
    found = compared(each, 6, alone=(2,), init=(3,), full=(4,))
    assert found.labelled == ("Vehicle",) and found.intervals == "One segment: no interval."
    table = found.table().set_index("arm")
    assert table.loc["full SparseKD", "LEVEL_2 mAPH"] == pytest.approx(100 * 4 / 6, abs=1)
    assert table[["std over seeds", "95 % low", "95 % high"]].isna().all(axis=None)
    assert found.difference_table()["a gain"].isna().all()
    assert [v["met"] for v in found.verdicts()] == [None] * 3
    assert {v["result"].partition(", ")[2] for v in found.verdicts()} == {
        "one segment: no interval"
    }
    gain = found.gain(Contrast("full", "init"))
    assert gain.sentence(simulated=False).endswith(
        "full SparseKD and initialised from the teacher differ by +16.67 points of LEVEL_2 mAPH; "
        "one segment: no interval, so nothing is claimed."
    )
    assert summary([gain, gain]) == "2 comparisons; one segment: no interval."
    assert found.breakdown("full", "init").rows == ("Vehicle LEVEL_1", "Vehicle LEVEL_2")
    assert {curve.class_name for curve in found.precision_recall()} == {"Vehicle"}
    curves.draw_arms(found.estimates())
    json.dumps(found.to_dict(), allow_nan=False)


def test_one_seed_leaves_the_segments(results: dict[int, EvalResult]) -> None:
    one = compared(results, 6, alone=(2,), full=(4,))
    assert one.intervals == "95 %, paired bootstrap over 4 segments alone: one seed."
    assert one.gain(Contrast("full", "alone")).measured
    assert compared(results, 6, alone=(2, 3)).intervals.endswith("4 segments and 2 seeds.")


def test_outcome_is_json(results: dict[int, EvalResult]) -> None:
    found = compared(results, 6, alone=(2, 3), init=(3, 4), full=(4, 6))
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["metric"] == "LEVEL_2/mAPH"
    assert values["arms"][0]["std over seeds"] is None
    assert set(values["metrics"]) == {"teacher", "alone", "init", "full"} and set(
        values["metrics"]["full"]
    ) == {"1", "2"}
    assert values["evaluation"]["frames"] == len(FRAMES)
    assert values["comparison"]["resamples"] == 200 and values["comparison"]["units"] == 4


def test_charts_get_what_they_need(results: dict[int, EvalResult]) -> None:
    found = compared(results, 6, alone=(2, 3), full=(4, 6))
    estimates = found.estimates()
    assert [e.name for e in estimates] == ["teacher", "student alone", "full SparseKD"]
    assert (
        all(e.low - 0.01 <= e.mean <= e.high + 0.01 for e in estimates)
        and len({e.color for e in estimates}) == 3
    )
    assert len(found.precision_recall()) == 9
    assert found.last_step() == ("full", "alone")
    change = found.breakdown("full", "alone")
    assert change.rows == tuple(
        f"{kind} LEVEL_{level}" for kind in ("Vehicle", "Pedestrian", "Cyclist") for level in (1, 2)
    )
    assert change.columns[:2] == ("AP", "APH")
    assert "APH [50, +inf) m" not in change.columns, "nobody is there"
    assert np.nanmin(change.values[:, :2]) > 0
    np.testing.assert_allclose(found.breakdown("alone", "full").values, -change.values)


def test_own_terms_are_compared_with_the_full_recipe(results: dict[int, EvalResult]) -> None:
    arms = {"teacher": {0: results[6]}, "full": {1: results[3]}, "own": {1: results[4]}}
    found = compare_arms(SMOKE, TITLES, arms, resamples=50)
    rows = {row["difference"]: row["LEVEL_2 mAPH"] for row in found.to_dict()["differences"]}
    assert rows["full SparseKD and own terms − full SparseKD"] > 5
    assert found.last_step() == ("own", "full")
    assert len({estimate.color for estimate in found.estimates()}) == 3


def test_no_change_where_nothing_is_found(results: dict[int, EvalResult]) -> None:
    change = compared(results, 0, alone=(0,), full=(0,)).breakdown("full", "alone")
    assert len(change.columns) == 2 and not change.values.any()


def test_score_frame(results: dict[int, EvalResult]) -> None:
    table = score_frame(results[3])
    assert list(table.index) == ["Vehicle", "Pedestrian", "Cyclist", "mean"]
    assert table.loc["mean", "LEVEL_2 APH"] == pytest.approx(50, abs=1)
    assert ((table >= 0) & (table <= 100)).all(axis=None)


def test_results_of_other_frames_are_refused(results: dict[int, EvalResult]) -> None:
    other = replace(results[3], card={**results[3].card, "truth_fingerprint": "else"})
    with pytest.raises(ConfigError, match="other frames or ground truth"):
        compare_arms(SMOKE, TITLES, {"teacher": {0: results[6]}, "alone": {1: other}}, resamples=10)


@pytest.mark.parametrize(
    ("mean", "low", "high", "expected"),
    [
        (
            2.36,
            1.34,
            3.41,
            (
                "FG scores 2.36 points of LEVEL_2 mAPH above the base (95 % interval "
                "+1.34 to +3.41)."
            ),
        ),
        (
            -1.2,
            -2.0,
            -0.4,
            (
                "FG scores 1.20 points of LEVEL_2 mAPH below the base (95 % interval "
                "-2.00 to -0.40)."
            ),
        ),
        (
            0.3,
            -0.5,
            1.1,
            "no difference between FG and the base is shown: +0.30 points of LEVEL_2 mAPH, and "
            "the 95 % interval -0.50 to +1.10 "
            "includes 0.",
        ),
    ],
)
def test_three_outcomes(mean: float, low: float, high: float, expected: str) -> None:
    assert Gain("FG", "the base", mean, low, high).sentence(simulated=True) == (
        f"On simulated data, at this budget, {expected}"
    )


@pytest.mark.parametrize(
    "interval", [(0.0, 1.0), (-1.0, 0.0), (0.0, 0.0), (0.004, 1.0), (-1.0, -0.004)]
)
def test_an_interval_that_prints_as_touching_zero_includes_it(
    interval: tuple[float, float],
) -> None:
    text = Gain("a", "b", 0.5, *interval).sentence(simulated=True)
    assert "no difference" in text and "includes 0" in text
    assert "-0.00" not in text, "no negative zero"


@given(limits, limits, limits)
def test_a_difference_is_claimed_only_outside_zero(mean: float, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    gain = Gain("a", "b", mean, low, high)
    text = gain.sentence(simulated=True)
    assert (
        ("includes 0" in text)
        == (gain.shown == "no difference")
        == (round(low, 2) <= 0 <= round(high, 2))
    )
    assert (" above " in text, " below " in text) == (gain.shown == "above", gain.shown == "below")


def test_real_data_are_not_called_simulated() -> None:
    assert (
        Gain("a", "b", 1, 0.5, 2)
        .sentence(simulated=False)
        .startswith("On these data, at this budget, a scores")
    )


@pytest.mark.parametrize("limits", [(1.0, 0.0), (float("nan"), 1.0), (1.0, float("nan"))])
def test_no_interval(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="is no interval"):
        Gain("a", "b", 0.0, *limits)


def test_summary() -> None:
    above, below, none = (Gain("a", "b", mean, mean - 1, mean + 1) for mean in (2.0, -2.0, 0.0))
    assert summary([above, below, none, none]) == (
        "Of 4 comparisons, 1 is shown above the base, 1 below, and 2 show no difference."
    )
    assert summary([none]) == "One comparison: no difference is shown."
    assert summary([below]) == "One comparison: it is shown below its base."
