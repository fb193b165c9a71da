"""A trained model of a run, and what its score says of it as a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdlib.config import ModelConfig
from kdlib.metric.waymo_metrics import EvalResult

_USELESS = 5.0  # LEVEL_2 mAPH of a teacher, percent


@dataclass(frozen=True)
class TrainedWeights:
    """A model's configuration and its weights on disk."""

    model: ModelConfig
    weights: Path
    origin: str = ""  # of a teacher: "shipped", "scratch" or the path given

    def verdict(self, result: EvalResult) -> str:
        """Say whether a teacher that scored so has anything to teach, and which labelled classes it
        is best and worst at.
        """
        score = 100 * result.metrics["LEVEL_2/mAPH"]
        if score < _USELESS:
            return (
                f"WARNING: THIS TEACHER IS USELESS. It scores {score:.2f} LEVEL_2 mAPH; below "
                f"{_USELESS:g} there is nothing to learn from {self.weights.name}. Train it "
                "longer (TEACHER_EPOCHS) or name other weights (TEACHER)."
            )
        metric = "OBJECT_TYPE_TYPE_{}_LEVEL_2/APH"
        classes = sorted(result.mean_over, key=lambda name: result.metrics[metric.format(name)])
        words = [
            f"{name.capitalize()} ({100 * result.metrics[metric.format(name)]:.2f} LEVEL_2 APH)"
            for name in classes
        ]
        told = f"best at {words[-1]} and worst at {words[0]}" if len(words) > 1 else words[0]
        return f"The teacher scores {score:.2f} LEVEL_2 mAPH, {told}."
