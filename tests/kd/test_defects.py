"""Defects of the original that logit and label distillation, their teacher and their targets must
not have.

``b`` numbers the confirmed defects, ``d`` the items of spec section 11; those of feature
distillation are in ``test_defects_feature.py``, those of the teacher-guided start in
``test_remap.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from kdlib.config import AnchorHeadConfig, KDConfig, LabelKDConfig, LogitKDConfig, PivotalForm
from kdlib.errors import ConfigError
from kdlib.kd.align import align_maps
from kdlib.kd.label import merge_labels
from kdlib.kd.logit import head_kd, heatmap_kd, rank_kd
from kdlib.kd.objective import Distillation, Plain
from kdlib.kd.pivotal import pivotal_mask
from kdlib.kd.teacher import Teacher
from kdlib.kd.term import Term
from kdlib.models.build import build
from kdlib.models.losses.detection import detection_loss
from kdlib.types import Batch, Detections, GroundTruth, HeadTargets

POSITIONS = get_args(PivotalForm)
DISTANCES = ("mse", "smooth_l1", "focal")
LOW = LabelKDConfig((0.4, 0.4, 0.4))


def logit_kd(student, teacher, student_targets, teacher_targets, config, region=None):
    """The values of a head's parts by name."""
    targets = teacher_targets if config.target == "teacher" else student_targets
    return {part.name: part.value for part in head_kd(student, teacher, targets, config, region)}


def recipe(label=None, norm="batch", **settings):
    return KDConfig(LogitKDConfig(**settings), label, teacher_norm=norm)


def values(terms):
    return {name: value.item() for name, value in terms.parts.items()}


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module, before):
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("form", POSITIONS)
@pytest.mark.parametrize("target", ["teacher", "student"])
def test_b01_d02_align_corners_reaches_the_loss_of_a_step(pair, batch, form, target):
    student, teacher = pair()
    student.eval()
    settings = [
        recipe(positions=form, target=target, rank_weight=1.0, align_corners=corners)
        for corners in (False, True)
    ]
    one, two = (values(Distillation(student, teacher, config)(batch())) for config in settings)
    assert one["kd_heatmap"] != two["kd_heatmap"] and one["kd_rank"] != two["kd_rank"]
    assert one["heatmap"] == two["heatmap"]


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_b02_d04_labels_are_the_same_before_between_and_after_two_networks(pair, batch, heads):
    """The original's teacher left every label of a one-class head at 1 for the student."""
    student, teacher = pair(heads)
    data = batch()
    boxes, labels = data.truth.boxes.clone(), data.truth.labels.clone()
    alone = student.targets(data.truth)
    Distillation(student, teacher, recipe(LOW))(data)
    assert torch.equal(data.truth.boxes, boxes) and torch.equal(data.truth.labels, labels)
    for want, got in zip(alone, student.targets(data.truth)):
        assert torch.equal(want.heatmap, got.heatmap) and torch.equal(want.indices, got.indices)
    counts = [int((labels == label).sum()) for label in (1, 2, 3)]
    assert sum(int(target.mask.sum()) for target in alone) == sum(counts)


def test_b05_d01_scores_do_not_depend_on_a_loss_before_them(pair, batch):
    """After the original's loss, decoding took the sigmoid twice: every score above one half."""
    student, teacher = pair()
    student.eval()
    data = batch()
    with torch.no_grad():
        prediction = student(data.points)
        before = student.detect(prediction)
        targets = student.targets(data.truth)
        detection_loss(prediction.heads, targets, student.head)
        answer = Teacher(teacher, "batch")(data)
        logit_kd(
            prediction.heads[0],
            answer.heads[0],
            targets[0],
            answer.targets[0],
            LogitKDConfig(rank_weight=1.0),
        )
        after = student.detect(prediction)
    assert all(
        torch.equal(a.scores, b.scores) and torch.equal(a.boxes, b.boxes)
        for a, b in zip(before, after)
    )
    assert min(float(found.scores.min()) for found in after) < 0.5


@pytest.mark.parametrize("distance", DISTANCES)
def test_b05_probabilities_meet_probabilities(pair, batch, distance):
    student, teacher = pair(1, 0.32, 0.32)
    with torch.no_grad():
        ours, theirs = (
            student.eval()(batch().points).heads[0],
            teacher.eval()(batch().points).heads[0],
        )
    config = LogitKDConfig(positions="all", soft=False, distance=distance, rank_weight=3.0)
    got = logit_kd(ours, theirs, None, None, config)
    s, t = ours.heatmap.sigmoid(), theirs.heatmap.sigmoid()
    want = {
        "kd_heatmap": 7 * heatmap_kd(s, t, torch.ones_like(s[:, 0]), distance),
        "kd_rank": 3 * rank_kd(s, t, 500),
    }
    assert {n: v.item() for n, v in got.items()} == pytest.approx(
        {n: v.item() for n, v in want.items()}, rel=1e-5
    )


