"""What the study trains and compares: its arms, and the questions asked of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from kdlib import zoo
from kdlib.config import FeatureKDConfig, KDConfig, ModelConfig, lookup
from kdlib.errors import ConfigError
from kdlib.lab.comparison import Contrast, Group, contrasts_among
from kdlib.lab.profile import Arm, Profile, StudySettings
from kdlib.lab.study.pictures import ScheduleLine
from kdlib.viz import palette


@dataclass(frozen=True)
class Question:
    """Contrasts that belong into one table and one picture."""

    name: str  # of its picture
    title: str
    contrasts: tuple[Contrast, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm in it, once, bases before what is compared with them."""
        return tuple(
            dict.fromkeys(
                name for contrast in self.contrasts for name in (contrast.second, contrast.first)
            )
        )


def _signals(student: ModelConfig, kd: KDConfig, terms: tuple[str, ...]) -> Iterator[Arm]:
    """Yield every signal a student may learn from on its own, terms of one's own among them, and
    the full recipe; ConfigError if that has no logit term.
    """
    if kd.logit is None:
        raise ConfigError(
            "the study varies the positions of logit distillation; the profile's recipe has none"
        )
    hard = replace(kd.logit, soft=False)
    # Untuned weights: each makes its terms start where the published recipe's logit term starts, at
    # 1.7 on the first batch of the demo, so that no signal is louder than another. A frame of the
    # demo has some thirty objects, hence 200 cells.
    logits = {
        "all": ("plain KD (all positions)", replace(hard, positions="all", weight=600.0)),
        "confidence": (
            "KD where the teacher is confident",
            replace(hard, positions="confidence", threshold=0.3, weight=8.0),
        ),
        "rank": (
            "KD at the top-ranked cells",
            replace(hard, positions="rank", rank=200, weight=18.0),
        ),
        "center": ("KD at object centres", replace(hard, positions="center", weight=5.3)),
        "gaussian": ("KD under Gaussians", kd.logit),
        "instances": ("KD on GID's instances", replace(hard, positions="instances", weight=60.0)),
    }
    features = {
        "map": ("FitNet (whole map)", FeatureKDConfig("map", 5.0)),
        "foreground": ("FG (foreground)", FeatureKDConfig("foreground", 3.7)),
        "rois": ("Mimic (regions)", FeatureKDConfig("rois", 7.5)),
        "relations": (
            "GID-F (regions and relations)",
            FeatureKDConfig("rois", 6.0, relation_weight=7.0),
        ),
        "local": ("local KD (around pillars)", FeatureKDConfig("local", 1.8)),
    }
    for name, (title, logit) in logits.items():
        yield Arm(f"logits_{name}", title, student, replace(kd, logit=logit, label=None))
    yield Arm("labels", "labels from the teacher", student, replace(kd, logit=None))
    yield Arm("full", "full SparseKD", student, kd)
    for name, (title, feature) in features.items():
        # As wide as the teacher: an adapter would only have to learn that nothing needs adapting.
        alike = replace(feature, adapter="none")
        yield Arm(
            f"features_{name}", title, student, replace(kd, logit=None, label=None, feature=alike)
        )
    if terms:
        bare = replace(kd, logit=None, label=None)
        yield Arm("own", "own terms", student, bare, terms=terms)


def arms_of(profile: Profile) -> dict[str, Arm]:
    """Return every arm of a profile's study by name; ConfigError if the profile has no study, or
    its recipe nothing to vary.
    """
    settings, student, kd = study_settings(profile), profile.student_model, profile.kd
    pair = zoo.pair(settings.width_pair)
    narrow = pair.student
    boxes = None if pair.kd.logit is None else replace(pair.kd.logit, regression_weight=0.2)
    base, full = "initialisation alone", "full SparseKD"
    epochs, long = settings.long_epochs, f"{settings.long_epochs} epochs"
    arms = (
        Arm("base", base, student),
        *_signals(student, kd, profile.terms),
        Arm("base_long", f"{base} ({long})", student, epochs=epochs),
        Arm("full_long", f"{full} ({long})", student, kd, epochs=epochs),
        Arm("base_weak", f"{base} (weak teacher)", student, teacher="weak"),
        Arm("full_weak", f"{full} (weak teacher)", student, kd, teacher="weak"),
        Arm(
            "base_weak_long",
            f"{base} (weak teacher, {long})",
            student,
            teacher="weak",
            epochs=epochs,
        ),
        Arm(
            "full_weak_long",
            f"{full} (weak teacher, {long})",
            student,
            kd,
            teacher="weak",
            epochs=epochs,
        ),
        Arm("none", "fresh weights", student, initialisation="none"),
        Arm("none_long", f"fresh weights ({long})", student, initialisation="none", epochs=epochs),
        Arm(
            "full_running",
            f"{full} (running statistics)",
            student,
            replace(kd, teacher_norm="running"),
        ),
        Arm("narrow_none", "narrow student (fresh weights)", narrow, initialisation="none"),
        Arm("narrow", "narrow student (first channels)", narrow, initialisation="first"),
        Arm("narrow_bn_scale", "narrow student (by norm scale)", narrow, initialisation="bn_scale"),
        Arm("narrow_l1", "narrow student (by L1 of weights)", narrow, initialisation="l1"),
        Arm("narrow_full", f"narrow student ({full})", narrow, pair.kd, "first"),
        Arm(
            "narrow_boxes",
            f"narrow student ({full}, KD of boxes)",
            narrow,
            replace(pair.kd, logit=boxes),
            "first",
        ),
    )
    return {arm.name: arm for arm in arms}


