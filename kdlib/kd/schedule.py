"""The factor of all distillation terms, by how far a training is."""

from __future__ import annotations

from kdlib.config import KDScheduleConfig


def factor(progress: float, config: KDScheduleConfig) -> float:
    """Return what the weights of all ``kd_`` terms are multiplied by, in [0, 1]; exactly 1 outside of warm-up and decay.

    It rises linearly from 0 over the first ``warm_up`` of a training and falls linearly to ``floor`` over the last ``decay``.

    Args:
        progress: Steps done divided by the steps of the schedule, in [0, 1]; 0 in the first step.
        config: Shares of a training, and where the decay ends.

    Raises:
        ValueError: If ``progress`` lies outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress {progress} of a training is not in [0, 1]; it is steps done divided by all steps")
    if progress < config.warm_up:
        return progress / config.warm_up
    left = 1 - progress
    if left < config.decay:
        return config.floor + (1 - config.floor) * left / config.decay
    return 1.0