def test_b05_distillation_alone_equals_distillation_beside_the_detection_loss(pair, batch):
    student, teacher = pair()
    student.eval()
    data, config = batch(), recipe(rank_weight=1.0)
    with torch.no_grad():
        answer = Teacher(teacher, "batch")(data)
        alone = logit_kd(
            student(data.points).heads[0], answer.heads[0], None, answer.targets[0], config.logit
        )
    Plain(student)(data)
    beside = Distillation(student, teacher, config)(data).parts
    assert all(
        beside[name].item() == pytest.approx(value.item(), rel=1e-6)
        for name, value in alone.items()
    )


@pytest.mark.parametrize("target", ["teacher", "student"])
def test_b06_d34_one_class_heatmap_keeps_its_channel(pair, batch, target):
    """Heads of one class on two grids, frame by frame; the original compared every frame with every
    other.
    """
    student, teacher = pair(3)
    student.eval()
    data = batch(frames=3)
    config = recipe(positions="all", soft=False, target=target)
    got = Distillation(student, teacher, config)(data).parts["kd_heatmap"].item()
    with torch.no_grad():
        ours, theirs = student(data.points).heads, Teacher(teacher, "batch")(data).heads
    want = 0.0
    for s, t in zip(ours, theirs):
        size = (t if target == "teacher" else s).heatmap.shape[-2:]
        s, t = (align_maps(m.heatmap.sigmoid(), size) for m in (s, t))
        assert s.shape == t.shape == (3, 1, *size)
        want += 7 * sum(float((s[b] - t[b]).square().mean()) for b in range(3)) / 9
    assert got == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("form", ["rank", "center"])
def test_b07_d15_positions_of_a_frame_are_its_own(pair, batch, one_frame, form):
    _, teacher = pair()
    data = batch(frames=3)
    with torch.no_grad():
        answer = Teacher(teacher, "running")(data)
    config = LogitKDConfig(positions=form, rank=9, soft=False)
    mask = pivotal_mask(answer.heads[0].heatmap.sigmoid(), answer.targets[0], config)
    for frame in range(3):
        alone = Teacher(teacher, "running")(one_frame(data, frame))
        mine = pivotal_mask(alone.heads[0].heatmap.sigmoid(), alone.targets[0], config)
        assert torch.equal(mask[frame], mine[0]) and mine.sum() > 0
        assert form != "rank" or mine.sum() == 9


def test_d15_the_first_cell_is_a_cell_like_others():
    """Empty slots point at it; the original cleared it, and ranks may fall on it."""
    one = torch.zeros(1, 1, 2, 2)
    one[0, 0, 0, 0] = 0.9
    targets = HeadTargets(
        one,
        torch.zeros(1, 2, 8),
        torch.zeros(1, 2, dtype=torch.long),
        torch.tensor([[True, False]]),
    )
    for form in ("rank", "center", "gaussian"):
        mask = pivotal_mask(one, targets, LogitKDConfig(positions=form, rank=1, soft=False))
        assert mask.flatten().tolist() == [1, 0, 0, 0], form


FORMS = [
    *((form, "mse") for form in POSITIONS),
    *(("gaussian", distance) for distance in DISTANCES[1:]),
]


@pytest.mark.parametrize("number", range(len(FORMS)), ids=["-".join(form) for form in FORMS])
def test_b08_d12_every_form_on_offer_runs_and_trains(pair, batch, number):
    """With the rank loss beside it, and on equal grids with boxes; two of the original's three
    modes raised.
    """
    (form, distance), heads, equal = FORMS[number], number % 3 + 1, bool(number % 2)
    student, teacher = pair(heads, 0.32, 0.32 if equal else 0.64)
    before = state(teacher)
    config = recipe(
        positions=form, distance=distance, rank_weight=0.5, regression_weight=0.2 if equal else 0.0
    )
    terms = Distillation(student, teacher, config).train()(batch())
    names = ["kd_heatmap", "kd_rank"] + (["kd_box"] if equal else [])
    assert [name for name in terms.parts if name.startswith("kd_")] == names
    assert all(terms.parts[name] > 0 for name in names)
    sum(terms.parts[name] for name in names).backward()
    grads = [p.grad for name, p in student.named_parameters() if ".hm." in name]
    assert (
        all(g is not None and g.isfinite().all() for g in grads)
        and sum(g.abs().sum() for g in grads) > 0
    )
    assert unchanged(teacher, before) and all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("score", ["class", "iou", "mixed"])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_b08_every_mark_of_labels_runs(pair, batch, score, heads):
    student, teacher = pair(heads)
    label = LabelKDConfig((0.3, 0.4, 0.4), score=score)
    terms = Distillation(student, teacher, recipe(label)).train()(batch())
    terms.loss.backward()
    assert terms.loss.isfinite()


