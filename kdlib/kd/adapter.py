"""Adapters from the student's feature width to the teacher's; no part of the student.

They are part of the objective, not of the student: a resumable checkpoint holds them with their
optimiser moments, the weights of a finished run do not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.config import FeatureForm, FeatureKDConfig, PillarEncoderConfig
from kdlib.models.detector import Detector

_KERNELS = {"1x1": 1, "3x3": 3}


class Adapter(nn.Module):
    """One convolution with bias: nothing behind it, since what it should equal is a raw feature.

    The original's chain of layers never advanced its number of input channels (spec section 11 item
    17); one needs no chain.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, seed: int) -> None:
        """Draw the weights (Kaiming, normal) from a generator of their own, so that nothing else of
        a run depends on them.
        """
        super().__init__()
        weight = torch.empty(outputs, inputs, kernel, kernel)
        nn.init.kaiming_normal_(
            weight, nonlinearity="linear", generator=torch.Generator().manual_seed(seed)
        )
        # as the detectors' own convolutions
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Return maps (B, inputs, H, W), or with a 1x1 kernel edges (S, K, inputs), with
        ``outputs`` channels.
        """
        if features.dim() == 3:
            return F.linear(features, self.weight.flatten(1), self.bias)
        return F.conv2d(features, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


def feature_width(model: Detector, form: FeatureForm) -> int:
    """Return the channels of what a form of feature distillation compares: of edges for ``local``,
    else of the BEV map.
    """
    if form != "local":
        return model.backbone_2d.channels
    encoder = model.config.encoder
    # An edge is a place's features and their difference to a neighbour's.
    return (
        2 * (encoder.filters if isinstance(encoder, PillarEncoderConfig) else encoder.channels)[-1]
    )


def make_adapter(
    student: Detector, teacher: Detector, config: FeatureKDConfig | None, seed: int
) -> nn.Module | None:
    """Return the adapter of a recipe, the identity where it asks for none, and None without feature
    distillation.
    """
    if config is None or config.weight == config.relation_weight == 0:
        return None
    if config.adapter == "none":
        return nn.Identity()
    widths = feature_width(student, config.form), feature_width(teacher, config.form)
    return Adapter(*widths, kernel=_KERNELS[config.adapter], seed=seed)
