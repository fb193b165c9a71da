"""Cost of the zoo's models: the dense parts against the published arithmetic, the sparse part
against brute force.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdlib import zoo
from kdlib.data.collate import collate
from kdlib.errors import ConfigError
from kdlib.profiling import model_profile, published
from kdlib.profiling.cost import CostError, measure_second_stage_cost
from kdlib.types import Sample

# parameters; dense part: G in the published convention, G of true multiply-accumulates, M
# activations (spec 4.4, 10.2, errata)
DENSE = {
    "cp_voxel": (7_758_811, 92.890, 72.773),
    "cp_voxel_s": (4_038_203, 25.924, 36.581),
    "cp_voxel_xs": (2_823_223, 24.621, 36.581),
    "cp_voxel_xxs": (1_012_643, 6.529, 18.485),
    "cp_pillar": (5_224_043, 337.118, 284.837),
    "cp_pillar_v0.4": (5_224_043, 212.05, 179.17),
    "cp_pillar_v0.48": (5_224_043, 152.42, 128.79),
    "cp_pillar_v0.64": (5_224_043, 84.28, 71.21),
    "second": (5_326_008, 76.99, 61.36),
    "pointpillar": (4_838_760, 258.57, 219.02),
}
# what the published convention counts too often for transposed convolutions, G (spec 10.2)
OVER = {
    "cp_voxel": 6.95,
    "cp_voxel_s": 1.74,
    "cp_voxel_xs": 1.74,
    "cp_voxel_xxs": 0.43,
    "cp_pillar": 116.4,
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_part_in_the_published_convention(name: str) -> None:
    parameters, giga, mega = DENSE[name]
    network = model_profile.ghost(zoo.model(name))
    cost = model_profile.dense_report(network)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert cost.published_macs / 1e9 == pytest.approx(giga, rel=1e-3)
    assert cost.published_acts / 1e6 == pytest.approx(mega, rel=1e-3)
    if name in OVER:
        normalisation = sum(
            row.cost.published_macs for row in cost.rows if row.kind.startswith("BatchNorm")
        )
        biases = sum(
            row.cost.published_macs - row.cost.macs for row in cost.rows if row.kind == "Conv2d"
        )
        over = cost.published_macs - cost.macs - normalisation - biases
        assert over / 1e9 == pytest.approx(OVER[name], rel=2e-2)


def test_every_published_model_is_in_the_zoo_and_has_a_reason() -> None:
    assert set(DENSE) == set(published.PUBLISHED_MODELS) == set(published.WHY)


@pytest.mark.parametrize(
    ("pillars", "size", "giga", "mega"), [(3500, 50, 85.1, 88.0), (6900, 28, 212.9, 197.7)]
)
def test_totals_with_the_published_pillar_counts(
    pillars: int, size: int, giga: float, mega: float
) -> None:
    name = {50: "cp_pillar_v0.64", 28: "cp_pillar_v0.4"}[size]
    model = zoo.model(name)
    columns, rows, _ = model.grid.grid_size
    cells = np.random.default_rng(0).choice(columns * rows, pillars, replace=False)
    points = np.zeros((pillars, 5), np.float32)
    for axis, cell in ((0, cells % columns), (1, cells // columns)):
        points[:, axis] = model.grid.point_range[axis] + (cell + 0.5) * model.grid.voxel_size[axis]
    values = model_profile.model_cost(
        model, [Sample("frame", points, np.zeros((0, 7), np.float32), np.zeros(0, np.int64))]
    )
    assert values["sparse"]["voxels"] == pillars
    assert values["macs_published_convention"] / 1e9 == pytest.approx(giga, rel=1e-3)
    assert values["acts_published_convention"] / 1e6 == pytest.approx(mega, rel=1e-3)


def test_a_second_stage_completes_the_published_figures() -> None:
    network = model_profile.ghost(zoo.model("pv_rcnn_pp"))
    found = model_profile.second_report(network)
    first = published.PUBLISHED_MODELS["cp_voxel"]
    both = published.PUBLISHED_CROSS_STAGE["pv_rcnn_pp"]
    assert first.giga_flops + found.published_macs / 1e9 == pytest.approx(both.giga_flops, rel=1e-3)
    assert first.mega_acts + found.published_acts / 1e6 == pytest.approx(both.mega_acts, rel=1e-3)


def test_a_second_stage_costs_so_much_per_key_point_and_roi() -> None:
    """Spec 10.2: 0.7314 M multiply-accumulates and 6,107 activations per key point, 49.92 M and
    457,736 per RoI.
    """
    network = model_profile.ghost(zoo.model("pv_rcnn_pp"))
    base, points, rois = (
        measure_second_stage_cost(network, *sizes) for sizes in ((100, 10), (200, 10), (100, 11))
    )
    assert points.published_macs - base.published_macs == pytest.approx(100 * 731_400, rel=1e-4)
    assert points.published_acts - base.published_acts == 100 * 6_107
    assert rois.published_macs - base.published_macs == pytest.approx(49.92e6, rel=1e-4)
    assert rois.published_acts - base.published_acts == 457_736
    assert base.parameters == 525_300 + 206_081 + 7_607_496


def test_a_total_holds_both_stages() -> None:
    sweep = Sample(
        "frame", np.zeros((1, 5), np.float32), np.zeros((0, 7), np.float32), np.zeros(0, np.int64)
    )
    one, both = (
        model_profile.model_cost(zoo.model(name), [sweep])
        for name in ("cp_voxel_demo", "pv_rcnn_pp_demo")
    )
    for key in ("macs", "macs_published_convention", "acts"):
        assert both[key] == one[key] + both["second_stage"][key] and both["dense"] == one["dense"]
        assert (
            sum(
                row[key.replace("macs_published_convention", "published_macs")]
                for row in both["layers"]
            )
            == both[key]
        )
    assert (both["second_stage"]["keypoints"], both["second_stage"]["rois"]) == (
        512,
        published.PROPOSALS,
    )


def test_without_a_second_stage_there_is_none_to_count() -> None:
    with pytest.raises(CostError, match="no second stage"):
        measure_second_stage_cost(model_profile.ghost(zoo.model("cp_voxel_demo")), 1, 1)


def test_sparse_part_equals_brute_force_and_the_mean_of_frames() -> None:
    grid = replace(zoo.model("cp_voxel_xxs").grid, point_range=(-3.2, -3.2, -2.0, 3.2, 3.2, 4.0))
    model = replace(zoo.model("cp_voxel_xxs"), grid=grid)
    rng = np.random.default_rng(1)
    sweeps = [
        Sample(
            "frame",
            rng.uniform(-2, 2, (count, 5)).astype(np.float32),
            np.zeros((0, 7), np.float32),
            np.zeros(0, np.int64),
        )
        for count in (40, 300)
    ]
    one, two = (model_profile.model_cost(model, [sweep]) for sweep in sweeps)
    both = model_profile.model_cost(model, sweeps)
    for key in ("macs", "macs_published_convention", "acts"):
        assert both[key] == pytest.approx((one[key] + two[key]) / 2)
        assert both[key] == pytest.approx(both["dense"][key] + both["sparse"][key])
        assert sum(row["macs"] for row in both["layers"]) == pytest.approx(both["macs"])
    coords = model_profile.build(model).voxelize(collate([sweeps[1]]).points).coords
    sites = {tuple(site) for site in coords[:, 1:].tolist()}
    steps = [(z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    pairs = sum((z + dz, y + dy, x + dx) in sites for z, y, x in sites for dz, dy, dx in steps)
    first = two["layers"][0]
    assert first["name"] == "backbone_3d.conv_input.0" and first["macs"] == pairs * 5 * 8
    assert first["acts"] == len(sites) * 8
    assert two["layers"][2]["published_macs"] == pairs * 8 * 8 + len(sites), "one bias a site"


def test_a_full_grid_costs_what_the_dense_formula_says() -> None:
    from kdlib.models.sparse import SparseTensor, SubmConv3d
    from kdlib.profiling.layer_rules import rule

    shape = (4, 5, 6)
    coords = torch.ones(1, *shape).nonzero()
    layer = SubmConv3d(3, 7, 3, key="all")
    sites = SparseTensor(torch.rand(len(coords), 3), coords, shape, 1)
    count = rule(layer)
    assert count is not None
    cost = count(layer, (sites,), layer(sites))
    assert cost.macs == (3 * 4 - 2) * (3 * 5 - 2) * (3 * 6 - 2) * 3 * 7, (
        "without the neighbours outside"
    )
    assert cost.acts == 4 * 5 * 6 * 7


def test_profile_of_a_name_is_plain_json() -> None:
    values = model_profile.profile_model("cp_pillar_v0.64")
    assert json.loads(json.dumps(values)) == values
    assert {
        "params",
        "macs",
        "macs_published_convention",
        "acts",
        "dense",
        "sparse",
        "layers",
    } <= set(values)
    assert "second_stage" not in values
    assert values["counted_on"] == model_profile.SIMULATED_SWEEP
    with pytest.raises(ConfigError, match="'cp_pilar'"):
        model_profile.profile_model("cp_pilar")


def test_layers_are_named_whole_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "roi_head.roi_grid_pool_layer.layer_1.separate_local_aggregation_layer.1"
    numbers = {"macs": 2e9, "published_macs": 3e9, "acts": 1e6}
    layer = {"name": name, "kind": "BatchNorm1d", "parameters": 12_345_678, **numbers}
    total = {**numbers, "macs_published_convention": 3e9}
    values = {"model": "m", "params": 1, "counted_on": "a sweep", **total, "layers": [layer]}
    model_profile.print_profile({**values, "dense": total, "sparse": total})
    lines = capsys.readouterr().out.splitlines()
    assert name in lines and all(len(line) <= 80 for line in lines)
    assert lines[-1].split() == ["BatchNorm1d", "12,345,678", "2,000.00", "3,000.00", "1.00"]