@pytest.mark.parametrize("norm", ["running", "batch"])
def test_b09_d07_d33_either_norm_answers_and_an_outer_train_moves_nothing(pair, batch, norm):
    """The original's teacher crashed in evaluation mode and drifted in training mode."""
    student, teacher = pair()
    before = state(teacher)
    objective = Distillation(student, teacher, recipe(LOW, norm)).train()
    objective.train()
    teacher.train()
    data = batch()
    first = objective.teacher(data)
    for _ in range(3):
        objective(data).loss.backward()
    assert torch.equal(objective.teacher(data).heads[0].heatmap, first.heads[0].heatmap)
    assert unchanged(teacher, before) and first.targets and first.boxes
    assert not any(name.startswith("teacher") for name in objective.state_dict())


@pytest.mark.parametrize("norm", ["running", "batch"])
def test_b09_batch_mates_change_the_terms_in_batch_mode_only(pair, batch, one_frame, norm):
    """Logit terms of two frames against those of each alone: a mean in ``running``, something else
    in ``batch``.
    """
    student, teacher = pair()
    student.eval()
    data = batch()
    objective = Distillation(student, teacher, recipe(norm=norm, positions="all", soft=False))
    together = objective(data).parts["kd_heatmap"].item()
    alone = [objective(one_frame(data, frame)).parts["kd_heatmap"].item() for frame in range(2)]
    assert (abs(together / (sum(alone) / 2) - 1) < 1e-4) == (norm == "running")


@pytest.mark.parametrize("setting", ["weight", "rank_weight", "regression_weight"])
def test_b11_a_weight_makes_a_term_or_an_error(pair, batch, setting):
    for grids in ((0.32, 0.32), (0.32, 0.64), (0.64, 0.32)):
        config = recipe(LOW, **{"weight": 0.0, setting: 1.0})
        if setting == "regression_weight" and grids[0] != grids[1]:
            with pytest.raises(ConfigError, match="set regression_weight to 0"):
                Distillation(*pair(1, *grids), config)
            continue
        terms = Distillation(*pair(1, *grids), config)(batch())
        (name,) = (name for name in terms.parts if name.startswith("kd_"))
        assert terms.parts[name] > 0, (name, grids)


@pytest.mark.parametrize("form", POSITIONS)
@pytest.mark.parametrize("grids", [(0.32, 0.64), (0.32, 0.32)])
def test_b12_d22_boxes_on_the_border_and_outside_are_finite(pair, batch, form, grids):
    student, teacher = pair(1, *grids)
    data = batch(frames=1, boxes=2)
    boxes = torch.tensor(
        [[[5.12, 5.12, 0.0, 4.0, 2.0, 1.0, 0.7], [80.0, -80.0, 0.0, 4.0, 2.0, 1.0, 0.0]]]
    )
    data = Batch(data.points, GroundTruth(boxes, torch.tensor([[1, 2]])))
    boxes = 0.2 if grids[0] == grids[1] else 0.0
    terms = Distillation(
        student, teacher, recipe(LOW, positions=form, rank_weight=1.0, regression_weight=boxes)
    )(data)
    terms.loss.backward()
    assert terms.loss.isfinite() and all(
        p.grad.isfinite().all() for p in student.parameters() if p.grad is not None
    )


def test_b12_d22_a_teachers_box_outside_is_drawn_on_the_border_cell(pair):
    """As in the original, whose teacher may see further than its map; the offset says how far the
    cell's own edge is.
    """
    student, _ = pair()
    found = Detections(
        torch.tensor([[5.6, 0.1, 0.0, 4.0, 2.0, 1.0, 0.0]]), torch.tensor([0.9]), torch.tensor([1])
    )
    empty = GroundTruth(torch.zeros(1, 0, 7), torch.zeros(1, 0, dtype=torch.long))
    (targets,) = student.targets(merge_labels([found], empty, LabelKDConfig()))
    assert divmod(int(targets.indices[0, 0]), 16) == (8, 15) and targets.heatmap[0, 0, 8, 15] == 1
    assert targets.boxes[0, 0, 0] == 0.5


