"""The runs the notebooks can do, by name: which data, which pair, how long; ``dataclasses.replace``
makes another, :mod:`kdlib.lab.profile_files` one outside the package.
"""

from __future__ import annotations

from dataclasses import replace

from kdlib import zoo
from kdlib.config import AugmentConfig, EvalConfig, ObjectSamplingConfig, TrainConfig, lookup
from kdlib.lab.detector_table import DetectorTable, fit_pair
from kdlib.lab.profile import (
    ABLATIONS,
    CROSS_STAGE,
    CrossStageSettings,
    Profile,
    SimulatedData,
    StudySettings,
)

# The students see every tenth frame; the shipped teacher saw all of them.
_DEMO_SCHEDULE = TrainConfig(epochs=12, batch_size=4, interval=10, workers=0, checkpoint_steps=200)

DEMO = Profile(
    name="demo",
    simulated=SimulatedData(training_segments=150, validation_segments=25, frames=20),
    pair=zoo.pair("cp_pillar_demo_v0.64_sparsekd"),
    teacher=replace(
        _DEMO_SCHEDULE, epochs=20, interval=1, precision="bf16-mixed", checkpoint_steps=500
    ),
    shipped_teacher="cp_pillar_demo.safetensors",
    continue_steps=40,
    student=_DEMO_SCHEDULE,
    evaluation=EvalConfig(interval=2, batch_size=4, half_width=20.48),
    seeds=(1, 2, 3),
    parallel=2,
    threads=1,
)

# Small enough for the tests: every cell runs, no number means anything. A checkpoint after each of
# the few steps, so that a training that is killed has something to go on from.
SMOKE = replace(
    DEMO,
    name="smoke",
    simulated=SimulatedData(training_segments=2, validation_segments=2, frames=4),
    teacher=replace(_DEMO_SCHEDULE, epochs=1, interval=1, batch_size=2, checkpoint_steps=1),
    continue_steps=2,
    student=replace(_DEMO_SCHEDULE, epochs=1, interval=1, batch_size=2, checkpoint_steps=1),
    evaluation=EvalConfig(interval=1, batch_size=2, half_width=20.48),
    seeds=(1, 2),
)

# The ablations, on the demo's data and with its teacher: many short trainings instead of a few long
# ones, and every validation frame, because differences are small.
_STUDY = StudySettings("cp_pillar_demo_w0.5_sparsekd", long_epochs=10, weak_epochs=1)
STUDY = replace(
    DEMO,
    name="study",
    data="demo",
    chain=ABLATIONS,
    student=replace(_DEMO_SCHEDULE, epochs=4, checkpoint_steps=100),
    evaluation=replace(DEMO.evaluation, interval=1),
    study=_STUDY,
)

STUDY_SMOKE = replace(
    SMOKE,
    name="study_smoke",
    data="smoke",
    chain=ABLATIONS,
    seeds=(1,),
    study=replace(
        _STUDY, arms=("base", "full", "full_running", "narrow_none", "narrow", "narrow_full")
    ),
)

_PUBLISHED = TrainConfig(
    epochs=30,
    batch_size=2,
    interval=5,
    workers=4,
    augment=AugmentConfig(objects=ObjectSamplingConfig()),
)

WAYMO20 = Profile(
    name="waymo20",
    simulated=None,
    pair=zoo.pair("cp_pillar_v0.64_sparsekd"),
    teacher=_PUBLISHED,
    shipped_teacher="",
    continue_steps=40,
    student=_PUBLISHED,
    evaluation=EvalConfig(interval=5, batch_size=4, workers=4),
    seeds=(1, 2, 3),
)

WAYMO100 = replace(
    WAYMO20,
    name="waymo100",
    teacher=replace(_PUBLISHED, interval=1),
    student=replace(_PUBLISHED, interval=1),
    evaluation=replace(WAYMO20.evaluation, interval=1),
)

