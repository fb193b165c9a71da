"""A difference with its interval in, one plain sentence out: where the interval includes 0, the sentence claims nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

UNIT = "points of LEVEL_2 mAPH"
Side = Literal["above", "below", "no difference"]


def side(low: float, high: float, digits: int = 2) -> Side:
    """Return on which side of 0 a 95 % interval lies, as it is printed: a limit that prints as 0 touches 0.

    Raises:
        ValueError: If the limits are no interval.
    """
    if not low <= high:
        raise ValueError(f"{low} to {high} is no interval")
    return "above" if round(low, digits) > 0 else "below" if round(high, digits) < 0 else "no difference"


def sentence(first: str, second: str, mean: float, low: float, high: float, *, simulated: bool = True, digits: int = 2) -> str:
    """Say what a paired comparison showed; the sentence follows the interval as it is printed.

    Args:
        first: What was compared.
        second: With what.
        mean: ``first`` minus ``second``, points.
        low: Lower limit of the 95 % interval.
        high: Upper limit.
        simulated: Whether the data were.
        digits: Decimals.

    Raises:
        ValueError: If the limits are no interval.
    """
    found = side(low, high, digits)
    mean, low, high = (round(value, digits) + 0.0 for value in (mean, low, high))  # + 0.0: no negative zero
    interval = f"95 % interval {low:+.{digits}f} to {high:+.{digits}f}"
    where = f"On {'simulated' if simulated else 'these'} data, at this budget,"
    if found == "no difference":
        shown = f"no difference between {first} and {second} is shown"
        return f"{where} {shown}: {mean:+.{digits}f} {UNIT}, and the {interval} includes 0."
    return f"{where} {first} scores {abs(mean):.{digits}f} {UNIT} {found} {second} ({interval})."


def summary(sides: Sequence[Side]) -> str:
    """Count in one sentence what several comparisons showed."""
    above, below, none = (sum(one == kind for one in sides) for kind in ("above", "below", "no difference"))
    if len(sides) == 1:
        return f"One comparison: {sides[0]} is shown." if none else f"One comparison: it is shown {sides[0]} its base."
    return (
        f"Of {len(sides)} comparisons, {above} {_is(above)} shown above the base, {below} below, and {none} show no difference."
    )


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
