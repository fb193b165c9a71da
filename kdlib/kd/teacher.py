"""The frozen teacher, which answers without gradient and without any trace in itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdlib.config import TeacherNorm
from kdlib.errors import ConfigError
from kdlib.models.detector import CenterPoint, Sites
from kdlib.types import Batch, Detections, HeadOutput, HeadTargets

# the fields of an answer that are computed on demand
Need = Literal["targets", "boxes", "bev", "sites"]
_STORED = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class TeacherAnswer:
    """Everything a student may learn from, on the teacher's own grid."""

    heads: tuple[HeadOutput, ...]  # logits and raw maps
    # from the ground truth alone, one per head; empty if not asked for
    targets: tuple[HeadTargets, ...]
    boxes: tuple[Detections, ...]  # decoded without NMS, one per frame; empty if not asked for
    bev: Tensor | None = None  # (B, C, H, W) what enters the heads; only if asked for
    sites: Sites | None = None  # what the encoder found in every pillar or voxel; only if asked for


class Teacher(nn.Module):
    """A frozen detector with a BatchNorm mode that no outer ``train()`` can change.

    ``norm="running"`` uses the stored statistics: a frame's answer does not depend on the other
    frames of the batch. ``norm="batch"`` uses those of the current batch, as the original does: it
    depends on them. Neither changes what is stored.

    Source: spec section 7.2.
    """

    def __init__(self, model: CenterPoint, norm: TeacherNorm) -> None:
        """Take over a detector; its parameters are frozen in place.

        Raises:
            ConfigError: If the mode is unknown.
        """
        super().__init__()
        if norm not in get_args(TeacherNorm):
            raise ConfigError(
                f"unknown teacher norm '{norm}'; use one of {', '.join(get_args(TeacherNorm))}"
            )
        self.model = model
        self.norm: TeacherNorm = norm
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Stay frozen, whatever the mode asked for."""
        self.training = False
        self.model.eval()
        return self

    @torch.no_grad()
    def forward(
        self, batch: Batch, needs: Collection[Need] = ("targets", "boxes")
    ) -> TeacherAnswer:
        """Return the answer to a batch, voxelised on the teacher's own grid: the heads' maps, and
        what else is needed.

        Source: spec section 7.3 step 4.
        """
        self.train()  # also after somebody switched the inner model
        with hidden_statistics(batch_norms(self.model) if self.norm == "batch" else ()):
            prediction = self.model(batch.points, sites="sites" in needs, boxes="boxes" in needs)
        return TeacherAnswer(
            heads=prediction.heads,
            targets=self.model.targets(batch.truth) if "targets" in needs else (),
            boxes=tuple(self.model.detect(prediction, nms=False)) if "boxes" in needs else (),
            bev=prediction.bev if "bev" in needs else None,
            sites=prediction.sites,
        )


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return every BatchNorm layer of a model."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def hidden_statistics(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Take the stored statistics of layers away inside a block, and put back the very same tensors
    afterwards.

    A BatchNorm without statistics normalises by the current batch in either mode and has nothing to
    update.
    """
    stored = [(layer, name, getattr(layer, name)) for layer in layers for name in _STORED]
    try:
        for layer, name, _ in stored:
            setattr(layer, name, None)
        yield
    finally:
        for layer, name, tensor in stored:
            setattr(layer, name, tensor)


def unmoved_statistics(model: nn.Module) -> AbstractContextManager[None]:
    """Let a model run in whatever mode its layers are, without leaving a trace in their
    statistics.
    """
    return hidden_statistics([layer for layer in batch_norms(model) if layer.training])
