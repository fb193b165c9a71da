from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from kdlib.config import LogitKDConfig
from kdlib.errors import ConfigError
from kdlib.kd.check import check_logit
from kdlib.kd.instances import boxes_at, cell_centres, instance_cells
from kdlib.kd.logit import head_kd, meet, position_weights
from kdlib.models.geometry.rotated_iou import bev_iou
from kdlib.types import HeadOutput

REGION = (-4.0, -4.0, 4.0, 4.0)


def logit_kd(student, teacher, student_targets, teacher_targets, config, region=None):
    """The values of a head's parts by name."""
    targets = teacher_targets if config.target == "teacher" else student_targets
    return {part.name: part.value for part in head_kd(student, teacher, targets, config, region)}


def head(classes=2, size=(8, 8), frames=2, seed=0, scale=2.0):
    """Random boxes of about 1.6 m on a map of 8 m x 8 m."""
    gen = torch.Generator().manual_seed(seed)
    values = [
        torch.randn(frames, c, *size, generator=gen, dtype=torch.float64)
        for c in (classes, 2, 1, 3, 2)
    ]
    return HeadOutput(
        values[0] * scale, values[1].sigmoid(), values[2], values[3] * 0.3 + 0.5, values[4]
    )


def blank(classes=1, size=(4, 4), length=0.0, width=0.0, heading=0.0):
    """One frame without confidence; boxes of exp(length) x exp(width) metres in the middle of every
    cell.
    """
    plane = torch.zeros(1, 1, *size)
    dim = torch.cat((plane + length, plane + width, plane), 1)
    rot = torch.cat((plane + math.cos(heading), plane + math.sin(heading)), 1)
    return HeadOutput(
        torch.full((1, classes, *size), -9.0), torch.full((1, 2, *size), 0.5), plane, dim, rot
    )


def lit(output, *cells):
    """The same with logits at some (class, y, x)."""
    heatmap = output.heatmap.clone()
    for (c, y, x), value in cells:
        heatmap[0, c, y, x] = value
    return replace(output, heatmap=heatmap)


def cells_of(student, teacher, count=10, target="teacher"):
    return instance_cells(
        *meet(student, teacher, LogitKDConfig(target=target)), student, teacher, count, REGION
    )


def naive(student, teacher, count, size):
    """Loops over cells, python's sort, a greedy suppression and a point test, for one frame."""
    ours, theirs = meet(student, teacher, LogitKDConfig())
    height, width = size
    scored = []
    for y in range(height):
        for x in range(width):
            s, t = ours[0, :, y, x], theirs[0, :, y, x]
            owner = teacher if t.max() >= s.max() else student
            rows, columns = owner.heatmap.shape[-2:]
            px, py = REGION[0] + (x + 0.5) * 8 / width, REGION[1] + (y + 0.5) * 8 / height
            ix, iy = int((px + 4) / 8 * columns), int((py + 4) / 8 * rows)
            cx, cy, z, lx, ly, lz, cos, sin = owner.regression[0, :, iy, ix].tolist()
            box = [REGION[0] + (ix + cx) * 8 / columns, REGION[1] + (iy + cy) * 8 / rows, z]
            box += [math.exp(lx), math.exp(ly), math.exp(lz), math.atan2(sin, cos)]
            scored.append((max(abs(a - b) for a, b in zip(s.tolist(), t.tolist())), y, x, box))
    kept = []
    for score, y, x, box in sorted(scored, key=lambda row: -row[0]):
        mine = torch.tensor([box], dtype=torch.float64)
        if len(kept) < count and score > 0 and all(bev_iou(mine, k[2]).item() <= 0.3 for k in kept):
            kept.append((y, x, mine))
    found = torch.zeros(height, width, dtype=torch.float64)
    for y, x, box in kept:
        found[y, x] = 1
        bx, by, _, length, across, _, angle = box[0].tolist()
        for v in range(height):
            for u in range(width):
                dx, dy = (
                    REGION[0] + (u + 0.5) * 8 / width - bx,
                    REGION[1] + (v + 0.5) * 8 / height - by,
                )
                along, side = (
                    dx * math.cos(angle) + dy * math.sin(angle),
                    dy * math.cos(angle) - dx * math.sin(angle),
                )
                if abs(along) <= length / 2 and abs(side) <= across / 2:
                    found[v, u] = 1
    return found


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("sizes", [((8, 8), (8, 8)), ((4, 6), (8, 12)), ((10, 9), (5, 6))])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_equals_loops_over_cells_on_any_pair_of_grids(classes, sizes, count):
    student, teacher = head(classes, sizes[0], 1, 1), head(classes, sizes[1], 1, 2)
    assert torch.equal(
        cells_of(student, teacher, count)[0], naive(student, teacher, count, sizes[1])
    )


def test_by_hand():
    """Cells of 2 m; the teacher sees a 4 m x 2 m box along y in cell (1, 1): the cell and the one
    above and below.
    """
    teacher = lit(
        blank(length=math.log(4.1), width=math.log(2.1), heading=math.pi / 2), ((0, 1, 1), 2.0)
    )
    want = torch.zeros(4, 4)
    want[0:3, 1] = 1
    assert torch.equal(cells_of(blank(), teacher, 1)[0], want)


@pytest.mark.parametrize("surer", ["student", "teacher"])
def test_the_more_confident_network_draws_the_box(surer):
    wide, small = blank(length=math.log(4.1), width=math.log(4.1)), blank()
    student, teacher = (
        lit(wide, ((0, 1, 1), 3.0 if surer == "student" else -3.0)),
        lit(small, ((0, 1, 1), 0.0)),
    )
    assert cells_of(student, teacher, 1).sum() == (9 if surer == "student" else 1)


