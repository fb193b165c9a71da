"""Pivotal positions on a 4 x 4 map, by hand."""

from __future__ import annotations

import pytest
import torch

from kdlib.config import LogitKDConfig
from kdlib.errors import ConfigError
from kdlib.kd.check import check_logit
from kdlib.kd.pivotal import pivotal_mask
from kdlib.types import HeadTargets

# Two classes; the confidence (their maximum) is CONFIDENCE.
FIRST = torch.tensor(
    [[0.9, 0.1, 0.2, 0.1], [0.1, 0.1, 0.1, 0.1], [0.1, 0.5, 0.1, 0.1], [0.1, 0.1, 0.1, 0.3]]
)
SECOND = torch.tensor(
    [[0.1, 0.1, 0.1, 0.1], [0.1, 0.8, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.4]]
)
CONFIDENCE = torch.tensor(
    [[0.9, 0.1, 0.2, 0.1], [0.1, 0.8, 0.1, 0.1], [0.1, 0.5, 0.1, 0.1], [0.1, 0.1, 0.1, 0.4]]
)
MAP = torch.stack((FIRST, SECOND))[None]
GAUSSIAN = torch.tensor(
    [[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.5, 0.0], [0.0, 0.5, 0.2, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
TARGETS = HeadTargets(
    heatmap=torch.stack((GAUSSIAN, torch.zeros(4, 4)))[None],
    boxes=torch.zeros(1, 3, 8),
    # cells (1, 1), (3, 3) and an empty slot that points at (0, 0)
    indices=torch.tensor([[5, 15, 0]]),
    mask=torch.tensor([[True, True, False]]),
)


def mask_of(**settings):
    return pivotal_mask(MAP, TARGETS, LogitKDConfig(**settings))[0]


def cells(*where):
    mask = torch.zeros(4, 4)
    for y, x in where:
        mask[y, x] = 1
    return mask


def test_all():
    assert torch.equal(mask_of(positions="all", soft=False), torch.ones(4, 4))
    assert torch.equal(mask_of(positions="all", soft=True), CONFIDENCE)


def test_confidence_is_strict():
    """0.5 is not above 0.5, and 0.4 in float32 is not above 0.4."""
    assert torch.equal(
        mask_of(positions="confidence", threshold=0.5, soft=False), cells((0, 0), (1, 1))
    )
    assert torch.equal(
        mask_of(positions="confidence", threshold=0.4, soft=False), cells((0, 0), (1, 1), (2, 1))
    )
    assert torch.equal(
        mask_of(positions="confidence", threshold=0.5), cells((0, 0), (1, 1)) * CONFIDENCE
    )


def test_b7_rank_picks_the_top_cells_of_each_frame():
    best = cells((0, 0), (1, 1), (2, 1))
    assert torch.equal(mask_of(positions="rank", rank=3, soft=False), best)
    assert torch.equal(mask_of(positions="rank", rank=3), best * CONFIDENCE)
    assert torch.equal(
        mask_of(positions="rank", rank=3, threshold=0.6, soft=False), cells((0, 0), (1, 1))
    )
    two = pivotal_mask(
        torch.cat((MAP, MAP.flip(-1))), None, LogitKDConfig(positions="rank", rank=3, soft=False)
    )
    assert torch.equal(two, torch.stack((best, best.flip(-1))))


def test_rank_above_the_number_of_cells_takes_all():
    assert torch.equal(mask_of(positions="rank", rank=100, soft=False), torch.ones(4, 4))


def test_b7_center_takes_the_cells_of_boxes_and_an_empty_slot_touches_nothing():
    assert torch.equal(mask_of(positions="center", soft=False), cells((1, 1), (3, 3)))
    assert torch.equal(mask_of(positions="center"), cells((1, 1), (3, 3)) * CONFIDENCE)
    at_zero = HeadTargets(TARGETS.heatmap, TARGETS.boxes, torch.tensor([[0, 15, 0]]), TARGETS.mask)
    got = pivotal_mask(MAP, at_zero, LogitKDConfig(positions="center", soft=False))[0]
    assert torch.equal(got, cells((0, 0), (3, 3)))


def test_gaussian_soft_and_hard():
    assert torch.equal(mask_of(), GAUSSIAN * CONFIDENCE)
    assert torch.equal(mask_of(soft=False), (GAUSSIAN > 0).float())
    assert torch.equal(mask_of(soft=False, threshold=0.45), cells((1, 1), (2, 1)))


def test_no_box_no_position():
    empty = HeadTargets(
        TARGETS.heatmap * 0, TARGETS.boxes, TARGETS.indices * 0, TARGETS.mask & False
    )
    for form in ("center", "gaussian"):
        assert pivotal_mask(MAP, empty, LogitKDConfig(positions=form)).sum() == 0


def test_one_class():
    assert torch.equal(pivotal_mask(MAP[:, :1], None, LogitKDConfig(positions="all"))[0], FIRST)


def test_mask_has_no_gradient_and_inputs_stay():
    leaf = MAP.clone().requires_grad_()
    heatmap = TARGETS.heatmap.clone()
    for form in ("all", "confidence", "rank", "center", "gaussian"):
        assert not pivotal_mask(leaf, TARGETS, LogitKDConfig(positions=form)).requires_grad
    assert torch.equal(leaf, MAP) and torch.equal(TARGETS.heatmap, heatmap)


def test_contradictions_are_refused():
    with pytest.raises(ConfigError, match=r"would ignore the threshold 0\.3"):
        check_logit(LogitKDConfig(positions="all", threshold=0.3), (4, 4), (4, 4))
    with pytest.raises(ConfigError, match="rank of at least 1"):
        check_logit(LogitKDConfig(positions="rank", rank=0), (4, 4), (4, 4))
    with pytest.raises(ConfigError, match="need targets"):
        pivotal_mask(MAP, None, LogitKDConfig())
    with pytest.raises(ValueError, match=r"grid of \(4, 4\)"):
        pivotal_mask(torch.rand(1, 2, 8, 8), TARGETS, LogitKDConfig())
