"""Key points and what is gathered around them: shapes, names, numbers against the parts, frames
apart, gradients.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdlib.config import GridConfig
from kdlib.config.pvrcnn import SetAbstractionConfig
from kdlib.models.pvrcnn.interpolate import bilinear
from kdlib.models.pvrcnn.neighbours import Cloud
from kdlib.models.pvrcnn.sampling import near_rois, sector_keypoints
from kdlib.models.pvrcnn.set_abstraction import VoxelSetAbstraction
from kdlib.models.sparse import SparseTensor
from kdlib.types import PointBatch

GRID = GridConfig((-6.4, -6.4, -2.0, 6.4, 6.4, 4.0), (0.1, 0.1, 0.15), 5)  # 128 x 128 x 40 cells
PUBLISHED = SetAbstractionConfig()
CONFIG = replace(PUBLISHED, keypoints=40, fused=30)


def frame(count, seed):
    gen = torch.Generator().manual_seed(seed)
    return torch.cat(
        (
            (torch.rand(count, 3, generator=gen) - 0.5) * torch.tensor([12.0, 12.0, 3.0]),
            torch.rand(count, 2),
        ),
        dim=1,
    )


def boxes(count, seed):
    gen = torch.Generator().manual_seed(seed)
    centre = (torch.rand(count, 3, generator=gen) - 0.5) * torch.tensor([9.0, 9.0, 1.0])
    return torch.cat(
        (centre, 0.5 + 2 * torch.rand(count, 3, generator=gen), torch.zeros(count, 1)), dim=1
    )


def stage(batch, channels, stride, seed, share=0.3):
    """A sparse tensor with a share of all cells active."""
    gen = torch.Generator().manual_seed(seed)
    shape = (40 // stride + 1, 128 // stride, 128 // stride)
    coords = (torch.rand(batch, *shape, generator=gen) < share).nonzero()
    return SparseTensor(torch.randn(len(coords), channels, generator=gen), coords, shape, batch)


def scene(*counts, rois=(4,), seed=0, channels=(32, 64)):
    points = torch.cat([frame(count, seed + number) for number, count in enumerate(counts)])
    index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    bev = torch.randn(len(counts), 8, 16, 16, generator=torch.Generator().manual_seed(seed))
    levels = {
        stride: stage(len(counts), width, stride, seed + stride)
        for stride, width in zip((4, 8), channels)
    }
    regions = [boxes(count, seed + number) for number, count in enumerate(rois)]
    return PointBatch(points, index, len(counts), tuple("ab"[: len(counts)])), bev, levels, regions


def one_frame(xyz):
    return Cloud(xyz, torch.zeros(len(xyz), dtype=torch.int64))


def fresh(config=CONFIG, bev=8):
    torch.manual_seed(0)
    return VoxelSetAbstraction(config, GRID, bev).eval()


def test_the_published_size():
    net = VoxelSetAbstraction(PUBLISHED, GRID, 256)
    assert sum(p.numel() for p in net.parameters()) == 525_300
    assert net.channels == 544
    state = net.state_dict()
    assert (
        state["vsa_point_feature_fusion.0.weight"].shape == (90, 544)
        and "vsa_point_feature_fusion.0.bias" not in state
    )
    assert state["vsa_point_feature_fusion.1.running_var"].shape == (90,)
    assert {
        name.split(".layer_")[0].split(".msg_")[0] for name in state if name.startswith("SA_")
    } == {
        "SA_layers.0",
        "SA_layers.1",
        "SA_rawpoints",
    }


def test_key_points_are_the_samplers():
    points, bev, levels, rois = scene(500, 300, rois=(4, 2))
    found = fresh()(points, bev, levels, rois)
    clouds = [points.points[points.batch_index == b, :3] for b in range(2)]
    picked = [
        sector_keypoints(xyz, near_rois(xyz, boxes, 1.6), 40, 6) for xyz, boxes in zip(clouds, rois)
    ]
    xyz = torch.cat([cloud[rows] for cloud, rows in zip(clouds, picked)])
    assert torch.equal(found.xyz, xyz)
    assert found.frame.tolist() == [0] * len(picked[0]) + [1] * len(picked[1])
    assert found.before.shape == (len(xyz), 8 + 32 + 128 + 128) and found.fused.shape == (
        len(xyz),
        30,
    )


@torch.no_grad()
def test_features_are_those_of_the_parts_in_the_originals_order():
    points, bev, levels, rois = scene(500)
    net = fresh()
    found = net(points, bev, levels, rois)
    cells = (found.xyz[:, :2] + 6.4) / 0.8
    raw = points.points[near_rois(points.points[:, :3], rois[0], 2.4)]
    parts = [bilinear(bev[0], cells), net.SA_rawpoints(one_frame(raw[:, :3]), raw[:, 3:], found)]
    for pool, stride, margin in zip(net.SA_layers, (4, 8), (4.0, 6.4)):
        sites = levels[stride]
        z, y, x = sites.coords[:, 1:].unbind(1)
        size = torch.tensor([0.1, 0.1, 0.15]) * stride
        xyz = (torch.stack((x, y, z), dim=1) + 0.5) * size + torch.tensor([-6.4, -6.4, -2.0])
        near = near_rois(xyz, rois[0], margin)
        parts.append(pool(one_frame(xyz[near]), sites.features[near], found))
    torch.testing.assert_close(found.before, torch.cat(parts, dim=1))
    torch.testing.assert_close(found.fused, net.vsa_point_feature_fusion(found.before))


@torch.no_grad()
def test_a_frame_does_not_depend_on_the_others():
    points, bev, levels, rois = scene(500, 300, rois=(4, 3))
    net = fresh()
    together = net(points, bev, levels, rois)
    for b in range(2):
        own = points.batch_index == b
        alone = PointBatch(
            points.points[own], torch.zeros(int(own.sum()), dtype=torch.int64), 1, ("a",)
        )
        single = {}
        for stride, sites in levels.items():
            rows = sites.coords[:, 0] == b
            coords = sites.coords[rows] * torch.tensor([0, 1, 1, 1])
            single[stride] = SparseTensor(sites.features[rows], coords, sites.spatial_shape, 1)
        found = net(alone, bev[b : b + 1], single, rois[b : b + 1])
        torch.testing.assert_close(found.before, together.before[together.frame == b])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("counts", "rois", "keypoints"),
    [((300, 200), (0, 0), 2), ((300, 0), (2, 2), 41), ((0, 0), (1, 0), 0)],
)
def test_frames_without_rois_or_points(counts, rois, keypoints, training):
    points, bev, levels, regions = scene(*counts, rois=rois)
    found = fresh().train(training)(points, bev, levels, regions)
    assert len(found.xyz) == len(found.frame) == len(found.before) == len(found.fused)
    assert len(found.xyz) <= keypoints + 5 and (keypoints > 2 or len(found.xyz) == keypoints)
    assert bool(found.fused.isfinite().all())


def test_every_source_and_parameter_gets_a_gradient():
    points, bev, levels, rois = scene(500)
    bev.requires_grad_()
    levels = {
        stride: sites.replace(sites.features.requires_grad_()) for stride, sites in levels.items()
    }
    net = fresh().train()
    net(points, bev, levels, rois).fused.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(float(t.grad.abs().sum()) > 0 for t in (bev, levels[4].features, levels[8].features))


def test_narrow_stages_fold_too():
    small = replace(CONFIG, levels=tuple(replace(level, reduced=8) for level in CONFIG.levels))
    points, bev, levels, rois = scene(500, channels=(8, 16))
    assert fresh(small)(points, bev, levels, rois).before.shape[1] == 8 + 32 + 128 + 128
