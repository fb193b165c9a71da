"""The startup report of active terms, and the guard against terms that do nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdlib.errors import ConfigError
from kdlib.models.losses.loss_part import LossPart

PATIENCE = 50  # steps
_OF_LABELS = ("heatmap", "class", "box", "direction")  # parts of a loss that learn from labels


@dataclass(frozen=True)
class ActiveTerm:
    """One line of the startup report."""

    name: str
    weight: float
    value: float  # weighted, on the batch of the report
    # Cells (kd_heatmap), entries (kd_rank), boxes or anchors (box, kd_box, direction) it looks at,
    # any of these by its form (kd_feature, kd_relation); None for the whole map.
    positions: int | None
    # teacher boxes among its labels; None where labels come from the ground truth alone
    teacher_labels: int | None


def active_terms(parts: Iterable[LossPart], teacher_labels: int | None) -> tuple[ActiveTerm, ...]:
    """Return a line per part of a loss."""
    return tuple(
        ActiveTerm(
            part.name,
            part.weight,
            float(part.value),
            None if part.positions is None else int(part.positions),
            teacher_labels if part.name in _OF_LABELS else None,
        )
        for part in parts
    )


class ZeroWatch:
    """Counts on the tensors' own device and looks at the counts once in ``patience`` steps, so that
    no step waits for it.
    """

    def __init__(self, patience: int = PATIENCE) -> None:
        """Start with no step seen."""
        self.patience = patience
        self.steps = 0
        self.zeros: dict[str, Tensor] = {}

    @torch.no_grad()
    def see(self, parts: Mapping[str, Tensor]) -> None:
        """Take note of one training step; raises ConfigError if a part was exactly 0 for
        ``patience`` steps in a row.
        """
        self.steps += 1
        for name, value in parts.items():
            zero = (value == 0).to(torch.int64)
            self.zeros[name] = (
                (self.zeros[name].to(zero.device) + 1) * zero if name in self.zeros else zero
            )
        if self.steps % self.patience:
            return
        for name, count in self.zeros.items():
            if count >= self.patience:
                raise ConfigError(
                    f"term '{name}' is enabled but was exactly 0 for the last {int(count)} steps; "
                    "look at the startup report of active terms, then mend its settings or set "
                    "its weight to 0"
                )
