"""Maps of what a model says about a frame: heat map, BEV features, pivotal positions, the masks of
distillation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdlib.config import KDConfig
from kdlib.errors import ConfigError
from kdlib.kd.label import merge_labels
from kdlib.kd.logit import meet, position_weights
from kdlib.kd.roi_grid import bev_region
from kdlib.lab.trained import TrainedWeights
from kdlib.models.detector import CenterPoint, Prediction
from kdlib.models.weights import load_weights
from kdlib.types import Batch, HeadOutput, HeadTargets
from kdlib.viz.layers import GroundMap


@dataclass(frozen=True)
class ModelAnswer:
    """What one model said about one frame."""

    model: CenterPoint
    prediction: Prediction[HeadOutput]


def load_network(trained: TrainedWeights) -> CenterPoint:
    """Return a model with its trained weights."""
    network = CenterPoint(trained.model)
    load_weights(trained.weights, network)
    return network


@torch.inference_mode()
def ask(model: CenterPoint, batch: Batch) -> ModelAnswer:
    """Return a model's raw answer; its stored statistics are used, so that it depends on this frame
    alone.
    """
    return ModelAnswer(model.eval(), model(batch.points))


def heat_map(answer: ModelAnswer, class_name: str | None = None) -> GroundMap:
    """Return the largest probability of a centre over the classes, or that of one."""
    maps = torch.cat([head.heatmap[0] for head in answer.prediction.heads]).sigmoid()
    names = [name for head in answer.model.head.heads for name in head]
    values = maps.amax(dim=0) if class_name is None else maps[names.index(class_name)]
    return GroundMap(
        values.numpy(), (f"{class_name.lower() if class_name else 'centre'} probability")
    )


def feature_map(answer: ModelAnswer) -> GroundMap:
    """Return the mean magnitude over the channels of what enters the head, 1 from the 99th
    percentile on: few cells stand out.
    """
    return _scaled(answer.prediction.bev[0].abs().mean(dim=0), "mean magnitude of BEV features", 99)


@dataclass(frozen=True)
class Lesson:
    """What two models said about one frame, and the recipe by which one teaches the other."""

    teacher: ModelAnswer
    student: ModelAnswer
    batch: Batch
    kd: KDConfig

    def pivotal_positions(self) -> GroundMap:
        """Return the weights of the logit term where the two heat maps meet; ConfigError if the
        recipe has no such term.
        """
        return _scaled(self._weights()[0].amax(dim=0), "weight of pivotal positions")

    def label_mask(self) -> GroundMap:
        """Return the heat map the student is told to draw: the truth's Gaussians and those of the
        teacher's boxes.
        """
        target = torch.cat([targets.heatmap[0] for targets in self._targets()]).amax(dim=0)
        return GroundMap(
            target.numpy(),
            "target heat map" + (" with the teacher's boxes" if self.kd.label else ""),
        )

    def pull_mask(self) -> GroundMap:
        """Return where the logit term pulls (ConfigError if there is none): weights times squared
        difference, over classes.
        """
        weights, apart = self._weights()
        return _scaled((weights * apart).sum(dim=0), "pull of logit distillation")

    @torch.inference_mode()
    def _weights(self) -> tuple[Tensor, Tensor]:
        """Return weights and squared differences (heads, H, W)."""
        logit, student, teacher = self.kd.logit, self.student, self.teacher
        if logit is None:
            raise ConfigError(
                "this recipe has no logit distillation, so it has no pivotal "
                "positions; choose another map"
            )
        marks = (
            self._targets()
            if logit.target == "student"
            else teacher.model.targets(self.batch.truth)
        )
        region = bev_region(student.model.config)
        weights, apart = [], []
        for own, other, targets in zip(student.prediction.heads, teacher.prediction.heads, marks):
            ours, theirs = meet(own, other, logit)
            weights.append(position_weights(ours, theirs, (own, other), targets, logit, region)[0])
            apart.append((ours - theirs).square().sum(dim=1)[0])
        return torch.stack(weights), torch.stack(apart)

    def _targets(self) -> tuple[HeadTargets, ...]:
        """Return what the student is trained towards."""
        labels, student = self.batch.truth, self.student.model
        if self.kd.label is not None:
            boxes = self.teacher.model.detect(self.teacher.prediction, nms=False)
            labels = merge_labels(boxes, labels, self.kd.label, student.head.targets.max_objects)
        return student.targets(labels)


def _scaled(values: Tensor, name: str, percentile: float = 100) -> GroundMap:
    array = values.numpy().astype(np.float64)
    return GroundMap(
        np.clip(array / max(float(np.percentile(array, percentile)), 1e-9), 0, 1), name
    )
