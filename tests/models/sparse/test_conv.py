"""The torch backend against dense convolutions, its gradients, and what must not change its
answers.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.errors import ConfigError, DataError
from kdlib.models.sparse import Geometry, Rulebooks, SparseConv3d, SparseTensor, SubmConv3d
from kdlib.models.sparse import gather as gathering
from kdlib.models.sparse import rulebook as rulebooks

sizes = st.tuples(*[st.integers(1, 7)] * 3)
threes = st.tuples(*[st.integers(1, 3)] * 3)


@pytest.fixture(autouse=True, scope="module", params=[4, 1024], ids=["many shares", "one share"])
def few(request):
    """Scenes as small as these would have one share each; that must make no difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rulebooks, "_FEW", request.param)
        patch.setattr(gathering, "_WIDE", 1)
        yield


def scene(shape, batch_size=1, channels=3, seed=0, share=0.3, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    coords = (torch.rand(batch_size, *shape, generator=gen) < share).nonzero()
    coords = coords[torch.randperm(len(coords), generator=gen)]
    return SparseTensor(
        torch.randn(len(coords), channels, generator=gen, dtype=dtype), coords, shape, batch_size
    )


def active(sites):
    return sites.replace(torch.ones(len(sites.coords), 1, dtype=sites.features.dtype)).dense()


def dense_answer(layer, sites):
    """The layer as a dense convolution, zero where the sparse one has no site."""
    geometry = layer.geometry
    padding = geometry.padding
    if layer.submanifold:
        padding = tuple(k // 2 for k in geometry.kernel)
    kernel, bias = layer.weight.permute(0, 4, 1, 2, 3), layer.bias
    settings = {"stride": geometry.stride, "padding": padding}
    full = F.conv3d(sites.dense(), kernel, bias, **settings)
    if layer.submanifold:
        return full * active(sites)
    return full * (
        F.conv3d(active(sites), torch.ones(1, 1, *geometry.kernel, dtype=full.dtype), **settings)
        > 0.5
    )


def check(layer, sites):
    answer, expected = layer(sites), dense_answer(layer, sites)
    assert answer.spatial_shape == tuple(expected.shape[2:])
    torch.testing.assert_close(answer.dense(), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    sizes,
    st.integers(1, 3),
    st.tuples(*[st.sampled_from((1, 3, 5))] * 3),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_submanifold_equals_dense(shape, batch_size, kernel, bias, seed):
    torch.manual_seed(seed)
    check(
        SubmConv3d(3, 5, kernel, bias=bias, key="a").double(), scene(shape, batch_size, seed=seed)
    )


@settings(max_examples=50, deadline=None)
@given(
    sizes,
    st.integers(1, 3),
    threes,
    threes,
    st.tuples(*[st.integers(0, 2)] * 3),
    st.integers(0, 10**6),
)
def test_strided_equals_dense(shape, batch_size, kernel, stride, padding, seed):
    torch.manual_seed(seed)
    layer = SparseConv3d(
        3, 4, kernel, stride=stride, padding=padding, bias=bool(seed % 2), key="a"
    ).double()
    try:
        layer.geometry.output_shape(shape)
    except ConfigError:
        return
    check(layer, scene(shape, batch_size, seed=seed, share=0.15))


LAYERS = {
    "subm": lambda: SubmConv3d(2, 3, 3, bias=True, key="a"),
    "subm oblong": lambda: SubmConv3d(2, 3, (1, 3, 5), key="a"),
    "strided": lambda: SparseConv3d(2, 3, 3, stride=2, padding=(0, 1, 1), bias=True, key="a"),
    "column": lambda: SparseConv3d(2, 3, (3, 1, 1), stride=(2, 1, 1), key="a"),
    "oblong": lambda: SparseConv3d(2, 3, (2, 3, 2), stride=(1, 2, 3), padding=1, key="a"),
}


@pytest.mark.parametrize("blocks", [1, 1 << 20], ids=["many blocks", "one block"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name, blocks, monkeypatch):
    monkeypatch.setattr(gathering, "_CACHED", blocks)
    monkeypatch.setattr(gathering, "_BLOCK", 8)
    torch.manual_seed(1)
    layer, sites = LAYERS[name]().double(), scene((5, 6, 5), 2, channels=2, seed=4)
    assert len(layer(sites).coords) > 16

    def answer(features, *parameters):
        named = dict(zip([name for name, _ in layer.named_parameters()], parameters))
        return torch.func.functional_call(layer, named, (sites.replace(features),)).features

    assert torch.autograd.gradcheck(answer, (sites.features.requires_grad_(), *layer.parameters()))


@pytest.mark.parametrize("name", LAYERS)
def test_no_sites(name):
    layer = LAYERS[name]()
    sites = SparseTensor(
        torch.zeros(0, 2, requires_grad=True), torch.zeros(0, 4, dtype=torch.int64), (5, 6, 5), 2
    )
    answer = layer(sites)
    assert answer.features.shape == (0, 3) and answer.dense().shape[:2] == (2, 3)
    answer.features.sum().backward()
    assert layer.weight.grad.abs().sum() == 0


def test_one_cell():
    layer = SubmConv3d(2, 3, 3, bias=True, key="a")
    answer = layer(
        SparseTensor(torch.ones(1, 2), torch.zeros(1, 4, dtype=torch.int64), (1, 1, 1), 1)
    )
    torch.testing.assert_close(answer.features[0], layer.weight[:, 1, 1, 1].sum(dim=1) + layer.bias)


@pytest.mark.parametrize("name", LAYERS)
def test_order_of_rows_does_not_matter(name):
    layer, sites = LAYERS[name]().double(), scene((6, 7, 8), 2, channels=2, seed=7)
    order = torch.randperm(len(sites.coords), generator=torch.Generator().manual_seed(0))
    other = layer(SparseTensor(sites.features[order], sites.coords[order], sites.spatial_shape, 2))
    answer = layer(sites)
    if layer.submanifold:
        assert torch.equal(other.coords, answer.coords[order])
        torch.testing.assert_close(other.features, answer.features[order], rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(other.coords, answer.coords)
        torch.testing.assert_close(other.features, answer.features, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_is_its_frames(name):
    layer, sites = LAYERS[name]().double(), scene((6, 7, 8), 3, channels=2, seed=8)
    together = layer(sites).dense()
    for frame in range(3):
        mine = sites.coords[:, 0] == frame
        coords = sites.coords[mine].clone()
        coords[:, 0] = 0
        alone = layer(SparseTensor(sites.features[mine], coords, sites.spatial_shape, 1)).dense()
        torch.testing.assert_close(together[frame : frame + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_bits_on_any_number_of_threads(name):
    layer, sites = (
        LAYERS[name](),
        scene((12, 30, 30), 2, channels=2, seed=9, share=0.5, dtype=torch.float32),
    )
    before = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 2, 2, 1):
            torch.set_num_threads(count)
            layer.zero_grad()
            features = sites.features.clone().requires_grad_()
            answer = layer(SparseTensor(features, sites.coords, sites.spatial_shape, 2)).features
            answer.square().sum().backward()
            answers.append((answer.detach(), features.grad))
    finally:
        torch.set_num_threads(before)
    assert len(sites.coords) > 2 * gathering._BLOCK
    for answer, gradient in answers[1:]:
        assert torch.equal(answer, answers[0][0]) and torch.equal(gradient, answers[0][1])


@pytest.mark.parametrize("blocks", [1 << 14, 1 << 21])
def test_float32_is_float64_rounded(blocks, monkeypatch):
    monkeypatch.setattr(gathering, "_CACHED", blocks)
    layer, sites = (
        SubmConv3d(16, 32, 3, bias=True, key="a"),
        scene((8, 24, 24), 1, 16, seed=3, dtype=torch.float32),
    )
    answer = layer(sites).features
    wide = layer.double()(
        SparseTensor(sites.features.double(), sites.coords, sites.spatial_shape, 1)
    ).features
    torch.testing.assert_close(answer.double(), wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_mixed_precision(name, kind):
    layer, sites = LAYERS[name](), scene((6, 9, 9), 2, channels=2, seed=5, dtype=torch.float32)
    exact = layer(sites).features
    with torch.autocast("cpu", dtype=kind):
        answer = layer(sites).features
    assert answer.dtype == kind
    torch.testing.assert_close(answer.float(), exact, rtol=0.05, atol=0.05)
    answer.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32 and bool(layer.weight.grad.isfinite().all())


def test_layers_of_one_key_share_their_rulebook():
    sites = scene((6, 7, 8), channels=2)
    middle = SubmConv3d(2, 4, key="a").double()(sites)
    last = SubmConv3d(4, 2, key="a").double()(middle.replace(torch.relu(middle.features)))
    assert last.books is sites.books and len(sites.books._books) == 1
    SubmConv3d(2, 2, key="b").double()(last)
    assert len(sites.books._books) == 2


def test_a_key_of_another_geometry_is_refused():
    sites = scene((6, 7, 8), channels=2)
    SubmConv3d(2, 2, key="a").double()(sites)
    for other in (SubmConv3d(2, 2, 5, key="a"), SparseConv3d(2, 2, 3, padding=1, key="a")):
        with pytest.raises(ConfigError, match=r"key 'a' belongs to .*a key of its own"):
            other.double()(sites)


def test_a_key_of_other_sites_is_refused():
    sites = scene((6, 7, 8), channels=2)
    SubmConv3d(2, 2, key="a").double()(sites)
    with pytest.raises(ConfigError, match="key 'a' belongs to other sites"):
        SubmConv3d(2, 2, key="a").double()(
            SparseTensor(sites.features[1:], sites.coords[1:], sites.spatial_shape, 1, sites.books)
        )
    moved = SparseConv3d(2, 2, 1, key="b").double()(sites)
    with pytest.raises(ConfigError, match="key 'a' belongs to"):
        SubmConv3d(2, 2, key="a").double()(moved)
    copied = SparseTensor(sites.features, sites.coords.clone(), sites.spatial_shape, 1, sites.books)
    SubmConv3d(2, 2, key="a").double()(copied)  # the same sites again
    assert len(sites.books._books) == 2


def test_features_that_do_not_fit_are_refused():
    sites = scene((6, 7, 8), channels=2)
    with pytest.raises(ConfigError, match="3 input channels"):
        SubmConv3d(3, 2, key="a").double()(sites)
    with pytest.raises(ConfigError, match="sites"):
        SubmConv3d(2, 2, key="a").double()(sites.replace(sites.features[1:]))
    with pytest.raises(DataError, match="outside"):
        SubmConv3d(2, 2, key="a").double()(SparseTensor(sites.features, sites.coords, (2, 7, 8), 1))


def test_fresh_weights_are_spconvs():
    torch.manual_seed(0)
    layer = SparseConv3d(8, 64, 3, bias=True, key="a")
    assert layer.weight.shape == (64, 3, 3, 3, 8) and layer.bias.shape == (64,)
    bound = (8 * 27) ** -0.5
    for values in (layer.weight, layer.bias):
        assert bound * 0.9 < values.abs().max() <= bound
    assert layer.weight.detach().std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert list(layer.state_dict()) == ["weight", "bias"] and layer.geometry == Geometry((3, 3, 3))


def test_what_is_kept_for_the_backward_pass_is_no_copy_of_the_gathered():
    layer, sites = SubmConv3d(4, 4, key="a"), scene((8, 20, 20), 1, 4, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda value: kept.append(value.numel()) or value, lambda value: value
    ):
        layer(sites.replace(sites.features.requires_grad_()))
    assert sum(kept) <= sites.features.numel() + layer.weight.numel()


def test_dense_of_a_tensor():
    coords = torch.tensor([[1, 0, 2, 1], [0, 1, 0, 0]])
    grid = SparseTensor(
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]), coords, (2, 3, 2), 2, Rulebooks()
    ).dense()
    assert grid.shape == (2, 2, 2, 3, 2) and grid.count_nonzero() == 4
    assert grid[1, :, 0, 2, 1].tolist() == [1, 2] and grid[0, :, 1, 0, 0].tolist() == [3, 4]
