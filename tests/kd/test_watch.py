from __future__ import annotations

from typing import get_args

import pytest
import torch

from kdlib.config import KDConfig, LabelKDConfig, LogitKDConfig, PivotalForm
from kdlib.errors import ConfigError
from kdlib.kd.logit import meet, position_weights
from kdlib.kd.objective import Distillation
from kdlib.kd.watch import ZeroWatch

REGION = (-5.12, -5.12, 5.12, 5.12)


def test_fifty_zeros_in_a_row_are_an_error():
    watch = ZeroWatch()
    for _ in range(49):
        watch.see({"kd_heatmap": torch.tensor(1.0), "kd_box": torch.tensor(0.0)})
    with pytest.raises(
        ConfigError, match="'kd_box' is enabled but was exactly 0 for the last 50 steps"
    ):
        watch.see({"kd_heatmap": torch.tensor(1.0), "kd_box": torch.tensor(0.0)})


def test_one_value_in_between_starts_the_count_again():
    watch = ZeroWatch(5)
    for step in range(14):
        watch.see({"kd_heatmap": torch.tensor(1e-9 if step in (4, 9) else 0.0)})
    with pytest.raises(ConfigError, match="last 5 steps"):
        watch.see({"kd_heatmap": torch.tensor(0.0)})


@pytest.mark.parametrize(
    "name", ["kd_heatmap", "kd_rank", "kd_box", "kd_feature", "kd_relation", "kd_mine"]
)
def test_every_term_is_watched_on_its_own(name):
    watch = ZeroWatch(3)
    others = {other: torch.tensor(1.0) for other in ("kd_heatmap", "kd_other")}
    with pytest.raises(ConfigError, match=f"term '{name}' is enabled"):
        for _ in range(3):
            watch.see({**others, name: torch.tensor(0.0)})


def test_a_term_that_is_no_number_is_no_zero():
    watch = ZeroWatch(2)
    for _ in range(4):
        watch.see({"kd_heatmap": torch.tensor(float("nan"))})


def test_values_keep_their_graph_and_are_not_changed():
    value = torch.zeros((), requires_grad=True)
    watch = ZeroWatch()
    watch.see({"kd_box": value})
    assert value.item() == 0 and not any(count.requires_grad for count in watch.zeros.values())


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("form", get_args(PivotalForm))
def test_every_part_has_its_row(pair, batch, heads, form):
    student, teacher = pair(heads, 0.32, 0.32)
    student.eval()
    config = LogitKDConfig(3.0, form, rank=40, rank_weight=2.0, regression_weight=0.2)
    objective = Distillation(student, teacher, KDConfig(config, LabelKDConfig((0.4, 0.4, 0.4))))
    data = batch()
    rows = {row.name: row for row in objective.report(data)}
    assert list(rows) == ["heatmap", "box", "kd_heatmap", "kd_rank", "kd_box"]
    assert {name: row.weight for name, row in rows.items() if "kd" in name} == {
        "kd_heatmap": 3,
        "kd_rank": 2,
        "kd_box": 0.2,
    }
    parts = objective(data).parts
    assert {name: row.value for name, row in rows.items()} == pytest.approx(
        {n: v.item() for n, v in parts.items()}, rel=1e-5
    )

    with torch.no_grad():
        answer, ours = objective.teacher(data), student(data.points).heads
        cells = 0
        for pair_of, mark in zip(zip(ours, answer.heads), answer.targets):
            both = meet(*pair_of, config)
            cells += int((position_weights(*both, pair_of, mark, config, REGION) > 0).sum())
    assert rows["kd_heatmap"].positions == cells > 0
    if form == "all":
        assert cells == heads * 2 * 32 * 32
    assert rows["kd_rank"].positions == 2 * heads * 40  # entries: frames, heads, rank
    assert rows["kd_box"].positions == 8 and rows["kd_box"].teacher_labels is None


def test_a_rank_beyond_the_map_counts_its_entries(pair, batch):
    objective = Distillation(
        *pair(3), KDConfig(LogitKDConfig(weight=0.0, rank=9999, rank_weight=1.0), None)
    )
    (row,) = (row for row in objective.report(batch()) if row.name == "kd_rank")
    assert row.positions == 2 * 3 * 32 * 32


def test_labels_of_the_teacher_are_counted_with_and_without_annotations(pair, batch):
    student, teacher = pair()
    rows = {}
    for use_truth in (True, False):
        label = LabelKDConfig((0.9, 0.9, 0.9), use_truth=use_truth)
        rows[use_truth] = Distillation(student.eval(), teacher, KDConfig(None, label)).report(
            batch()
        )
    assert (
        rows[True][0].teacher_labels == rows[False][0].teacher_labels
        and 0 < rows[True][0].teacher_labels < 900
    )
    assert rows[True][1].positions == rows[False][1].positions + 8
