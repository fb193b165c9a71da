from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdlib.config import KDConfig, KDScheduleConfig, LabelKDConfig, LogitKDConfig
from kdlib.errors import ConfigError
from kdlib.kd.objective import Distillation, factor

RECIPE = KDConfig(LogitKDConfig(regression_weight=0.2, rank_weight=1.0), None)
SHARE = st.floats(0, 0.5)


def values(terms):
    return {name: value.item() for name, value in terms.parts.items()}


@given(st.floats(0, 1), SHARE, SHARE, st.floats(0, 1))
def test_equals_interpolation_between_its_corners(progress, warm_up, decay, floor):
    config = KDScheduleConfig(warm_up, decay, floor if decay else 0.0)
    rise = 1.0 if warm_up == 0 else np.interp(progress, [0, warm_up], [0, 1])
    fall = 1.0 if decay == 0 else np.interp(progress, [1 - decay, 1], [1, floor])
    assert factor(progress, config) == pytest.approx(min(rise, fall), rel=1e-6, abs=1e-9)


def test_by_hand():
    config = KDScheduleConfig(0.2, 0.5, 0.1)
    got = [factor(p, config) for p in (0.0, 0.1, 0.2, 0.5, 0.75, 1.0)]
    assert got == pytest.approx([0, 0.5, 1, 1, 0.55, 0.1])


def test_without_a_schedule_it_is_exactly_one():
    assert {factor(p / 100, KDScheduleConfig()) for p in range(101)} == {1.0}


def test_progress_is_a_share():
    with pytest.raises(ValueError, match=r"progress 12 of a training is not in \[0, 1\]"):
        factor(12, KDScheduleConfig())


def test_distillation_terms_follow_it_and_detection_does_not(pair, batch):
    student, teacher = pair(1, 0.32, 0.32)
    student.eval()
    objective = Distillation(
        student, teacher, replace(RECIPE, schedule=KDScheduleConfig(0.5, 0.25))
    )
    data = batch()
    full = values(objective(data))
    for progress, scale in ((0.0, 0), (0.25, 0.5), (0.5, 1), (0.875, 0.5), (1.0, 0)):
        terms = objective(data, progress)
        assert terms.loss.item() == pytest.approx(sum(values(terms).values()), rel=1e-6)
        for name, value in values(terms).items():
            assert value == pytest.approx(
                full[name] * (scale if name.startswith("kd_") else 1), rel=1e-6
            ), name


def test_gradient_follows_it(pair, batch):
    grads = {}
    for progress in (0.0, 0.25, 0.5):
        student, teacher = pair(1, 0.32, 0.32)
        objective = Distillation(
            student.eval(), teacher, replace(RECIPE, schedule=KDScheduleConfig(0.5))
        )
        objective(batch(), progress).loss.backward()
        grads[progress] = student.dense_head.heads_list[0].hm[1].weight.grad
    half = (grads[0.0] + grads[0.5]) / 2
    assert torch.allclose(grads[0.25], half, rtol=1e-4, atol=1e-6) and not torch.allclose(
        grads[0.0], grads[0.5]
    )


def test_without_a_schedule_no_bit_depends_on_the_progress(pair, batch):
    student, teacher = pair(1, 0.32, 0.32)
    objective = Distillation(student.eval(), teacher, RECIPE)
    want = values(objective(batch()))
    assert all(values(objective(batch(), p)) == want for p in (0.0, 0.3, 0.999))


def test_steps_that_the_schedule_switches_off_are_not_counted_as_zeros(pair, batch):
    """Sixty steps at factor 0 are no error, nor do they hide fifty real zeros around them."""
    config = KDConfig(label=None, schedule=KDScheduleConfig(warm_up=0.5))
    objective = Distillation(*pair(), config).train()
    empty = batch(frames=1, boxes=0)
    for _ in range(60):
        objective(batch(frames=1), 0.0)
    for _ in range(49):
        objective(empty, 0.7)
        objective(empty, 0.0)
    with pytest.raises(
        ConfigError, match="'kd_heatmap' is enabled but was exactly 0 for the last 50 steps"
    ):
        objective(empty, 0.7)


def test_the_report_shows_full_weights(pair, batch):
    student, teacher = pair(1, 0.32, 0.32)
    plain = Distillation(student.eval(), teacher, RECIPE).report(batch())
    assert (
        Distillation(student, teacher, replace(RECIPE, schedule=KDScheduleConfig(0.5, 0.5))).report(
            batch()
        )
        == plain
    )


def test_schedules_that_would_be_ignored_are_refused(pair):
    with pytest.raises(ConfigError, match=r"would ignore floor 0\.5; set decay"):
        Distillation(*pair(), KDConfig(label=None, schedule=KDScheduleConfig(0.1, 0.0, 0.5)))
    with pytest.raises(ConfigError, match="label distillation is none; leave it at its default"):
        Distillation(*pair(), KDConfig(None, LabelKDConfig(), schedule=KDScheduleConfig(0.1)))
