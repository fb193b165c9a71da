"""The encoder on distinct rows against the original's way: every slot of every pillar, empty ones
included.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdlib.config import GridConfig, PillarEncoderConfig
from kdlib.models.pillar_encoder import PillarEncoder
from kdlib.types import VoxelBatch

GRID = GridConfig((-4.0, -4.0, -2.0, 4.0, 4.0, 4.0), (0.5, 0.5, 6.0), 6)


def pillars(counts, seed=0, slots=6):
    gen = torch.Generator().manual_seed(seed)
    counts = torch.as_tensor(counts)
    features = torch.randn(len(counts), slots, 5, generator=gen, dtype=torch.float64)
    features = features * (torch.arange(slots) < counts[:, None])[..., None]
    coords = torch.randint(16, (len(counts), 4), generator=gen)
    coords[:, 0] = coords[:, 1] = 0
    return VoxelBatch(features, coords, counts, 1)


class Padded(nn.Module):
    """Spec 3.3 word by word."""

    def __init__(self, encoder):
        super().__init__()
        self.linears = nn.ModuleList(layer.linear for layer in encoder.pfn_layers)
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(layer.norm.num_features, eps=1e-3, momentum=0.01)
            for layer in encoder.pfn_layers
        )
        self.double()
        for norm, layer in zip(self.norms, encoder.pfn_layers):
            norm.load_state_dict(layer.norm.state_dict())

    def forward(self, given):
        points, counts = given.features, given.num_points
        mean = points[..., :3].sum(1, keepdim=True) / counts[:, None, None]
        size = points.new_tensor(GRID.voxel_size)
        centre = (
            given.coords[:, [3, 2, 1]] * size + size / 2 + points.new_tensor(GRID.point_range[:3])
        )
        x = torch.cat((points, points[..., :3] - mean, points[..., :3] - centre[:, None]), dim=2)
        x = x * (torch.arange(x.shape[1]) < counts[:, None])[..., None]
        for i, (linear, norm) in enumerate(zip(self.linears, self.norms)):
            x = torch.relu(norm(linear(x).flatten(0, 1)).view(*x.shape[:2], -1))
            best = x.max(dim=1, keepdim=True).values
            x = best if i == len(self.linears) - 1 else torch.cat((x, best.expand_as(x)), dim=2)
        return best[:, 0]


def pair(filters):
    torch.manual_seed(0)
    encoder = PillarEncoder(PillarEncoderConfig(filters), GRID).double()
    with torch.no_grad():
        for layer in encoder.pfn_layers:
            for value in (layer.norm.weight, layer.norm.bias, layer.norm.running_mean):
                value.copy_(torch.randn_like(value))
            layer.norm.running_var.uniform_(0.5, 2)
    return encoder, Padded(encoder)


@pytest.mark.parametrize("filters", [(8, 12), (16,), (8, 8, 8)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("counts", [(1, 6, 3, 2, 6, 1, 4), (6, 6), (1,)])
def test_equals_the_padded_form(filters, training, counts):
    encoder, padded = pair(filters)
    encoder.train(training), padded.train(training)
    given = pillars(counts)
    ours, theirs = encoder(given), padded(given)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    weight = torch.randn_like(ours)
    names = [
        n
        for layer in encoder.pfn_layers
        for n in (layer.linear.weight, layer.norm.weight, layer.norm.bias)
    ]
    mirror = [
        n
        for linear, norm in zip(padded.linears, padded.norms)
        for n in (linear.weight, norm.weight, norm.bias)
    ]
    expected = torch.autograd.grad((theirs * weight).sum(), mirror)
    for found, value in zip(torch.autograd.grad((ours * weight).sum(), names), expected):
        torch.testing.assert_close(found, value, rtol=1e-7, atol=1e-9)
    for layer, norm in zip(encoder.pfn_layers, padded.norms):
        for (name, found), value in zip(layer.norm.named_buffers(), norm.buffers()):
            torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_no_pillars_give_zero_gradients_and_leave_the_statistics(training):
    encoder, _ = pair((8, 12))
    encoder.train(training)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = encoder(pillars(torch.zeros(0, dtype=torch.long)))
    assert found.shape == (0, 12)
    found.sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
