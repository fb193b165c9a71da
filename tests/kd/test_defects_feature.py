"""Defects of the original that feature distillation must not have, named by their number.

``d`` is spec section 11, ``b`` the list of confirmed defects.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdlib.config import AnchorHeadConfig, FeatureKDConfig, KDConfig, LabelKDConfig
from kdlib.errors import ConfigError
from kdlib.kd.adapter import Adapter, make_adapter
from kdlib.kd.feature import foreground, map_distance
from kdlib.kd.objective import Distillation, Plain
from kdlib.kd.roi_grid import roi_grid_pool
from kdlib.kd.teacher import Teacher
from kdlib.models.build import build
from kdlib.types import Batch, GroundTruth

FORMS = ("map", "foreground", "rois", "attention", "affinity", "local")
LOW = LabelKDConfig((0.4, 0.4, 0.4))


def recipe(norm="running", label=None, **settings):
    return KDConfig(logit=None, label=label, feature=FeatureKDConfig(**settings), teacher_norm=norm)


def wider(model):
    """A fresh teacher of 16 channels per level and in its pillars."""
    config = model.config
    torch.manual_seed(4)
    backbone = replace(config.backbone, upsample_filters=(16, 16))
    return build(
        replace(
            config, name="wide", backbone=backbone, encoder=replace(config.encoder, filters=(8, 16))
        )
    )


def values(terms):
    return {name: value.item() for name, value in terms.parts.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_d13_a_wider_teacher_is_met_by_the_student(pair, batch, form, heads):
    """The original's channel selection reached the student alone and raised a KeyError."""
    student, teacher = pair(heads)
    terms = Distillation(student, wider(teacher), recipe(form=form))(batch())
    assert terms.parts["kd_feature"] > 0
    terms.loss.backward()


@pytest.mark.parametrize(
    "form, ours, theirs", [("map", 16, 32), ("rois", 16, 32), ("local", 16, 32)]
)
def test_d13_without_an_adapter_widths_must_agree(pair, form, ours, theirs):
    student, teacher = pair()
    with pytest.raises(
        ConfigError,
        match=f"the student has {ours} channels and the teacher {theirs}; set adapter to '1x1'",
    ):
        Distillation(student, wider(teacher), recipe(form=form, adapter="none"))


def test_d14_boxes_at_the_far_edge_are_read_where_they_are():
    region = (-4.0, -4.0, 4.0, 4.0)
    ramp = (torch.arange(16) + 0.5).expand(1, 1, 16, 16) / 2 - 4
    far, near = (torch.tensor([[[x, x, 0.0, 0.4, 0.2, 1.0, 0.0]]]) for x in (3.0, -3.0))
    assert roi_grid_pool(ramp, far, region, 1).item() == pytest.approx(3.0)  # the original says 3.1
    assert roi_grid_pool(ramp, near, region, 1).item() == pytest.approx(-3.0)


@pytest.mark.parametrize("form", ["rois", "affinity", "local"])
def test_d15_frames_are_not_mixed(pair, batch, one_frame, form):
    """Batch numbers came from a division of integers that torch has made a fraction of."""
    student, teacher = pair()
    objective = Distillation(student.eval(), teacher, recipe(form=form))
    data = batch()
    together = objective(data).parts["kd_feature"].item()
    alone = [objective(one_frame(data, frame)).parts["kd_feature"].item() for frame in range(2)]
    assert alone[0] != alone[1] and together == pytest.approx(sum(alone) / 2, rel=1e-4)


def test_d15_an_object_in_the_first_cell_counts_beside_empty_slots(pair, batch):
    student, _ = pair()
    boxes = torch.zeros(1, 3, 7)
    boxes[0, 0] = torch.tensor([-5.0, -5.0, 0.0, 2.0, 1.0, 1.0, 0.0])
    targets = student.targets(GroundTruth(boxes, torch.tensor([[1, 0, 0]])))
    assert targets[0].indices[0, 0] == 0 and foreground(targets)[0, 0, 0] == 1


