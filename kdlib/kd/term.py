"""The place for a distillation term of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from kdlib.errors import ConfigError
from kdlib.kd.teacher import Need, TeacherAnswer
from kdlib.models import ranks
from kdlib.models.detector import Prediction
from kdlib.types import Batch, GroundTruth, HeadOutput, HeadTargets

PREFIX = "kd_"  # of every term's name


@dataclass(frozen=True)
class StepContext:
    """What one training step has computed; a term reads it and leaves it as it is."""

    batch: Batch
    # what the student is assigned: the batch's own, merged with the teacher's boxes if the recipe
    # says so
    labels: GroundTruth
    prediction: Prediction[HeadOutput]  # the student's, with gradient; heatmaps are logits
    targets: tuple[HeadTargets, ...]  # from ``labels``, on the student's grid, one per head
    answer: TeacherAnswer  # on the teacher's grid, without gradient


@dataclass(frozen=True)
class Term:
    """A distillation term: a function of a step, its name in every log and its weight.

    A ``value`` that is a module is trained with the student; like an adapter it enters checkpoints,
    never the student's weights. In a training by several processes it sees this rank's frames alone
    and is taken to be a mean over them.
    """

    name: str  # begins with "kd_"
    weight: float
    value: Callable[[StepContext], Tensor]  # one number, unweighted
    needs: Collection[Need] = ()  # what the teacher is to answer besides its heads' maps

    def __post_init__(self) -> None:
        """Check name, weight, value and needs.

        Raises:
            ConfigError: Naming the term and the remedy.
        """
        if not self.name.startswith(PREFIX) or self.name == PREFIX:
            raise ConfigError(
                f"the name of term '{self.name}' must begin with '{PREFIX}', like "
                f"'kd_{self.name or 'mine'}'"
            )
        if not 0 < self.weight < math.inf:
            raise ConfigError(
                f"term '{self.name}' has weight {self.weight}; give it a positive "
                "one or leave the term out"
            )
        if not callable(self.value):
            raise ConfigError(
                f"the value of term '{self.name}' is of type {type(self.value).__name__}; it must "
                "be a function of a step, or a module that is called with one"
            )
        unknown = sorted(set(self.needs) - set(get_args(Need)))
        if unknown:
            raise ConfigError(
                f"term '{self.name}' needs {unknown}; a teacher can answer "
                f"{', '.join(get_args(Need))}"
            )

    def __call__(self, context: StepContext) -> Tensor:
        """Return the weighted value on one step; raises ConfigError if it is not one number, or
        nothing can be learned from it.
        """
        value = self.value(context)
        if not isinstance(value, Tensor) or value.dim() != 0:
            what = (
                f"a tensor of shape {tuple(value.shape)}; reduce it to one number"
                if isinstance(value, Tensor)
                else f"a {type(value).__name__}; return a tensor that holds one number"
            )
            raise ConfigError(f"term '{self.name}' returned {what}")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise ConfigError(
                f"term '{self.name}' has no gradient, so nothing is learned from it; compute it "
                "from step.prediction, without detach() or no_grad()"
            )
        if ranks.several():
            frames = context.batch.points.batch_size
            share = frames / ranks.over(frames, value)
            # the mean over no frame may be no number
            value = share * (value if frames else value.nan_to_num())
        return self.weight * value
