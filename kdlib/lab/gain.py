"""What one arm scores above another, in points and in words that follow the interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kdlib.metric.bootstrap import ArmScore, Difference

UNIT = "points of LEVEL_2 mAPH"
NO_INTERVAL = "one segment: no interval"


@dataclass(frozen=True)
class Gain(Difference):
    """What came of a contrast, in points of LEVEL_2 mAPH; the arms go by their titles, the limits
    are checked: both are NaN where there is one segment, or neither.
    """

    seeds: tuple[float, ...] = ()  # the difference, seed by seed

    def __post_init__(self) -> None:
        if not self.low <= self.high and self.measured:
            raise ValueError(f"{self.low} to {self.high} is no interval")

    @property
    def measured(self) -> bool:
        """Whether there is an interval."""
        return not (math.isnan(self.low) and math.isnan(self.high))

    @property
    def shown(self) -> Literal["above", "below", "no difference", "no interval"]:
        """On which side of 0 the interval lies, as it is printed: a limit that prints as 0 touches
        0.
        """
        if not self.measured:
            return "no interval"
        if round(self.low, 2) > 0:
            return "above"
        return "below" if round(self.high, 2) < 0 else "no difference"

    def sentence(self, simulated: bool) -> str:
        """Say what the comparison showed; the sentence follows the interval as it is printed."""
        where = f"On {'simulated' if simulated else 'these'} data, at this budget,"
        # + 0.0: no negative zero
        mean, low, high = (round(value, 2) + 0.0 for value in (self.mean, self.low, self.high))
        if self.shown == "no interval":
            return (
                f"{where} {self.first} and {self.second} differ by {mean:+.2f} {UNIT}; "
                f"{NO_INTERVAL}, so nothing is claimed."
            )
        interval = f"95 % interval {low:+.2f} to {high:+.2f}"
        if self.shown == "no difference":
            pair = f"{self.first} and {self.second}"
            return (
                f"{where} no difference between {pair} is shown: {mean:+.2f} {UNIT}, and the "
                f"{interval} includes 0."
            )
        return (
            f"{where} {self.first} scores {abs(mean):.2f} {UNIT} {self.shown} {self.second} "
            f"({interval})."
        )

    def row(self) -> dict[str, float]:
        """Return the mean and its interval as a row of a table."""
        return {"LEVEL_2 mAPH": self.mean, "95 % low": self.low, "95 % high": self.high}


def summary(gains: Sequence[Gain]) -> str:
    """Count in one sentence what several comparisons showed."""
    sides = [gain.shown for gain in gains]
    if "no interval" in sides:
        many = "One comparison" if len(sides) == 1 else f"{len(sides)} comparisons"
        return f"{many}; {NO_INTERVAL}."
    above, below, none = (sides.count(side) for side in ("above", "below", "no difference"))
    if len(sides) == 1:
        return (
            f"One comparison: {sides[0]} is shown."
            if none
            else (f"One comparison: it is shown {sides[0]} its base.")
        )
    verb = "is" if above == 1 else "are"
    return (
        f"Of {len(sides)} comparisons, {above} {verb} shown above the base, {below} below, "
        f"and {none} show no difference."
    )


def in_percent(score: ArmScore | Difference) -> tuple[float, float, float]:
    """Return a mean and its interval in percent, or in points."""
    return 100 * score.mean, 100 * score.low, 100 * score.high
