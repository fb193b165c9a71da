"""The schedule and the optimiser against the original's recorded numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from kdlib.training.optim import OneCycleAdam, beta1, learning_rate


@pytest.fixture(scope="module")
def recorded(goldens):
    return lambda name: np.load(
        goldens / "original" / "09_optim" / f"{name}.npz", allow_pickle=False
    )


@pytest.mark.parametrize(
    ("step", "rate", "momentum"),
    [
        (0, 3.0e-4, 0.95),
        (100, 6.95405845e-4, 0.935355),
        (200, 1.65e-3, 0.90),
        (399, 2.99995836e-3, 0.85),
        (400, 3e-3, 0.85),
        (700, 1.500015e-3, 0.90),
        (999, 5.0561e-8, 0.949999),
    ],
)
def test_schedule_hand_values(step, rate, momentum):
    assert learning_rate(step, 1000, 0.003) == pytest.approx(rate, rel=2e-5)
    assert beta1(step, 1000) == pytest.approx(momentum, abs=2e-6)


@pytest.mark.parametrize("total", [200, 63])
def test_schedule_equals_original(recorded, total):
    golden = recorded("onecycle")
    rates = [learning_rate(i, total, 0.003) for i in range(total)]
    momenta = [beta1(i, total) for i in range(total)]
    np.testing.assert_allclose(rates, golden[f"lr_{total}"], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(momenta, golden[f"beta1_{total}"], rtol=1e-6)


def test_group_settings_equal_original(recorded):
    golden = recorded("onecycle")["groups_200_lr_beta1_beta2_wd_eps"]
    optimiser = OneCycleAdam(
        [nn.Parameter(torch.ones(1))], highest=0.003, weight_decay=0.01, total=200
    )
    for step in range(200):
        optimiser.set_step(step)
        group = optimiser.param_groups[0]
        mine = (group["lr"], *group["betas"], group["weight_decay"], group["eps"])
        for theirs in golden[step]:
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_shortest_schedules(total):
    assert all(0 < learning_rate(i, total, 0.003) <= 0.003 for i in range(total))


@pytest.mark.parametrize("step", [-1, 10])
def test_step_outside_schedule(step):
    with pytest.raises(ValueError, match="outside a schedule of 10 steps"):
        learning_rate(step, 10, 0.003)


def test_three_steps_equal_original(recorded):
    golden = recorded("three_steps")
    meta = json.loads(str(golden["meta"]))
    names = [name for group in meta["groups"] for name in group]
    parameters = {
        name: nn.Parameter(torch.from_numpy(golden[f"w0__{name}"].copy())) for name in names
    }
    optimiser = OneCycleAdam(
        parameters.values(), highest=0.003, weight_decay=meta["wd"], total=meta["T"]
    )
    for step in range(3):
        optimiser.set_step(step)
        for name, parameter in parameters.items():
            key = f"g{step}__{name}"
            parameter.grad = torch.from_numpy(golden[key].copy()) if key in golden else None
        optimiser.step()
        for name, parameter in parameters.items():
            np.testing.assert_allclose(
                parameter.detach().numpy(), golden[f"w{step + 1}__{name}"], rtol=1e-6, atol=1e-6
            )
    assert parameters["nograd.weight"].grad is None
    assert not np.array_equal(
        parameters["nograd.weight"].detach().numpy(), golden["w0__nograd.weight"]
    )


def test_closure_runs_before_decay():
    parameter = nn.Parameter(torch.ones(2))
    optimiser = OneCycleAdam([parameter], highest=1.0, weight_decay=0.5, total=10)
    seen = []

    def closure():
        seen.append(parameter.detach().clone())
        loss = parameter.sum()
        loss.backward()
        return loss

    assert optimiser.step(closure).item() == 2.0
    assert torch.equal(seen[0], torch.ones(2))


def test_adamw_is_the_limit_where_every_parameter_has_a_gradient():
    torch.manual_seed(0)
    mine, theirs = (nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2))
    ours = OneCycleAdam([mine], highest=0.1, weight_decay=0.1, total=20)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.95, 0.99), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(6)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours.step()
        reference.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
