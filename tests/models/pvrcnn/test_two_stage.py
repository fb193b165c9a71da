"""PV-RCNN++ whole: published counts and shapes, checkpoints, its first stage, a training step,
empty frames.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlib import zoo
from kdlib.config import PillarEncoderConfig, TwoStageConfig, VoxelEncoderConfig, from_dict, to_dict
from kdlib.errors import ConfigError, DataError
from kdlib.kd.objective import Plain
from kdlib.kd.teacher import Teacher
from kdlib.models.build import build
from kdlib.models.detector import CenterPoint
from kdlib.models.pvrcnn.neighbours import Cloud
from kdlib.models.pvrcnn.rois import grid_points
from kdlib.models.pvrcnn.two_stage import PVRCNN
from kdlib.tools.checkpoints import foreign
from kdlib.types import GroundTruth, PointBatch

PARTS = {
    "vfe": 0,
    "backbone_3d": 2_695_312,
    "pfe": 525_300,
    "backbone_2d": 4_576_768,
    "dense_head": 486_731,
    "point_head": 206_081,
    "roi_head": 7_607_496,
}
_SA = {
    "separate_local_aggregation_layer.0.weight": (864, 41, 1),
    "post_mlps.0.weight": (64, 864, 1),
    "post_mlps.3.weight": (64, 64, 1),
}
_POOL = {**_SA, "separate_local_aggregation_layer.0.weight": (864, 33, 1)}
SHAPES = {
    **{
        f"pfe.SA_layers.{i}.layer_{j}.{name}": shape
        for i in (0, 1)
        for j in (0, 1)
        for name, shape in _SA.items()
    },
    **{f"pfe.SA_layers.{i}.msg_post_mlps.0.weight": (128, 131, 1) for i in (0, 1)},
    "pfe.SA_rawpoints.layer_0.separate_local_aggregation_layer.0.weight": (256, 11, 1),
    "pfe.SA_rawpoints.layer_1.separate_local_aggregation_layer.0.weight": (864, 11, 1),
    "pfe.SA_rawpoints.layer_0.post_mlps.0.weight": (32, 256, 1),
    "pfe.SA_rawpoints.layer_1.post_mlps.0.weight": (32, 864, 1),
    "pfe.SA_rawpoints.layer_0.post_mlps.3.weight": (32, 32, 1),
    "pfe.SA_rawpoints.layer_1.post_mlps.3.weight": (32, 32, 1),
    "pfe.SA_rawpoints.msg_post_mlps.0.weight": (32, 67, 1),
    "pfe.vsa_point_feature_fusion.0.weight": (90, 544),
    "point_head.cls_layers.0.weight": (256, 544),
    "point_head.cls_layers.3.weight": (256, 256),
    "point_head.cls_layers.6.weight": (1, 256),
    "point_head.cls_layers.6.bias": (1,),
    **{
        f"roi_head.roi_grid_pool_layer.layer_{j}.{name}": shape
        for j in (0, 1)
        for name, shape in _POOL.items()
    },
    "roi_head.roi_grid_pool_layer.msg_post_mlps.0.weight": (128, 131, 1),
    "roi_head.shared_fc_layer.0.weight": (256, 27648, 1),
    "roi_head.shared_fc_layer.4.weight": (256, 256, 1),
    **{
        f"roi_head.{kind}_layers.{i}.weight": (256, 256, 1)
        for kind in ("cls", "reg")
        for i in (0, 4)
    },
    "roi_head.cls_layers.7.weight": (1, 256, 1),
    "roi_head.cls_layers.7.bias": (1,),
    "roi_head.reg_layers.7.weight": (7, 256, 1),
    "roi_head.reg_layers.7.bias": (7,),
}
NORMS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def ghost() -> PVRCNN:
    with torch.device("meta"):
        return build(zoo.model("pv_rcnn_pp"))


def test_published_counts(ghost):
    assert {
        name: sum(p.numel() for p in part.parameters()) for name, part in ghost.named_children()
    } == PARTS
    assert sum(p.numel() for p in ghost.parameters()) == 16_097_688
    assert list(PARTS) == [name for name, _ in ghost.named_children()], (
        "the order of the original's state dict"
    )


def test_published_names_and_shapes(ghost):
    """Appendix A: every tensor of the second stage is a weight listed there or belongs to the
    BatchNorm behind one.
    """
    state = {name: tuple(value.shape) for name, value in ghost.state_dict().items()}
    second = {
        name: shape
        for name, shape in state.items()
        if name.startswith(("pfe.", "point_head.", "roi_head."))
    }
    wanted = dict(SHAPES)
    for name, shape in SHAPES.items():
        if name.endswith(".weight") and not name.endswith((".6.weight", ".7.weight")):
            head, _, position = name.removesuffix(".weight").rpartition(".")
            norm = f"{head}.{int(position) + 1}"
            wanted |= {
                f"{norm}.{part}": () if part == "num_batches_tracked" else shape[:1]
                for part in NORMS
            }
    assert second == wanted
    with torch.device("meta"):
        first = {
            name: tuple(value.shape)
            for name, value in build(zoo.model("cp_voxel")).state_dict().items()
        }
    assert first == {name: shape for name, shape in state.items() if name not in second}, (
        "the first stage is CP-Voxel's"
    )


def test_initial_weights_are_those_of_the_original():
    torch.manual_seed(0)
    head = build(zoo.model("pv_rcnn_pp")).roi_head
    final = head.reg_layers[-1]
    assert (
        float(final.weight.detach().std()) == pytest.approx(0.001, rel=0.1)
        and not final.bias.detach().any()
    )
    first = head.shared_fc_layer[0].weight.detach()  # xavier: variance 2 / (fan in + fan out)
    assert float(first.std()) == pytest.approx((2 / (27648 + 256)) ** 0.5, rel=0.01)
    pooled = head.roi_grid_pool_layer.msg_post_mlps[0].weight.detach()
    assert float(pooled.std()) == pytest.approx((2 / (131 + 128)) ** 0.5, rel=0.05), (
        "xavier, too, not the pool's own"
    )


@pytest.mark.parametrize("axes", [(0, 1, 2, 3, 4), (1, 2, 3, 4, 0)], ids=["spconv2", "spconv1"])
def test_a_checkpoint_imports_strictly(tiny, batch, tmp_path, axes):
    model = tiny(seed=3).eval()
    state = {
        name: value.permute(axes).contiguous() if value.dim() == 5 else value
        for name, value in model.state_dict().items()
    }
    torch.save({"model_state": state, "epoch": 30, "it": 7}, tmp_path / "original.pth")
    fresh = tiny(seed=4).eval()
    imported = foreign.import_checkpoint(tmp_path / "original.pth", fresh)
    assert imported.coverage.complete and len(imported.coverage.loaded) == len(model.state_dict())
    fresh.load_state_dict(dict(imported.tensors))
    points = batch(1).points
    with torch.no_grad():
        ours, theirs = model(points).second, fresh(points).second
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.codes, theirs.codes)
    del state["pfe.vsa_point_feature_fusion.0.weight"]
    torch.save({"model_state": state}, tmp_path / "cut.pth")
    with pytest.raises(
        DataError, match=(r"missing in the file: " r"pfe\.vsa_point_feature_fusion\.0\.weight")
    ):
        foreign.import_checkpoint(tmp_path / "cut.pth", fresh)


def test_the_first_stage_answers_as_cp_voxel_does(tiny, batch):
    model, points = tiny().eval(), batch().points
    config = model.config
    alone = CenterPoint(replace(zoo.model("cp_voxel_demo"), grid=config.grid)).eval()
    alone.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name in alone.state_dict()}
    )
    with torch.no_grad():
        ours, theirs = model(points, sites=True), alone(points, sites=True)
        proposals = alone.detect(theirs)
    assert torch.equal(ours.heads[0].heatmap, theirs.heads[0].heatmap) and torch.equal(
        ours.bev, theirs.bev
    )
    assert torch.equal(ours.sites.features, theirs.sites.features) and ours.voxels == theirs.voxels
    assert torch.equal(ours.second.rois.boxes, torch.cat([one.boxes for one in proposals]))
    found = model.detect(ours)
    assert len(found) == 2 and all((one.scores[:-1] >= one.scores[1:]).all() for one in found)


def test_the_second_stage_runs_only_for_boxes(tiny, batch):
    model = tiny().eval()
    with torch.no_grad():
        bare = model(batch().points, boxes=False)
    assert bare.second is None
    with pytest.raises(ValueError, match="no boxes were asked for"):
        model.detect(bare)


def test_frames_do_not_see_each_other(tiny, batch):
    model, both = tiny().eval(), batch(2).points
    with torch.no_grad():
        together = model.detect(model(both))
        for number in range(2):
            own = both.points[both.batch_index == number]
            alone = model.detect(
                model(PointBatch(own, torch.zeros(len(own), dtype=torch.int64), 1, ("f",)))
            )[0]
            assert torch.allclose(alone.boxes, together[number].boxes, atol=1e-4)
            assert torch.allclose(alone.scores, together[number].scores, atol=1e-5)


def test_rois_are_pooled_alike_in_parts(tiny, batch, monkeypatch):
    model, points = tiny().eval(), batch().points
    with torch.no_grad():
        whole = model(points).second
        monkeypatch.setattr("kdlib.models.pvrcnn.roi_head._ROIS", 3)
        parts = model(points).second
    assert len(whole.logits) > 3 and torch.allclose(whole.codes, parts.codes, atol=1e-6)


def test_pooled_features_lie_channel_by_channel(tiny, batch):
    """(R, points, channels) of the pooling become channels * points of a row, as the original's
    transpose does.
    """
    model = tiny().eval()
    kept = {}
    model.pfe.register_forward_hook(lambda module, given, answer: kept.update(keys=answer))
    with torch.no_grad():
        second = model(batch(1).points).second
        scores, keys, head = second.point_logits.sigmoid(), kept["keys"], model.roi_head
        rows = head.pool(keys, scores, second.rois)
        queries = grid_points(second.rois.boxes[:1], 3)[0]
        places = Cloud(queries, torch.zeros(27, dtype=torch.int64))
        # (27, channels)
        wanted = head.roi_grid_pool_layer(keys, keys.fused * scores[:, None], places)
    assert torch.allclose(rows[0].view(-1, 27).t(), wanted, atol=1e-6)


def train(model, batch, steps, rate=3e-3):
    objective = Plain(model).train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        terms = objective(batch)
        terms.loss.backward()
        optimiser.step()
        losses.append(
            {name: float(value.detach()) for name, value in terms.parts.items()}
            | {"loss": float(terms.loss.detach())}
        )
    return losses


def test_training_lowers_every_loss(tiny, batch):
    torch.manual_seed(0)
    losses = train(tiny(), batch(), 30)
    assert set(losses[0]) == {
        "heatmap",
        "box",
        "point",
        "roi_class",
        "roi_box",
        "roi_corner",
        "loss",
    }
    assert losses[-1]["loss"] < 0.5 * losses[0]["loss"]
    assert losses[-1]["point"] < 0.5 * losses[0]["point"]


def test_every_parameter_gets_a_gradient_and_proposals_none(tiny, batch):
    model, data = tiny(), batch()
    train(model, data, 15)  # until some proposals lie on objects
    model.zero_grad()
    prediction = model.train()(data.points, truth=data.truth)
    assert (
        prediction.second.roi_targets.positive.any()
        and not prediction.second.rois.boxes.requires_grad
    )
    assert prediction.second.rois.frame.bincount().tolist() == [24, 24]
    Plain(model)(data).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_a_step_depends_on_torchs_generator_alone(tiny, batch):
    runs = []
    for _ in range(2):
        model = tiny()
        torch.manual_seed(5)
        runs.append(train(model, batch(), 3))
    assert runs[0] == runs[1]


def test_a_frozen_first_stage_stays_as_it_is(tiny, batch):
    model = tiny("frozen")
    before = copy.deepcopy(model.state_dict())
    losses = train(model, batch(), 3)
    assert set(losses[0]) == {"point", "roi_class", "roi_box", "roi_corner", "loss"}
    changed = {
        name.partition(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"pfe", "point_head", "roi_head"}
    assert model.training and model.pfe.training and not model.backbone_2d.training


def test_without_proposals_nothing_is_refined_but_training_goes_on(tiny, batch):
    model, data = tiny(), batch()
    with torch.no_grad():
        model.dense_head.heads_list[0].hm[1].bias.fill_(-20.0)
    with torch.no_grad():
        second = model.eval()(data.points).second
    assert len(second.rois.boxes) == 0 and len(second.points) == 2, "one key point a frame"
    assert [len(found.boxes) for found in model.detect(model(data.points))] == [0, 0]
    terms = Plain(model.train())(data)
    terms.loss.backward()
    assert terms.loss.isfinite() and float(terms.parts["roi_class"].detach()) == 0


def test_frames_without_labels(tiny, batch):
    data = batch()
    none = replace(
        data, truth=GroundTruth(torch.zeros(2, 0, 7), torch.zeros(2, 0, dtype=torch.int64))
    )
    terms = Plain(tiny().train())(none)
    terms.loss.backward()
    assert (
        terms.loss.isfinite()
        and float(terms.parts["roi_box"].detach()) == float(terms.parts["roi_corner"].detach()) == 0
    )


def test_the_startup_report_names_every_part_and_moves_nothing(tiny, batch):
    model = tiny().train()
    before = copy.deepcopy(model.state_dict())
    rows = {row.name: row for row in Plain(model).report(batch())}
    assert list(rows) == ["heatmap", "box", "point", "roi_class", "roi_box", "roi_corner"]
    assert rows["roi_class"].positions == 48 and rows["point"].weight == 1.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("norm", ["running", "batch"])
def test_as_a_teacher(tiny, batch, norm):
    """First-stage maps, refined boxes without suppression; nothing drawn at random, nothing
    moved.
    """
    model, data = tiny(), batch()
    before = copy.deepcopy(model.state_dict())
    teacher = Teacher(model, norm)
    answer, again = teacher(data), teacher(data)
    assert torch.equal(answer.heads[0].heatmap, again.heads[0].heatmap) and torch.equal(
        answer.boxes[0].boxes, again.boxes[0].boxes
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules() if isinstance(module, nn.Dropout))
    if norm == "running":
        with torch.no_grad():
            prediction = model.eval()(data.points)
        assert torch.equal(prediction.heads[0].heatmap, answer.heads[0].heatmap)
        kept = prediction.second.logits.sigmoid() >= 0.1
        assert sum(len(one.boxes) for one in answer.boxes) == int(kept.sum()), (
            "all of them, however they overlap"
        )
    called = []
    model.roi_head.register_forward_hook(lambda *_: called.append(1))
    bare = teacher(data, ("targets",))
    assert bare.boxes == () and not called, "nobody asked for boxes"


def test_settings_that_do_not_fit():
    demo = zoo.model("pv_rcnn_pp_demo")
    assert isinstance(demo, TwoStageConfig)
    with pytest.raises(
        ConfigError, match="'bad': a second stage needs voxels and a centre head below it"
    ):
        replace(demo, name="bad", encoder=PillarEncoderConfig())
    with pytest.raises(
        ConfigError,
        match=(
            "'bad': 24 channels of the stage of stride 4 cannot be folded into 16; change reduced"
        ),
    ):
        replace(demo, name="bad", encoder=VoxelEncoderConfig(width=0.375))
    with pytest.raises(ConfigError, match="48 channels of a key point cannot be folded into 20"):
        replace(
            demo.second,
            rois=replace(demo.second.rois, pool=replace(demo.second.rois.pool, reduced=20)),
        )
    with pytest.raises(ConfigError, match="'cp_voxel' has no second stage; use build"):
        PVRCNN(zoo.model("cp_voxel"))


def test_settings_survive_a_file():
    for name in ("pv_rcnn_pp", "pv_rcnn_pp_demo"):
        assert from_dict(TwoStageConfig, to_dict(zoo.model(name))) == zoo.model(name)
