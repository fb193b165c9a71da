"""The centre head, CenterHead: raw heatmap and regression maps (spec 4.4)."""

from __future__ import annotations

from torch import Tensor, nn

from kdlib.config import HeadConfig
from kdlib.models.batch_norm import BatchNorm2d
from kdlib.types import HeadOutput

_REGRESSION = {"center": 2, "center_z": 1, "dim": 3, "rot": 2}
_HEATMAP_BIAS = -2.19  # a prior of 0.1 on every cell


def _branch(shared: int, outputs: int) -> nn.Sequential:
    first = nn.Sequential(nn.Conv2d(shared, shared, 3, padding=1), BatchNorm2d(shared), nn.ReLU())
    return nn.Sequential(first, nn.Conv2d(shared, outputs, 3, padding=1))


class SeparateHead(nn.Module):
    """The branches of one group of classes; ``hm`` comes last, as in the original's state dict."""

    def __init__(self, shared: int, classes: int) -> None:
        """Build and initialise the branches."""
        super().__init__()
        for name, outputs in _REGRESSION.items():
            branch = _branch(shared, outputs)
            for layer in branch.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight)
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            self.add_module(name, branch)
        self.hm = _branch(shared, classes)
        nn.init.constant_(self.hm[1].bias, _HEATMAP_BIAS)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> HeadOutput:
        """Return the raw maps of features (B, C, H, W)."""
        maps = {name: self.get_submodule(name)(features) for name in _REGRESSION}
        return HeadOutput(heatmap=self.hm(features), **maps)


class CenterHead(nn.Module):
    """A shared convolution and one separate head per group of classes (``dense_head`` in a state
    dict).
    """

    def __init__(self, config: HeadConfig, inputs: int) -> None:
        """Build the heads."""
        super().__init__()
        shared = config.shared_channels
        self.shared_conv = nn.Sequential(
            nn.Conv2d(inputs, shared, 3, padding=1), BatchNorm2d(shared), nn.ReLU()
        )
        self.heads_list = nn.ModuleList(SeparateHead(shared, len(names)) for names in config.heads)

    def forward(self, bev: Tensor) -> tuple[HeadOutput, ...]:
        """Return one output per head."""
        features = self.shared_conv(bev)
        return tuple(head(features) for head in self.heads_list)
