"""Suppression against a loop over all pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.models.geometry import nms
from kdlib.models.geometry.nms import rotated_nms
from kdlib.models.geometry.rotated_iou import bev_iou


def scored_boxes(seed, count, spread, levels=1000):
    gen = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 7, generator=gen) * torch.tensor(
        [spread, spread, 1.0, 2.0, 1.0, 1.0, 6.28]
    )
    boxes[:, 3:6] += torch.tensor([3.5, 1.5, 1.0])
    return boxes, torch.randint(levels, (count,), generator=gen) / levels


def naive(boxes, scores, iou, pre, post):
    order = sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i))[:pre]
    overlaps = bev_iou(boxes.double(), boxes.double()).tolist()
    kept = []
    for i in order:
        if all(overlaps[k][i] <= iou for k in kept):
            kept.append(i)
    return kept[:post]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(0, 60),
    spread=st.sampled_from([0.5, 5.0, 30.0]),
    iou=st.sampled_from([0.01, 0.3, 0.7, 1.1]),
    pre=st.integers(1, 70),
    post=st.integers(0, 70),
)
def test_equals_a_loop_over_pairs(seed, count, spread, iou, pre, post):
    boxes, scores = scored_boxes(seed, count, spread, levels=20)  # equal scores are common
    before = boxes.clone(), scores.clone()
    assert rotated_nms(boxes, scores, iou, pre, post).tolist() == naive(
        boxes, scores, iou, pre, post
    )
    assert torch.equal(boxes, before[0]) and torch.equal(scores, before[1])


@pytest.mark.parametrize("spread", [3.0, 40.0])
@pytest.mark.parametrize("iou", [0.1, 0.7])
def test_many_blocks_equal_a_loop_over_pairs(spread, iou):
    boxes, scores = scored_boxes(3, 300, spread)
    assert rotated_nms(boxes, scores, iou, 300, 300).tolist() == naive(boxes, scores, iou, 300, 300)


def test_the_size_of_a_block_does_not_matter(monkeypatch):
    boxes, scores = scored_boxes(5, 300, 8.0)
    whole = rotated_nms(boxes, scores, 0.2, 300, 300)
    for size in (1, 7, 1000):
        monkeypatch.setattr(nms, "_BLOCK", size)
        assert torch.equal(rotated_nms(boxes, scores, 0.2, 300, 300), whole)


def test_a_fallen_box_suppresses_nobody():
    boxes = torch.tensor(
        [[0.0, 0, 0, 4, 2, 1, 0], [1.0, 0, 0, 4, 2, 1, 0], [2.0, 0, 0, 4, 2, 1, 0]]
    )
    assert rotated_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5, 10, 10).tolist() == [0, 2]


@pytest.mark.parametrize("spread", [2.0, 150.0])
def test_4096_boxes_in_reasonable_time_and_always_the_same(spread):
    boxes, scores = scored_boxes(0, 4096, spread)
    first = rotated_nms(boxes, scores, 0.7, 4096, 4096)
    assert torch.equal(first, rotated_nms(boxes, scores, 0.7, 4096, 4096))
    assert scores[first].diff().le(0).all()


def test_tiny_identical_boxes_fall():
    boxes = torch.tensor([[1.0, 1, 0, 1e-4, 1e-4, 1, 0.3]] * 2)
    assert rotated_nms(boxes, torch.tensor([0.1, 0.2]), 0.7, 10, 10).tolist() == [1]


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="2 boxes but 3 scores"):
        rotated_nms(torch.zeros(2, 7), torch.zeros(3), 0.5, 10, 10)
