from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdlib.config import AnchorHeadConfig, GridConfig, KDConfig, LabelKDConfig, LogitKDConfig
from kdlib.errors import ConfigError
from kdlib.kd.label import merge_labels
from kdlib.kd.logit import head_kd
from kdlib.kd.objective import Distillation, Plain
from kdlib.kd.teacher import Teacher
from kdlib.models.build import build
from kdlib.models.losses.detection import detection_loss
from kdlib.models.losses.loss_part import loss_terms
from kdlib.types import Batch, GroundTruth

LOW = LabelKDConfig((0.4, 0.4, 0.4))
RECIPE = KDConfig(label=LOW)


def logit_kd(student, teacher, student_targets, teacher_targets, config, region=None):
    """The values of a head's parts by name."""
    targets = teacher_targets if config.target == "teacher" else student_targets
    return {part.name: part.value for part in head_kd(student, teacher, targets, config, region)}


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same_state(module, before):
    return all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def values(terms):
    return {name: value.item() for name, value in terms.parts.items()}


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_distillation_is_the_sum_of_its_pure_parts(pair, batch, heads):
    student, model = pair(heads)
    data = batch()
    got = Distillation(student.eval(), model, RECIPE)(data)

    answer = Teacher(model, "batch")(data)
    labels = merge_labels(answer.boxes, data.truth, LOW)
    assert labels.labels.shape[1] > data.truth.labels.shape[1]
    maps, targets = student(data.points).heads, student.targets(labels)
    want = values(loss_terms(detection_loss(maps, targets, student.config.head)))
    apart = [
        logit_kd(s, t, a, b, RECIPE.logit)
        for s, t, a, b in zip(maps, answer.heads, targets, answer.targets)
    ]
    want["kd_heatmap"] = sum(p["kd_heatmap"].item() for p in apart) / heads
    assert values(got) == pytest.approx(want, rel=1e-5)
    assert got.loss.item() == pytest.approx(sum(want.values()), rel=1e-5)
    assert list(got.parts) == ["heatmap", "box", "kd_heatmap"]


def test_without_signal_weight_it_is_the_plain_objective(pair, batch):
    """Labels that no teacher box can enter: detection terms equal those of the student alone."""
    student, teacher = pair()
    student.eval()
    plain = values(Plain(student)(batch()))
    distilled = values(
        Distillation(student, teacher, KDConfig(label=LabelKDConfig((1.0, 1.0, 1.0))))(batch())
    )
    assert {k: distilled[k] for k in plain} == pytest.approx(plain, rel=1e-6) and distilled[
        "kd_heatmap"
    ] > 0


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_regression_term_on_equal_grids(pair, batch, heads):
    student, teacher = pair(heads, 0.32, 0.32)
    terms = Distillation(student, teacher, KDConfig(LogitKDConfig(regression_weight=0.2), None))(
        batch()
    )
    assert terms.parts["kd_box"] > 0


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it(pair, batch):
    _, teacher = pair(1, 0.32, 0.32)
    student = build(teacher.config)
    student.load_state_dict(teacher.state_dict())
    config = KDConfig(LogitKDConfig(regression_weight=0.2), None, teacher_norm="running")
    terms = Distillation(student.eval(), teacher, config)(batch())
    assert terms.parts["kd_heatmap"].item() == 0 and terms.parts["kd_box"].item() == 0


def test_only_the_student_is_trained_stored_and_switched(pair, batch):
    student, teacher = pair()
    before = state(teacher)
    objective = Distillation(student, teacher, RECIPE)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in student.parameters()}
    assert set(objective.state_dict()) == {f"student.{k}" for k in student.state_dict()}
    objective.train()
    optimiser = torch.optim.SGD(objective.parameters(), 0.01)
    for _ in range(3):
        optimiser.zero_grad()
        objective(batch()).loss.backward()
        optimiser.step()
    assert same_state(teacher, before) and all(p.grad is None for p in teacher.parameters())
    before_norm = ("shared_conv.0.bias", ".0.0.bias")  # a shift in front of BatchNorm has no effect
    learned = {
        n: p.grad is not None and bool(p.grad.abs().sum() > 0)
        for n, p in student.named_parameters()
    }
    assert all(learned[n] for n in learned if not n.endswith(before_norm)), learned


def test_teacher_follows_the_student_between_types(pair):
    objective = Distillation(*pair(), RECIPE)
    objective.double()
    assert all(p.dtype == torch.float64 for p in objective.teacher.parameters())


def test_b5_and_b2_order_of_calls_does_not_matter_and_inputs_stay(pair, batch):
    student, teacher = pair(3)
    student.eval()
    data = batch()
    before = [t.clone() for t in (data.points.points, data.truth.boxes, data.truth.labels)]
    objective, plain = Distillation(student, teacher, RECIPE), Plain(student)
    first = values(objective(data))
    alone = values(plain(data))
    second = values(objective(data))
    assert first == second and values(plain(data)) == alone
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (data.points.points, data.truth.boxes, data.truth.labels))
    )


