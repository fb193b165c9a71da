"""BatchNorm over several ranks, on one: what the others would add is made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdlib.models import ranks
from kdlib.models.batch_norm import BatchNorm2d, RowNorm, batch_normalised


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


@pytest.mark.parametrize("layout", ["channels_last", "contiguous_format", "rows"])
def test_large_maps_keep_their_statistics_in_32_bits(layout):
    """Variance and gradients of 400,000 cells, to a few roundings, however they lie in memory."""
    torch.manual_seed(0)
    maps, weigh = torch.randn(2, 4, 464, 464).mul(0.5).add(0.3).relu(), torch.randn(2, 4, 464, 464)
    exact = nn.BatchNorm2d(4, momentum=1.0).double()
    deep = maps.double().requires_grad_()
    (exact(deep) * weigh).sum().backward()
    if layout == "rows":
        maps, weigh = (given.permute(0, 2, 3, 1).reshape(-1, 4) for given in (maps, weigh))
        expected = deep.grad.permute(0, 2, 3, 1).reshape(-1, 4)
    else:
        maps = maps.to(memory_format=getattr(torch, layout))
        expected = deep.grad
    layer = RowNorm(4, momentum=1.0) if layout == "rows" else BatchNorm2d(4, momentum=1.0)
    maps.requires_grad_()
    (layer(maps) * weigh).sum().backward()
    torch.testing.assert_close(layer.running_var, exact.running_var.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(maps.grad, expected.float(), rtol=1e-4, atol=1e-6)


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
        return batch_normalised(
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


@pytest.mark.parametrize("track", [True, False])
def test_of_one_process_it_is_torchs_layer(track):
    maps = torch.randn(2, 3, 8, 8)
    ours, theirs = (layer(3, track_running_stats=track) for layer in (BatchNorm2d, nn.BatchNorm2d))
    with ranks.together():  # of one process
        torch.testing.assert_close(ours(maps), theirs(maps))
    for name, stored in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), stored)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.eval()(maps), theirs.eval()(maps))