def study_settings(profile: Profile) -> StudySettings:
    """Return a profile's study settings; ConfigError if it has none."""
    if profile.study is None:
        words = "run 'study', or give it StudySettings in kdlib/lab/profiles.py"
        raise ConfigError(f"profile {profile.name} has no ablations; {words}")
    return profile.study


def _against(base: str, group: Group, *firsts: str) -> tuple[Contrast, ...]:
    return tuple(Contrast(first, base, group) for first in firsts)


_SHORT_AND_LONG = (Contrast("full", "base"), Contrast("full_long", "base_long"))
_LOGITS = tuple(
    f"logits_{name}" for name in ("all", "confidence", "rank", "center", "gaussian", "instances")
)
_FEATURES = tuple(
    f"features_{name}" for name in ("map", "foreground", "rois", "relations", "local")
)
QUESTIONS = {
    "11_ablate_signals": (
        Question(
            "signals",
            "What each signal adds to initialisation",
            (
                *_against("base", "logits", *_LOGITS),
                Contrast("labels", "base", "labels"),
                Contrast("full", "base"),
                *_against("base", "features", *_FEATURES),
                Contrast("own", "base", "own"),
            ),
        ),
        Question(
            "schedule",
            "Where distillation starts to pay",
            (
                *_SHORT_AND_LONG,
                Contrast("full_weak", "base_weak"),
                Contrast("full_weak_long", "base_weak_long"),
            ),
        ),
    ),
    "12_ablate_initialisation": (
        Question(
            "start",
            "What initialisation adds, and what distillation adds to it",
            (
                Contrast("base", "none", "start"),
                Contrast("base_long", "none_long", "start"),
                *_SHORT_AND_LONG,
            ),
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
            (Contrast("full_running", "full"), Contrast("full_running", "base")),
        ),
    ),
    "14_compress_by_width_or_resolution": (
        Question(
            "narrow",
            "What distillation adds to a narrow student",
            (Contrast("narrow_full", "narrow"), Contrast("narrow_boxes", "narrow_full")),
        ),
        Question(
            "shape",
            "A narrow student against a coarse one",
            (Contrast("narrow", "base", "student"), Contrast("narrow_full", "full", "student")),
        ),
    ),
}

# Where arms need other titles than their own, to be told apart from what they stand beside.
RETITLED = {
    "14_compress_by_width_or_resolution": {
        "base": "coarse student (initialised)",
        "full": "coarse student (full SparseKD)",
        "narrow": "narrow student (initialised)",
    }
}


_TEACHER, _STUDENT = (palette.role(name).color for name in ("teacher", "student"))
_NONE = ScheduleLine("fresh weights", ("none", "none_long"))
_BASE = ScheduleLine("initialised", ("base", "base_long"), _TEACHER)
_FULL = ScheduleLine("full SparseKD", ("full", "full_long"), _STUDENT)
_BASE_WEAK = ScheduleLine(
    "initialised, weak teacher", ("base_weak", "base_weak_long"), _TEACHER, dashed=True
)
_FULL_WEAK = ScheduleLine(
    "full SparseKD, weak teacher", ("full_weak", "full_weak_long"), _STUDENT, dashed=True
)
ARM_LINES = {"schedule": (_BASE, _FULL, _BASE_WEAK, _FULL_WEAK), "start": (_NONE, _BASE, _FULL)}


def questions_of(notebook: str, names: Collection[str]) -> tuple[Question, ...]:
    """Return what a notebook asks of the arms that are there, without empty questions; ConfigError
    if it asks nothing at all.
    """
    asked = lookup(QUESTIONS, notebook, "ablation")
    posed = (
        replace(question, contrasts=contrasts_among(question.contrasts, names))
        for question in asked
    )
    return tuple(question for question in posed if question.contrasts)
