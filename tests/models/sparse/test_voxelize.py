"""Voxels against the original's and against a loop over points."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib import zoo
from kdlib.config import GridConfig
from kdlib.errors import DataError
from kdlib.models.sparse import voxelize as voxelize_module
from kdlib.models.sparse.voxelize import voxelize
from kdlib.types import PointBatch


def batch_of(*clouds) -> PointBatch:
    clouds = [torch.as_tensor(np.asarray(cloud, np.float32)).reshape(-1, 5) for cloud in clouds]
    index = torch.cat([torch.full((len(cloud),), b) for b, cloud in enumerate(clouds)]).long()
    return PointBatch(
        torch.cat(clouds), index, len(clouds), tuple(f"frame{b}" for b in range(len(clouds)))
    )


def loop(clouds, grid):
    """Spec 3.1, point by point."""
    low, size = np.float32(grid.point_range[:3]), np.float32(grid.voxel_size)
    voxels, coords = [], []
    for b, cloud in enumerate(clouds):
        own = {}
        for point in np.asarray(cloud, np.float32):
            cell = tuple(np.floor((point[:3] - low) / size).astype(int))
            if any(c < 0 or c >= n for c, n in zip(cell, grid.grid_size)):
                continue
            if cell not in own:
                if len(own) == grid.max_voxels:
                    continue
                own[cell] = []
            if len(own[cell]) < grid.max_points:
                own[cell].append(point)
        voxels += list(own.values())
        coords += [(b, *cell[::-1]) for cell in own]
    return coords, voxels


@pytest.mark.parametrize("table", [0, 2**22], ids=["by sorting", "with a table"])
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.integers(1, 30),
    st.lists(st.integers(0, 80), min_size=1, max_size=3),
)
def test_equals_a_loop_over_points(table, seed, max_points, max_voxels, sizes):
    rng = np.random.default_rng(seed)
    grid = GridConfig((-2.0, -3.0, -1.0, 2.0, 3.0, 1.0), (0.5, 1.0, 1.0), max_points, max_voxels)
    clouds = [rng.uniform(-4, 4, (n, 5)).round(1) for n in sizes]
    coords, voxels = loop(clouds, grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voxelize_module, "_TABLE", table)
        found = voxelize(batch_of(*clouds), grid)
    assert found.coords.tolist() == [list(map(int, c)) for c in coords]
    assert found.num_points.tolist() == [len(v) for v in voxels]
    for slots, expected in zip(found.features.numpy(), voxels):
        np.testing.assert_array_equal(slots[: len(expected)], expected)
        assert not slots[len(expected) :].any()
    assert found.batch_size == len(sizes)


@pytest.mark.parametrize(
    "name", ["cp-pillar", "cp-pillar-v0.4", "cp-pillar-v0.48", "cp-pillar-v0.64", "cp-voxel"]
)
def test_real_size_scan_equals_the_original(goldens, name):
    golden = np.load(goldens / "original/08_forward/scan_and_voxels.npz")
    meta = json.loads(str(golden["meta"]))[name]
    grid = GridConfig((-75.2, -75.2, -2.0, 75.2, 75.2, 4.0), (0.1, 0.1, 0.15), 5)
    if name != "cp-voxel":
        grid = zoo.MODELS[name.replace("-", "_")].grid
    found = voxelize(batch_of(golden["points"]), grid)
    assert found.features.shape == tuple(meta["voxels_shape"])
    np.testing.assert_array_equal(found.coords[:, 1:], golden[f"{name}__coords_zyx"])
    np.testing.assert_array_equal(found.num_points, golden[f"{name}__num_points"])


def test_points_on_boundaries_fall_to_the_originals_side(goldens):
    golden = np.load(goldens / "original/08_forward/voxel_boundary_points.npz")
    grid = GridConfig((-75.2, -75.2, -2.0, 75.2, 75.2, 4.0), (0.1, 0.1, 0.15), 5)
    found = voxelize(batch_of(golden["points_after_mask"]), grid)
    np.testing.assert_array_equal(found.coords[:, 1:], golden["coords_zyx"])
    np.testing.assert_array_equal(found.features, golden["voxels"])


def test_voxel_cap_keeps_adding_to_existing_voxels(goldens):
    golden = np.load(goldens / "original/08_forward/voxel_cap.npz")
    points = np.load(goldens / "original/08_forward/scan_and_voxels.npz")["points"]
    points = points[(np.abs(points[:, :2]) <= 74.24).all(axis=1)]
    grid = GridConfig((-74.24, -74.24, -2.0, 74.24, 74.24, 4.0), (0.64, 0.64, 6.0), 3, 500)
    found = voxelize(batch_of(points), grid)
    np.testing.assert_array_equal(found.coords[:, 1:], golden["coords_zyx"])
    np.testing.assert_array_equal(found.features, golden["voxels"])


def test_nan_names_the_frame():
    bad = np.ones((3, 5))
    bad[1, 2] = np.nan
    with pytest.raises(DataError, match=r"frame1.*not finite"):
        voxelize(batch_of(np.ones((2, 5)), bad), zoo.CP_PILLAR_DEMO.grid)


def test_empty_scan():
    found = voxelize(batch_of(np.zeros((0, 5)), np.zeros((0, 5))), zoo.CP_PILLAR_DEMO.grid)
    assert found.features.shape == (0, 20, 5) and found.batch_size == 2


def test_points_whose_sum_overflows_are_finite():
    cloud = [(0.1, 0.1, 0.1, 3e38, 0.0), (0.2, 0.1, 0.1, 3e38, 0.0)]
    found = voxelize(
        batch_of(cloud), GridConfig((-2.0, -3.0, -1.0, 2.0, 3.0, 1.0), (0.5, 1.0, 1.0), 4, 10)
    )
    assert found.num_points.tolist() == [2]
