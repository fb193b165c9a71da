"""The LightningModule around an objective; schedule, decay and clipping follow the step of the
whole training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning import pytorch as pl
from torch import Tensor, nn

from kdlib.config import TrainConfig
from kdlib.models import ranks
from kdlib.training.history import Meter
from kdlib.training.optim import OneCycleAdam
from kdlib.types import Batch

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class TrainingModule(pl.LightningModule):
    """Trains whatever an objective leaves trainable; a frozen teacher inside it is neither
    optimised nor stored.
    """

    def __init__(
        self,
        objective: nn.Module,
        config: TrainConfig,
        total: int,
        start: int = 0,
        meter: Meter | None = None,
    ) -> None:
        """Prepare for steps ``start`` to ``total - 1`` of one schedule, with running means to go on
        from.

        The objective turns a batch, and ``progress`` from 0 on towards 1, into loss terms; what
        requires a gradient is trained.
        """
        super().__init__()
        self.objective = objective
        self.config = config
        self.total = total
        self.start = start
        self.meter = meter or Meter()
        self.grad_norm = torch.zeros(())  # of the newest step, before clipping
        self.optimiser = OneCycleAdam(
            self.trainable().values(),
            highest=config.learning_rate,
            weight_decay=config.weight_decay,
            total=total,
        )

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters being trained, by name."""
        return {name: p for name, p in self.objective.named_parameters() if p.requires_grad}

    @property
    def step(self) -> int:
        """Optimiser steps done, over all sessions."""
        return self.start + int(self.trainer.global_step)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors a resumed run needs: weights and buffers without the teacher's, and
        the optimiser's moments.
        """
        tensors = {f"weights/{name}": value for name, value in self._own_weights().items()}
        for name, parameter in self.trainable().items():
            for moment, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser/{moment}/{name}"] = value
        return tensors

    def _own_weights(self) -> dict[str, Tensor]:
        return {
            name: value
            for name, value in self.objective.state_dict().items()
            if not name.startswith("teacher.")
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of :meth:`state`.

        Raises:
            KeyError: If a tensor is missing; the job hash, checked before, makes that a defect of
                kdlib.
        """
        with torch.no_grad():
            for name, value in self._own_weights().items():
                value.copy_(tensors[f"weights/{name}"])
            for name, parameter in self.trainable().items():
                for moment in _MOMENTS:
                    stored = tensors.get(f"optimiser/{moment}/{name}")
                    if stored is not None:
                        # empty_like: in the parameter's memory layout, as the optimiser itself
                        # would have made it
                        place = torch.empty_like(stored if moment == "step" else parameter)
                        self.optimiser.state[parameter][moment] = place.copy_(stored)

    def configure_optimizers(self) -> OneCycleAdam:
        """Return the optimiser; there is no scheduler, the step decides."""
        return self.optimiser

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch; Lightning's own way refuses frozen dataclasses."""
        return batch.to(device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; with several ranks, times their number, since their
        gradients will be averaged.
        """
        with ranks.together():
            # Progress is of steps, so a resumed run sees the same.
            terms = self.objective(batch, progress=self.step / self.total)
            self.meter.add(terms)
            return ranks.world() * terms.loss if ranks.several() else terms.loss

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Set learning rate and momentum of the global step, then step."""
        self.optimiser.set_step(self.step)
        optimizer.step(closure=optimizer_closure)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scale all gradients together so that their L2 norm is at most ``clip_norm``."""
        self.grad_norm = torch.nn.utils.clip_grad_norm_(
            self.trainable().values(), self.config.clip_norm
        )
