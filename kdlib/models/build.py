"""Makes a detector with fresh weights; the one place that knows every family."""

from __future__ import annotations

import torch

from kdlib.config import HeadConfig, ModelConfig, TwoStageConfig
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.models.pvrcnn.two_stage import PVRCNN


def build(config: ModelConfig) -> CenterPoint | AnchorDetector:
    """Return a detector with fresh weights, laid out for fast convolutions."""
    model: CenterPoint | AnchorDetector
    if isinstance(config, TwoStageConfig):
        model = PVRCNN(config)
    else:
        model = (
            CenterPoint(config) if isinstance(config.head, HeadConfig) else AnchorDetector(config)
        )
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model
