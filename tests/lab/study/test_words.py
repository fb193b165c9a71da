"""The sentence follows the interval, as it is printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlib.lab.study.words import sentence, side, summary

limits = st.floats(-90, 90, allow_nan=False)


@pytest.mark.parametrize(
    ("mean", "low", "high", "expected"),
    [
        (2.36, 1.34, 3.41, "FG scores 2.36 points of LEVEL_2 mAPH above the base (95 % interval +1.34 to +3.41)."),
        (-1.2, -2.0, -0.4, "FG scores 1.20 points of LEVEL_2 mAPH below the base (95 % interval -2.00 to -0.40)."),
        (
            0.3,
            -0.5,
            1.1,
            "no difference between FG and the base is shown: +0.30 points of LEVEL_2 mAPH, and the 95 % interval -0.50 to +1.10 "
            "includes 0.",
        ),
    ],
)
def test_three_outcomes(mean: float, low: float, high: float, expected: str) -> None:
    assert sentence("FG", "the base", mean, low, high) == f"On simulated data, at this budget, {expected}"


@pytest.mark.parametrize("interval", [(0.0, 1.0), (-1.0, 0.0), (0.0, 0.0), (0.004, 1.0), (-1.0, -0.004)])
def test_an_interval_that_prints_as_touching_zero_includes_it(interval: tuple[float, float]) -> None:
    text = sentence("a", "b", 0.5, *interval)
    assert "no difference" in text and "includes 0" in text
    assert "-0.00" not in text, "no negative zero"


@given(limits, limits, limits)
def test_a_difference_is_claimed_only_outside_zero(mean: float, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    text, found = sentence("a", "b", mean, low, high), side(low, high)
    assert ("includes 0" in text) == (found == "no difference") == (round(low, 2) <= 0 <= round(high, 2))
    assert (" above " in text, " below " in text) == (found == "above", found == "below")


def test_real_data_are_not_called_simulated() -> None:
    assert sentence("a", "b", 1, 0.5, 2, simulated=False).startswith("On these data, at this budget, a scores")


@pytest.mark.parametrize("limits", [(1.0, 0.0), (float("nan"), 1.0)])
def test_no_interval(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="is no interval"):
        sentence("a", "b", 0.0, *limits)


def test_summary() -> None:
    assert summary(["above", "below", "no difference", "no difference"]) == (
        "Of 4 comparisons, 1 is shown above the base, 1 below, and 2 show no difference."
    )
    assert summary(["no difference"]) == "One comparison: no difference is shown."
    assert summary(["below"]) == "One comparison: it is shown below its base."
