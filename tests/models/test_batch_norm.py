"""BatchNorm over several ranks, on one: what the others would add is made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdlib.models import ranks
from kdlib.models.batch_norm import BatchNorm2d, RowNorm, joint_norm


@pytest.fixture
def alone_but_joint(monkeypatch):
    """Take the way of several ranks although there is one."""
    monkeypatch.setattr(ranks, "several", lambda: True)
    monkeypatch.setattr(ranks, "gathered", lambda values: values[None])
    monkeypatch.setattr(ranks, "total", lambda value: value)


def settled(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2.0)
        layer.bias.uniform_(-1.0, 1.0)
    return layer.double()


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (1, 4, 1, 2)])
def test_maps_and_gradients_are_torchs(shape, request):
    given = torch.randn(shape, dtype=torch.float64).to(memory_format=torch.channels_last)
    layers = [settled(BatchNorm2d(4, eps=1e-3, momentum=0.01)) for _ in range(2)]
    weigh = torch.randn(shape, dtype=torch.float64)
    answers, gradients = [], []
    for number, layer in enumerate(layers):
        if number:
            request.getfixturevalue("alone_but_joint")
        rows = given.clone().requires_grad_()
        answers.append(layer(rows))
        gradients.append(
            torch.autograd.grad(
                (answers[-1].tanh() * weigh).sum(), (rows, layer.weight, layer.bias)
            )
        )
    torch.testing.assert_close(answers[1], answers[0])
    assert answers[1].is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(gradients[1], gradients[0]):
        torch.testing.assert_close(ours, theirs)
    for (name, ours), theirs in zip(
        layers[1].state_dict().items(), layers[0].state_dict().values()
    ):
        torch.testing.assert_close(ours, theirs, msg=name)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_large_maps_keep_their_statistics_in_32_bits(layout):
    """The variance of 400,000 cells, to a few roundings, whichever way the map lies in memory."""
    torch.manual_seed(0)
    maps = torch.randn(2, 4, 464, 464).mul(0.5).add(0.3).relu()
    layer = BatchNorm2d(4, momentum=1.0)
    layer(maps.to(memory_format=layout))
    expected = maps.double().var(dim=(0, 2, 3)).float()
    torch.testing.assert_close(layer.running_var, expected, rtol=1e-6, atol=0)


def test_weighted_rows_are_those_of_the_plain_layer(request):
    rows, weight = (
        torch.randn(7, 4, dtype=torch.float64),
        torch.tensor([1.0, 3.0, 1.0, 1.0, 5.0, 1.0, 2.0], dtype=torch.float64),
    )
    layers = [settled(RowNorm(4)) for _ in range(2)]
    found = []
    for number, layer in enumerate(layers):
        if number:
            request.getfixturevalue("alone_but_joint")
        given = rows.clone().requires_grad_()
        answer = layer(given, weight)
        found.append(
            (
                answer,
                *torch.autograd.grad(answer.tanh().sum(), (given, layer.weight, layer.bias)),
                *layer.buffers(),
            )
        )
    for ours, theirs in zip(found[1], found[0]):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck(alone_but_joint):
    weight = torch.tensor([1.0, 2.0, 1.0, 4.0, 1.0], dtype=torch.float64)

    def run(rows, scale, shift):
        return joint_norm(
            SimpleNamespace(weight=scale, bias=shift, eps=1e-3, training=False), rows, weight
        )

    given = [
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((5, 3), (3,), (3,))
    ]
    assert torch.autograd.gradcheck(run, given)


def test_no_rows_at_all_teach_nothing(alone_but_joint):
    layer = settled(RowNorm(3))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    rows = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    layer(rows, torch.zeros(0, dtype=torch.float64)).sum().backward()
    assert rows.grad.shape == (0, 3) and not layer.weight.grad.any() and not layer.bias.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_half_precision_leaves_maps_as_they_came(alone_but_joint):
    layer = BatchNorm2d(3)
    maps = (100 + torch.randn(2, 3, 4, 4)).to(torch.bfloat16)
    answer = layer(maps)
    assert answer.dtype == torch.bfloat16
    wide = torch.nn.functional.batch_norm(
        maps.float(), None, None, layer.weight, layer.bias, True, eps=layer.eps
    )
    torch.testing.assert_close(answer.float(), wide, atol=0.02, rtol=0.02)


def test_outside_of_a_joint_step_it_is_torchs_layer_bit_by_bit():
    maps = torch.randn(2, 3, 8, 8)
    ours, theirs = BatchNorm2d(3), nn.BatchNorm2d(3)
    with ranks.together():  # of one process
        assert torch.equal(ours(maps), theirs(maps))
    assert torch.equal(ours.running_var, theirs.running_var)
