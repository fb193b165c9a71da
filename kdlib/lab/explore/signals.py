"""Where distillation acts on a training batch, and with which terms."""

from __future__ import annotations

import pandas as pd
import torch

from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.kd.initialise import initialise
from kdlib.kd.objective import Distillation
from kdlib.kd.own import load_terms
from kdlib.kd.pivotal import pivotal_mask
from kdlib.lab.explore.maps import load_network
from kdlib.lab.pipeline import Run
from kdlib.lab.trained import TrainedWeights
from kdlib.models.build import build
from kdlib.types import Batch, Float32


def _first_batch(run: Run, count: int) -> Batch:
    model, config = run.profile.student_model, run.profile.student
    reach = model.grid.point_range
    data = FrameDataset(
        run.store.split(run.profile.training_split),
        model.class_names,
        config.interval,
        drop_empty=True,
        point_range=reach,
    )
    return collate([data[index] for index in range(min(count, len(data)))])


def pivotal_example(run: Run, teacher: TrainedWeights) -> tuple[Float32, Float32]:
    """Return the weights of logit distillation on a training frame, (H, W) on the teacher's grid,
    and its points; a recipe without that term has weights of 0.
    """
    logit = run.profile.kd.logit
    batch = _first_batch(run, 1)
    network = load_network(teacher).eval()
    with torch.inference_mode():
        probability = network(batch.points).heads[0].heatmap.sigmoid()
        weight = (
            torch.zeros_like(probability[:, 0])
            if logit is None
            else pivotal_mask(probability, network.targets(batch.truth)[0], logit)
        )
    return weight[0].numpy(), batch.points.points.numpy()


def startup_report(run: Run, teacher: TrainedWeights) -> pd.DataFrame:
    """Return every active term of the full recipe, and of one's own beside it, on one batch:
    weight, value, positions, labels from the teacher.
    """
    student = build(run.profile.student_model)
    network = load_network(teacher)
    if run.profile.pair.initialise_from is None:  # otherwise that model is not trained yet
        initialise(student, network.state_dict(), run.profile.kd.initialisation)
    extra = load_terms(run.profile.terms)
    objective = Distillation(student, network, run.profile.kd, extra=extra)
    rows = objective.report(_first_batch(run, run.profile.student.batch_size))
    return pd.DataFrame([vars(row) for row in rows]).round(4)