# A dataset of one's own on a laptop: the demo's models with half as much range again, every frame
# used, the teacher from scratch.
_OWN_SCHEDULE = TrainConfig(epochs=15, batch_size=4, interval=1, workers=0, checkpoint_steps=200)
_OWN_RANGE = DetectorTable(range=(-30.72, -30.72, -2.0, 30.72, 30.72, 4.0))
OWN_SMALL = replace(
    DEMO,
    name="own_small",
    simulated=None,
    pair=fit_pair(DEMO.pair, _OWN_RANGE, "own_small"),
    teacher=replace(_OWN_SCHEDULE, epochs=30),
    shipped_teacher="",
    student=_OWN_SCHEDULE,
    evaluation=EvalConfig(interval=1, batch_size=4, half_width=30.72),
    seeds=(1, 2),
)

# The voxel family: width instead of resolution. On the demo's data, with a teacher of its own; a
# step takes ten times as long as one of the pillars, so there are fewer of them, on smaller
# batches.
DEMO_VOXEL = replace(
    DEMO,
    name="demo_voxel",
    data="demo",
    pair=zoo.pair("cp_voxel_demo_xs_sparsekd"),
    shipped_teacher="",
    teacher=replace(DEMO.teacher, epochs=4, batch_size=2),
    student=replace(_DEMO_SCHEDULE, epochs=8, batch_size=2, precision="bf16-mixed"),
    evaluation=replace(DEMO.evaluation, half_width=15.36),
)


def _waymo20_voxel(size: str) -> Profile:
    schedule = replace(_PUBLISHED, batch_size=4)
    return replace(
        WAYMO20,
        name=f"waymo20_voxel_{size}",
        pair=zoo.pair(f"cp_voxel_{size}_sparsekd"),
        teacher=schedule,
        student=schedule,
    )


# Across stages: a second stage above the voxel teacher, and that teacher's own architecture as the
# student.
_SECOND_STAGE = replace(DEMO_VOXEL.teacher, epochs=1, weight_decay=0.001)
DEMO_CROSS_STAGE = replace(
    DEMO_VOXEL,
    name="demo_cross_stage",
    pair=zoo.pair("cp_voxel_demo_from_pv_rcnn_pp_demo"),
    student=replace(DEMO_VOXEL.student, epochs=1, interval=3),
    chain=CROSS_STAGE,
    cross=CrossStageSettings(_SECOND_STAGE, seeds=(1, 2, 3), above_first=True, borrow="demo_voxel"),
)

SMOKE_CROSS_STAGE = replace(
    DEMO_CROSS_STAGE,
    name="smoke_cross_stage",
    data="smoke",
    simulated=SMOKE.simulated,
    teacher=SMOKE.teacher,
    student=SMOKE.student,
    evaluation=replace(SMOKE.evaluation, interval=2, half_width=15.36),
    seeds=(1,),
    cross=CrossStageSettings(
        replace(SMOKE.teacher, weight_decay=0.001), seeds=(1,), above_first=True
    ),
)

WAYMO20_CROSS_STAGE = replace(
    WAYMO20,
    name="waymo20_cross_stage",
    pair=zoo.pair("cp_voxel_from_pv_rcnn_pp"),
    chain=CROSS_STAGE,
    cross=CrossStageSettings(
        replace(_PUBLISHED, learning_rate=0.01, weight_decay=0.001), seeds=(1,), above_first=False
    ),
)

PROFILES = {
    profile.name: profile
    for profile in (
        *(SMOKE, DEMO, DEMO_VOXEL, OWN_SMALL, STUDY, STUDY_SMOKE, WAYMO20, WAYMO100),
        *(_waymo20_voxel(size) for size in ("s", "xs", "xxs")),
        *(DEMO_CROSS_STAGE, SMOKE_CROSS_STAGE, WAYMO20_CROSS_STAGE),
    )
}


def profile(name: str) -> Profile:
    """Return a profile by name; ConfigError if there is none of that name; the message lists those
    there are.
    """
    return lookup(PROFILES, name, "profile")
