"""The detector against numbers printed by the original implementation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdlib import zoo
from kdlib.config import HeadConfig
from kdlib.models.build import build
from kdlib.models.decode import decode_maps
from kdlib.models.targets import assign_targets
from kdlib.models.weights import load_weights
from kdlib.types import HeadOutput, PointBatch

HEAD = HeadConfig()
PILLAR = zoo.CP_PILLAR_V064.grid
VOXEL = zoo.CP_VOXEL.grid


@pytest.mark.parametrize("case", ["a", "overflow", "boundary"])
@pytest.mark.parametrize(
    "name, grid, head",
    [("pillar_232", PILLAR, HEAD), ("voxel_188", VOXEL, replace(HEAD, stride=8))],
)
def test_target_assignment(goldens, name, grid, head, case):
    golden = np.load(goldens / "original/01_assign_targets" / f"{name}.npz")
    given = torch.from_numpy(golden[f"{case}_boxes"])
    before = given.clone()
    (found,) = assign_targets(given[..., :7], given[..., 7].long(), grid=grid, head=head)
    assert torch.equal(given, before)
    mask = torch.from_numpy(golden[f"{case}_masks"]).bool()
    assert torch.equal(found.mask, mask)
    assert torch.equal(found.indices[mask], torch.from_numpy(golden[f"{case}_inds"]).long()[mask])
    torch.testing.assert_close(
        found.boxes[mask], torch.from_numpy(golden[f"{case}_target_boxes"])[mask], rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        found.heatmap, torch.from_numpy(golden[f"{case}_heatmaps"]), rtol=0, atol=1e-6
    )


def dequantised(golden) -> HeadOutput:
    meta = json.loads(str(golden["meta"]))
    maps = {
        name: torch.from_numpy(
            golden[f"q_{name}"].astype(np.float32) * np.float32(step)
            + np.float32(meta.get("offset", {}).get(name, 0))
        )
        for name, step in meta["step"].items()
    }
    return HeadOutput(maps["hm"], maps["center"], maps["center_z"], maps["dim"], maps["rot"])


@pytest.mark.parametrize("nms", [False, True])
def test_decoding(goldens, nms):
    golden = np.load(goldens / "original/03_decode/pillar_232.npz")
    found = decode_maps([dequantised(golden)], grid=PILLAR, head=HEAD, nms=nms)
    for b, frame in enumerate(found):
        prefix = f"{'nms' if nms else 'nonms'}_{b}_"
        np.testing.assert_allclose(frame.boxes, golden[prefix + "boxes"], atol=1e-4)
        np.testing.assert_allclose(frame.scores, golden[prefix + "scores"], atol=1e-6)
        np.testing.assert_array_equal(frame.labels, golden[prefix + "labels"])


FAMILIES = {
    **dict.fromkeys(
        ("cp_pillar", "cp_pillar_v0.4", "cp_pillar_v0.48", "cp_pillar_v0.64"),
        ("cp-pillar/", 5_224_043),
    ),
    "cp_voxel": ("cp-voxel/", 7_758_811),
    "cp_voxel_s": ("cp-voxel/", 4_038_203),
    "cp_voxel_xs": ("cp-voxel/", 2_823_223),
    "cp_voxel_xxs": ("cp-voxel/", 1_012_643),
    "second": ("", 5_326_008),
    "pointpillar": ("", 4_838_760),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_state_dict_and_parameter_count(goldens, name):
    family, total = FAMILIES[name]
    theirs = family + {"pointpillar": "pointpillar_1x"}.get(name, name.replace("_", "-"))
    folder = goldens / "original/10_params"
    shapes = json.loads((folder / "state_shapes" / f"{theirs.replace('/', '__')}.json").read_text())
    counts = json.loads((folder / "param_counts.json").read_text())[theirs]
    with torch.device("meta"):
        built = build(zoo.model(name))
    assert {
        key: [list(t.shape), str(t.dtype)[6:]] for key, t in built.state_dict().items()
    } == shapes
    assert list(built.state_dict()) == list(shapes), (
        "the order matters to initialisation by BatchNorm scale"
    )
    assert sum(p.numel() for p in built.parameters()) == counts["total"] == total
    for part, count in counts["per_module"].items():
        assert sum(p.numel() for p in built.get_submodule(part).parameters()) == count
    assert list(zoo.model(name).grid.grid_size) == counts["grid_size"]


def scan(goldens) -> PointBatch:
    points = torch.from_numpy(
        np.load(goldens / "original/08_forward/scan_and_voxels.npz")["points"]
    )
    return PointBatch(points, torch.zeros(len(points), dtype=torch.long), 1, ("scan",))


def test_forward_of_v064_with_the_originals_weights(goldens, shared):
    folder = shared / "goldens/original/08_forward"
    golden = np.load(folder / "cp-pillar-v0.64.npz")
    model = build(zoo.CP_PILLAR_V064).eval()
    load_weights(folder / "weights_cp-pillar.safetensors", model)
    batch = scan(goldens)
    with torch.inference_mode():
        pillars = model.voxelize(batch)
        features = model.vfe(pillars)
        spatial, _ = model.encode(pillars)
        prediction = model(batch)
        boxes = {nms: model.detect(prediction, nms=nms)[0] for nms in (False, True)}
    np.testing.assert_allclose(features[:100], golden["vfe_out_first100"], atol=5e-4)
    same_answer(golden, spatial, prediction, boxes)


def same_answer(golden, spatial, prediction, boxes) -> None:
    """Compare a forward pass from the BEV map on: maps at the sampled cells, every head map whole,
    boxes.
    """
    assert prediction.voxels == json.loads(str(golden["meta"]))["n_voxels"]
    for found, name in ((spatial, "spatial_features"), (prediction.bev, "spatial_features_2d")):
        assert list(found.shape[1:]) == golden[f"{name}_shape"].tolist()
        y, x = golden[f"{name}_samp_yx"].T.astype(int)
        np.testing.assert_allclose(found[0][:, y, x], golden[f"{name}_samp"], atol=5e-4)
    head = prediction.heads[0]
    for found, name in zip(
        (head.heatmap, head.center, head.center_z, head.dim, head.rot),
        ("hm", "center", "center_z", "dim", "rot"),
    ):
        np.testing.assert_allclose(found[0], golden[f"out_{name}"], atol=5e-4)
    for nms, prefix in ((False, "dec_nonms"), (True, "dec_nms")):
        np.testing.assert_allclose(boxes[nms].scores, golden[f"{prefix}_scores"], atol=5e-4)
        assert len(boxes[nms].boxes) == len(golden[f"{prefix}_boxes"])


def same_sites(golden, name, sites) -> None:
    """Compare one stage of the 3D backbone: which sites are active, and the features of 150 of
    them.
    """
    order = np.lexsort(sites.coords.numpy().T[::-1])
    coords = sites.coords.numpy()[order]
    stage = json.loads(str(golden["meta"]))["stages"][name]
    assert [len(coords), list(sites.spatial_shape)] == [
        stage["n_active"],
        stage["spatial_shape_zyx"],
    ]
    digest = hashlib.sha256(np.ascontiguousarray(coords.astype(np.int32)).tobytes()).hexdigest()
    assert digest == str(golden[f"sp_{name}_coords_sorted_sha"])
    features = sites.features.numpy()[order]
    place = {tuple(row): number for number, row in enumerate(coords.tolist())}
    rows = [place[tuple(row)] for row in golden[f"sp_{name}_samp_bzyx"].tolist()]
    np.testing.assert_allclose(features[rows], golden[f"sp_{name}_samp"], atol=5e-4)
    np.testing.assert_allclose(features.mean(axis=0), golden[f"sp_{name}_mean"], atol=5e-4)
    np.testing.assert_allclose(features.std(axis=0), golden[f"sp_{name}_std"], atol=5e-4)


def test_forward_of_voxel_xxs_with_the_originals_weights(goldens, shared):
    folder = shared / "goldens/original/08_forward"
    golden = np.load(folder / "cp-voxel-xxs.npz")
    model = build(zoo.CP_VOXEL_XXS).eval()
    load_weights(folder / "weights_cp-voxel-xxs.safetensors", model)
    batch, net = scan(goldens), model.backbone_3d
    with torch.inference_mode():
        voxels = model.voxelize(batch)
        features = model.vfe(voxels)
        np.testing.assert_allclose(features[:100], golden["vfe_out_first100"], atol=5e-4)
        sites = net.sites(features, voxels)
        for name in ("conv_input", "conv1", "conv2", "conv3", "conv4"):
            sites = net.get_submodule(name)(sites)
            same_sites(golden, name, sites)
        before_relu = net.conv_out[0](sites)
        same_sites(golden, "conv_out", before_relu.replace(net.conv_out[1](before_relu.features)))
        prediction = model(batch)
        boxes = {nms: model.detect(prediction, nms=nms)[0] for nms in (False, True)}
        same_answer(golden, model.encode(voxels)[0], prediction, boxes)
