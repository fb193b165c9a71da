from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdlib.config import LabelKDConfig
from kdlib.errors import ConfigError
from kdlib.kd.label import confident, merge_labels
from kdlib.models.build import build
from kdlib.types import Detections, GroundTruth
from kdlib.zoo import CP_PILLAR_V064

FILES = {"pillar_v0p64": (0.6, 0.5, 0.5), "voxel_s": (0.6, 0.6, 0.6)}
VARIANTS = {
    "base": {},
    "gt_first": {"teacher_first": False},
    "no_gt": {"use_truth": False},
    "thresh_hi": {},
}


def read(goldens, name):
    stored = np.load(goldens / f"original/05_label_assign/{name}.npz")
    meta = json.loads(str(stored["meta"]))
    teacher = [
        Detections(
            *(torch.from_numpy(stored[f"tea_{part}_{b}"]) for part in ("boxes", "scores", "labels"))
        )
        for b in range(4)
    ]
    teacher = [Detections(t.boxes, t.scores, t.labels.long()) for t in teacher]
    rows = torch.from_numpy(stored["gt_boxes"])
    return stored, meta, teacher, GroundTruth(rows[..., :7], rows[..., 7].long())


NOTHING = torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64)  # annotated boxes and their labels


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_of_the_original_with_its_truncation(goldens, name, variant):
    stored, meta, teacher, truth = read(goldens, name)
    assert tuple(meta["base"]["SCORE_THRESH"]) == FILES[name]
    thresholds = (0.9, 0.95, 2.0) if variant == "thresh_hi" else FILES[name]
    config = LabelKDConfig(thresholds=thresholds, **VARIANTS[variant])
    merged = merge_labels(teacher, truth, config, max_objects=10**6)
    want = torch.from_numpy(stored[f"{variant}_merged"])
    assert torch.equal(merged.boxes, want[..., :7])
    assert torch.equal(merged.labels, want[..., 7].long())
    assert [len(confident(t, thresholds, NOTHING).labels) for t in teacher] == stored[
        f"{variant}_ntea"
    ].tolist()
    if name == "pillar_v0p64":
        (targets,) = build(CP_PILLAR_V064).targets(merged)
        assert torch.equal(targets.mask, torch.from_numpy(stored[f"{variant}_masks"]).bool())
        assert torch.equal(targets.indices, torch.from_numpy(stored[f"{variant}_inds"]).long())
        if f"{variant}_heatmaps" in stored:
            np.testing.assert_allclose(targets.heatmap, stored[f"{variant}_heatmaps"], atol=1e-6)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("variant, score", [("iou0p5", "iou"), ("mixed", "mixed")])
def test_golden_of_the_other_marks(goldens, name, variant, score):
    stored, meta, teacher, truth = read(goldens, name)
    thresholds = tuple(dict(meta["variants"])[variant]["SCORE_THRESH"])
    config = LabelKDConfig(thresholds, score=score)
    merged = merge_labels(teacher, truth, config, max_objects=10**6)
    want = torch.from_numpy(stored[f"{variant}_merged"])
    assert torch.equal(merged.boxes, want[..., :7]) and torch.equal(
        merged.labels, want[..., 7].long()
    )
    own = [
        (truth.boxes[b][truth.labels[b] > 0], truth.labels[b][truth.labels[b] > 0])
        for b in range(4)
    ]
    counts = [len(confident(t, thresholds, some, score).labels) for t, some in zip(teacher, own)]
    assert counts == stored[f"{variant}_ntea"].tolist() and sum(counts) > 0
    if name == "pillar_v0p64":
        (targets,) = build(CP_PILLAR_V064).targets(merged)
        assert torch.equal(targets.mask, torch.from_numpy(stored[f"{variant}_masks"]).bool())
        assert torch.equal(targets.indices, torch.from_numpy(stored[f"{variant}_inds"]).long())


@pytest.mark.parametrize("teacher_first", [True, False])
def test_b13_ground_truth_is_never_dropped(goldens, teacher_first):
    """498 teacher boxes and 5 annotated ones share 500 slots: the three teacher boxes of lowest
    score leave.
    """
    _, _, teacher, truth = read(goldens, "pillar_v0p64")
    merged = merge_labels(teacher, truth, LabelKDConfig((0.6, 0.5, 0.5), teacher_first))
    assert merged.labels.shape[1] == 500 and (merged.labels[3] > 0).all()
    own = truth.boxes[3][truth.labels[3] > 0]
    place = slice(495, None) if teacher_first else slice(0, 5)
    assert torch.equal(merged.boxes[3][place], own)
    kept = merged.boxes[3][:495] if teacher_first else merged.boxes[3][5:]
    best = teacher[3].scores.argsort(descending=True)[:495].sort().values
    assert torch.equal(kept, teacher[3].boxes[best])


