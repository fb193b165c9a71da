from __future__ import annotations

import math

import pytest
import torch

from kdlib.errors import ConfigError
from kdlib.kd.distance import channel_distance
from kdlib.models.precision import wide

KINDS = ("mse", "smooth_l1", "cosine")


def naive(student, teacher, kind):
    """One pair of vectors at a time, in plain numbers."""
    if kind == "cosine":
        lengths = math.hypot(*student) * math.hypot(*teacher)
        if lengths <= 1e-6:
            return 0.0 if student == teacher else 1.0
        return 1 - sum(a * b for a, b in zip(student, teacher)) / lengths
    gaps = [abs(a - b) for a, b in zip(student, teacher)]
    return sum(g * g if kind == "mse" else g * g / 2 if g < 1 else g - 0.5 for g in gaps) / len(
        gaps
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, -1])
def test_equals_plain_loops(kind, dim):
    torch.manual_seed(0)
    student, teacher = (
        2 * torch.randn(2, 5, 3, 4, dtype=torch.float64),
        2 * torch.randn(2, 5, 3, 4, dtype=torch.float64),
    )
    got = channel_distance(student, teacher, kind, dim)
    rows = zip(
        student.movedim(dim, -1).reshape(-1, student.shape[dim]),
        teacher.movedim(dim, -1).reshape(-1, student.shape[dim]),
    )
    want = torch.tensor([naive(a.tolist(), b.tolist(), kind) for a, b in rows], dtype=torch.float64)
    assert torch.allclose(got.flatten(), want, atol=1e-12)


def test_hand_values():
    student, teacher = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 2.0]])
    assert channel_distance(student, teacher, "mse").item() == 2.5  # (1 + 4) / 2
    assert channel_distance(student, teacher, "smooth_l1").item() == 1.0  # (0.5 + 1.5) / 2
    assert channel_distance(student, teacher, "cosine").item() == pytest.approx(
        1 - 20 / (5 * 20**0.5)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_equal_features_are_not_apart(kind):
    features = torch.relu(torch.randn(2, 4, 6, 6))
    features[:, :, 0] = 0  # vectors without a direction
    assert channel_distance(features, features.clone(), kind).abs().max() < 1e-6


def test_cosine_of_vectors_without_a_direction():
    student, teacher = (
        torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]]),
    )
    student.requires_grad_()
    apart = channel_distance(student, teacher, "cosine")
    assert apart.tolist() == [0.0, 1.0, 1.0]
    apart.sum().backward()
    assert student.grad.abs().max() == 0  # and not a millionth's inverse


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    torch.manual_seed(1)
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: channel_distance(s, teacher, kind), (student,))
    channel_distance(student, teacher, kind).sum().backward()
    assert teacher.grad is None and student.grad.abs().min() > 0


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        channel_distance(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4), "mse")
    with pytest.raises(
        ConfigError, match="unknown distance 'l1'; use 'mse', 'smooth_l1' or 'cosine'"
    ):
        channel_distance(torch.zeros(1, 2), torch.zeros(1, 2), "l1")


def test_sixteen_bits_become_thirty_two():
    assert wide(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert wide(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
