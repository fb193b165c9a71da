"""The losses of a second stage against numbers worked out by hand, and their gradients against
differences.
"""

from __future__ import annotations

import math

import pytest
import torch

from kdlib.models.geometry.boxes import corners_3d
from kdlib.models.losses.second_stage import (
    confidence_loss,
    corner_loss,
    point_loss,
    refinement_loss,
)
from kdlib.models.pvrcnn.rois import encode_roi

ROI = [10.0, 0.0, 1.0, 3.0, 4.0, 2.0, 0.0]  # diagonal 5 m


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_points_by_hand():
    """p = 0.5 everywhere: 0.25 * 0.25 * ln 2 on an object, 0.75 * 0.25 * ln 2 off it, over two on
    objects.
    """
    logits = torch.zeros(5)
    labels = torch.tensor([1, 1, 0, 0, -1])
    wanted = (2 * 0.25 + 2 * 0.75) * 0.25 * math.log(2) / 2
    assert float(point_loss(logits, labels)) == pytest.approx(wanted)
    assert float(point_loss(logits[2:], labels[2:])) == pytest.approx(
        2 * 0.75 * 0.25 * math.log(2)
    ), "without objects over 1"


def test_confidence_by_hand():
    logits = torch.tensor([0.0, math.log(3.0)])  # 0.5 and 0.75
    wanted = -(math.log(0.5) + 0.4 * math.log(0.75) + 0.6 * math.log(0.25)) / 2
    assert float(confidence_loss(logits, torch.tensor([1.0, 0.4]))) == pytest.approx(wanted)
    assert float(confidence_loss(logits[:0], torch.zeros(0))) == 0


def test_refinement_by_hand():
    rois = double(ROI, ROI, ROI)
    truth = double([10.5, 0.0, 1.0, 3.0, 4.0, 2.0, 0.0], [10.0, 0.0, 1.0, 3.0, 4.0, 2.0, 0.5], ROI)
    codes = torch.zeros(3, 7, dtype=torch.float64)
    positive = torch.tensor([True, True, False])
    # 0.5 m over 5 m is 0.1 < 1/9: 0.1^2 * 9 / 2; a heading of 0.5 is beyond it: 0.5 - 1/18.
    wanted = (0.01 * 4.5 + 0.5 - 1 / 18) / 2
    assert float(refinement_loss(codes, rois, truth, positive)) == pytest.approx(wanted)
    assert float(refinement_loss(encode_roi(truth, rois), rois, truth, positive)) == pytest.approx(
        0
    )


def test_corners_by_hand():
    rois = double(ROI, ROI)
    positive = torch.tensor([True, True])
    codes = torch.zeros(2, 7, dtype=torch.float64)
    moved = double([10.5, 0.0, 1.0, 3.0, 4.0, 2.0, 0.0], [12.0, 0.0, 1.0, 3.0, 4.0, 2.0, 0.0])
    # 0.5 m off: 0.125 at every corner; 2 m: 1.5. Seen backwards the same boxes are farther off.
    assert float(corner_loss(codes, rois, moved, positive)) == pytest.approx((0.125 + 1.5) / 2)
    turned = moved.clone()
    turned[:, 6] = math.pi
    assert float(corner_loss(codes, rois, turned, positive)) == pytest.approx((0.125 + 1.5) / 2), (
        "half a turn is no error"
    )


def test_corners_take_the_nearer_of_two_ways_corner_by_corner():
    rois, truth = double(ROI), double([10.3, 0.4, 1.1, 2.0, 5.0, 2.2, 1.3])
    found, there = corners_3d(rois), corners_3d(truth)
    back = corners_3d(truth + torch.tensor([0, 0, 0, 0, 0, 0, math.pi]))
    wanted = []
    for corner in range(8):
        apart = min(float((found - other)[0, corner].norm()) for other in (there, back))
        wanted.append(0.5 * apart**2 if apart < 1 else apart - 0.5)
    value = corner_loss(torch.zeros(1, 7, dtype=torch.float64), rois, truth, torch.tensor([True]))
    assert float(value) == pytest.approx(sum(wanted) / 8)


def test_without_objects_boxes_cost_nothing_and_gradients_are_zero():
    codes = torch.ones(2, 7, requires_grad=True)
    rois = torch.tensor([ROI, ROI])
    none = torch.zeros(2, dtype=torch.bool)
    loss = refinement_loss(codes, rois, rois, none) + corner_loss(codes, rois, rois, none)
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(codes.grad, torch.zeros(2, 7))


def test_a_perfect_box_has_a_finite_gradient():
    codes = torch.zeros(1, 7, dtype=torch.float64, requires_grad=True)
    rois = double(ROI)
    corner_loss(codes, rois, rois, torch.tensor([True])).backward()
    assert torch.equal(codes.grad, torch.zeros(1, 7, dtype=torch.float64))


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients(seed):
    gen = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=gen, dtype=torch.float64)

    codes, logits = 0.3 * draw(4, 7), draw(6)
    rois = torch.cat((draw(4, 3), 1 + draw(4, 3).abs(), draw(4, 1)), 1)
    truth = rois + 0.2 * draw(4, 7).clamp(-2, 2)
    positive = torch.tensor([True, True, False, True])
    labels, wanted = (
        torch.tensor([1, 0, -1, 1, 0, 0]),
        torch.rand(6, generator=gen, dtype=torch.float64),
    )
    for function in (refinement_loss, corner_loss):
        assert torch.autograd.gradcheck(
            lambda c, f=function: f(c, rois, truth, positive), codes.requires_grad_()
        )
    assert torch.autograd.gradcheck(lambda x: point_loss(x, labels), logits.requires_grad_())
    assert torch.autograd.gradcheck(lambda x: confidence_loss(x, wanted), logits)
