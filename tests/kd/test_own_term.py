"""The tutorial of the README: a term in a file of its own, here ``own_term.py``, and nothing of
kdlib edited for it.
"""

from __future__ import annotations

import re
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdlib.config import KDConfig, KDScheduleConfig, LabelKDConfig, LogitKDConfig
from kdlib.errors import ConfigError
from kdlib.kd.objective import Distillation
from kdlib.kd.teacher import Teacher, TeacherAnswer
from kdlib.kd.term import StepContext, Term
from kdlib.models.build import build
from kdlib.models.detector import Prediction
from kdlib.types import HeadOutput

sys.path.insert(0, str(Path(__file__).parent))
import own_term
from own_term import HEADING, heading

README = Path(__file__).resolve().parents[2] / "README.md"
ALONE = KDConfig(None, None)
RECIPE = KDConfig(LogitKDConfig(rank_weight=1.0), LabelKDConfig((0.4, 0.4, 0.4)))


def values(terms):
    return {name: value.item() for name, value in terms.parts.items()}


def test_the_tutorial_is_this_file():
    assert Path(own_term.__file__).read_text().strip() in README.read_text()


def test_the_tutorial_runs(pair, batch, capsys):
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
        if "extra=(HEADING,)" in block
    )
    student, teacher = pair()
    names = {"student": student, "teacher": teacher, "batch": batch(), "HEADING": HEADING}
    exec(code, {"Distillation": Distillation, "KDConfig": KDConfig, **names}, names)
    assert names["terms"].parts["kd_heading"] > 0 and "kd_heading" in capsys.readouterr().out


def step_of(ours, theirs):
    return StepContext(None, None, Prediction(ours, None, 0), (), TeacherAnswer(theirs, (), ()))


def head(rot, heatmap):
    plane = rot[:, :1]
    return HeadOutput(heatmap, plane.expand(-1, 2, -1, -1), plane, plane.expand(-1, 3, -1, -1), rot)


def test_it_equals_loops_over_cells_and_a_value_by_hand():
    gen = torch.Generator().manual_seed(0)
    draw = [torch.randn(2, c, 3, 4, generator=gen, dtype=torch.float64) for c in (2, 3, 2, 3)]
    ours, theirs = head(*draw[:2]), head(*draw[2:])
    top = bottom = 0.0
    for b, y, x in np.ndindex(2, 3, 4):
        a, c = ours.rot[b, :, y, x].tolist(), theirs.rot[b, :, y, x].tolist()
        sure = max(1 / (1 + np.exp(-v)) for v in theirs.heatmap[b, :, y, x].tolist())
        top += sure * (1 - (a[0] * c[0] + a[1] * c[1]) / (np.hypot(*a) * np.hypot(*c)))
        bottom += sure
    assert heading(step_of((ours,), (theirs,))).item() == pytest.approx(top / bottom, rel=1e-12)
    east, north = (
        torch.tensor([v], dtype=torch.float64).view(1, 2, 1, 1) for v in ((1, 0), (0, 2))
    )
    sure = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    assert heading(step_of((head(east, sure),), (head(north, sure),))).item() == pytest.approx(1)
    assert heading(step_of((head(east, sure),), (head(3 * east, sure),))).item() == pytest.approx(0)


