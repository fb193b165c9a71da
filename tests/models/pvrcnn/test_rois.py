"""The RoI's own frame: grid points against a loop, codes there and back, refined boxes and their
order.
"""

from __future__ import annotations

import math

import pytest
import torch

from kdlib.config import RefinedConfig
from kdlib.models.pvrcnn.rois import Rois, decode_roi, encode_roi, grid_points, into_roi, refined
from kdlib.types import Detections


def boxes(count, seed=0, turn=2 * math.pi):
    gen = torch.Generator().manual_seed(seed)
    centre = (torch.rand(count, 3, generator=gen, dtype=torch.float64) - 0.5) * torch.tensor(
        [40.0, 40.0, 2.0]
    )
    size = 0.5 + 4 * torch.rand(count, 3, generator=gen, dtype=torch.float64)
    return torch.cat(
        (centre, size, (torch.rand(count, 1, generator=gen, dtype=torch.float64) - 0.5) * turn),
        dim=1,
    )


@pytest.mark.parametrize("size", [1, 2, 6])
def test_grid_points_are_those_of_a_loop(size):
    some = boxes(4)
    found = grid_points(some, size)
    assert found.shape == (4, size**3, 3)
    for number, (x, y, z, dx, dy, dz, heading) in enumerate(some.tolist()):
        place = 0
        for i in range(size):  # x slowest
            for j in range(size):
                for k in range(size):
                    a, b, c = (
                        (step + 0.5) / size * side - side / 2
                        for step, side in zip((i, j, k), (dx, dy, dz))
                    )
                    cos, sin = math.cos(heading), math.sin(heading)
                    wanted = (x + a * cos - b * sin, y + a * sin + b * cos, z + c)
                    assert found[number, place].tolist() == pytest.approx(wanted, abs=1e-9)
                    place += 1


def test_no_rois_have_no_grid_points():
    assert grid_points(torch.zeros(0, 7), 6).shape == (0, 216, 3)


def test_decoding_undoes_encoding():
    rois = boxes(50, 1)
    truth = rois.clone()
    truth[:, :3] += 0.5 * torch.randn(
        50, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    truth[:, 3:6] *= 1.3
    truth[:, 6] += torch.linspace(-1.5, 1.5, 50, dtype=torch.float64)  # less than a quarter turn
    back = decode_roi(encode_roi(truth, rois), rois)
    assert torch.allclose(back[:, :6], truth[:, :6], atol=1e-9)
    apart = (back[:, 6] - truth[:, 6]) % (2 * math.pi)
    assert torch.minimum(apart, 2 * math.pi - apart).max() < 1e-9


def test_a_box_that_looks_backwards_is_turned_round():
    roi = torch.tensor([[1.0, 2.0, 0.5, 4.0, 2.0, 1.5, math.pi / 2]], dtype=torch.float64)
    box = torch.tensor([[1.0, 3.0, 0.5, 4.0, 2.0, 1.5, -math.pi / 2]], dtype=torch.float64)
    # a metre ahead
    assert into_roi(box, roi)[0].tolist() == pytest.approx(
        [1.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0], abs=1e-9
    )
    seen = into_roi(boxes(500, 3), boxes(500, 4))[:, 6]
    assert (seen.abs() <= math.pi / 2).all()


def test_codes_by_hand():
    roi = torch.tensor([[10.0, 0.0, 1.0, 3.0, 4.0, 2.0, 0.0]], dtype=torch.float64)  # diagonal 5 m
    box = torch.tensor([[11.0, -0.5, 1.5, 6.0, 4.0, 2.0, 0.1]], dtype=torch.float64)
    assert encode_roi(box, roi)[0].tolist() == pytest.approx(
        [0.2, -0.1, 0.25, math.log(2), 0.0, 0.0, 0.1]
    )


def test_refined_boxes_by_frame_with_the_rois_classes():
    one, two = boxes(6, 5).float(), boxes(3, 6).float()
    one[1] = one[0]  # the same box twice
    rois = Rois.of(
        [
            Detections(b, torch.ones(len(b)), torch.arange(len(b)) % 3 + 1)
            for b in (one, torch.zeros(0, 7), two)
        ],
    )
    assert rois.frame.tolist() == [0] * 6 + [2] * 3 and [len(b) for b in rois.per_frame] == [
        6,
        0,
        3,
    ]
    logits = torch.tensor([2.0, 3.0, -1.0, -4.0, 0.0, 1.0, 0.5, 1.5, -9.0])
    first, none, third = refined(rois, logits, torch.zeros(9, 7), RefinedConfig())
    assert first.labels.tolist() == [2, 3, 2, 3] and torch.allclose(
        first.scores, logits[[1, 5, 4, 2]].sigmoid()
    )
    assert torch.allclose(first.boxes, one[[1, 5, 4, 2]], atol=1e-5), (
        "the double and what scores below 0.1 are gone"
    )
    assert len(none.boxes) == 0 and third.labels.tolist() == [2, 1]
    whole = refined(rois, logits, torch.zeros(9, 7), RefinedConfig(), nms=False)
    assert [len(found.boxes) for found in whole] == [5, 0, 2], (
        "without suppression the double stays"
    )
    at_threshold = refined(
        Rois(one[:1], torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 1),
        torch.zeros(1),
        torch.zeros(1, 7),
        RefinedConfig(score_threshold=0.5),
    )
    assert len(at_threshold[0].boxes) == 1, "0.5 is not below 0.5"