def test_a_pedestrian_between_four_cell_centres_keeps_its_cell():
    teacher = blank(length=-3.0, width=-3.0)
    teacher = lit(replace(teacher, center=torch.full_like(teacher.center, 0.01)), ((0, 2, 1), 2.0))
    found = cells_of(blank(), teacher, 1)[0]
    assert found.sum() == 1 and found[2, 1] == 1


def test_the_best_few_after_suppression_of_what_overlaps_them():
    """Three cells in a row of a long box are one instance; a far cell is the second, a weaker one
    the third.
    """
    teacher = blank(length=math.log(5.9), width=math.log(1.9))
    teacher = lit(
        teacher,
        ((0, 0, 1), 3.0),
        ((0, 0, 0), 2.0),
        ((0, 0, 2), 2.5),
        ((0, 3, 1), 1.0),
        ((0, 2, 1), 0.5),
    )
    rows = [
        cells_of(blank(length=-3.0), teacher, count)[0].amax(dim=1).tolist() for count in (1, 2, 3)
    ]
    assert rows == [[1, 0, 0, 0], [1, 0, 0, 1], [1, 0, 1, 1]]


def test_all_classes_speak():
    teacher = lit(blank(3), ((2, 3, 0), 2.0))
    found = cells_of(blank(3), teacher, 1)[0]
    assert found.sum() == 1 and found[3, 0] == 1


def test_boxes_are_those_of_decoding(pair, batch):
    """At every cell's own centre a network's box is what detection makes of that cell, on any
    grid.
    """
    for model in pair():
        with torch.no_grad():
            output = model.eval()(batch().points).heads[0]
        rows, columns = output.heatmap.shape[-2:]
        region = (-5.12, -5.12, 5.12, 5.12)
        places = cell_centres(rows, columns, region, like=output.heatmap).expand(2, -1, -1)
        boxes = boxes_at(output, places, region)
        for frame, found in enumerate(model.detect(model.eval()(batch().points), nms=False)):
            apart = torch.cdist(found.boxes.detach().double(), boxes[frame].double()).amin(dim=1)
            assert len(apart) > 10 and apart.max() < 1e-4


def test_where_both_agree_there_is_no_instance():
    same = head()
    assert cells_of(same, same).sum() == 0
    parts = logit_kd(same, same, None, None, LogitKDConfig(positions="instances"), REGION)
    assert parts["kd_heatmap"].item() == 0


def test_boxes_beyond_the_border_and_boxes_that_are_none():
    teacher = lit(
        blank(length=math.log(4.1), width=math.log(4.1)), ((0, 0, 0), 2.0), ((0, 3, 3), 3.0)
    )
    broken = teacher.dim.clone()
    broken[0, 0, 3, 3] = float("nan")
    found = cells_of(blank(), replace(teacher, dim=broken), 1)[0]
    want = torch.zeros(4, 4)
    want[:2, :2] = 1
    assert torch.equal(found, want)


def test_soft_and_threshold_weigh_instances_too():
    teacher = lit(blank(length=math.log(4.1)), ((0, 1, 1), 2.0), ((0, 1, 2), 0.5))
    student = blank()
    ours, theirs = meet(student, teacher, LogitKDConfig())

    def mask(**settings):
        config = LogitKDConfig(positions="instances", instances=1, **settings)
        return position_weights(ours, theirs, (student, teacher), None, config, REGION)[0]

    where = cells_of(student, teacher, 1)[0]
    confidence = theirs.amax(dim=1)[0]
    assert torch.equal(mask(soft=False), where) and torch.equal(mask(), where * confidence)
    assert torch.equal(mask(soft=False, threshold=0.7), where * (confidence > 0.7))


@pytest.mark.parametrize("target", ["teacher", "student"])
@pytest.mark.parametrize("sizes", [((4, 4), (8, 8)), ((6, 5), (6, 5))])
def test_gradcheck_through_the_chosen_cells(sizes, target):
    student, teacher = head(2, sizes[0], 1, 3), head(2, sizes[1], 1, 4)
    config = LogitKDConfig(positions="instances", instances=2, target=target)

    def loss(*maps):
        return logit_kd(HeadOutput(*maps), teacher, None, None, config, REGION)["kd_heatmap"]

    assert torch.autograd.gradcheck(
        loss, [getattr(student, f.name).requires_grad_() for f in fields(HeadOutput)]
    )


def test_the_choice_has_no_gradient_and_inputs_stay():
    student, teacher = head(seed=1), head(seed=2)
    leaves = [
        getattr(one, f.name).requires_grad_()
        for one in (student, teacher)
        for f in fields(HeadOutput)
    ]
    before = [leaf.detach().clone() for leaf in leaves]
    assert not cells_of(student, teacher).requires_grad
    logit_kd(student, teacher, None, None, LogitKDConfig(positions="instances"), REGION)[
        "kd_heatmap"
    ].backward()
    assert student.heatmap.grad is not None and all(leaf.grad is None for leaf in leaves[1:])
    assert all(torch.equal(a, b) for a, b in zip(before, leaves))


def test_frames_are_chosen_on_their_own():
    student, teacher = head(seed=1), head(seed=2)

    def frame(output, number):
        return HeadOutput(
            *(getattr(output, f.name)[number : number + 1] for f in fields(HeadOutput))
        )

    together = cells_of(student, teacher, 2)
    assert torch.equal(
        together, torch.cat([cells_of(frame(student, b), frame(teacher, b), 2) for b in range(2)])
    )


def test_no_instance_at_all_is_refused():
    with pytest.raises(ConfigError, match="at least 1 of them, not 0"):
        check_logit(LogitKDConfig(positions="instances", instances=0), (4, 4), (4, 4))