def test_gradcheck():
    gen = torch.Generator().manual_seed(0)
    rot, wanted = (
        torch.randn(1, 2, *size, generator=gen, dtype=torch.float64) for size in ((2, 3), (4, 6))
    )
    theirs = head(wanted, torch.randn(1, 2, 4, 6, generator=gen, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda r: heading(step_of((head(r, rot.detach()),), (theirs,))),
        rot.clone().requires_grad_(),
    )


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("grids", [(0.32, 0.64), (0.32, 0.32), (0.64, 0.32)])
def test_it_trains_on_its_own_and_beside_a_recipe(pair, batch, heads, grids):
    for config in (ALONE, RECIPE):
        student, teacher = pair(heads, *grids)
        before = [p.detach().clone() for p in teacher.parameters()]
        objective = Distillation(student, teacher, config, extra=(HEADING,)).train()
        terms = objective(batch())
        assert list(terms.parts)[-1] == "kd_heading" and 0 < terms.parts["kd_heading"] < 1
        assert terms.loss.item() == pytest.approx(sum(values(terms).values()), rel=1e-6)
        terms.parts["kd_heading"].backward()
        assert all(
            p.grad is None and torch.equal(p, b) for p, b in zip(teacher.parameters(), before)
        )
        touched = {
            name
            for name, p in student.named_parameters()
            if p.grad is not None and p.grad.abs().sum() > 0
        }
        assert any(".rot." in name for name in touched) and not any(
            ".hm." in name for name in touched
        )
        assert set(objective.state_dict()) == {f"student.{name}" for name in student.state_dict()}


def test_it_leaves_the_other_terms_as_they_are(pair, batch):
    student, teacher = pair()
    student.eval()
    without = values(Distillation(student, teacher, RECIPE)(batch()))
    beside = values(Distillation(student, teacher, RECIPE, extra=(HEADING,))(batch()))
    assert {name: beside[name] for name in without} == without and len(beside) == len(without) + 1


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(pair, batch):
    _, teacher = pair(1, 0.32, 0.32)
    student = build(teacher.config)
    student.load_state_dict(teacher.state_dict())
    objective = Distillation(
        student.eval(), teacher, replace(ALONE, teacher_norm="running"), extra=(HEADING,)
    )
    assert abs(objective(batch()).parts["kd_heading"].item()) < 1e-6


def test_report_schedule_and_watch_treat_it_like_any_other(pair, batch):
    student, teacher = pair()
    config = replace(ALONE, schedule=KDScheduleConfig(0.5))
    row = Distillation(student.eval(), teacher, config, extra=(HEADING,)).report(batch())[-1]
    assert (row.name, row.weight, row.positions) == ("kd_heading", 0.5, None)
    objective = Distillation(student, teacher, config, extra=(HEADING,))
    assert objective(batch()).parts["kd_heading"].item() == pytest.approx(row.value, rel=1e-5)
    assert objective(batch(), 0.25).parts["kd_heading"].item() == pytest.approx(
        row.value / 2, rel=1e-5
    )

    nothing = Term("kd_nothing", 1.0, lambda step: step.prediction.heads[0].rot.sum() * 0)
    objective = Distillation(student, teacher, ALONE, extra=(nothing,)).train()
    data = batch(frames=1)
    for _ in range(49):
        objective(data)
    with pytest.raises(
        ConfigError, match="'kd_nothing' is enabled but was exactly 0 for the last 50 steps"
    ):
        objective(data)


def test_it_gets_what_it_needs_and_no_more(pair, batch):
    student, teacher = pair()
    seen = []

    def look(step):
        seen.append(step)
        return step.prediction.bev.mean()

    for needs in (
        (),
        ("targets",),
        ("boxes",),
        ("bev",),
        ("sites",),
        ("targets", "boxes", "bev", "sites"),
    ):
        Distillation(student, teacher, ALONE, extra=(Term("kd_look", 1.0, look, needs),))(batch())
        answer = seen[-1].answer
        found = {
            "targets": answer.targets,
            "boxes": answer.boxes,
            "bev": answer.bev,
            "sites": answer.sites,
        }
        present = {name for name, value in found.items() if value is not None and value != ()}
        assert present == set(needs)
        assert (seen[-1].prediction.sites is not None) == ("sites" in needs)
        assert (
            not seen[-1].answer.heads[0].heatmap.requires_grad
            and seen[-1].prediction.heads[0].heatmap.requires_grad
        )


def test_it_sees_merged_labels_and_cannot_replace_them(pair, batch):
    seen = []
    term = Term("kd_look", 1.0, lambda step: seen.append(step) or step.prediction.bev.mean())
    data = batch()
    Distillation(*pair(), RECIPE, extra=(term,))(data)
    assert seen[0].batch is data and seen[0].labels.labels.shape[1] > data.truth.labels.shape[1]
    with pytest.raises(FrozenInstanceError):
        seen[0].labels = data.truth


def test_a_term_with_weights_is_trained_with_the_student_and_stays_out_of_it(pair, batch):
    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, step):
            ours, theirs = step.prediction.bev.mean(), step.answer.bev.mean()
            return (self.scale * ours - theirs).square()

    student, teacher = pair()
    probe = Probe()
    objective = Distillation(
        student, teacher, ALONE, extra=(Term("kd_probe", 2.0, probe, ("bev",)),)
    )
    objective(batch()).loss.backward()
    assert probe.scale.grad.abs() > 0
    assert any(p is probe.scale for p in objective.parameters())
    assert set(objective.state_dict()) - {f"student.{name}" for name in student.state_dict()} == {
        "learned.0.scale"
    }
    assert set(student.state_dict()) == set(pair()[0].state_dict())


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"name": "heading"}, "must begin with 'kd_', like 'kd_heading'"),
        ({"name": "kd_"}, "must begin with 'kd_'"),
        ({"weight": 0.0}, "has weight 0.0; give it a positive one"),
        ({"weight": float("nan")}, "has weight nan"),
        (
            {"needs": ("bev", "depth")},
            (r"needs \['depth'\]; a teacher can answer targets, boxes, " r"bev, sites"),
        ),
        ({"needs": "bev"}, "needs"),
    ],
)
def test_terms_that_make_no_sense_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        replace(HEADING, **settings)


def test_names_are_taken_once_and_values_are_one_number(pair, batch):
    with pytest.raises(ConfigError, match="there is a term 'kd_heading' already"):
        Distillation(*pair(), ALONE, extra=(HEADING, HEADING))
    with pytest.raises(ConfigError, match="there is a term 'kd_heatmap' already"):
        Distillation(*pair(), RECIPE, extra=(replace(HEADING, name="kd_heatmap"),))
    wide = Term("kd_wide", 1.0, lambda step: step.prediction.bev.mean(dim=(1, 2, 3)))
    with pytest.raises(
        ConfigError,
        match=(r"'kd_wide' returned a tensor of shape \(2,\); reduce " r"it to one number"),
    ):
        Distillation(*pair(), ALONE, extra=(wide,))(batch())


def test_without_terms_the_recipe_must_have_some(pair):
    with pytest.raises(ConfigError, match="train the student with Plain"):
        Distillation(*pair(), ALONE)
    with pytest.raises(ConfigError, match="teacher norm 'batch', the given teacher has 'running'"):
        Distillation(pair()[0], Teacher(pair()[1], "running"), ALONE, extra=(HEADING,))
