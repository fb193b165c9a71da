"""Makes one batch of tensors from samples (numpy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kdlib.types import POINT_FEATURES, Batch, GroundTruth, PointBatch, Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Concatenate points with their batch index and pad boxes with zeros to the frame that has most
    of them (spec 2.5).

    One rank's share of a batch may be no frame at all.
    """
    features = samples[0].points.shape[1] if samples else POINT_FEATURES
    none = np.zeros((0, features), np.float32)
    points = PointBatch(
        points=torch.from_numpy(np.concatenate([none, *(sample.points for sample in samples)])),
        batch_index=torch.repeat_interleave(
            torch.tensor([len(sample.points) for sample in samples], dtype=torch.int64)
        ),
        batch_size=len(samples),
        frame_ids=tuple(sample.frame_id for sample in samples),
    )
    longest = max((len(sample.labels) for sample in samples), default=0)
    boxes = torch.zeros(len(samples), longest, 7)
    labels = torch.zeros(len(samples), longest, dtype=torch.int64)
    for row, sample in enumerate(samples):
        boxes[row, : len(sample.labels)] = torch.from_numpy(sample.boxes)
        labels[row, : len(sample.labels)] = torch.from_numpy(sample.labels)
    return Batch(points, GroundTruth(boxes, labels))
