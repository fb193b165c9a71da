"""The estimate adds up, and counts what is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from kdlib import records
from kdlib.lab.pipeline import Run, student_folder
from kdlib.lab.study import budget, trainings
from kdlib.lab.study.arms import arms_of
from kdlib.lab.study.budget import KIND, Budget


def test_minutes_add_up() -> None:
    rows = [("a", "plain", 2, 600, 0.1), ("b", "distilled", 1, 300, 0.2)]
    kinds = pd.DataFrame(rows, columns=list(KIND))
    found = Budget(kinds, kept=3, scoring=2.0, parallel=2)
    alone = (3 * budget.STARTUP_SECONDS + 60 + 60) / 60
    assert found.minutes == pytest.approx((alone + 2.0) / 2)
    assert str(found).startswith(
        "study: 3 trainings to do, 3 kept from earlier; about 2 min on 2 idle cores"
    )
    assert list(found.table()["runs"]) == [2, 1] and list(found.table()["ms a sample"]) == [
        100.0,
        200.0,
    ]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretends to time trainings and collects their names."""
    names: list[str] = []

    def pretend(job, threads):
        names.append(job.name)
        return 0.1

    monkeypatch.setattr(budget, "seconds_per_sample", pretend)
    return names


def test_shared_arms_count_once_and_finished_ones_not_at_all(smoke: Run, timed: list[str]) -> None:
    found = budget.estimate_budget(smoke)
    assert (found.runs, found.kept, found.parallel) == (6, 0, 2)
    assert len(timed) == 4, "two students, plain and distilled each"
    assert found.kinds["samples"].sum() == 6 * 8
    arm = arms_of(smoke.profile)["base"]
    job = trainings.arm_job(smoke, arm, 1)
    records.mark_complete(student_folder(smoke, "base", 1), job.hash())
    later = budget.estimate_budget(smoke)
    assert (later.runs, later.kept) == (5, 1)
    records.mark_complete(student_folder(smoke, "full", 1), "another job")
    assert budget.estimate_budget(smoke).kept == 1


def test_the_weak_teacher_is_counted_while_it_is_missing(smoke: Run, timed: list[str]) -> None:
    settings = replace(smoke.profile.study, arms=("base_weak", "full_weak"))
    run = replace(
        smoke, profile=replace(smoke.profile, study=settings, chain=("11_ablate_signals",))
    )
    assert budget.estimate_budget(run).runs == 3
    assert timed[-1] == "weak teacher"
    records.mark_complete(trainings.weak_folder(run), "key")
    assert budget.estimate_budget(run).runs == 2


def test_a_step_is_timed_and_leaves_nothing_behind(
    smoke: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = arms_of(smoke.profile)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    for name in ("base", "full"):
        job = trainings.arm_job(smoke, arms[name], 1)
        assert 0.001 < budget.seconds_per_sample(job, 1) < 10
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr().out == ""
    assert [path.name for path in Path(smoke.folder).rglob("*.json")] == ["profile.json"]