@pytest.mark.parametrize("teacher_first", [True, False])
def test_b13_d06_annotations_outlive_any_number_of_teacher_boxes_in_a_step(
    pair, batch, teacher_first
):
    """Slots for six, four of them annotated; teacher boxes come by the dozen."""
    student, teacher = pair()
    head = replace(student.config.head, targets=replace(student.config.head.targets, max_objects=6))
    student = build(replace(student.config, head=head))
    data = batch()
    seen = {}

    def look(step):
        seen["labels"], seen["targets"] = step.labels, step.targets
        return step.prediction.bev.sum()

    spy = Term("kd_look", weight=1.0, value=look)
    Distillation(student, teacher, recipe(replace(LOW, teacher_first=teacher_first)), extra=(spy,))(
        data
    )
    own = student.targets(data.truth)[0]
    for frame in range(2):
        rows = {tuple(row) for row in seen["labels"].boxes[frame].tolist()}
        assert {tuple(row) for row in data.truth.boxes[frame].tolist()} <= rows and len(rows) == 6
        cells = seen["targets"][0].indices[frame][seen["targets"][0].mask[frame]].tolist()
        assert set(own.indices[frame][own.mask[frame]].tolist()) <= set(cells)


def test_d03_the_mean_is_over_the_weights_and_the_sum_over_classes():
    gen = torch.Generator().manual_seed(0)
    ours, theirs = (torch.rand(2, 3, 4, 5, generator=gen) for _ in range(2))
    mask = torch.rand(2, 4, 5, generator=gen)
    for distance in DISTANCES:
        whole = heatmap_kd(ours, theirs, mask, distance).item()
        assert heatmap_kd(ours, theirs, 3 * mask, distance).item() == pytest.approx(whole, rel=1e-5)
        apart = [
            heatmap_kd(ours[:, c : c + 1], theirs[:, c : c + 1], mask, distance).item()
            for c in range(3)
        ]
        assert sum(apart) == pytest.approx(whole, rel=1e-5)


def test_d05_the_teachers_targets_are_annotations_alone(pair, batch):
    """Whatever labels the student is given, positions on the teacher's grid come from the ground
    truth.
    """
    student, teacher = pair()
    student.eval()
    data = batch()
    with_labels = Distillation(student, teacher, recipe(LOW)).report(data)
    without = Distillation(student, teacher, recipe()).report(data)
    assert with_labels[-1] == without[-1] and with_labels[0].teacher_labels > 0
    on_ours = Distillation(student, teacher, recipe(LOW, target="student")).report(data)[-1]
    assert (
        on_ours.positions
        > Distillation(student, teacher, recipe(target="student")).report(data)[-1].positions
    )


def test_d06_duplicates_are_the_originals_by_default_and_a_setting(pair, batch):
    student, teacher = pair()
    rows = {}
    for limit in (None, 0.1):
        label = replace(LOW, dedupe_iou=limit)
        rows[limit] = (
            Distillation(student, teacher, recipe(label)).report(batch())[0].teacher_labels
        )
    assert rows[None] > rows[0.1] > 0


@pytest.mark.parametrize("heads", [2, 3])
def test_d16_the_rank_loss_is_that_of_all_heads(pair, batch, heads):
    student, teacher = pair(heads)
    student.eval()
    data, config = batch(), recipe(weight=0.0, rank_weight=2.0, rank=20)
    got = Distillation(student, teacher, config)(data).parts["kd_rank"].item()
    with torch.no_grad():
        answer, ours = Teacher(teacher, "batch")(data), student(data.points).heads
        apart = [
            logit_kd(s, t, None, None, config.logit)["kd_rank"].item()
            for s, t in zip(ours, answer.heads)
        ]
    assert got == pytest.approx(sum(apart) / heads, rel=1e-5) and len(set(apart)) == heads


def test_d16_no_logarithm_of_zero(pair, batch):
    """A student sure of nothing: its probabilities are clamped before the logarithm."""
    student, teacher = pair()
    with torch.no_grad():
        student.dense_head.heads_list[0].hm[1].bias.fill_(-500.0)
        student.dense_head.heads_list[0].hm[1].weight.zero_()
    terms = Distillation(student, teacher, recipe(weight=0.0, rank_weight=1.0))(batch())
    terms.loss.backward()
    assert terms.parts["kd_rank"].isfinite() and terms.parts["kd_rank"] > 0


def test_d18_d19_anchor_heads_have_no_silent_distillation(pair):
    student, teacher = pair(1, 0.32, 0.32)
    anchors = build(replace(student.config, name="anchors", head=AnchorHeadConfig()))
    with pytest.raises(ConfigError, match="student 'anchors' has an anchor head"):
        Distillation(anchors, teacher, recipe())


def test_d33_one_answer_holds_all_a_student_may_learn_from(pair, batch):
    _, teacher = pair(2)
    for norm in ("running", "batch"):
        answer = Teacher(teacher, norm)(batch(), ("targets", "boxes", "bev", "sites"))
        assert len(answer.heads) == len(answer.targets) == 2 and len(answer.boxes) == 2
        assert answer.bev is not None and answer.sites is not None