def test_empty_scenes_are_finite(pair, batch):
    data = batch(boxes=0)
    objective = Distillation(*pair(), KDConfig(label=LabelKDConfig((1.0, 1.0, 1.0))))
    terms = objective(data)
    terms.loss.backward()
    assert (
        terms.loss.isfinite()
        and terms.parts["kd_heatmap"].item() == 0
        and terms.parts["box"].item() == 0
    )
    padded = Batch(
        data.points, GroundTruth(torch.zeros(2, 3, 7), torch.zeros(2, 3, dtype=torch.int64))
    )
    assert objective(padded).loss.isfinite()


def test_b11_terms_that_cannot_work_are_refused_at_construction(pair):
    student, teacher = pair()
    with pytest.raises(
        ConfigError,
        match="student has 16 x 16 cells and the teacher 32 x 32; set regression_weight to 0",
    ):
        Distillation(student, teacher, KDConfig(LogitKDConfig(regression_weight=0.2)))


def test_other_misfits_are_refused_at_construction(pair):
    student, teacher = pair()

    def refused(match, config=RECIPE, with_teacher=teacher):
        with pytest.raises(ConfigError, match=match):
            Distillation(student, with_teacher, config)

    refused("2 label thresholds for 3 classes", KDConfig(label=LabelKDConfig((0.5, 0.5))))
    refused("neither logit nor label", KDConfig(None, None))
    refused("neither logit nor label", KDConfig(LogitKDConfig(weight=0.0), None))
    refused("would ignore the threshold", KDConfig(LogitKDConfig(positions="all", threshold=0.2)))
    refused("must not be negative", KDConfig(LogitKDConfig(weight=-1.0)))
    refused("share parameters", with_teacher=student)
    refused("both must be the same", with_teacher=pair(3)[1])
    refused(
        "teacher norm 'batch', the given teacher has 'running'",
        with_teacher=Teacher(teacher, "running"),
    )
    wide = GridConfig((-10.24, -10.24, -2.0, 10.24, 10.24, 4.0), (0.32, 0.32, 6.0), 10)
    refused(
        "give the teacher the student's point_range",
        with_teacher=build(replace(teacher.config, grid=wide)),
    )


def test_a_term_that_stays_zero_is_an_error(pair, batch):
    objective = Distillation(*pair(), KDConfig(label=None)).train()
    data = batch(frames=1, boxes=0)
    for _ in range(49):
        objective(data)
    with pytest.raises(
        ConfigError, match="'kd_heatmap' is enabled but was exactly 0 for the last 50 steps"
    ):
        objective(data)
    objective.eval()
    objective(data)  # only training counts


def test_report_names_the_active_terms_and_leaves_no_trace(pair, batch):
    student, teacher = pair()
    data = batch()
    objective = Distillation(student, teacher, RECIPE).train()
    before = state(student)
    rows = {row.name: row for row in objective.report(data)}
    assert same_state(student, before) and student.training
    assert list(rows) == ["heatmap", "box", "kd_heatmap"]
    assert (rows["heatmap"].weight, rows["box"].weight, rows["kd_heatmap"].weight) == (
        1.0,
        2.0,
        7.0,
    )
    answer = objective.teacher(data)
    assert rows["kd_heatmap"].positions == int((answer.targets[0].heatmap.amax(1) > 0).sum())
    added = int((merge_labels(answer.boxes, data.truth, LOW).labels > 0).sum()) - 8
    assert rows["heatmap"].teacher_labels == added > 0 and rows["box"].positions == added + 8
    assert {n: r.value for n, r in rows.items()} == pytest.approx(values(objective(data)), rel=1e-5)

    plain = Plain(student).report(data)
    assert [(r.name, r.teacher_labels) for r in plain] == [
        ("heatmap", None),
        ("box", None),
    ] and plain[1].positions == 8


def test_mixed_precision_keeps_the_losses_in_float32(pair, batch):
    objective = Distillation(
        *pair(1, 0.32, 0.32), KDConfig(LogitKDConfig(regression_weight=0.2), LOW)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = objective(batch())
    assert {v.dtype for v in terms.parts.values()} == {torch.float32} and terms.loss.isfinite()
    terms.loss.backward()


def test_anchor_heads_are_refused(pair):
    student, teacher = pair(1, 0.32, 0.32)
    anchors = build(replace(student.config, name="anchors", head=AnchorHeadConfig()))
    for ours, theirs, role in ((anchors, teacher, "student"), (student, anchors, "teacher")):
        with pytest.raises(
            ConfigError,
            match=f"{role} 'anchors' has an anchor head; distillation works on centre heatmaps",
        ):
            Distillation(ours, theirs, RECIPE)