@pytest.mark.parametrize("teacher_first", [True, False])
def test_b13_every_annotated_box_has_its_target(goldens, teacher_first):
    """Past 500 boxes too, each annotated centre is a positive cell of the student's targets; the
    original loses some.
    """
    _, _, teacher, truth = read(goldens, "pillar_v0p64")
    model = build(CP_PILLAR_V064)
    (alone,) = model.targets(truth)
    config = LabelKDConfig((0.6, 0.5, 0.5), teacher_first)
    missing = {}
    for legacy, slots in ((False, 500), (True, 10**6)):
        (targets,) = model.targets(merge_labels(teacher, truth, config, slots))
        missing[legacy] = 0
        for frame in range(4):
            wanted = alone.indices[frame][alone.mask[frame]].tolist()
            missing[legacy] += len(
                set(wanted) - set(targets.indices[frame][targets.mask[frame]].tolist())
            )
    assert missing[False] == 0 and missing[True] == (3 if teacher_first else 0)


def found(scores, labels=None, boxes=None):
    count = len(scores)
    boxes = torch.arange(count * 7.0).reshape(count, 7) if boxes is None else boxes
    return Detections(boxes, torch.tensor(scores), torch.tensor(labels or [1] * count))


def truth_of(*labels):
    boxes = -torch.ones(1, len(labels), 7) * torch.arange(1.0, len(labels) + 1)[:, None]
    return GroundTruth(boxes, torch.tensor([list(labels)], dtype=torch.long))


def test_thresholds_are_strict_in_float32_and_per_class():
    above = float(np.nextafter(np.float32(0.6), np.float32(1)))
    got = confident(found([0.6, above, 0.55, 0.55], [1, 1, 1, 2]), (0.6, 0.5, 0.5), NOTHING)
    assert got.scores.tolist() == pytest.approx([above, 0.55]) and got.labels.tolist() == [1, 2]
    with pytest.raises(ConfigError, match="label 3 but only 2 classes"):
        confident(found([0.9], [3]), (0.5, 0.5), NOTHING)


def test_order_and_padding_by_hand():
    truth = truth_of(2, 0, 3)  # padding in the middle
    config = LabelKDConfig((0.5, 0.5, 0.5))
    merged = merge_labels([found([0.9, 0.4, 0.7], [1, 1, 2])], truth, config)
    assert merged.labels.tolist() == [[1, 2, 2, 3]]
    assert merged.boxes[0, :, 0].tolist() == [0, 14, -1, -3]
    merged = merge_labels(
        [found([0.9, 0.4, 0.7], [1, 1, 2])],
        truth,
        LabelKDConfig((0.5, 0.5, 0.5), teacher_first=False),
    )
    assert merged.labels.tolist() == [[2, 3, 1, 2]]
    merged = merge_labels(
        [found([0.9, 0.4, 0.7], [1, 1, 2])], truth, LabelKDConfig((0.5, 0.5, 0.5), use_truth=False)
    )
    assert merged.labels.tolist() == [[1, 2]]


