"""Vector pooling against loops over single points, its names and sizes, orders, empty surroundings,
gradients.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kdlib.config import from_dict, to_dict
from kdlib.config.pvrcnn import SetAbstractionConfig, VectorPoolConfig
from kdlib.errors import ConfigError
from kdlib.models.pvrcnn.neighbours import Cloud
from kdlib.models.pvrcnn.vector_pool import RowConv, VectorPool, VectorPoolGroup

SMALL = VectorPoolConfig(
    "local_interpolation", 2, ((2, 2, 2), (3, 1, 2)), (0.5, 1.0), 4, (6, 5), (7,), 1000
)
CHOICE = replace(SMALL, kind="voxel_random_choice")
PUBLISHED = SetAbstractionConfig()
KINDS = pytest.mark.parametrize("config", [SMALL, CHOICE], ids=lambda config: config.kind)


def scene(count=120, queries=15, channels=6, dtype=torch.float32, seed=0):
    gen = torch.Generator().manual_seed(seed)
    support = (torch.rand(count, 3, generator=gen, dtype=torch.float64) - 0.5) * 4
    places = (torch.rand(queries, 3, generator=gen, dtype=torch.float64) - 0.5) * 5
    features = torch.randn(count, channels, generator=gen, dtype=torch.float64)
    return support.to(dtype), features.to(dtype), places.to(dtype)


def one_frame(xyz):
    return Cloud(xyz, torch.zeros(len(xyz), dtype=torch.int64))


def pooled_at(pool, support, features, queries):
    return pool(one_frame(support), features, one_frame(queries))


def fresh(config, dtype=torch.float32):
    """Build a pool whose norms do something."""
    torch.manual_seed(0)
    pool = VectorPool(config).to(dtype)
    gen = torch.Generator().manual_seed(1)
    for name, value in pool.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=gen))
        elif value.dim() == 1:
            value.copy_(torch.rand(value.shape, generator=gen))
    return pool.eval()


def steps(voxels, radius):
    """Centres of the local voxels, x slowest, as the original's document gives them."""
    axes = ([-radius + radius / n + k * 2 * radius / n for k in range(n)] for n in voxels)
    return list(itertools.product(*axes))


def interpolated_by_hand(support, folded, query, voxels, radius, limit):
    around = [
        row for row, point in enumerate(support) if (point - query).abs().max() <= 2 * radius
    ][:limit]
    vectors = []
    for step in steps(voxels, radius):
        centre = query + query.new_tensor(step)
        near = sorted(around, key=lambda row: ((centre - support[row]).square().sum().item(), row))[
            :3
        ]
        near += near[:1] * (3 - len(near))
        if not near:
            vectors.append(folded.new_zeros(folded.shape[1] + 9))
            continue
        weights = torch.stack([1 / ((centre - support[row]).norm() + 1e-8) for row in near])
        mixed = sum(w * folded[row] for w, row in zip(weights / weights.sum(), near))
        vectors.append(torch.cat([mixed, *(centre - support[row] for row in near)]))
    return torch.stack(vectors)


def chosen_by_hand(support, folded, query, voxels, radius, limit):
    """One point after the other, as the original's kernel goes through them."""
    vectors, filled = folded.new_zeros(math.prod(voxels), 3 + folded.shape[1]), set()
    for row, point in enumerate(support):
        offset = point - query
        if offset.abs().max() > radius:
            continue
        cell = [min(int((o + radius) / (2 * radius / n)), n - 1) for o, n in zip(offset, voxels)]
        voxel = (cell[0] * voxels[1] + cell[1]) * voxels[2] + cell[2]
        if voxel not in filled:
            filled.add(voxel)
            vectors[voxel] = torch.cat((offset, folded[row]))
            if len(filled) == limit:
                break
    return vectors


