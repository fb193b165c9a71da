"""A guard against terms that do nothing: values of every training step enter, an error leaves after fifty zeros in a row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdlib.errors import ConfigError

PATIENCE = 50


class ZeroWatch:
    """Counts on the tensors' own device and looks at the counts once in ``patience`` steps, so that no step waits for it."""

    def __init__(self, patience: int = PATIENCE) -> None:
        """Start with no step seen."""
        self.patience = patience
        self.steps = 0
        self.zeros: dict[str, Tensor] = {}

    def see(self, parts: Mapping[str, Tensor]) -> None:
        """Take note of one training step.

        Raises:
            ConfigError: If a part was exactly 0 for ``patience`` steps in a row.
        """
        self.steps += 1
        with torch.no_grad():
            for name, value in parts.items():
                before = self.zeros.get(name)
                zero = (value.detach() == 0).to(torch.int64)
                self.zeros[name] = zero if before is None else (before.to(zero.device) + 1) * zero
        if self.steps % self.patience == 0:
            for name, count in self.zeros.items():
                if int(count) >= self.patience:
                    raise ConfigError(
                        f"term '{name}' is enabled but was exactly 0 for the last {int(count)} steps; "
                        "look at the startup report of active terms, then mend its settings or set its weight to 0"
                    )
