"""One part of a loss that stands beside those of the heads, as it travels from a loss to the startup report."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossPart:
    """A named part with its weight."""

    name: str
    weight: float
    value: Tensor  # one number, unweighted
    positions: Tensor | int  # how many points, boxes or cells it looks at