def pool_by_hand(pool, support, features, queries):
    config, state = pool.config, pool.state_dict()
    folded = features.new_zeros(len(features), config.reduced)
    for channel in range(features.shape[1]):
        folded[:, channel % config.reduced] += features[:, channel]

    def layers(x, name, count, groups=1):
        for number in range(0, 3 * count, 3):
            x = F.conv1d(x, state[f"{name}.{number}.weight"], groups=groups)
            norm = f"{name}.{number + 1}."
            names = ("running_mean", "running_var", "weight", "bias")
            x = torch.relu(F.batch_norm(x, *(state[norm + key] for key in names)))
        return x

    parts = [queries.t()[None]]
    for number, (voxels, radius) in enumerate(zip(config.voxels, config.radii)):
        gather = interpolated_by_hand if config.kind == "local_interpolation" else chosen_by_hand
        rows = [
            gather(support, folded, query, voxels, radius, config.limit).flatten()
            for query in queries
        ]
        x = layers(
            torch.stack(rows, dim=1)[None],
            f"layer_{number}.separate_local_aggregation_layer",
            1,
            math.prod(voxels),
        )
        parts.append(layers(x, f"layer_{number}.post_mlps", len(config.group_channels)))
    return layers(torch.cat(parts, dim=1), "msg_post_mlps", len(config.channels))[0].t()


@KINDS
@pytest.mark.parametrize("limit", [1000, 3])
def test_pool_equals_loops_and_grouped_convolutions(config, limit):
    pool = fresh(replace(config, limit=limit), torch.float64)
    support, features, queries = scene(dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            pooled_at(pool, support, features, queries),
            pool_by_hand(pool, support, features, queries),
        )


@KINDS
def test_ties_borders_and_negative_coordinates(config):
    # a regular cloud: every centre has several equally near points, points lie on faces of local
    # voxels and on the cube's border
    axis = torch.arange(-9, -3, dtype=torch.float64) / 4
    support = torch.cartesian_prod(axis, axis, axis)
    order = torch.randperm(len(support), generator=torch.Generator().manual_seed(0))
    support, features = support[order], torch.randn(len(support), 2, dtype=torch.float64)
    queries = torch.cat((support[:10], support[:5] + 0.125))
    pool = fresh(config, torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            pooled_at(pool, support, features, queries),
            pool_by_hand(pool, support, features, queries),
        )


@KINDS
def test_frames_do_not_see_each_other(config):
    pool = fresh(config)
    first, second = scene(seed=0), scene(seed=1)
    together = [torch.cat(pair) for pair in zip(first, second)]
    # frames interleaved
    mixed = (
        torch.randperm(len(together[0]), generator=torch.Generator().manual_seed(0)).sort().indices
    )
    frame = torch.arange(2).repeat_interleave(len(first[0]))[mixed]
    places = torch.arange(2).repeat_interleave(len(first[2]))
    rank = torch.cat([(frame == number).nonzero()[:, 0] for number in range(2)])
    support = torch.empty_like(together[0]).index_copy_(0, rank, together[0])
    features = torch.empty_like(together[1]).index_copy_(0, rank, together[1])
    with torch.no_grad():
        apart = torch.cat([pooled_at(pool, *scene) for scene in (first, second)])
        torch.testing.assert_close(
            pool(Cloud(support, frame), features, Cloud(together[2], places)), apart
        )


def test_order_of_the_cloud_matters_to_the_random_choice_alone():
    support, features, queries = scene()
    rows, columns = torch.randperm(len(support)), torch.randperm(len(queries))
    with torch.no_grad():
        pool = fresh(SMALL)
        torch.testing.assert_close(
            pooled_at(pool, support[rows], features[rows], queries[columns]),
            pooled_at(pool, support, features, queries)[columns],
        )
        pool = fresh(CHOICE)
        torch.testing.assert_close(
            pooled_at(pool, support, features, queries[columns]),
            pooled_at(pool, support, features, queries)[columns],
        )
        group = pool.layer_1
        first, moved = (
            group.first_rows(one_frame(points), one_frame(queries))
            for points in (support, support[rows])
        )
    # the same voxels are filled, each from a point of its own
    assert torch.equal(first == len(support), moved == len(support))


@KINDS
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("points", "queries"), [(0, 4), (5, 0), (0, 0), (5, 1), (1, 1)])
def test_next_to_nothing(config, training, points, queries):
    pool = fresh(config).train(training)
    support, features, places = scene(points, queries)
    features.requires_grad_()
    pooled = pooled_at(pool, support, features, places)
    assert pooled.shape == (queries, 7) and bool(pooled.isfinite().all())
    pooled.sum().backward()
    assert all(
        p.grad is not None and bool(p.grad.isfinite().all()) for p in [features, *pool.parameters()]
    )


