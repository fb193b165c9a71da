"""What the study trains and compares: a profile in, frozen descriptions of arms and of the questions asked of them out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from kdlib import zoo
from kdlib.config import FeatureKDConfig, Initialisation, KDConfig, LogitKDConfig, ModelConfig, lookup
from kdlib.errors import ConfigError
from kdlib.lab.profiles import ABLATIONS, Profile, StudySettings

TeacherQuality = Literal["strong", "weak"]
Group = Literal["logits", "labels", "features", "recipe", "start", "student"]  # what differs in a contrast; colours its row


@dataclass(frozen=True)
class StudyArm:
    """One way of training one student."""

    name: str  # of its folders
    title: str  # in sentences and tables
    student: ModelConfig
    kd: KDConfig | None = None
    initialisation: Initialisation = "matching"  # from the arm's teacher
    teacher: TeacherQuality = "strong"
    epochs: int = 0  # 0: the profile's

    @property
    def recipe(self) -> str:
        """What a training step has to compute, which decides how long it takes."""
        if self.kd is None:
            return "plain"
        return "distilled" if self.kd.feature is None else f"features, {self.kd.feature.form}"


@dataclass(frozen=True)
class Contrast:
    """Two arms whose difference is asked for; ``second`` is the first one's own base."""

    first: str
    second: str
    group: Group


