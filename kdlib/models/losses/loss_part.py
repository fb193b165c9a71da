"""One part of a loss with its weight and reach, for the total and the startup report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from kdlib.models import ranks
from kdlib.types import LossTerms


@dataclass(frozen=True)
class LossPart:
    """A named part."""

    name: str
    weight: float
    value: Tensor  # one number, weighted
    # how many points, boxes or cells it looks at; None for the whole map
    positions: Tensor | int | None = None


def weighed(
    name: str, weight: float, value: Tensor, positions: Tensor | int | None = None
) -> LossPart:
    """Return a part whose value is still to be multiplied by its weight."""
    return LossPart(name, weight, weight * value, positions)


def loss_terms(parts: Iterable[LossPart]) -> LossTerms:
    """Return parts and their sum, over all ranks; a ValueError says that there is none."""
    return LossTerms.total(ranks.whole({part.name: part.value for part in parts}))
