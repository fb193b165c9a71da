from __future__ import annotations

from typing import get_args

import pytest
import torch

from kdlib.config import KDConfig, LabelKDConfig, LogitKDConfig, PivotalForm
from kdlib.kd.logit import meet, position_weights
from kdlib.kd.objective import Distillation

REGION = (-5.12, -5.12, 5.12, 5.12)


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
    assert {name: row.weight for name, row in rows.items() if "kd" in name} == {"kd_heatmap": 3, "kd_rank": 2, "kd_box": 0.2}
    parts = objective(data).parts
    assert {name: row.value for name, row in rows.items()} == pytest.approx({n: v.item() for n, v in parts.items()}, rel=1e-5)

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
    objective = Distillation(*pair(3), KDConfig(LogitKDConfig(weight=0.0, rank=9999, rank_weight=1.0), None))
    (row,) = (row for row in objective.report(batch()) if row.name == "kd_rank")
    assert row.positions == 2 * 3 * 32 * 32


def test_labels_of_the_teacher_are_counted_with_and_without_annotations(pair, batch):
    student, teacher = pair()
    rows = {}
    for use_truth in (True, False):
        label = LabelKDConfig((0.9, 0.9, 0.9), use_truth=use_truth)
        rows[use_truth] = Distillation(student.eval(), teacher, KDConfig(None, label)).report(batch())
    assert rows[True][0].teacher_labels == rows[False][0].teacher_labels and 0 < rows[True][0].teacher_labels < 900
    assert rows[True][1].positions == rows[False][1].positions + 8
