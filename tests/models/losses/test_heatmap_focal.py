from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdlib.models.losses.heatmap_focal import clamped_probability, focal_loss, heatmap_focal_loss


def naive(p, t, mask=None, positive=1.0):
    """The formula of the paper, cell by cell in float64."""
    total, count = 0.0, 0.0
    for b, c, y, x in np.ndindex(*p.shape):
        weight = 1.0 if mask is None else float(mask[b, y, x])
        q, g = float(p[b, c, y, x]), float(t[b, c, y, x])
        if g >= positive:
            total -= weight * math.log(q) * (1 - q) ** 2
            count += weight
        else:
            total -= weight * math.log(1 - q) * q**2 * (1 - g) ** 4
    return total / count if count else total


def maps(seed=0, shape=(2, 3, 4, 5)):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, shape)
    target = rng.random(shape) * (rng.random(shape) > 0.5)
    target[..., 1, 2] = 1.0
    return logits, target


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 3, 3), (2, 1, 4, 4)])
def test_equals_the_formula_cell_by_cell(shape):
    logits, target = maps(1, shape)
    got = heatmap_focal_loss(torch.from_numpy(logits), torch.from_numpy(target))
    assert float(got) == pytest.approx(naive(1 / (1 + np.exp(-logits)), target), rel=1e-12)


def test_hand_values():
    """Spec 13.4: one positive with p = 0.5, then one negative with p = 0.5, t = 0.2."""
    target = torch.tensor([[[[1.0, 0.0]]]])
    assert float(heatmap_focal_loss(torch.tensor([[[[0.0, -50.0]]]]), target)) == pytest.approx(
        0.173287, abs=1e-6
    )
    both = heatmap_focal_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.2]]]]))
    assert float(both) == pytest.approx(0.173287 + 0.070978, abs=1e-6)


def test_without_positives_it_is_not_divided():
    logits, target = maps(3)
    target = np.minimum(target, 0.99)
    got = heatmap_focal_loss(torch.from_numpy(logits), torch.from_numpy(target))
    assert float(got) == pytest.approx(naive(1 / (1 + np.exp(-logits)), target), rel=1e-12)


def test_gradcheck():
    logits, target = maps(4, (1, 2, 3, 3))
    assert torch.autograd.gradcheck(
        lambda x: heatmap_focal_loss(x, torch.from_numpy(target)),
        torch.from_numpy(logits).requires_grad_(),
    )


def test_clamped_cells_have_no_gradient_and_half_precision_is_widened():
    logits = torch.tensor([[[[20.0, -20.0, 0.5]]]], requires_grad=True)
    heatmap_focal_loss(logits, torch.tensor([[[[0.0, 1.0, 1.0]]]])).backward()
    assert logits.grad.flatten()[:2].tolist() == [0, 0] and logits.grad[..., 2] != 0
    assert clamped_probability(
        torch.full((1,), 20.0, dtype=torch.bfloat16)
    ).item() == pytest.approx(1 - 1e-4)


def test_inputs_unchanged_and_shapes_checked():
    logits, target = (torch.from_numpy(m) for m in maps(5))
    before = logits.clone(), target.clone()
    heatmap_focal_loss(logits, target)
    assert torch.equal(logits, before[0]) and torch.equal(target, before[1])
    with pytest.raises(ValueError, match="target of shape"):
        heatmap_focal_loss(logits, target[:, :1])


@pytest.mark.parametrize(
    "variant, target, settings",
    [
        ("plain", "t", {}),
        ("mask", "t", {"mask": "mask"}),
        ("posthresh0p3", "t", {"positive": 0.3}),
        ("nopos", "t_nopos", {}),
        ("softtarget_pos0p6", "t_soft", {"positive": 0.6}),
    ],
)
def test_golden_of_the_original(goldens, variant, target, settings):
    stored = np.load(goldens / "original/02_losses/loss_modules.npz")
    settings = {
        k: torch.from_numpy(stored[v]) if isinstance(v, str) else v for k, v in settings.items()
    }
    p = torch.from_numpy(stored["p"]).requires_grad_()
    loss = focal_loss(p, torch.from_numpy(stored[target]), **settings)
    loss.backward()
    assert loss.item() == pytest.approx(float(stored[f"focal_{variant}_value"]), rel=1e-5)
    np.testing.assert_allclose(
        p.grad.numpy(), stored[f"focal_{variant}_grad"], rtol=1e-4, atol=1e-6
    )
