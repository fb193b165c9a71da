"""Tries terms of one's own on simulated frames, before a run begins that needs them hours later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kdlib.config import CLASS_NAMES
from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.errors import ConfigError
from kdlib.kd.objective import Distillation
from kdlib.kd.own import blamed, load_terms, source_file
from kdlib.kd.term import StepContext, Term
from kdlib.lab.folders import WEIGHTS
from kdlib.lab.profile import Profile
from kdlib.models.build import build
from kdlib.models.weights import load_weights
from kdlib.profiling.sweep import simulated_store
from kdlib.types import Batch


def try_terms(profile: Profile, references: Sequence[str]) -> None:
    """Ask every term once, beside the profile's recipe, on two simulated frames.

    Raises:
        ConfigError: If one cannot be loaded, has a name that is taken, fails, or returns no finite
            number that something can be learned from; the message names file and line.
    """
    if not references:
        return
    terms = load_terms(references)
    print(f"trying {', '.join(term.name for term in terms)} on simulated frames", flush=True)
    tried = [_named(term, source_file(one)) for term, one in zip(terms, references)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student, teacher = build(profile.student_model), build(profile.teacher_model)
        shipped = WEIGHTS / profile.shipped_teacher
        if shipped.is_file():
            load_weights(shipped, teacher)
        objective = Distillation(student, teacher, profile.kd, extra=tried)
        try:
            objective(_batch(profile)).loss.backward()
        except RuntimeError as error:  # of torch: complex numbers, or what was changed in place
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"the terms {', '.join(references)} cannot be learned from ({reason}); a term "
                "returns one real number, and changes nothing it is given"
            ) from error


def _named(term: Term, file: Path) -> Term:
    """Return a term whose mistakes are told with their place."""

    def value(step: StepContext) -> Tensor:
        try:
            number = term(step)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{blamed(error, file)} (tried on simulated frames)") from error
        if not number.isfinite():
            raise ConfigError(
                f"{file}: term '{term.name}' is {number.item()} on simulated frames; look for a "
                "division by 0 or the root or logarithm of one"
            )
        return number

    return replace(term, value=value)


def _batch(profile: Profile) -> Batch:
    """Return two frames with boxes; classes of one's own are made of Waymo's."""
    model = profile.student_model
    with simulated_store(1, 2, 0, "demo", "training") as store:
        frames = FrameDataset(
            store.split("training"),
            CLASS_NAMES,
            drop_empty=True,
            point_range=model.grid.point_range,
        )
        samples = [frames[index] for index in range(2)]
    last = len(model.class_names)
    return collate([replace(one, labels=one.labels.clip(max=last)) for one in samples])
