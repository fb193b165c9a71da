from __future__ import annotations

import numpy as np
import pytest
import torch

from kdlib.errors import DataError
from kdlib.models.losses import box_regression
from kdlib.models.losses.box_regression import gather_at, gather_codes, masked_l1
from kdlib.types import HeadOutput, HeadTargets


def box_regression_loss(maps, targets):
    """The loss of maps in target order."""
    return box_regression.box_regression_loss(
        HeadOutput(maps[:, :0], *maps.split((2, 1, 3, 2), dim=1)), targets
    )


def example(seed=0, frames=2, slots=6, height=4, width=5):
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(frames, 8, height, width))
    boxes = rng.normal(size=(frames, slots, 8))
    mask = rng.random((frames, slots)) > 0.4
    indices = rng.integers(0, height * width, (frames, slots)) * mask
    return maps, HeadTargets(
        torch.zeros(frames, 3, height, width),
        torch.from_numpy(boxes),
        torch.from_numpy(indices),
        torch.from_numpy(mask),
    )


def naive(maps, targets):
    total, count = np.zeros(8), 0
    width = maps.shape[-1]
    for b, k in np.ndindex(*targets.mask.shape):
        if targets.mask[b, k]:
            y, x = divmod(int(targets.indices[b, k]), width)
            total += np.abs(maps[b, :, y, x] - targets.boxes[b, k].numpy())
            count += 1
    return total / max(count, 1)


def test_equals_the_sum_box_by_box():
    maps, targets = example(1)
    np.testing.assert_allclose(
        box_regression_loss(torch.from_numpy(maps), targets), naive(maps, targets), rtol=1e-12
    )


def test_hand_value():
    """Spec 13.6: two boxes, absolute sum 1 in each dimension, so 0.5 each."""
    targets = HeadTargets(
        torch.zeros(1, 1, 2, 2),
        torch.ones(1, 3, 8),
        torch.tensor([[1, 2, 0]]),
        torch.tensor([[True, True, False]]),
    )
    maps = torch.ones(1, 8, 2, 2)
    maps[:, :, 0, 1] = 2.0
    assert box_regression_loss(maps, targets).tolist() == [0.5] * 8


def test_no_box_gives_zero_and_equal_gives_zero():
    maps, targets = example(2)
    none = HeadTargets(
        targets.heatmap, targets.boxes, targets.indices, torch.zeros_like(targets.mask)
    )
    assert box_regression_loss(torch.from_numpy(maps), none).tolist() == [0.0] * 8
    same = HeadTargets(
        targets.heatmap,
        gather_at(torch.from_numpy(maps), targets.indices),
        targets.indices,
        targets.mask,
    )
    assert box_regression_loss(torch.from_numpy(maps), same).tolist() == [0.0] * 8


def test_gradcheck():
    maps, targets = example(3)
    assert torch.autograd.gradcheck(
        lambda x: box_regression_loss(x, targets), torch.from_numpy(maps).requires_grad_()
    )


def test_errata1_nan_in_a_used_slot_is_refused_and_in_an_empty_one_is_harmless():
    maps, targets = example(4)
    used = targets.boxes.clone()
    frame, slot = (int(i) for i in targets.mask.nonzero()[0])
    used[frame, slot, 3] = float("nan")
    with pytest.raises(DataError, match=f"target box {slot} of frame {frame}.*log dx = nan"):
        box_regression_loss(
            torch.from_numpy(maps),
            HeadTargets(targets.heatmap, used, targets.indices, targets.mask),
        )

    empty = targets.boxes.clone()
    empty[~targets.mask] = float("nan")
    leaf = torch.from_numpy(maps).requires_grad_()
    loss = box_regression_loss(
        leaf, HeadTargets(targets.heatmap, empty, targets.indices, targets.mask)
    )
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach(), naive(maps, targets), rtol=1e-12)
    assert leaf.grad.isfinite().all()


def test_gathering_from_each_map_equals_gathering_from_the_concatenation():
    maps, targets = example(5)
    maps = torch.from_numpy(maps)
    head = HeadOutput(maps[:, :1], maps[:, :2], maps[:, 2:3], maps[:, 3:6], maps[:, 6:])
    assert torch.equal(gather_codes(head, targets.indices), gather_at(maps, targets.indices))


def test_golden_of_the_original(goldens):
    stored = np.load(goldens / "original/02_losses/loss_modules.npz")
    boxes, indices = (
        torch.from_numpy(stored["target_boxes"]),
        torch.from_numpy(stored["inds"]).long(),
    )
    mask = torch.from_numpy(stored["masks"]).bool()
    for name, used in (("plain", mask), ("allmasked", torch.zeros_like(mask))):
        maps = torch.from_numpy(stored["reg_pred"]).requires_grad_()
        loss = box_regression_loss(maps, HeadTargets(torch.zeros(0), boxes, indices, used))
        loss.sum().backward()
        np.testing.assert_allclose(loss.detach(), stored[f"reg_{name}_value"], rtol=1e-5)
        np.testing.assert_allclose(maps.grad, stored[f"reg_{name}_gradsum"], rtol=1e-4, atol=1e-8)
    nan = torch.from_numpy(stored["target_boxes_nan"])
    assert np.isnan(stored["reg_nan_value"]).any()  # what the original does
    with pytest.raises(DataError, match="nan"):
        box_regression_loss(
            torch.from_numpy(stored["reg_pred"]), HeadTargets(torch.zeros(0), nan, indices, mask)
        )


def test_half_precision_is_widened():
    codes = torch.full((1, 1, 8), 0.5, dtype=torch.float16)
    assert (
        masked_l1(codes, torch.zeros(1, 1, 8), torch.ones(1, 1, dtype=torch.bool)).dtype
        == torch.float32
    )