@dataclass(frozen=True)
class Question:
    """Contrasts that belong into one table and one picture."""

    name: str  # of its picture
    title: str
    contrasts: tuple[Contrast, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm in it, once, bases before what is compared with them."""
        return tuple(dict.fromkeys(name for one in self.contrasts for name in (one.second, one.first)))


@dataclass(frozen=True)
class _Signal:
    """What a student may learn from its teacher, besides where to start."""

    name: str
    title: str
    group: Group
    kd: KDConfig


def _signals(kd: KDConfig) -> tuple[_Signal, ...]:
    """Return every signal on its own, and the full recipe.

    Raises:
        ConfigError: If the recipe has no logit distillation to vary.
    """
    if kd.logit is None:
        raise ConfigError("the study varies the positions of logit distillation; the profile's recipe has none")
    hard = replace(kd.logit, soft=False)

    def logits(name: str, title: str, logit: LogitKDConfig) -> _Signal:
        return _Signal(f"logits_{name}", title, "logits", replace(kd, logit=logit, label=None))

    def features(name: str, title: str, feature: FeatureKDConfig) -> _Signal:
        # As wide as the teacher: an adapter would only have to learn that nothing needs adapting.
        alike = replace(feature, adapter="none")
        return _Signal(f"features_{name}", title, "features", replace(kd, logit=None, label=None, feature=alike))

    # Untuned weights: each makes its terms start where the published recipe's logit term starts, at 1.7 on the first batch of the
    # demo, so that no signal is louder than another. A frame of the demo has some thirty objects, hence 200 cells.
    return (
        logits("all", "plain KD (all positions)", replace(hard, positions="all", weight=600.0)),
        logits(
            "confidence", "KD where the teacher is confident", replace(hard, positions="confidence", threshold=0.3, weight=8.0)
        ),
        logits("rank", "KD at the top-ranked cells", replace(hard, positions="rank", rank=200, weight=18.0)),
        logits("center", "KD at object centres", replace(hard, positions="center", weight=5.3)),
        logits("gaussian", "KD under Gaussians", kd.logit),
        logits("instances", "KD on GID's instances", replace(hard, positions="instances", weight=60.0)),
        _Signal("labels", "labels from the teacher", "labels", replace(kd, logit=None)),
        _Signal("full", "full SparseKD", "recipe", kd),
        features("map", "FitNet (whole map)", FeatureKDConfig("map", 5.0)),
        features("foreground", "FG (foreground)", FeatureKDConfig("foreground", 3.7)),
        features("rois", "Mimic (regions)", FeatureKDConfig("rois", 7.5)),
        features("relations", "GID-F (regions and relations)", FeatureKDConfig("rois", 6.0, relation_weight=7.0)),
        features("local", "local KD (around pillars)", FeatureKDConfig("local", 1.8)),
    )


def arms_of(profile: Profile) -> dict[str, StudyArm]:
    """Return every arm of a profile's study by name.

    Raises:
        ConfigError: If the profile has no study, or its recipe nothing to vary.
    """
    settings, student, kd = settings_of(profile), profile.student_model, profile.kd
    pair = zoo.pair(settings.width_pair)
    narrow = pair.student
    boxes = None if pair.kd.logit is None else replace(pair.kd.logit, regression_weight=0.2)
    base, full = "initialisation alone", "full SparseKD"
    epochs, long = settings.long_epochs, f"{settings.long_epochs} epochs"
    found = (
        StudyArm("base", base, student),
        *(StudyArm(one.name, one.title, student, one.kd) for one in _signals(kd)),
        StudyArm("base_long", f"{base} ({long})", student, epochs=epochs),
        StudyArm("full_long", f"{full} ({long})", student, kd, epochs=epochs),
        StudyArm("base_weak", f"{base} (weak teacher)", student, teacher="weak"),
        StudyArm("full_weak", f"{full} (weak teacher)", student, kd, teacher="weak"),
        StudyArm("base_weak_long", f"{base} (weak teacher, {long})", student, teacher="weak", epochs=epochs),
        StudyArm("full_weak_long", f"{full} (weak teacher, {long})", student, kd, teacher="weak", epochs=epochs),
        StudyArm("none", "fresh weights", student, initialisation="none"),
        StudyArm("none_long", f"fresh weights ({long})", student, initialisation="none", epochs=epochs),
        StudyArm("full_running", f"{full} (running statistics)", student, replace(kd, teacher_norm="running")),
        StudyArm("narrow_none", "narrow student (fresh weights)", narrow, initialisation="none"),
        StudyArm("narrow", "narrow student (first channels)", narrow, initialisation="first"),
        StudyArm("narrow_bn_scale", "narrow student (by norm scale)", narrow, initialisation="bn_scale"),
        StudyArm("narrow_l1", "narrow student (by L1 of weights)", narrow, initialisation="l1"),
        StudyArm("narrow_full", f"narrow student ({full})", narrow, pair.kd, "first"),
        StudyArm("narrow_boxes", f"narrow student ({full}, KD of boxes)", narrow, replace(pair.kd, logit=boxes), "first"),
    )
    return {arm.name: arm for arm in found}


def settings_of(profile: Profile) -> StudySettings:
    """Return a profile's study settings.

    Raises:
        ConfigError: If it has none.
    """
    if profile.study is None:
        raise ConfigError(
            f"profile {profile.name} has no ablations; run 'study', or give it StudySettings in kdlib/lab/profiles.py"
        )
    return profile.study


def _against(base: str, group: Group, *firsts: str) -> tuple[Contrast, ...]:
    return tuple(Contrast(first, base, group) for first in firsts)


_SHORT_AND_LONG = (*_against("base", "recipe", "full"), *_against("base_long", "recipe", "full_long"))
_LOGITS = tuple(f"logits_{name}" for name in ("all", "confidence", "rank", "center", "gaussian", "instances"))
_FEATURES = tuple(f"features_{name}" for name in ("map", "foreground", "rois", "relations", "local"))
QUESTIONS: dict[str, tuple[Question, ...]] = {
    "11_ablate_signals": (
        Question(
            "signals",
            "What each signal adds to initialisation",
            (
                *_against("base", "logits", *_LOGITS),
                *_against("base", "labels", "labels"),
                *_against("base", "recipe", "full"),
                *_against("base", "features", *_FEATURES),
            ),
        ),
        Question(
            "schedule",
            "Where distillation starts to pay",
            (
                *_SHORT_AND_LONG,
                *_against("base_weak", "recipe", "full_weak"),
                *_against("base_weak_long", "recipe", "full_weak_long"),
            ),
        ),
    ),
    "12_ablate_initialisation": (
        Question(
            "start",
            "What initialisation adds, and what distillation adds to it",
            (*_against("none", "start", "base"), *_against("none_long", "start", "base_long"), *_SHORT_AND_LONG),
        ),
        Question(
            "channels",
            "Which channels of a wider teacher to start from",
            _against("narrow_none", "start", "narrow", "narrow_bn_scale", "narrow_l1"),
        ),
    ),
    "13_ablate_teacher_batchnorm": (
        Question(
            "norm",
            "The teacher's statistics: running, or of the batch",
            (*_against("full", "recipe", "full_running"), *_against("base", "recipe", "full_running")),
        ),
    ),
    "14_compress_by_width_or_resolution": (
        Question(
            "narrow",
            "What distillation adds to a narrow student",
            (*_against("narrow", "recipe", "narrow_full"), *_against("narrow_full", "recipe", "narrow_boxes")),
        ),
        Question(
            "shape",
            "A narrow student against a coarse one",
            (*_against("base", "student", "narrow"), *_against("full", "student", "narrow_full")),
        ),
    ),
}
assert tuple(QUESTIONS) == ABLATIONS

# Where arms need other titles than their own, to be told apart from what they stand beside.
RETITLED: dict[str, dict[str, str]] = {
    "14_compress_by_width_or_resolution": {
        "base": "coarse student (initialised)",
        "full": "coarse student (full SparseKD)",
        "narrow": "narrow student (initialised)",
    }
}


@dataclass(frozen=True)
class Line:
    """Arms that differ in the length of their schedule alone."""

    title: str
    arms: tuple[str, ...]
    color: str  # a role of kdlib.viz.palette, or "" for the neutral one
    dashed: bool = False


_NONE = Line("fresh weights", ("none", "none_long"), "")
_BASE = Line("initialised", ("base", "base_long"), "teacher")
_FULL = Line("full SparseKD", ("full", "full_long"), "student")
LINES: dict[str, tuple[Line, ...]] = {
    "schedule": (
        _BASE,
        _FULL,
        Line("initialised, weak teacher", ("base_weak", "base_weak_long"), "teacher", dashed=True),
        Line("full SparseKD, weak teacher", ("full_weak", "full_weak_long"), "student", dashed=True),
    ),
    "start": (_NONE, _BASE, _FULL),
}


def questions_of(notebook: str, names: Collection[str]) -> tuple[Question, ...]:
    """Return what a notebook asks of the arms that are there; contrasts with a missing arm, and empty questions, are left out.

    Raises:
        ConfigError: If the notebook asks nothing.
    """
    found = []
    for question in lookup(QUESTIONS, notebook, "ablation"):
        kept = tuple(one for one in question.contrasts if {one.first, one.second} <= set(names))
        if kept:
            found.append(replace(question, contrasts=kept))
    return tuple(found)
