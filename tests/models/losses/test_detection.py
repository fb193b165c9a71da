from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kdlib.config import HeadConfig
from kdlib.models.losses.box_regression import box_regression_loss
from kdlib.models.losses.detection import detection_loss
from kdlib.models.losses.heatmap_focal import heatmap_focal_loss
from kdlib.models.losses.loss_part import loss_terms
from kdlib.types import HeadOutput, HeadTargets

NAMES = ("center", "center_z", "dim", "rot")


def test_golden_of_the_original_values_and_gradients(goldens):
    stored = np.load(goldens / "original/02_losses/head_get_loss.npz")
    meta = json.loads(str(stored["meta"]))
    maps = {}
    for name in (*NAMES, "hm"):
        value = stored[f"q_{name}"].astype(np.float32) * np.float32(meta["step"][name])
        maps[name] = torch.from_numpy(
            value + np.float32(meta["offset"].get(name, 0))
        ).requires_grad_()
    output = HeadOutput(maps["hm"], *(maps[n] for n in NAMES))
    targets = HeadTargets(
        torch.from_numpy(stored["heatmaps"]),
        torch.from_numpy(stored["target_boxes"]),
        torch.from_numpy(stored["inds"]).long(),
        torch.from_numpy(stored["masks"]).bool(),
    )
    terms = loss_terms(detection_loss((output,), (targets,), HeadConfig()))
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(float(stored["loss"]), rel=1e-5)
    assert terms.parts["heatmap"].item() == pytest.approx(float(stored["hm_loss"]), rel=1e-5)
    assert terms.parts["box"].item() == pytest.approx(float(stored["loc_loss"]), rel=1e-5)
    for name, leaf in maps.items():
        np.testing.assert_allclose(
            leaf.grad, stored[f"grad_{name}"], rtol=1e-4, atol=1e-6, err_msg=name
        )


def scene(classes, seed, boxes=3):
    gen = torch.Generator().manual_seed(seed)
    output = HeadOutput(*(torch.randn(2, c, 4, 5, generator=gen) for c in (classes, 2, 1, 3, 2)))
    heatmap = torch.rand(2, classes, 4, 5, generator=gen) * 0.9
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[:, :boxes] = True
    if boxes:
        heatmap[:, 0, 1, 1] = 1
    indices = torch.randint(0, 20, (2, 6), generator=gen)
    return output, HeadTargets(heatmap, torch.randn(2, 6, 8, generator=gen), indices, mask)


@pytest.mark.parametrize("split", [(3,), (2, 1), (1, 1, 1)])
def test_heads_add_up(split):
    heads, targets = zip(*(scene(c, i) for i, c in enumerate(split)))
    terms = loss_terms(
        detection_loss(heads, targets, HeadConfig(heatmap_weight=0.5, box_weight=3.0))
    )
    heatmap = sum(float(heatmap_focal_loss(h.heatmap, t.heatmap)) for h, t in zip(heads, targets))
    box = sum(float(box_regression_loss(h, t).sum()) for h, t in zip(heads, targets))
    assert terms.parts["heatmap"].item() == pytest.approx(0.5 * heatmap, rel=1e-6)
    assert terms.parts["box"].item() == pytest.approx(3 * box, rel=1e-6)
    assert terms.loss.item() == pytest.approx(0.5 * heatmap + 3 * box, rel=1e-6)


def test_empty_scene_has_a_finite_heatmap_loss_and_no_box_loss():
    head, targets = scene(1, 0, boxes=0)
    terms = loss_terms(detection_loss((head,), (targets,), HeadConfig()))
    assert terms.parts["box"].item() == 0 and float(terms.parts["heatmap"]) > 0


def test_outputs_keep_their_logits():
    """Pains B5: the original overwrote them with probabilities."""
    head, targets = scene(3, 1)
    before = head.heatmap.clone()
    loss_terms(detection_loss((head,), (targets,), HeadConfig()))
    assert torch.equal(head.heatmap, before)


def test_counts_must_agree():
    head, targets = scene(3, 1)
    with pytest.raises(ValueError, match="one per head"):
        loss_terms(detection_loss((head, head), (targets,), HeadConfig()))
