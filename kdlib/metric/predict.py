"""A detector and a dataset in, a predictions table out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from kdlib.config import ModelConfig
from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.errors import ConfigError
from kdlib.metric.box_tables import TIMESTAMPS, predictions_table
from kdlib.types import WAYMO_TYPES, Detections, PointBatch, Sample


class Predictor(Protocol):
    """What :func:`predict` needs of a model."""

    config: ModelConfig
    training: bool

    def __call__(self, points: PointBatch) -> Any:
        """Return raw maps."""

    def detect(self, prediction: Any, nms: bool = True) -> list[Detections]:
        """Return the boxes of every frame, best first."""

    def to(self, device: torch.device) -> Any:
        """Move to a device."""

    def train(self, mode: bool = True) -> Any:
        """Set the training mode."""


class Samples(Protocol):
    """What :func:`predict` needs of a dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def predict(
    model: Predictor,
    dataset: Samples,
    *,
    batch_size: int = 4,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> pa.Table:
    """Return a detector's boxes on every frame of a dataset, in dataset order, best first within a frame.

    The model runs in evaluation mode without gradients and is put back into the mode it came in. The table's metadata names every
    frame, those without boxes included, its time, the model's classes and the fingerprint of the split.

    Args:
        model: A detector of kdlib.models; it is moved to ``device``.
        dataset: Frames without augmentation.
        batch_size: Frames at a time.
        device: Where to run.
        progress: Show a bar.

    Raises:
        ConfigError: If a class of the model has no Waymo type, or the batch size is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
    types = _waymo_types(model.config.class_names)
    was_training = model.training
    where = torch.device(device)
    model.to(where)
    model.train(False)
    parts: list[tuple[str, Detections]] = []
    try:
        with torch.inference_mode(), tqdm(total=len(dataset), desc="predict", unit="frame", disable=not progress) as bar:
            for samples in _batches(dataset, batch_size):
                points = collate(samples).points.to(where)
                found = model.detect(model(points))
                parts += [(name, frame.to("cpu")) for name, frame in zip(points.frame_ids, found)]
                bar.update(len(samples))
    finally:
        model.train(was_training)
    return _signed(_table(parts, types), dataset, model.config.class_names)


def _signed(table: pa.Table, dataset: Samples, class_names: Sequence[str]) -> pa.Table:
    """Return the table with what the preflight compares with the ground truth's, and with what the leaderboard's file needs."""
    facts = {"class_names": json.dumps(list(class_names))}
    if isinstance(dataset, FrameDataset):
        facts["dataset"] = dataset.split.fingerprint
        facts[TIMESTAMPS] = json.dumps(dataset.split.timestamps[dataset.split.frames(dataset.interval)].tolist())
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **facts})


def _waymo_types(class_names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the Waymo type of every label; label 0 is padding."""
    unknown = [name for name in class_names if name not in WAYMO_TYPES]
    if unknown:
        raise ConfigError(f"class '{unknown[0]}' is none of Waymo's ({', '.join(WAYMO_TYPES)}); its boxes cannot be evaluated")
    return np.array([0, *(WAYMO_TYPES[name] for name in class_names)], np.int64)


def _batches(dataset: Samples, size: int) -> Iterator[list[Sample]]:
    for start in range(0, len(dataset), size):
        yield [dataset[i] for i in range(start, min(start + size, len(dataset)))]


def _table(parts: list[tuple[str, Detections]], types: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Table:
    names = [name for name, found in parts for _ in range(len(found.scores))]
    boxes = np.concatenate([np.zeros((0, 7), np.float32), *(found.boxes.float().numpy() for _, found in parts)])
    labels = np.concatenate([np.zeros(0, np.int64), *(found.labels.numpy() for _, found in parts)])
    scores = np.concatenate([np.zeros(0, np.float32), *(found.scores.float().numpy() for _, found in parts)])
    return predictions_table(names, boxes, types[labels], scores, frames=[name for name, _ in parts])
