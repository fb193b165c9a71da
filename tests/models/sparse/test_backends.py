"""The choice of a backend, and spconv's own layers behind ours: its wheel for processors stands in
for the GPU version.
"""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from kdlib.errors import ConfigError
from kdlib.models.sparse import SparseConv3d, SparseTensor, SubmConv3d, backends, use_backend
from kdlib.models.sparse.backends import choose_backend
from kdlib.tools.bench.sparse import encoder_input, ours, wheel


@pytest.fixture
def spconv():
    """Its module on one thread: with more, the wheel loses rows."""
    module = pytest.importorskip(
        "spconv.pytorch", reason="needs spconv's wheel for processors: pip install spconv==2.3.8"
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    monkeypatch.setattr(backends, "_said", set())
    monkeypatch.setattr(
        backends, "_works_on_accelerators", backends._works_on_accelerators.__wrapped__
    )


class Net(torch.nn.Module):
    """Two stages, as encoders have them: a key over two layers, a strided layer, a key behind
    it.
    """

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            [
                SubmConv3d(3, 8, key="same1"),
                SubmConv3d(8, 8, bias=True, key="same1"),
                SparseConv3d(8, 16, 3, stride=2, padding=(0, 1, 1), key="down"),
                SubmConv3d(16, 16, bias=True, key="same2"),
                SparseConv3d(16, 8, (3, 1, 1), stride=(2, 1, 1), bias=True, key="out"),
            ]
        )

    def forward(self, sites):
        for layer in self.layers:
            sites = layer(sites)
            sites = sites.replace(torch.relu(sites.features))
        return sites


def scene():
    gen = torch.Generator().manual_seed(2)
    coords = (torch.rand(2, 13, 20, 18, generator=gen) < 0.2).nonzero()
    coords = coords[torch.randperm(len(coords), generator=gen)]
    return SparseTensor(torch.randn(len(coords), 3, generator=gen), coords, (13, 20, 18), 2)


def test_the_wheel_gives_the_same_output_with_the_same_weights(spconv):
    torch.manual_seed(0)
    net = Net()
    expected = net(scene())
    use_backend(net, "spconv")
    sites = scene()
    with torch.no_grad():
        answer = net(sites)
    assert sorted(sites.books.foreign["spconv"]) == ["down", "out", "same1", "same2"]
    assert len(sites.books._books) == 0  # nothing of ours was made
    torch.testing.assert_close(answer.dense(), expected.dense(), rtol=1e-4, atol=1e-5)
    assert answer.spatial_shape == expected.spatial_shape and sorted(net.state_dict()) == sorted(
        Net().state_dict()
    )
    with torch.no_grad():
        again = net.eval()(sites)  # known indices are used again
    assert torch.equal(again.features, answer.features)
    use_backend(net, None)
    assert torch.equal(net(scene()).features, expected.features)


def test_columns_in_another_order_of_memory_reach_the_wheel_as_they_are(spconv):
    sites = scene()
    striped = SparseTensor(
        sites.features, sites.coords.t().contiguous().t(), sites.spatial_shape, 2
    )
    layer = SubmConv3d(3, 4, key="a")
    expected = layer(sites).features
    layer.sparse_backend = "spconv"
    with torch.no_grad():
        torch.testing.assert_close(layer(striped).features, expected, rtol=1e-4, atol=1e-5)


def test_the_wheel_is_as_strict_with_keys(spconv):
    sites = scene()
    first, other = SubmConv3d(3, 4, key="a"), SubmConv3d(3, 4, 5, key="a")
    use_backend(first, "spconv")
    use_backend(other, "spconv")
    with torch.no_grad():
        first(sites)
        with pytest.raises(ConfigError, match="key 'a' belongs to"):
            other(sites)


def test_its_triton_port_is_called_alike(spconv, monkeypatch):
    monkeypatch.setitem(sys.modules, "spconv_triton", SimpleNamespace(pytorch=spconv))
    monkeypatch.setitem(sys.modules, "spconv_triton.pytorch", spconv)
    net = Net()
    expected = net(scene())
    use_backend(net, "spconv_triton")
    with torch.no_grad():
        torch.testing.assert_close(net(scene()).dense(), expected.dense(), rtol=1e-4, atol=1e-5)


def test_a_full_size_sweep_through_the_encoder_of_cp_voxel(spconv):
    sites, layers = encoder_input("cp_voxel")
    assert len(sites.coords) > 40_000
    with torch.no_grad():
        answer = ours(sites, layers)
        reference = wheel(sites, [layer.twin("spconv") for layer in layers])
    assert answer.features.abs().max() > 1
    torch.testing.assert_close(answer.dense(), reference.dense(), rtol=0, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(ours(sites, layers).features, answer.features)


def on(device, kind=torch.float32):
    return SimpleNamespace(device=torch.device(device), dtype=kind)


def test_processors_and_float64_get_ours(monkeypatch):
    monkeypatch.setattr(backends, "_works_on_accelerators", lambda name: True)
    assert (
        choose_backend(on("cpu")) == "torch"
        and choose_backend(on("cuda", torch.float64)) == "torch"
    )


def test_accelerators_get_the_first_that_works(monkeypatch, caplog):
    works = {"spconv": True, "spconv_triton": True}
    monkeypatch.setattr(backends, "_works_on_accelerators", lambda name: works[name])
    caplog.set_level(logging.INFO, "kdlib.models.sparse")
    assert [choose_backend(on("cuda")) for _ in range(3)] == ["spconv"] * 3
    works["spconv"] = False
    assert choose_backend(on("cuda")) == "spconv_triton"
    works["spconv_triton"] = False
    assert choose_backend(on("cuda")) == "torch"
    said = [record.message for record in caplog.records]
    assert len(said) == 3 and "on cuda: spconv (" in said[0] and "pip install" in said[2]


def test_a_wheel_for_processors_is_not_taken_for_a_gpu(spconv):
    if not sys.modules["spconv.cppconstants"].CPU_ONLY_BUILD:
        pytest.skip(
            "needs the spconv for processors, the installed one was built for CUDA: pip "
            "install spconv==2.3.8"
        )
    assert not backends._works_on_accelerators("spconv")


def test_argument_goes_before_environment(monkeypatch):
    monkeypatch.setattr(backends, "load_backend", lambda name: None)
    monkeypatch.setenv(backends.ENVIRONMENT, "spconv_triton")
    assert (
        choose_backend(on("cpu")) == "spconv_triton"
        and choose_backend(on("cpu"), "torch") == "torch"
    )


def test_what_is_not_there_is_said(monkeypatch):
    for name in ("spconv_triton", "spconv_triton.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ConfigError, match=(r"'spconv_triton' does not load.*pip install " r"spconv-triton")
    ):
        use_backend(Net(), "spconv_triton")
    with pytest.raises(
        ConfigError,
        match="unknown sparse backend 'cuda'; there are: torch, spconv, spconv_triton",
    ):
        choose_backend(on("cpu"), "cuda")
    assert not backends._works_on_accelerators("spconv_triton")
