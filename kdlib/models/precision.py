"""Half precision is widened before it meets a loss, a statistic or a place in metres."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(values: Tensor) -> Tensor:
    """Return floating-point values in at least 32 bits."""
    return values if values.dtype == torch.float64 else values.float()
