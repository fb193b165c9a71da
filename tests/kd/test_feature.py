"""The forms one by one: plain loops, hand values, a student equal to its teacher, gradients; then
what chooses among them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlib.config import FeatureKDConfig
from kdlib.errors import ConfigError
from kdlib.kd.align import align_maps
from kdlib.kd.feature import (
    WITHOUT_CHANNELS,
    affinity,
    attention,
    boxes_of_interest,
    check_feature,
    feature_kd,
    feature_needs,
    foreground,
    map_distance,
    relation_distance,
    relations,
    roi_distance,
)
from kdlib.kd.roi_grid import roi_grid_pool
from kdlib.kd.teacher import TeacherAnswer
from kdlib.kd.term import StepContext
from kdlib.models.detector import Prediction
from kdlib.types import Batch, Detections, GroundTruth, HeadTargets, PointBatch

REGION = (-4.0, -4.0, 4.0, 4.0)
KINDS = ("mse", "smooth_l1", "cosine")
FORMS = {
    "map": FeatureKDConfig("map", adapter="none"),
    "foreground": FeatureKDConfig("foreground", adapter="none"),
    "rois": FeatureKDConfig("rois", adapter="none", roi_grid=3),
    "relations": FeatureKDConfig("rois", adapter="none", roi_grid=3, relation_weight=2.0),
    "attention": FeatureKDConfig("attention", adapter="none"),
    "affinity": FeatureKDConfig("affinity", adapter="none", roi_grid=3),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth(frames=2):
    """Three boxes in the first frame (one over the border, one outside), one in the second, padding
    behind.
    """
    boxes = torch.zeros(frames, 3, 7, dtype=torch.float64)
    boxes[0] = torch.tensor(
        [
            [1.0, 1.0, 0, 2.0, 1.0, 1, 0.5],
            [-4.0, 3.9, 0, 2.0, 1.0, 1, 2.0],
            [20.0, 0.0, 0, 2.0, 1.0, 1, 0.0],
        ]
    )
    boxes[1, 0] = torch.tensor([-1.0, -2.0, 0, 3.0, 1.5, 1, -0.7])
    return GroundTruth(boxes, torch.tensor([[1, 2, 3], [1, 0, 0]]))


def targets(heads=1, rows=8, columns=8, frames=2):
    """A peak with a skirt per head, each in another place."""
    made = []
    for head in range(heads):
        heatmap = torch.zeros(frames, 1 if heads > 1 else 3, rows, columns, dtype=torch.float64)
        heatmap[0, 0, 1 + head, 2], heatmap[0, 0, 1 + head, 3] = 1.0, 0.5
        empty = torch.zeros(frames, 4, dtype=torch.int64)
        made.append(HeadTargets(heatmap, torch.zeros(frames, 4, 8), empty, empty.bool()))
    return tuple(made)


def run(config, student, teacher, *, labels=None, marks=None, adapter=None, found=()):
    """Run a form on bare maps; ``marks`` serve as the targets of either grid."""
    labels, marks = truth() if labels is None else labels, targets() if marks is None else marks
    batch = Batch(
        PointBatch(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), 2, ("a", "b")), labels
    )
    answer = TeacherAnswer((), marks, found, bev=teacher)
    context = StepContext(batch, labels, Prediction((), student, 0), marks, answer)
    return {
        part.name: part for part in feature_kd(context, config, adapter or nn.Identity(), REGION)
    }


def naive_relations(rows):
    table = [[sum((a - b) ** 2 for a, b in zip(one, other)) for other in rows] for one in rows]
    mean = sum(map(sum, table)) / len(rows) ** 2
    return [[value / max(mean, 1e-6) for value in line] for line in table]


def smooth(gap):
    return gap * gap / 2 if abs(gap) < 1 else abs(gap) - 0.5


@pytest.mark.parametrize("kind", ["mse", "smooth_l1"])
def test_maps_equal_plain_loops(kind):
    student, teacher, mask = (
        2 * normal(2, 3, 4, 5),
        normal(2, 3, 4, 5, seed=1),
        normal(2, 4, 5, seed=2).relu(),
    )
    total = weighted = norm = 0.0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                gaps = [float(student[b, c, y, x] - teacher[b, c, y, x]) for c in range(3)]
                here = sum(g * g if kind == "mse" else smooth(g) for g in gaps)
                total += here
                weighted += float(mask[b, y, x]) * here
                norm += float(mask[b, y, x]) * 3
    assert map_distance(student, teacher, kind).item() == pytest.approx(total / 120)
    assert map_distance(student, teacher, kind, mask).item() == pytest.approx(weighted / norm)


def test_maps_by_hand():
    student, teacher = torch.tensor([[[[1.0, 2.0]], [[0.0, 4.0]]]]), torch.zeros(1, 2, 1, 2)
    assert map_distance(student, teacher, "mse").item() == 21 / 4
    assert map_distance(
        student, teacher, "mse", torch.tensor([[[1.0, 0.5]]])
    ).item() == pytest.approx((0.5 + 0.5 * 10) / 1.5)
    assert map_distance(student, teacher, "mse", torch.zeros(1, 1, 2)).item() == 0
    assert attention(torch.tensor([[[[-1.0]], [[3.0]]]])).item() == 2


@pytest.mark.parametrize("kind", KINDS)
def test_rois_equal_plain_loops(kind):
    student, teacher = normal(2, 3, 4, 2, 2), normal(2, 3, 4, 2, 2, seed=1)
    valid = torch.tensor([[True, False, True], [False, True, False]])
    values = []
    for b, m in valid.nonzero().tolist():
        for cell in range(4):
            a, c = student[b, m].flatten(1)[:, cell], teacher[b, m].flatten(1)[:, cell]
            if kind == "cosine":
                values.append(1 - float(a @ c / (a.norm() * c.norm())))
            else:
                values += [float(g * g) if kind == "mse" else smooth(float(g)) for g in a - c]
    assert roi_distance(student, teacher, valid, kind).item() == pytest.approx(
        sum(values) / len(values)
    )
    assert roi_distance(student, teacher, valid & False, kind).item() == 0


def test_relations_equal_plain_loops():
    student, teacher = normal(3, 4, 2, 2, 2), normal(3, 4, 2, 2, 2, seed=1)
    valid = torch.tensor([[True, True, False, True], [False, True, False, False], [False] * 4])
    frames = []
    for b in range(3):
        ours, theirs = (
            naive_relations(x[b][valid[b]].flatten(1).tolist()) if valid[b].any() else []
            for x in (student, teacher)
        )
        gaps = [smooth(a - c) for one, other in zip(ours, theirs) for a, c in zip(one, other)]
        frames.append(sum(gaps) / max(len(gaps), 1))
    assert frames[0] > 0 and frames[1] == 0
    assert relation_distance(student, teacher, valid).item() == pytest.approx(sum(frames) / 3)


def test_relations_by_hand():
    places = torch.tensor([[0.0], [1.0], [3.0]])[None, :, :, None, None]
    everyone = torch.ones(1, 3, dtype=torch.bool)
    assert torch.allclose(
        relations(places, everyone)[0], torch.tensor([[0.0, 1, 9], [1, 0, 4], [9, 4, 0]]) / (28 / 9)
    )
    # scale does not count
    assert torch.allclose(relations(7 * places, everyone), relations(places, everyone))
    pair = torch.tensor([[True, True, False]])
    assert torch.allclose(
        relations(places, pair)[0], torch.tensor([[0.0, 2, 0], [2, 0, 0], [0, 0, 0]])
    )
    assert relations(0 * places, everyone).abs().max() == 0  # a network that says nothing


def test_relations_teach_the_student_alone():
    student, teacher = (
        normal(1, 3, 2, 2, 2).requires_grad_(),
        normal(1, 3, 2, 2, 2, seed=1).requires_grad_(),
    )
    relation_distance(student, teacher, torch.ones(1, 3, dtype=torch.bool)).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_affinity_equals_plain_loops_and_hand_values():
    pooled = normal(1, 2, 3, 2, 2)
    got = affinity(pooled)
    for m in range(2):
        cells = pooled[0, m].flatten(1).T
        for i in range(4):
            for j in range(4):
                want = cells[i] @ cells[j] / max(float(cells[i].norm() * cells[j].norm()), 1e-6)
                assert got[0, m, i, j].item() == pytest.approx(float(want))
    cells = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 2.0]]).T.reshape(1, 1, 2, 2, 2)
    want = torch.tensor(
        [[1, 0.5**0.5, 0, 0], [0.5**0.5, 1, 0, 0.5**0.5], [0, 0, 0, 0], [0, 0.5**0.5, 0, 1]]
    )
    assert torch.allclose(affinity(cells)[0, 0], want)


@pytest.mark.parametrize(
    "name, kind",
    [(n, k) for n in FORMS for k in KINDS if k != "cosine" or n not in WITHOUT_CHANNELS],
)
def test_forms_are_their_pure_parts(name, kind):
    config = replace(FORMS[name], distance=kind, weight=0.5)
    student, teacher, labels, marks = (
        normal(2, 4, 8, 8),
        normal(2, 4, 8, 8, seed=1),
        truth(),
        targets(),
    )
    got = run(config, student, teacher)
    valid = labels.labels > 0
    ours, theirs = (roi_grid_pool(maps, labels.boxes, REGION, 3) for maps in (student, teacher))
    want = {
        "map": lambda: map_distance(student, teacher, kind),
        "foreground": lambda: map_distance(student, teacher, kind, marks[0].heatmap.amax(1)),
        "rois": lambda: roi_distance(ours, theirs, valid, kind),
        "relations": lambda: roi_distance(ours, theirs, valid, kind),
        "attention": lambda: map_distance(
            student.abs().mean(1, True), teacher.abs().mean(1, True), kind
        ),
        "affinity": lambda: roi_distance(affinity(ours), affinity(theirs), valid, kind),
    }[name]()
    assert got["kd_feature"].value.item() == pytest.approx(0.5 * want.item())
    assert set(got) == ({"kd_feature", "kd_relation"} if name == "relations" else {"kd_feature"})
    if name == "relations":
        assert got["kd_relation"].value.item() == pytest.approx(
            2 * relation_distance(ours, theirs, valid).item()
        )
    positions = {"map": None, "attention": None, "foreground": 2}.get(name, 4)
    for part in got.values():
        assert positions == (None if part.positions is None else int(part.positions))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("size", [(8, 8), (4, 4), (12, 6)])
def test_equal_maps_give_zero(name, size):
    features = torch.relu(normal(2, 4, *size))
    parts = run(FORMS[name], features, features.clone(), marks=targets(1, *size))
    assert all(part.value.item() == 0 for part in parts.values()) and parts


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("target", ["teacher", "student"])
def test_gradients_between_different_grids(name, target):
    config = (
        replace(FORMS[name], target=target)
        if name in ("map", "foreground", "attention")
        else FORMS[name]
    )
    student, teacher = (
        normal(2, 2, 4, 4).requires_grad_(),
        normal(2, 2, 6, 6, seed=1).requires_grad_(),
    )
    marks = targets(1, *((6, 6) if target == "teacher" else (4, 4)))

    def total(maps):
        return sum(part.value for part in run(config, maps, teacher, marks=marks).values())

    assert torch.autograd.gradcheck(total, (student,))
    total(student).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


@pytest.mark.parametrize("name", FORMS)
def test_inputs_stay(name):
    student, teacher, labels, marks = (
        normal(2, 4, 8, 8),
        normal(2, 4, 8, 8, seed=1),
        truth(),
        targets(),
    )
    tensors = (student, teacher, labels.boxes, labels.labels, marks[0].heatmap)
    before = [tensor.clone() for tensor in tensors]
    run(FORMS[name], student, teacher, labels=labels, marks=marks)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))


@pytest.mark.parametrize("name", ["foreground", "rois", "relations", "affinity"])
@pytest.mark.parametrize("slots", [0, 2])
def test_empty_scenes_are_zero_and_hang_on_the_graph(name, slots):
    student = normal(2, 4, 8, 8).requires_grad_()
    nothing = GroundTruth(
        torch.zeros(2, slots, 7, dtype=torch.float64), torch.zeros(2, slots, dtype=torch.int64)
    )
    marks = tuple(replace(mark, heatmap=0 * mark.heatmap) for mark in targets())
    got = run(FORMS[name], student, normal(2, 4, 8, 8, seed=1), labels=nothing, marks=marks)
    assert [(part.value.item(), int(part.positions)) for part in got.values()] == [(0.0, 0)] * len(
        got
    )
    sum(part.value for part in got.values()).backward()
    assert student.grad.abs().max() == 0


def test_grids_meet_by_resampling_or_in_metres():
    coarse = normal(2, 3, 4, 4)
    fine = torch.nn.functional.interpolate(
        coarse, size=(8, 8), mode="bilinear", align_corners=False
    )
    assert run(FORMS["map"], coarse, fine)["kd_feature"].value.item() == 0
    # a setting that is obeyed
    assert run(replace(FORMS["map"], align_corners=True), coarse, fine)["kd_feature"].value > 0
    assert run(replace(FORMS["map"], target="student"), coarse, fine)["kd_feature"].value > 0
    x = torch.arange(8, dtype=torch.float64).expand(2, 1, 8, 8) + 0.5
    halves = x[..., ::2, ::2] + 0.5  # the same slope in cells twice as large
    inner = GroundTruth(truth().boxes[:1, :1].expand(2, 1, 7), torch.ones(2, 1, dtype=torch.int64))
    assert run(FORMS["rois"], halves, x, labels=inner)["kd_feature"].value.item() == pytest.approx(
        0, abs=1e-20
    )


def test_attention_takes_any_width():
    value = run(FORMS["attention"], normal(2, 2, 8, 8), normal(2, 7, 8, 8, seed=1))[
        "kd_feature"
    ].value
    assert value.item() > 0
    assert (
        run(FORMS["affinity"], normal(2, 2, 8, 8), normal(2, 7, 8, 8, seed=1))[
            "kd_feature"
        ].value.item()
        > 0
    )


def test_attention_is_paid_on_the_grid_both_share():
    """Spec 7.7: first the maps meet, then channels are averaged: opposite neighbours cancel."""
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    finer = board.double().expand(2, 3, 8, 8)
    flat = torch.zeros(2, 5, 4, 4, dtype=torch.float64)
    form = replace(FORMS["attention"], target="student")
    assert run(form, flat, finer)["kd_feature"].value.item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_foreground_is_that_of_all_heads(heads):
    mask = foreground(targets(heads))
    assert mask.shape == (2, 8, 8)
    for head in range(heads):
        assert mask[0, 1 + head, 2:4].tolist() == [1.0, 0.5]
    assert mask.sum().item() == 1.5 * heads


def test_teacher_boxes_of_enough_score_become_rois():
    one = torch.tensor([[1.0, 1.0, 0.0, 2.0, 1.0, 1.0, 0.0]])
    flat = one * torch.tensor([1.0, 1, 1, 0, 1, 1, 1])
    found = (
        Detections(
            torch.cat((one, one + 1, flat)),
            torch.tensor([0.9, 0.3, 0.8]),
            torch.ones(3, dtype=torch.int64),
        ),
        Detections(one[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64)),
    )
    config = replace(FORMS["rois"], rois="teacher")
    boxes, valid = boxes_of_interest(truth(), found, config)
    # 0.3 does not exceed 0.3; no length
    assert boxes.shape == (2, 2, 7) and valid.tolist() == [[True, False], [False, False]]
    assert torch.equal(boxes[0, 0], one[0].double())
    assert (
        int(
            run(config, normal(2, 1, 8, 8), normal(2, 1, 8, 8, seed=1), found=found)[
                "kd_feature"
            ].positions
        )
        == 1
    )
    none = tuple(
        Detections(one[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64)) for _ in range(2)
    )
    assert (
        run(config, normal(2, 1, 8, 8), normal(2, 1, 8, 8, seed=1), found=none)[
            "kd_feature"
        ].value.item()
        == 0
    )
    with pytest.raises(ValueError, match="teacher boxes of 0 frames but ground truth of 2"):
        boxes_of_interest(truth(), (), config)


def test_a_weight_of_zero_leaves_a_part_out():
    maps = normal(2, 1, 8, 8), normal(2, 1, 8, 8, seed=1)
    assert set(run(replace(FORMS["relations"], weight=0.0), *maps)) == {"kd_relation"}
    assert run(replace(FORMS["map"], weight=0.0), *maps) == {}


def test_half_precision_is_widened():
    maps = normal(2, 3, 8, 8).bfloat16(), normal(2, 3, 8, 8, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name in ("map", "affinity", "relations"):
            labels = replace(truth(), boxes=truth().boxes.float())
            assert {
                part.value.dtype for part in run(FORMS[name], *maps, labels=labels).values()
            } == {torch.float32}


def test_targets_are_those_of_the_grid_on_which_maps_meet():
    ours, theirs = targets(1, 4, 4), targets(1, 8, 8)
    student, teacher = normal(2, 2, 4, 4), normal(2, 2, 8, 8, seed=1)
    batch = Batch(
        PointBatch(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), 2, ("a", "b")), truth()
    )
    context = StepContext(
        batch, truth(), Prediction((), student, 0), ours, TeacherAnswer((), theirs, (), bev=teacher)
    )
    for target, marks in (("teacher", theirs), ("student", ours)):
        config = replace(FORMS["foreground"], target=target)
        size = marks[0].heatmap.shape[-2:]
        maps = (align_maps(some, size) for some in (student, teacher))
        want = map_distance(*maps, "mse", marks[0].heatmap.amax(1)).item()
        assert feature_kd(context, config, nn.Identity(), REGION)[0].value.item() == pytest.approx(
            want
        )


@pytest.mark.parametrize(
    "config, needs",
    [
        (FeatureKDConfig("map"), {"bev"}),
        (FeatureKDConfig("foreground"), {"bev", "targets"}),
        (FeatureKDConfig("foreground", target="student"), {"bev"}),
        (FeatureKDConfig("rois"), {"bev"}),
        (FeatureKDConfig("affinity", rois="teacher"), {"bev", "boxes"}),
        (FeatureKDConfig("local"), {"sites"}),
    ],
)
def test_the_teacher_is_asked_for_what_a_form_reads_alone(config, needs):
    assert feature_needs(config) == needs


def test_what_a_form_needs_must_be_there():
    with pytest.raises(ValueError, match="were not asked for their bev"):
        run(FORMS["map"], normal(1, 1, 2, 2), None)
    with pytest.raises(ValueError, match="were not asked for their sites"):
        run(FeatureKDConfig("local"), normal(1, 1, 2, 2), normal(1, 1, 2, 2))


@pytest.mark.parametrize(
    "config, message",
    [
        (
            FeatureKDConfig("map", relation_weight=1.0),
            (r"form 'map' would ignore relation_weight " r"1.0; leave it at 0.0"),
        ),
        (
            FeatureKDConfig("rois", align_corners=True),
            (r"form 'rois' would ignore align_corners " r"True; leave it at False"),
        ),
        (
            FeatureKDConfig("local", target="student"),
            (r"form 'local' would ignore target " r"'student'; leave it at 'teacher'"),
        ),
        (FeatureKDConfig("foreground", samples=7), r"form 'foreground' would ignore samples 7"),
        (
            FeatureKDConfig("attention", distance="cosine"),
            (r"form 'attention' has none left; use " r"'mse' or 'smooth_l1'"),
        ),
        (FeatureKDConfig("local", adapter="3x3"), r"use '1x1' or 'none'"),
        (
            FeatureKDConfig("map", adapter="none"),
            (r"student has 4 channels and the teacher 8; set " r"adapter to '1x1'"),
        ),
        (FeatureKDConfig("fitnet"), r"unknown form 'fitnet'"),
    ],
)
def test_settings_that_do_nothing_or_cannot_work_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        check_feature(config, 4, 8)


@pytest.mark.parametrize("form", ["map", "foreground", "rois", "attention", "affinity", "local"])
def test_defaults_of_every_form_are_accepted(form):
    check_feature(FeatureKDConfig(form), 4, 8)
    check_feature(FeatureKDConfig(form, adapter="none"), 8, 8)
