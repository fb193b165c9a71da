"""Checks before the first step that a job can learn from its split, and says what it will learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdlib import records
from kdlib.data.object_bank import ObjectBank, bank_path
from kdlib.data.object_sampling import ObjectSampler
from kdlib.data.store import StoreSplit, class_types
from kdlib.errors import ConfigError, DataError
from kdlib.training import checkpoint
from kdlib.training.job import RunDir, TrainJob

FEW_IN_RANGE = 0.1  # share of a class's boxes inside the model's range below which the two hardly fit


@dataclass(frozen=True)
class Findings:
    """What a run will learn from."""

    dataset: str  # fingerprint of the split
    frames: int  # every interval-th
    boxes: Mapping[str, int]  # by class: with at least one point, in these frames
    in_range: Mapping[str, int]  # by class: of those, with the centre inside the model's range
    warnings: tuple[str, ...]  # what is allowed but rarely meant

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "warnings": list(self.warnings)}


def check_split(job: TrainJob, split: StoreSplit, run: RunDir) -> Findings:
    """Check that a job can learn from a split, and that a resumed run goes on with the data it began with.

    The findings go into ``preflight.json`` of the run folder.

    Raises:
        ConfigError: If interval, range or object sampling do not fit the data.
        DataError: If the split has no frame, its boxes no points, it is not the split the run began with, or objects are to be
            pasted and it has no sound object bank.
    """
    place = f"split '{split.name}' of {split.path}"
    frames = _frames(job, split, place)
    _check_same_dataset(split, run, place)
    chosen = np.isin(np.repeat(np.arange(len(split)), np.diff(split.first_box)), frames)
    _check_points_counted(split, chosen, place)
    boxes, inside = _count(job, split, chosen)
    if sum(boxes.values()) and not sum(inside.values()):
        raise ConfigError(
            f"none of the {sum(boxes.values())} boxes in {place} lies in the range {job.model.grid.point_range} of "
            f"{job.model.name}; choose a model of another range"
        )
    sampler = _sampler(job, split)
    warnings = [*_warnings(job, split, frames, boxes, inside), *(_nothing_to_paste(job, sampler) if sampler else ())]
    findings = Findings(split.fingerprint, len(frames), boxes, inside, tuple(warnings))
    records.write_json(run.path / "preflight.json", findings.to_dict())
    return findings


def _frames(job: TrainJob, split: StoreSplit, place: str) -> NDArray[np.int64]:
    if not len(split):
        raise DataError(f"{place} has no frames; run 'python -m kdlib prepare' on a source that has some")
    frames = split.frames(job.train.interval)
    if len(frames) == 1 < len(split):
        raise ConfigError(f"interval {job.train.interval} leaves one of the {len(split)} frames in {place}; lower it")
    return frames


def _check_same_dataset(split: StoreSplit, run: RunDir, place: str) -> None:
    """A run that has checkpoints must go on with the data it began with; one without may begin again with other data."""
    note = run.path / "preflight.json"
    if not checkpoint.files(run.checkpoints) or not note.is_file():
        return
    before = records.read_json(note).get("dataset")
    if before != split.fingerprint:
        raise DataError(
            f"{run.path} was begun on dataset {before}, but {place} is now {split.fingerprint}; restore that store, or delete "
            f"{run.checkpoints} to start over"
        )


def _check_points_counted(split: StoreSplit, chosen: NDArray[np.bool_], place: str) -> None:
    if chosen.any() and not (split.num_points[chosen] > 0).any():
        levels = "nor a difficulty" if not (split.difficulty[chosen] > 0).any() else "although some have a difficulty"
        raise DataError(
            f"none of the {int(chosen.sum())} boxes in {place} has a number of points, {levels}; such boxes are dropped before "
            "training, so prepare labels of Waymo v1.2 or later (or v2)"
        )


def _count(job: TrainJob, split: StoreSplit, chosen: NDArray[np.bool_]) -> tuple[dict[str, int], dict[str, int]]:
    low, high = np.array(job.model.grid.point_range[:3]), np.array(job.model.grid.point_range[3:])
    useful = chosen & (split.num_points > 0)
    inside = useful & ((split.boxes[:, :3] >= low) & (split.boxes[:, :3] <= high)).all(axis=1)
    kinds = dict(zip(job.model.class_names, class_types(job.model.class_names)))
    first, second = (
        {name: int((some & (split.types == kind)).sum()) for name, kind in kinds.items()} for some in (useful, inside)
    )
    return first, second


def _sampler(job: TrainJob, split: StoreSplit) -> ObjectSampler | None:
    """Open the object bank, where the job pastes objects."""
    objects, classes = job.train.augment.objects, job.model.class_names
    if objects is None:
        return None
    if len(objects.counts) != len(classes):
        raise ConfigError(
            f"object sampling has {len(objects.counts)} counts {objects.counts} for {len(classes)} classes {', '.join(classes)}; "
            "give one for each"
        )
    return ObjectSampler(ObjectBank.open(bank_path(split), split.fingerprint), classes, objects)


def _nothing_to_paste(job: TrainJob, sampler: ObjectSampler) -> list[str]:
    wanted = zip(job.model.class_names, sampler.config.counts, sampler.candidates)
    least = sampler.config.min_points
    return [
        f"{sampler.bank.path} has no {name} of at least {least} points: none will be pasted"
        for name, count, usable in wanted
        if count and not len(usable)
    ]


def _warnings(
    job: TrainJob, split: StoreSplit, frames: NDArray[np.int64], boxes: Mapping[str, int], inside: Mapping[str, int]
) -> list[str]:
    found = []
    for name, count in boxes.items():
        if count == 0:
            found.append(f"no box of class {name} in the {len(frames)} frames: the model will not learn it")
        elif inside[name] < FEW_IN_RANGE * count:
            share = f"{inside[name]} of {count} boxes of class {name}"
            found.append(f"only {share} lie in the model's range {job.model.grid.point_range}")
    unseen = len(split.segments) - len(np.unique(split.segment_of[frames]))
    if unseen:
        found.append(f"interval {job.train.interval} skips {unseen} of {len(split.segments)} segments altogether")
    if len(frames) < job.train.batch_size:
        found.append(f"the {len(frames)} frames are fewer than one batch of {job.train.batch_size}")
    return found
