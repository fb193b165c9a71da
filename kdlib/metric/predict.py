"""A detector's boxes on every frame of a dataset, as a predictions table that says what it was made
of.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.data.store import class_types, type_facts
from kdlib.errors import ConfigError
from kdlib.metric.box_tables import TIMESTAMPS, predictions_table
from kdlib.models.detector import Detector
from kdlib.types import WAYMO_TYPES, Detections, Sample


def predict(
    model: Detector,
    dataset: FrameDataset | Sequence[Sample],
    *,
    batch_size: int = 4,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> pa.Table:
    """Return a detector's boxes on every frame of a dataset without augmentation, in its order,
    best first within a frame.

    The model is moved to ``device``, runs in evaluation mode without gradients and is put back into
    the mode it came in. The table's metadata names every frame, those without boxes included, its
    time, the model's classes and the fingerprint of the split, and what its types are if not
    Waymo's: those of the dataset or, of samples alone, positions in the model's classes.

    Raises:
        ConfigError: If the dataset has not a class of the model, or the batch size is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
    class_names = model.config.class_names
    known: tuple[str, ...] = tuple(WAYMO_TYPES)
    if isinstance(dataset, FrameDataset):
        known = dataset.split.class_names
    elif not set(class_names) <= set(WAYMO_TYPES):
        known = class_names
    types = np.array([0, *class_types(class_names, known)])  # label 0 is padding
    was_training = model.training
    model.to(device).train(False)
    parts = []
    try:
        with (
            torch.inference_mode(),
            tqdm(total=len(dataset), desc="predict", unit="frame", disable=not progress) as bar,
        ):
            for start in range(0, len(dataset), batch_size):
                samples = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
                points = collate(samples).points.to(device)
                parts += [
                    (name, frame.to("cpu"))
                    for name, frame in zip(points.frame_ids, model.detect(model(points)))
                ]
                bar.update(len(samples))
    finally:
        model.train(was_training)
    frame_ids = [name for name, frame in parts for _ in frame.scores]
    none = Detections(torch.zeros(0, 7), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    columns = zip(*(vars(frame).values() for frame in (none, *(frame for _, frame in parts))))
    boxes, scores, labels = (torch.cat(column).numpy() for column in columns)
    table = predictions_table(
        frame_ids, boxes, types[labels], scores, frames=[name for name, _ in parts]
    )
    facts = {"class_names": json.dumps(class_names), **type_facts(known)}
    if isinstance(dataset, FrameDataset):
        facts["dataset"] = dataset.split.fingerprint
        facts[TIMESTAMPS] = json.dumps(
            dataset.split.timestamps[dataset.split.frames(dataset.interval)].tolist()
        )
    return table.replace_schema_metadata({**table.schema.metadata, **facts})
