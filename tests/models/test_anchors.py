"""Anchors, codes and assignment: by hand, against loops, and there and back."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kdlib import zoo
from kdlib.config import CLASS_NAMES, WAYMO_ANCHORS, AnchorConfig, AnchorHeadConfig, GridConfig
from kdlib.models import anchors as module
from kdlib.models.anchors import (
    anchor_boxes,
    assign_anchors,
    decode_codes,
    direction_of,
    encode_codes,
    match_anchors,
    nearest_rectangles,
    rectangle_iou,
)
from kdlib.models.geometry.boxes import wrap_angle

GRID = GridConfig((-8.0, -6.0, -2.0, 8.0, 6.0, 4.0), (0.5, 0.5, 6.0), 10)
HEAD = AnchorHeadConfig(stride=2)  # 16 columns, 12 rows


def random_boxes(count, seed=0, half=8.0):
    gen = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 7, generator=gen)
    low = torch.tensor([-half, -6, -0.5, 0.6, 0.5, 1.3, -7.0])
    return low + u * (torch.tensor([half, 6, 1.5, 5.0, 2.5, 2.2, 7.0]) - low)


def test_anchors_of_waymo_by_hand():
    found = anchor_boxes(HEAD, GRID).view(12, 16, 6, 7)
    assert torch.equal(found[0, :, 0, 0], torch.linspace(-8, 8, 16)), "both borders are centres"
    assert torch.equal(found[:, 5, 3, 1], torch.linspace(-6, 6, 12))
    cell = found[11, 0]
    want = [(4.7, 2.1, 1.7, 0.85), (0.91, 0.86, 1.73, 0.865), (1.78, 0.84, 1.78, 0.89)]
    for position, (dx, dy, dz, z) in enumerate(want):
        for turn, angle in enumerate((0.0, 1.57)):
            expected = torch.tensor([-8, 6, z, dx, dy, dz, angle])
            torch.testing.assert_close(cell[2 * position + turn], expected)


@pytest.mark.parametrize(
    "model, size", [(zoo.SECOND, 188), (zoo.POINTPILLAR, 468)], ids=["second", "pointpillar"]
)
def test_anchors_of_the_published_models(model, size):
    found = anchor_boxes(model.head, model.grid)
    assert found.shape == (size * size * 6, 7)
    half = model.grid.point_range[3]
    assert found[0, :2].tolist() == pytest.approx([-half, -half]) and found[
        -1, :2
    ].tolist() == pytest.approx([half, half])


def test_codes_by_hand():
    anchor = torch.tensor([[10.0, 20, 1, 4, 3, 2, 1.57]])
    box = torch.tensor([[11.0, 18, 1.5, 8, 1.5, 2, 2.0]])
    want = [1 / 5, -2 / 5, 0.25, math.log(2), -math.log(2), 0, 0.43]
    assert encode_codes(box, anchor)[0].tolist() == pytest.approx(want, abs=1e-6)
    torch.testing.assert_close(decode_codes(encode_codes(box, anchor), anchor), box)


def test_codes_there_and_back():
    boxes, anchors = random_boxes(500), random_boxes(500, seed=1)
    torch.testing.assert_close(
        decode_codes(encode_codes(boxes, anchors), anchors), boxes, rtol=1e-5, atol=1e-5
    )


def test_directions_by_hand():
    offset = 0.78539  # just under 45 degrees
    degrees = torch.tensor([46.0, 90.0, 224.0, 226.0, 270.0, 0.0, 44.0, -135.5, -134.5, 406.0])
    assert direction_of(torch.deg2rad(degrees), offset).tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 1, 0]


def test_rectangles_by_hand():
    boxes = torch.tensor(
        [
            [1.0, 2, 0, 4, 2, 1, math.radians(a)]
            for a in (0, 44, 46, 90, 134, 136, 180, -44, -46, 316)
        ]
    )
    along, across = [-1.0, 1, 3, 3], [0.0, 0, 2, 4]
    want = [along, along, across, across, across, along, along, along, across, along]
    torch.testing.assert_close(nearest_rectangles(boxes), torch.tensor(want))
    a, b = (
        torch.tensor([[0.0, 0, 2, 2]]),
        torch.tensor([[1.0, 1, 3, 3], [5, 5, 6, 6], [0, 0, 2, 2], [2, 0, 3, 2]]),
    )
    assert rectangle_iou(a, b)[0].tolist() == pytest.approx([1 / 7, 0, 1, 0])


def naive_match(anchors, boxes, config):
    """The rule of spec 4.5, one pair at a time."""
    iou = [
        [
            float(rectangle_iou(nearest_rectangles(a[None]), nearest_rectangles(b[None])))
            for b in boxes
        ]
        for a in anchors
    ]
    answer = []
    peaks = [max(row[g] for row in iou) for g in range(len(boxes))]
    for row in iou:
        best = max(range(len(boxes)), key=lambda g: row[g], default=None)
        if best is None:
            answer.append(-1)
        elif row[best] >= config.positive_iou or any(
            row[g] == peaks[g] > 0 for g in range(len(boxes))
        ):
            answer.append(best)
        else:
            answer.append(-1 if row[best] < config.negative_iou else -2)
    return answer


@pytest.mark.parametrize("chunk", [1, 10_000])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_matching_equals_the_loops(count, chunk, monkeypatch):
    monkeypatch.setattr(module, "_PAIRS", chunk)
    kind = AnchorConfig("Vehicle", (2.4, 1.6, 1.7), 0.0, 0.45, 0.2)
    anchors = anchor_boxes(AnchorHeadConfig(anchors=(kind,), stride=2), GRID)
    boxes = random_boxes(count, seed=3)
    if count > 1:
        boxes[1] = anchors[40] + torch.tensor([0.1, 0, 0, 0, 0, 0, 0])
        boxes[2] = boxes[1]  # twice the same box: the first one is answered
        boxes[3, :2] = 99.0  # touches no anchor
        boxes[4] = anchors[200]
        boxes[4, 0] += 8 / 15  # half way between two columns: two best anchors
    found = match_anchors(anchors, boxes, kind).tolist()
    assert found == naive_match(anchors, boxes, kind)
    if count > 1:
        assert {-2, -1, 1} <= set(found) and not {2, 3} & set(found)


def test_ties_are_all_forced():
    """A pedestrian between cells whose best overlap is far below the threshold."""
    anchors = torch.tensor([[x, 0.0, 0, 1, 1, 1, 0] for x in (-2.0, -0.5, 0.5, 2.0)])
    box = torch.tensor([[0.0, 0, 0, 1, 1, 1, 0]])
    kind = AnchorConfig("Pedestrian", (1.0, 1.0, 1.0), 0.0, 0.9, 0.35)
    assert match_anchors(anchors, box, kind).tolist() == [-1, 0, 0, -1]


def test_assignment_of_a_batch():
    anchors = anchor_boxes(HEAD, GRID)
    boxes = torch.zeros(2, 4, 7)
    cells = anchors.view(12, 16, 6, 7)
    vehicle, walker, cyclist = cells[3, 4, 1], cells[7, 9, 2], cells[2, 13, 4]
    boxes[0, 0] = vehicle + torch.tensor([0.2, 0.1, 0.3, 0.4, 0.1, 0.1, math.pi])
    boxes[0, 1], boxes[0, 3] = walker, cyclist  # padding between them
    boxes[1, 0] = torch.tensor([0, 0, 0, math.nan, 1, 1, 0])
    boxes[1, 1] = torch.tensor([0, 0, 0, 4, 0, 1.5, 0])
    labels = torch.tensor([[1, 2, 0, 3], [1, 1, 0, 0]])
    given = boxes.clone()
    found = assign_anchors(boxes, labels, anchors, HEAD, CLASS_NAMES)
    assert torch.equal(boxes.nan_to_num(7), given.nan_to_num(7))
    assert not found.positive[1].any() and not found.labels[1].any(), (
        "damaged boxes are absent, everything is background"
    )
    by_cell = found.labels[0].view(12, 16, 6)
    assert by_cell[3, 4].tolist() == [0, 1, 0, 0, 0, 0]
    assert by_cell[7, 9].tolist() == [0, 0, 2, 2, 0, 0], "a square object fits both rotations"
    assert by_cell[2, 13, 4] == 3
    assert set(by_cell[..., :2].unique().tolist()) <= {-1, 0, 1} and set(
        by_cell[..., 4:].unique().tolist()
    ) <= {-1, 0, 3}
    number = (3 * 16 + 4) * 6 + 1
    torch.testing.assert_close(found.codes[0, number], encode_codes(boxes[0, 0], anchors[number]))
    assert found.directions[0, number] == 1, "1.57 + pi lies in the second half"
    assert (
        not found.codes[0][~found.positive[0]].any()
        and not found.directions[0][~found.positive[0]].any()
    )
    decoded = decode_codes(found.codes[0], anchors)[found.positive[0]]
    for box in decoded:
        assert (boxes[0] - box).abs().sum(dim=1).min() < 1e-4, (
            "every positive anchor decodes to a box"
        )


def test_labels_follow_names():
    names = ("Cyclist", "Vehicle", "Pedestrian")
    anchors = anchor_boxes(HEAD, GRID)
    box = anchors[(3 * 16 + 4) * 6].view(1, 1, 7)
    found = assign_anchors(box, torch.tensor([[2]]), anchors, HEAD, names)
    assert found.labels[0, (3 * 16 + 4) * 6] == 2 and set(found.labels.unique().tolist()) <= {
        -1,
        0,
        2,
    }


def test_classes_may_have_different_numbers_of_rotations():
    kinds = (
        WAYMO_ANCHORS[0],
        replace(WAYMO_ANCHORS[1], rotations=(0.0,)),
        replace(WAYMO_ANCHORS[2], rotations=(0.0, 0.8, 1.57)),
    )
    head = replace(HEAD, anchors=kinds)
    anchors = anchor_boxes(head, GRID)
    assert len(anchors) == 12 * 16 * 6
    for place, label in ((0, 1), (1, 1), (2, 2), (3, 3), (4, 3), (5, 3)):
        number = (3 * 16 + 4) * 6 + place
        found = assign_anchors(
            anchors[number].view(1, 1, 7), torch.tensor([[label]]), anchors, head, CLASS_NAMES
        )
        assert found.labels[0, number] == label
        torch.testing.assert_close(found.codes[0, number], torch.zeros(7))


def test_wrong_input_is_refused():
    anchors = anchor_boxes(HEAD, GRID)
    with pytest.raises(ValueError, match="7 numbers"):
        assign_anchors(torch.zeros(1, 2, 8), torch.zeros(1, 2), anchors, HEAD, CLASS_NAMES)
    with pytest.raises(ValueError, match=r"boxes \(B, M, 7\)"):
        assign_anchors(torch.zeros(1, 2, 7), torch.zeros(1, 3), anchors, HEAD, CLASS_NAMES)
    with pytest.raises(ValueError, match="'Vehicle'"):
        assign_anchors(torch.zeros(1, 2, 7), torch.zeros(1, 2), anchors, HEAD, ("Tram",))


def test_headings_come_back_from_code_and_direction():
    """What decoding does to a heading, over the whole circle and both anchors."""
    offset = HEAD.direction_offset
    heading = torch.linspace(-math.pi, math.pi, 721)[:-1].double() + 1e-3
    for angle in (0.0, 1.57):
        for flipped in (0.0, math.pi):  # the sine loss cannot tell half turns apart
            predicted = (heading - angle + flipped) + angle
            half = direction_of(heading, offset).double()
            answer = module.limit_period(predicted - offset, 0.0, math.pi) + offset + math.pi * half
            torch.testing.assert_close(
                wrap_angle(answer - heading), torch.zeros_like(heading), rtol=0, atol=1e-9
            )
