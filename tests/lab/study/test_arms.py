"""What is compared differs in one thing, and every arm can be trained."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest

from kdlib import zoo
from kdlib.errors import ConfigError
from kdlib.kd.initialise import initialise
from kdlib.kd.objective import Distillation
from kdlib.kd.own import load_terms
from kdlib.lab import profiles
from kdlib.lab.comparison import Contrast
from kdlib.lab.pipeline import Run
from kdlib.lab.profile import ABLATIONS, Arm
from kdlib.lab.study.arms import (
    ARM_LINES,
    QUESTIONS,
    RETITLED,
    arms_of,
    questions_of,
    study_settings,
)
from kdlib.lab.study.trainings import open_chapter
from kdlib.models.build import build
from kdlib.profiling.model_profile import dense_report, ghost

OWN = f"{Path(__file__).parents[2]}/kd/own_term.py:HEADING"
STUDY = replace(profiles.profile("study"), terms=(OWN,))
ARMS = arms_of(STUDY)
CONTRASTS = [
    one for questions in QUESTIONS.values() for question in questions for one in question.contrasts
]


def differences(one: Contrast) -> set[str]:
    first, second = ARMS[one.first], ARMS[one.second]
    return {f.name for f in fields(Arm) if getattr(first, f.name) != getattr(second, f.name)} - {
        "name",
        "title",
    }


@pytest.mark.parametrize("one", CONTRASTS, ids=lambda one: f"{one.first}-{one.second}")
def test_arms_that_are_compared_differ_in_one_thing(one: Contrast) -> None:
    allowed = {"start": {"initialisation"}, "student": {"student", "initialisation", "kd"}}.get(
        one.group, {"kd"}
    )
    allowed = {"kd", "terms"} if one.group == "own" else allowed
    assert differences(one) and differences(one) <= allowed
    assert ARMS[one.first].epochs == ARMS[one.second].epochs, "one budget"


def test_every_arm_is_asked_about_and_titles_tell_arms_apart() -> None:
    assert tuple(QUESTIONS) == ABLATIONS
    assert {name for one in CONTRASTS for name in (one.first, one.second)} == set(ARMS)
    titles = Counter(arm.title for arm in ARMS.values())
    assert max(titles.values()) == 1
    for stage, questions in QUESTIONS.items():
        names = {name for question in questions for name in question.arms}
        assert set(RETITLED.get(stage, {})) <= names
        assert len({question.name for question in questions}) == len(questions)
    assert {arm for lines in ARM_LINES.values() for line in lines for arm in line.arms} <= set(ARMS)


def test_every_signal_of_the_issue_is_there() -> None:
    signals = QUESTIONS["11_ablate_signals"][0]
    recipes = [ARMS[one.first].kd for one in signals.contrasts]
    positions = {kd.logit.positions for kd in recipes if kd.logit}
    assert positions == {"all", "confidence", "rank", "center", "gaussian", "instances"}
    assert {kd.feature.form for kd in recipes if kd.feature} == {
        "map",
        "foreground",
        "rois",
        "local",
    }
    assert any(kd.label and not kd.logit for kd in recipes), "labels alone"
    assert any(kd.feature and kd.feature.relation_weight for kd in recipes), "GID-F"
    assert STUDY.kd in recipes, "the published recipe"
    assert len(STUDY.seeds) >= 3


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_can_be_built(name: str) -> None:
    arm = ARMS[name]
    student, teacher = build(arm.student), build(STUDY.teacher_model)
    initialise(student, teacher.state_dict(), arm.initialisation)
    if arm.kd is not None:
        Distillation(student, teacher, arm.kd, extra=load_terms(arm.terms))


def test_both_shapes_cost_the_same() -> None:
    teacher, coarse, narrow = (
        dense_report(ghost(model)).macs
        for model in (STUDY.teacher_model, STUDY.student_model, ARMS["narrow"].student)
    )
    assert narrow == pytest.approx(coarse, rel=0.03)
    assert coarse == pytest.approx(teacher / 4, rel=0.01)
    pair = zoo.pair(study_settings(STUDY).width_pair)
    assert pair.teacher == STUDY.teacher_model and pair.student == zoo.CP_PILLAR_DEMO_W05


def test_recipes_say_what_a_step_computes() -> None:
    names = ("base", "full", "labels", "features_map", "own")
    assert {name: ARMS[name].recipe for name in names} == {
        "base": "plain",
        "full": "distilled",
        "labels": "distilled",
        "features_map": "features, map",
        "own": "own terms",
    }


def test_terms_of_ones_own_are_one_more_signal() -> None:
    own, base = ARMS["own"], ARMS["base"]
    assert own.terms == (OWN,) and (own.kd.logit, own.kd.label) == (None, None)
    assert replace(own, name="base", title=base.title, kd=None, terms=()) == base
    assert "own" not in arms_of(profiles.profile("study"))
    smoke = replace(profiles.profile("study_smoke"), terms=(OWN,))
    run = Run(smoke, Path("/nowhere"), Path("/nowhere"))
    for notebook in ABLATIONS:
        asked = open_chapter(run, notebook).arms
        assert ("own" in asked) == (notebook == "11_ablate_signals")
        assert "base" in asked or "full" in asked


def test_questions_without_their_arms_are_left_out() -> None:
    some = questions_of("12_ablate_initialisation", ["none", "base", "full"])
    assert [(q.name, [(one.first, one.second) for one in q.contrasts]) for q in some] == [
        ("start", [("base", "none"), ("full", "base")])
    ]
    assert some[0].arms == ("none", "base", "full")
    assert questions_of("13_ablate_teacher_batchnorm", ["none"]) == ()
    with pytest.raises(
        ConfigError, match="unknown ablation '10_ablate'; there are: 11_ablate_signals"
    ):
        questions_of("10_ablate", [])


def test_profiles_without_a_study() -> None:
    with pytest.raises(ConfigError, match="profile demo has no ablations; run 'study'"):
        arms_of(profiles.profile("demo"))
    bare = replace(STUDY, pair=zoo.pair("cp_pillar_demo_v0.64_sparsekd"))
    assert arms_of(bare).keys() == ARMS.keys()


def test_the_smoke_study_asks_every_question() -> None:
    smoke = profiles.profile("study_smoke")
    for notebook, questions in QUESTIONS.items():
        asked = questions_of(notebook, study_settings(smoke).arms)
        assert [question.name for question in asked] == [question.name for question in questions]


def test_names_are_fit_for_folders() -> None:
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in ARMS)