@KINDS
def test_nobody_around_is_all_zeros(config):
    support, features, queries = scene()
    group = fresh(config).layer_0
    gather = group.interpolated if config is SMALL else group.first_found
    assert (
        gather(one_frame(support), features[:, :2], one_frame(queries + 100)).count_nonzero() == 0
    )


@KINDS
def test_gradient(config):
    pool = fresh(config, torch.float64)
    support, features, queries = scene(12, 4, dtype=torch.float64)
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: pooled_at(pool, support, f, queries), features)


@KINDS
def test_mixed_precision_leaves_places_exact(config):
    pool = fresh(config)
    support, features, queries = scene()
    with torch.no_grad():
        exact = pooled_at(pool, support, features, queries)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(pooled_at(pool, support, features, queries), exact)


def test_row_convolution_is_the_grouped_one():
    layer, rows = RowConv(12, 8, groups=4), torch.randn(5, 12)
    torch.testing.assert_close(layer(rows), F.conv1d(rows.t()[None], layer.weight, groups=4)[0].t())


def test_channels_that_do_not_fold_are_refused():
    support, features, queries = scene(channels=5)
    with pytest.raises(ValueError, match="5 channels cannot be folded into 2"):
        pooled_at(fresh(SMALL), support, features, queries)


def shapes(config):
    return {
        name: tuple(value.shape)
        for name, value in VectorPool(config).state_dict().items()
        if value.dim() > 1
    }


@pytest.mark.parametrize(
    ("config", "separate", "post", "after"),
    [
        (PUBLISHED.raw, ((256, 11, 1), (864, 11, 1)), ((32, 256, 1), (32, 864, 1)), (32, 67, 1)),
        (PUBLISHED.levels[0], ((864, 41, 1),) * 2, ((64, 864, 1),) * 2, (128, 131, 1)),
        (PUBLISHED.levels[1], ((864, 41, 1),) * 2, ((64, 864, 1),) * 2, (128, 131, 1)),
        (VectorPoolConfig(), ((864, 33, 1),) * 2, ((64, 864, 1),) * 2, (128, 131, 1)),
    ],
    ids=["raw", "conv3", "conv4", "roi grid"],
)
def test_names_and_shapes_are_the_originals(config, separate, post, after):
    expected = {"msg_post_mlps.0.weight": after}
    for number in range(2):
        width = config.group_channels[-1]
        expected[f"layer_{number}.separate_local_aggregation_layer.0.weight"] = separate[number]
        expected[f"layer_{number}.post_mlps.0.weight"] = post[number]
        expected[f"layer_{number}.post_mlps.3.weight"] = (width, width, 1)
    assert shapes(config) == expected
    state = VectorPool(config).state_dict()
    for norm in (
        "layer_0.separate_local_aggregation_layer.1",
        "layer_1.post_mlps.1",
        "layer_0.post_mlps.4",
        "msg_post_mlps.1",
    ):
        assert {
            f"{norm}.{key}"
            for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        } <= set(state)
    norm = VectorPool(config).msg_post_mlps[1]
    assert (norm.eps, norm.momentum) == (1e-5, 0.1)


def test_initial_weights_are_kaiming_normal():
    torch.manual_seed(0)
    weight = VectorPool(VectorPoolConfig()).layer_0.post_mlps[0].weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 864), rel=0.02)


def test_local_centres():
    group = VectorPoolGroup(VectorPoolConfig(), (2, 3, 1), 0.6)
    x, y, z = group.steps(torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(x, x.new_tensor([-0.3, 0.3]))
    torch.testing.assert_close(y, y.new_tensor([-0.4, 0.0, 0.4]))
    assert z.abs().max() < 1e-9


def test_config_travels_as_json_and_checks_itself():
    assert from_dict(SetAbstractionConfig, to_dict(PUBLISHED)) == PUBLISHED
    for wrong in (
        {"radii": (1.0,)},
        {"radii": (0.0, 1.0)},
        {"reduced": 0},
        {"kind": "mean"},
        {"channels": ()},
    ):
        with pytest.raises(ConfigError):
            replace(SMALL, **wrong)
    for wrong in (
        {"keypoints": 0},
        {"strides": (4,)},
        {"margins": (1.0, 1.0)},
        {"keypoint_margin": -1.0},
    ):
        with pytest.raises(ConfigError):
            replace(PUBLISHED, **wrong)
