"""Checks before the first step that a job can learn from its split, and counts what it will learn
from.
"""

from __future__ import annotations

import numpy as np

from kdlib.data.object_bank import ObjectBank, bank_path
from kdlib.data.object_sampling import ObjectSampler
from kdlib.data.points import REACH
from kdlib.data.store import StoreSplit
from kdlib.errors import ConfigError, DataError
from kdlib.training.job import TrainJob
from kdlib.types import Bool

# share of a class's boxes inside the model's range below which the two hardly fit
FEW_IN_RANGE = 0.1


def check_split(job: TrainJob, split: StoreSplit) -> list[str]:
    """Check that a job can learn from a split and return warnings of what is allowed but rarely
    meant.

    Raises:
        ConfigError: If interval, range or object sampling do not fit the data.
        DataError: If the split has no frame, its boxes no points, or objects are to be pasted and
            it has no sound object bank.
    """
    place = f"split '{split.name}' of {split.path}"
    if not len(split):
        raise DataError(
            f"{place} has no frames; run 'python -m kdlib prepare' on a source that has some"
        )
    frames = split.frames(job.train.interval)
    if len(frames) == 1 < len(split):
        raise ConfigError(
            f"interval {job.train.interval} leaves one of the {len(split)} frames in {place}; "
            f"store more than {job.train.interval} frames, or lower the interval (of a run's "
            "profile, as --set student.interval=1; of a job, in its TrainConfig)"
        )
    chosen = _boxes_of(job, split)
    if chosen.any() and not (split.num_points[chosen] > 0).any():
        raise DataError(
            f"none of the {chosen.sum()} boxes in {place} {_without_points(split, chosen)}"
        )
    counts = count_boxes(job, split)
    total, within = map(sum, zip(*counts.values()))
    if total and not within:
        raise ConfigError(
            f"none of the {total} boxes in {place} lies in the range "
            f"{job.model.grid.point_range} of {job.model.name}; "
            "choose a model of another range (of a profile of your own: [detector] range)"
        )
    warnings = []
    for name, (boxes, inside) in counts.items():
        if boxes == 0:
            warnings.append(
                f"no box of class {name} in the {len(frames)} frames: the model will not learn it"
            )
        elif inside < FEW_IN_RANGE * boxes:
            reach = f"the model's range {job.model.grid.point_range}"
            warnings.append(f"only {inside} of {boxes} boxes of class {name} lie in {reach}")
    low, high = np.reshape(job.model.grid.point_range, (2, 3))[:, :2]
    if max(-low.min(), high.max()) > REACH:
        warnings.append(
            f"stores hold points to {REACH:g} m in x and y: {job.model.name} learns nothing beyond"
        )
    unseen = len(split.segments) - len(np.unique(split.segment_of[frames]))
    if unseen:
        warnings.append(
            f"interval {job.train.interval} skips {unseen} of {len(split.segments)} "
            "segments altogether"
        )
    if len(frames) < job.train.batch_size:
        warnings.append(
            f"the {len(frames)} frames are fewer than one batch of {job.train.batch_size}"
        )
    return warnings + _check_object_bank(job, split)


def _without_points(split: StoreSplit, chosen: Bool) -> str:
    """Say of boxes that hold no point what that means for the dataset they are of."""
    if split.own:
        return (
            "holds a point, and such boxes are dropped before training; do boxes and points lie in "
            "one vehicle frame, in metres and radians? Store the frames again"
        )
    difficult = (split.difficulty[chosen] > 0).any()
    levels = "although some have a difficulty" if difficult else "nor a difficulty"
    return (
        f"has a number of points, {levels}; such boxes are dropped before training, so prepare "
        "labels of Waymo v1.2 or later (or v2)"
    )


def count_boxes(job: TrainJob, split: StoreSplit) -> dict[str, tuple[int, int]]:
    """Return by class how many boxes with points the job's frames have, and how many of them have
    their centre in range.
    """
    low, high = np.reshape(job.model.grid.point_range, (2, 3))
    useful = _boxes_of(job, split) & (split.num_points > 0)
    inside = ((split.boxes[:, :3] >= low) & (split.boxes[:, :3] <= high)).all(axis=1)
    counts = {}
    for name, kind in zip(job.model.class_names, split.class_types(job.model.class_names)):
        of_class = useful & (split.types == kind)
        counts[name] = int(of_class.sum()), int((of_class & inside).sum())
    return counts


def _boxes_of(job: TrainJob, split: StoreSplit) -> Bool:
    return np.isin(
        np.repeat(np.arange(len(split)), np.diff(split.first_box)), split.frames(job.train.interval)
    )


def _check_object_bank(job: TrainJob, split: StoreSplit) -> list[str]:
    """Check the object bank, where the job pastes objects, and warn of classes it has nothing
    for.
    """
    objects, classes = job.train.augment.objects, job.model.class_names
    if objects is None:
        return []
    if len(objects.counts) != len(classes):
        raise ConfigError(
            f"object sampling has {len(objects.counts)} counts {objects.counts} for "
            f"{len(classes)} classes {', '.join(classes)}; "
            "give one for each"
        )
    bank = ObjectBank.open(bank_path(split), split.fingerprint)
    candidates = ObjectSampler(bank, classes, objects, split.class_names).candidates
    return [
        f"{bank.path} has no {name} of at least {objects.min_points} points: none will be pasted"
        for name, count, usable in zip(classes, objects.counts, candidates)
        if count and not len(usable)
    ]
