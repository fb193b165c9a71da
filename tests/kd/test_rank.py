from __future__ import annotations

import numpy as np
import pytest
import torch

from kdlib.kd.logit import rank_kd


def maps(classes=2, frames=2, seed=0):
    gen = torch.Generator().manual_seed(seed)
    ours, theirs = (
        torch.rand(frames, classes, 3, 4, generator=gen, dtype=torch.float64) * 0.98 + 0.01
        for _ in range(2)
    )
    return ours, theirs


def naive(student, teacher, rank):
    total, count = 0.0, 0
    for s, t in zip(student.flatten(1).tolist(), teacher.flatten(1).tolist()):
        best = sorted(range(len(t)), key=lambda i: -t[i])[:rank]
        whole_s, whole_t = sum(s[i] for i in best) + 1e-6, sum(t[i] for i in best) + 1e-6
        total += sum(
            t[i] / whole_t * (np.log(t[i] / whole_t) - np.log(s[i] / whole_s)) for i in best
        )
        count += len(best)
    return total / count


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("rank", [2, 5, 500])
def test_equals_the_formula_entry_by_entry(classes, rank):
    ours, theirs = maps(classes)
    assert rank_kd(ours, theirs, rank).item() == pytest.approx(naive(ours, theirs, rank), rel=1e-10)


def test_hand_value():
    """The best two of (.6, .2, .1) share 3 : 1, the student's answers there 1 : 1."""
    theirs, ours = torch.tensor([[[[0.6, 0.2, 0.1]]]]), torch.tensor([[[[0.3, 0.3, 0.9]]]])
    want = (0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)) / 2
    assert rank_kd(ours, theirs, 2).item() == pytest.approx(want, abs=1e-5)


def test_a_student_equal_to_its_teacher_is_at_zero_and_stays():
    theirs = maps()[1]
    ours = theirs.clone().requires_grad_()
    value = rank_kd(ours, theirs, 5)
    value.backward()
    assert value.item() == 0 and ours.grad.abs().max() < 1e-6


def test_only_proportions_count():
    ours, theirs = maps()
    assert rank_kd(ours * 0.1, theirs, 5).item() == pytest.approx(
        rank_kd(ours, theirs, 5).item(), rel=1e-4
    )
    assert rank_kd(theirs * 0.5, theirs, 5).item() == pytest.approx(0, abs=1e-6)


def test_d16_gradient_is_that_of_the_original_formula():
    """-mean(p_t ln p_s) and ours differ by the teacher's entropy."""
    ours, theirs = maps()
    ours.requires_grad_()
    (mine,) = torch.autograd.grad(rank_kd(ours, theirs, 4), ours)
    best = theirs.flatten(1).topk(4).indices
    given, wanted = (m.flatten(1).gather(1, best) for m in (ours, theirs))
    given, wanted = (m / (m.sum(1, keepdim=True) + 1e-6) for m in (given, wanted))
    (original,) = torch.autograd.grad(-(wanted * given.log()).mean(), ours)
    assert torch.allclose(mine, original, atol=1e-14) and (mine != 0).sum() == 8


def test_d15_frames_are_ranked_on_their_own():
    ours, theirs = maps(frames=3)
    alone = [rank_kd(ours[b : b + 1], theirs[b : b + 1], 4).item() for b in range(3)]
    assert (
        rank_kd(ours, theirs, 4).item() == pytest.approx(sum(alone) / 3, rel=1e-12)
        and len(set(alone)) == 3
    )


def test_gradcheck_and_no_gradient_for_the_teacher():
    ours, theirs = maps()
    assert torch.autograd.gradcheck(lambda s: rank_kd(s, theirs, 5), ours.requires_grad_())
    theirs.requires_grad_()
    before = ours.detach().clone(), theirs.detach().clone()
    rank_kd(ours, theirs, 5).backward()
    assert theirs.grad is None and ours.grad is not None
    assert torch.equal(ours, before[0]) and torch.equal(theirs, before[1])