@pytest.mark.parametrize("heads", [2, 3])
def test_d16_all_heads_count_and_not_the_last(pair, batch, heads):
    student, teacher = pair(heads)
    student.eval()
    data = batch()
    config = recipe(form="foreground", adapter="none")
    got = Distillation(student, teacher, config)(data).parts["kd_feature"].item()
    one, _ = pair(1)
    everything = one.targets(data.truth)[0]
    fine = (
        build(replace(teacher.config, head=one.config.head))
        .targets(data.truth)[0]
        .heatmap.amax(dim=1)
    )
    with torch.no_grad():
        ours = torch.nn.functional.interpolate(
            student(data.points).bev, size=(32, 32), mode="bilinear", align_corners=False
        )
        theirs = teacher.eval()(data.points).bev
    assert everything.heatmap.shape[1] == 3
    assert got == pytest.approx(map_distance(ours, theirs, "mse", fine).item(), rel=1e-4)


@pytest.mark.parametrize("kernel", ["1x1", "3x3"])
def test_d17_channels_lead_from_the_student_to_the_teacher(pair, kernel):
    student, teacher = pair()
    adapter = make_adapter(student, wider(teacher), FeatureKDConfig("map", adapter=kernel), 0)
    assert isinstance(adapter, Adapter) and adapter.weight.shape[:2] == (32, 16)
    assert adapter(torch.zeros(1, 16, 4, 4)).shape == (1, 32, 4, 4)


def test_b1_align_corners_is_obeyed(pair, batch):
    student, teacher = pair()
    student.eval()
    got = {
        corners: Distillation(student, teacher, recipe(form="map", align_corners=corners))(batch())
        .parts["kd_feature"]
        .item()
        for corners in (False, True)
    }
    assert got[False] != got[True]


@pytest.mark.parametrize("form", FORMS)
def test_b2_b5_labels_stay_and_the_order_of_calls_does_not_matter(pair, batch, form):
    student, teacher = pair(3)
    student.eval()
    data = batch()
    before = [
        tensor.clone() for tensor in (data.points.points, data.truth.boxes, data.truth.labels)
    ]
    objective, plain = Distillation(student, teacher, recipe(form=form, label=LOW)), Plain(student)
    first, alone = values(objective(data)), values(plain(data))
    assert values(objective(data)) == first and values(plain(data)) == alone
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (data.points.points, data.truth.boxes, data.truth.labels))
    )


@pytest.mark.parametrize("form", FORMS)
def test_b6_heads_of_one_class_keep_their_axis(pair, batch, form):
    student, teacher = pair(3)
    terms = Distillation(student, teacher, recipe(form=form))(batch())
    assert terms.parts["kd_feature"].shape == () and terms.parts["kd_feature"] > 0
    assert foreground(student.targets(batch().truth)).shape == (2, 16, 16)


@pytest.mark.parametrize("score, some", [(0.1, True), (1.0, False)])
def test_b8_teacher_boxes_can_be_rois(pair, batch, score, some):
    student, teacher = pair()
    config = recipe(form="rois", rois="teacher", roi_score=score, relation_weight=1.0)
    terms = Distillation(student, teacher, config)(batch())
    assert (terms.parts["kd_feature"] > 0) == some and (terms.parts["kd_relation"] > 0) == some


@pytest.mark.parametrize("norm", ["running", "batch"])
@pytest.mark.parametrize("form", ["rois", "local"])
def test_b9_an_outer_train_does_not_move_the_teachers_statistics(pair, batch, norm, form):
    student, teacher = pair()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    objective = Distillation(student, teacher, recipe(norm, form=form)).train()
    teacher.train()
    for _ in range(2):
        objective(batch()).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_b9_running_features_do_not_depend_on_batch_mates_and_batch_features_do(
    pair, batch, one_frame
):
    _, model = pair()
    data, gap = batch(), {}
    for norm in ("running", "batch"):
        teacher = Teacher(model, norm)
        together, alone = (teacher(some, ("bev",)).bev[:1] for some in (data, one_frame(data, 0)))
        gap[norm] = float((together - alone).abs().max())
    assert gap["running"] < 1e-4 and gap["batch"] > 1e-3


def test_b9_what_was_not_asked_for_is_not_kept(pair, batch):
    teacher = Teacher(pair()[1], "running")
    answer = teacher(batch())
    assert answer.bev is None and answer.sites is None
    asked = teacher(batch(), ("bev", "sites"))
    assert not asked.bev.requires_grad and not asked.sites.features.requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_b11_no_form_turns_to_zero_between_different_grids(pair, batch, form):
    for sizes in ((0.32, 0.64), (0.64, 0.32), (0.32, 0.32)):
        terms = Distillation(*pair(1, *sizes), recipe(form=form))(batch())
        assert terms.parts["kd_feature"] > 0, sizes


