"""The one-cycle schedule as functions of the step, and Adam with decoupled weight decay (spec
section 9).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

PEAK = 0.4  # fraction of the steps after which the learning rate is highest
DIVIDE = 10.0  # the first learning rate is the highest divided by this
FINAL_DIVIDE = 1e4  # the last one is the first divided by this
MOMENTA = (0.95, 0.85)  # beta1 at both ends, beta1 at the peak
BETA2 = 0.99
_EPSILON = 1e-8


def _cycle(step: int, total: int, first: float, highest: float, last: float) -> float:
    """Return the value of a 0-based step on two half cosines, from the first value to the one at
    the peak and to the last.
    """
    if not 0 <= step < total:
        raise ValueError(f"step {step} is outside a schedule of {total} steps")
    peak = int(PEAK * total)
    if step < peak:
        start, end, fraction = first, highest, step / peak
    else:
        start, end, fraction = highest, last, (step - peak) / (total - peak)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def learning_rate(step: int, total: int, highest: float) -> float:
    """Return the learning rate of a 0-based step; raises ValueError if the step is outside the
    schedule.
    """
    first = highest / DIVIDE
    return _cycle(step, total, first, highest, first / FINAL_DIVIDE)


def beta1(step: int, total: int) -> float:
    """Return Adam's first momentum of a 0-based step; it moves against the learning rate.

    Raises:
        ValueError: If the step is outside the schedule.
    """
    outer, inner = MOMENTA
    return _cycle(step, total, outer, inner, outer)


class OneCycleAdam(torch.optim.Adam):
    """Adam that multiplies every parameter by ``1 - weight_decay * lr`` before its update.

    Unlike ``torch.optim.AdamW`` the decay also reaches parameters that got no gradient in this
    step, as in the original.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, highest: float, weight_decay: float, total: int
    ) -> None:
        first = learning_rate(0, total, highest)
        super().__init__(
            parameters, lr=first, betas=(MOMENTA[0], BETA2), eps=_EPSILON, weight_decay=0.0
        )
        self.highest = highest
        self.decay = weight_decay
        self.total = total

    def set_step(self, step: int) -> None:
        """Set learning rate and beta1 to those of a 0-based global step."""
        rate = learning_rate(step, self.total, self.highest)
        self.param_groups[0].update(lr=rate, betas=(beta1(step, self.total), BETA2))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Run the closure (forward and backward) if there is one, decay, then update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        with torch.no_grad():
            for parameter in group["params"]:
                parameter.mul_(1 - self.decay * group["lr"])
        super().step()
        return loss
