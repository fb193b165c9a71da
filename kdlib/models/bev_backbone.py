"""The 2D backbone: convolutions on a BEV map at several sizes, joined (spec 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlib.config import BackboneConfig
from kdlib.models.batch_norm import BatchNorm2d


def _norm(channels: int) -> BatchNorm2d:
    return BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _block(inputs: int, channels: int, stride: int, layers: int) -> nn.Sequential:
    # The identity keeps the place of the original's padding layer, so that every tensor keeps its
    # name.
    parts = [nn.Identity(), nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)]
    parts += [_norm(channels), nn.ReLU()]
    for _ in range(layers):
        parts += [
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _norm(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*parts)


class BevBackbone(nn.Module):
    """Levels of 3x3 convolutions, each upsampled to the first one's size (``backbone_2d`` in a
    state dict).
    """

    def __init__(self, config: BackboneConfig, inputs: int) -> None:
        """Build the levels."""
        super().__init__()
        widths = (inputs, *config.channels)
        self.blocks = nn.ModuleList(
            _block(a, b, stride, layers)
            for a, b, stride, layers in zip(widths, widths[1:], config.strides, config.layers)
        )
        self.deblocks = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(a, b, up, stride=up, bias=False), _norm(b), nn.ReLU())
            for a, b, up in zip(config.channels, config.upsample_channels, config.upsample_strides)
        )
        self.channels = sum(config.upsample_channels)

    def forward(self, bev: Tensor) -> Tensor:
        """Turn (B, C, H, W) into (B, channels, H / s, W / s), s being the first stride."""
        levels = []
        for block, deblock in zip(self.blocks, self.deblocks):
            bev = block(bev)
            levels.append(deblock(bev))
        return torch.cat(levels, dim=1)