def test_b11_a_form_that_finds_nothing_is_an_error_after_fifty_steps(pair, batch):
    objective = Distillation(*pair(), recipe(form="rois", relation_weight=1.0)).train()
    data = batch(frames=1, boxes=0)
    terms = objective(data)
    assert terms.parts["kd_feature"].item() == 0 and terms.parts["kd_feature"].requires_grad
    terms.loss.backward()
    for _ in range(48):
        objective(data)
    with pytest.raises(
        ConfigError, match="'kd_feature' is enabled but was exactly 0 for the last 50 steps"
    ):
        objective(data)


@pytest.mark.parametrize("form", FORMS)
def test_b12_boxes_on_the_border_and_outside_are_finite(pair, batch, form):
    student, teacher = pair()
    data = batch(frames=1, boxes=2)
    boxes = torch.tensor(
        [[[5.12, 5.12, 0.0, 4.0, 2.0, 1.0, 0.7], [80.0, -80.0, 0.0, 4.0, 2.0, 1.0, 0.0]]]
    )
    terms = Distillation(student, teacher, recipe(form=form))(
        Batch(data.points, GroundTruth(boxes, torch.tensor([[1, 2]])))
    )
    terms.loss.backward()
    assert terms.loss.isfinite() and all(
        p.grad.isfinite().all() for p in student.parameters() if p.grad is not None
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_student_equal_to_its_teacher_learns_nothing(pair, batch, form):
    _, teacher = pair(1, 0.32, 0.32)
    student = build(teacher.config)
    student.load_state_dict(teacher.state_dict())
    for kind in ("mse",) if form in ("attention", "affinity") else ("mse", "smooth_l1", "cosine"):
        config = recipe(form=form, adapter="none", distance=kind)
        assert (
            abs(Distillation(student.eval(), teacher, config)(batch()).parts["kd_feature"].item())
            < 1e-6
        )


def test_anchor_heads_are_refused(pair):
    student, teacher = pair(1, 0.32, 0.32)
    anchors = build(replace(student.config, name="anchors", head=AnchorHeadConfig()))
    with pytest.raises(ConfigError, match="student 'anchors' has an anchor head"):
        Distillation(anchors, teacher, recipe(form="map"))


@pytest.mark.parametrize("form", FORMS)
def test_report_names_the_terms_with_what_they_look_at(pair, batch, form):
    student, teacher = pair()
    config = recipe(form=form, weight=0.5, **({"relation_weight": 2.0} if form == "rois" else {}))
    objective = Distillation(student, teacher, config).train()
    rows = {row.name: row for row in objective.report(batch())}
    names = ["heatmap", "box", "kd_feature"] + (["kd_relation"] if form == "rois" else [])
    assert list(rows) == names and rows["kd_feature"].weight == 0.5 and rows["kd_feature"].value > 0
    cells = int((foreground(teacher.targets(batch().truth)) > 0).sum())
    want = {
        "map": None,
        "attention": None,
        "foreground": cells,
        "rois": 8,
        "affinity": 8,
        "local": 256,
    }[form]
    assert rows["kd_feature"].positions == want
    if form == "rois":
        assert (rows["kd_relation"].weight, rows["kd_relation"].positions) == (2.0, 8)


def test_a_recipe_of_zero_weights_is_refused(pair):
    with pytest.raises(ConfigError, match="neither logit"):
        Distillation(*pair(), recipe(form="map", weight=0.0))
    both = replace(recipe(form="map", weight=0.0), label=LOW)
    assert set(Distillation(*pair(), both).state_dict()) == {
        f"student.{name}" for name in pair()[0].state_dict()
    }


@pytest.mark.parametrize("form", FORMS)
def test_mixed_precision_keeps_the_terms_in_float32(pair, batch, form):
    objective = Distillation(
        *pair(), recipe(form=form, **({"relation_weight": 1.0} if form == "rois" else {}))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = objective(batch())
    assert {value.dtype for value in terms.parts.values()} == {
        torch.float32
    } and terms.loss.isfinite()
    terms.loss.backward()
    assert objective.adapter.weight.grad.isfinite().all()
