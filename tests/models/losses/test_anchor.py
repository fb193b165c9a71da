"""The anchor losses: by hand, against loops, gradients against differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from kdlib.config import AnchorHeadConfig
from kdlib.models.anchor_head import AnchorOutput
from kdlib.models.anchors import AnchorTargets
from kdlib.models.losses.anchor import anchor_loss, code_distance, sigmoid_focal
from kdlib.models.losses.loss_part import loss_terms

HEAD = AnchorHeadConfig()


def random_case(frames=2, anchors=6, classes=3, seed=0, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    output = AnchorOutput(
        torch.randn(frames, anchors, classes, generator=gen, dtype=dtype),
        torch.randn(frames, anchors, 7, generator=gen, dtype=dtype),
        torch.randn(frames, anchors, 2, generator=gen, dtype=dtype),
    )
    labels = torch.tensor([[1, 0, -1, 3, 0, 2], [0, 0, -1, 0, -1, 0]])[:frames, :anchors]
    wanted = torch.randn(frames, anchors, 7, generator=gen, dtype=dtype)
    return output, AnchorTargets(labels, wanted, torch.randint(0, 2, labels.shape, generator=gen))


def test_focal_by_hand():
    logit = torch.tensor([0.0, 0.0, math.log(3)])
    found = sigmoid_focal(logit, torch.tensor([1.0, 0.0, 1.0]))
    want = [0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2), 0.25 * 0.0625 * -math.log(0.75)]
    assert found.tolist() == pytest.approx(want)
    far = sigmoid_focal(torch.tensor([80.0, -80.0]), torch.tensor([0.0, 1.0]))
    assert far.tolist() == pytest.approx([60.0, 20.0]), "no overflow"


def test_distance_by_hand():
    codes = torch.tensor([[0.05, 0.5, 0, 0, 0, 0, 1.0]])
    wanted = torch.tensor([[0.0, 0.0, 0, 0, 0, 0, 0.7]])
    sine = abs(math.sin(0.3))
    want = [0.5 * 0.05**2 * 9, 0.5 - 0.5 / 9, 0, 0, 0, 0, sine - 0.5 / 9]
    assert code_distance(codes, wanted)[0].tolist() == pytest.approx(want, abs=1e-6)
    turned = codes.clone()
    turned[0, 6] += math.pi
    torch.testing.assert_close(code_distance(turned, wanted), code_distance(codes, wanted))


def naive_loss(output, targets, head):
    parts = {"class": 0.0, "box": 0.0, "direction": 0.0}
    frames, anchors, classes = output.classes.shape
    for b in range(frames):
        count = max(int((targets.labels[b] > 0).sum()), 1)
        for n in range(anchors):
            label = int(targets.labels[b, n])
            if label < 0:
                continue
            for c in range(classes):
                p = 1 / (1 + math.exp(-float(output.classes[b, n, c])))
                hit = c + 1 == label
                parts["class"] += (
                    -(0.25 * (1 - p) ** 2 * math.log(p) if hit else 0.75 * p**2 * math.log(1 - p))
                    / count
                    / frames
                )
            if label == 0:
                continue
            ours, theirs = output.codes[b, n].tolist(), targets.codes[b, n].tolist()
            differences = [x - y for x, y in zip(ours[:6], theirs[:6])] + [
                math.sin(ours[6] - theirs[6])
            ]
            for d in map(abs, differences):
                parts["box"] += 2 * (4.5 * d * d if d < 1 / 9 else d - 1 / 18) / count / frames
            logits = output.directions[b, n].tolist()
            total = math.log(sum(math.exp(v) for v in logits))
            parts["direction"] += (
                0.2 * (total - logits[int(targets.directions[b, n])]) / count / frames
            )
    return parts


def test_loss_equals_the_loops():
    output, targets = random_case()
    terms = loss_terms(anchor_loss(output, targets, HEAD))
    want = naive_loss(output, targets, HEAD)
    assert {name: part.item() for name, part in terms.parts.items()} == pytest.approx(
        want, rel=1e-9
    )
    assert terms.loss.item() == pytest.approx(sum(want.values()))
    heavy = replace(HEAD, class_weight=3.0, box_weight=1.0, direction_weight=0.4)
    scaled = loss_terms(anchor_loss(output, targets, heavy)).parts
    for name, factor in (("class", 3.0), ("box", 0.5), ("direction", 2.0)):
        assert scaled[name].item() == pytest.approx(factor * want[name])


def test_frames_weigh_alike_whatever_their_number_of_objects():
    output, targets = random_case(frames=1)
    alone = loss_terms(anchor_loss(output, targets, HEAD))
    twice = AnchorOutput(
        *(torch.cat((v, v)) for v in (output.classes, output.codes, output.directions))
    )
    both = AnchorTargets(
        *(torch.cat((v, v)) for v in (targets.labels, targets.codes, targets.directions))
    )
    assert loss_terms(anchor_loss(twice, both, HEAD)).loss.item() == pytest.approx(
        alone.loss.item()
    )


@pytest.mark.parametrize("seed", range(3))
def test_gradients(seed):
    output, targets = random_case(seed=seed)
    leaves = tuple(v.requires_grad_() for v in (output.classes, output.codes, output.directions))
    for part in ("class", "box", "direction"):
        assert gradcheck(
            lambda *v, part=part: loss_terms(anchor_loss(AnchorOutput(*v), targets, HEAD)).parts[
                part
            ],
            leaves,
        )


def test_ignored_anchors_get_no_gradient():
    output, targets = random_case()
    leaves = [v.requires_grad_() for v in (output.classes, output.codes, output.directions)]
    loss_terms(anchor_loss(output, targets, HEAD)).loss.backward()
    ignored, positive = targets.labels == -1, targets.labels > 0
    assert not leaves[0].grad[ignored].any() and leaves[0].grad[~ignored].all()
    assert not leaves[1].grad[~positive].any() and not leaves[2].grad[~positive].any()
    assert leaves[1].grad[positive].any(dim=1).all()


def test_nothing_positive():
    output, targets = random_case()
    empty = replace(targets, labels=torch.zeros_like(targets.labels))
    terms = loss_terms(anchor_loss(output, empty, HEAD))
    assert terms.parts["box"].item() == terms.parts["direction"].item() == 0
    want = sigmoid_focal(output.classes, torch.zeros_like(output.classes)).sum() / 2
    assert terms.parts["class"].item() == pytest.approx(want.item())


def test_other_anchors_are_refused():
    output, targets = random_case()
    with pytest.raises(ValueError, match=r"\(2, 6\) anchors, targets of \(2, 5\)"):
        anchor_loss(
            output,
            AnchorTargets(*(v[:, :5] for v in (targets.labels, targets.codes, targets.directions))),
            HEAD,
        )