def test_a_silent_teacher_leaves_the_ground_truth_and_empty_scenes_stay_empty():
    none = found([])
    none = Detections(torch.zeros(0, 7), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    merged = merge_labels([none], truth_of(1, 2), LabelKDConfig())
    assert torch.equal(merged.boxes, truth_of(1, 2).boxes) and merged.labels.tolist() == [[1, 2]]
    empty = merge_labels(
        [none, none], GroundTruth(torch.zeros(2, 3, 7), torch.zeros(2, 3).long()), LabelKDConfig()
    )
    assert empty.boxes.shape == (2, 0, 7)
    (targets,) = build(CP_PILLAR_V064).targets(empty)
    assert not targets.mask.any() and targets.heatmap.sum() == 0


def test_more_ground_truth_than_slots_leaves_no_room_and_is_kept():
    merged = merge_labels([found([0.9, 0.8])], truth_of(1, 2, 3), LabelKDConfig(), max_objects=2)
    assert merged.labels.tolist() == [[1, 2, 3]]


def test_inputs_unchanged():
    teacher, truth = found([0.9, 0.4], [2, 1]), truth_of(2, 0)
    before = [
        t.clone()
        for t in (teacher.boxes, teacher.scores, teacher.labels, truth.boxes, truth.labels)
    ]
    merged = merge_labels([teacher], truth, LabelKDConfig())
    merged.boxes.fill_(7)
    merged.labels.fill_(7)
    after = (teacher.boxes, teacher.scores, teacher.labels, truth.boxes, truth.labels)
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_duplicates_stay_by_default_and_leave_on_request():
    """One car seen three times, a pedestrian on the same place, a car far away; an annotation on
    the far car.
    """
    car, shifted, far = (
        [0.0, 0, 1, 4, 2, 1.5, 0],
        [0.2, 0, 1, 4, 2, 1.5, 0],
        [30.0, 0, 1, 4, 2, 1.5, 0],
    )
    teacher = found(
        [0.8, 0.9, 0.7, 0.85, 0.95],
        [1, 1, 1, 2, 1],
        torch.tensor([shifted, car, shifted, car, far]),
    )
    truth = GroundTruth(torch.tensor([[far]]), torch.tensor([[1]]))
    assert merge_labels([teacher], truth, LabelKDConfig()).labels.tolist() == [[1, 1, 1, 2, 1, 1]]
    merged = merge_labels([teacher], truth, LabelKDConfig(dedupe_iou=0.5))
    assert merged.labels.tolist() == [[1, 2, 1]]
    assert merged.boxes[0, :, 0].tolist() == [0, 0, 30]


def test_frames_must_agree():
    with pytest.raises(ValueError, match="teacher boxes of 2 frames but ground truth of 1"):
        merge_labels([found([0.9])] * 2, truth_of(1), LabelKDConfig())


CAR, SHIFTED, TALL = [0.0, 0, 1, 4, 2, 2, 0], [2.0, 0, 1, 4, 2, 2, 0], [0.0, 0, 2, 4, 2, 2, 0]


def test_marks_by_hand():
    """Two boxes shifted by half: a third of the volume in common; lifted by half likewise; no
    annotation, no overlap.
    """
    teacher = found(
        [0.9, 0.1, 0.2, 0.9],
        [1, 1, 2, 3],
        torch.tensor([SHIFTED, CAR, TALL, [50.0, 0, 1, 4, 2, 2, 0]]),
    )
    annotated = torch.tensor([CAR]), torch.tensor([1])

    def kept(score, *thresholds):
        return confident(teacher, thresholds, annotated, score).scores.tolist()

    assert kept("class", 0.5, 0.5, 0.5) == pytest.approx([0.9, 0.9])
    assert kept("iou", 0.5, 0.5, 0.5) == pytest.approx([0.1])
    assert kept("iou", 0.3, 0.3, 0.0) == pytest.approx([0.9, 0.1, 0.2])
    assert kept("iou", 0.34, 0.34, 0.0) == pytest.approx([0.1])
    assert kept("mixed", 0.5, 0.1, 0.95) == pytest.approx([0.1, 0.2])
    none = confident(teacher, (0.0, 0.0, 0.0), NOTHING, "iou")
    assert len(none.labels) == 0


def test_any_class_of_annotation_counts_for_the_overlap_and_padding_does_not():
    """With mixed marks a vehicle needs a vehicle."""
    teacher = found([0.2], [1], torch.tensor([CAR]))
    truth = GroundTruth(torch.tensor([[CAR, SHIFTED]]), torch.tensor([[2, 0]]))
    config = LabelKDConfig((0.5, 0.5, 0.5), score="iou", use_truth=False)
    assert merge_labels([teacher], truth, config).labels.tolist() == [[1]]
    assert merge_labels([teacher], truth, replace(config, score="mixed")).labels.shape == (1, 0)
    padded = GroundTruth(truth.boxes, torch.tensor([[0, 2]]))
    assert merge_labels([teacher], padded, config).labels.shape == (1, 0)


@pytest.mark.parametrize("score", ["class", "iou", "mixed"])
def test_duplicates_leave_after_the_thresholds(score):
    """A better box that misses its threshold suppresses nobody."""
    teacher = found([0.9, 0.8], [2, 2], torch.tensor([TALL, CAR]))
    truth = GroundTruth(torch.tensor([[CAR]]), torch.tensor([[1]]))
    config = LabelKDConfig((0.5, 0.85 if score == "iou" else 0.7, 0.5), score=score, dedupe_iou=0.5)
    kept = merge_labels([teacher], truth, config)
    assert kept.labels.tolist() == [[2, 1]]
    assert kept.boxes[0, 0, 2] == (1 if score == "iou" else 2)
