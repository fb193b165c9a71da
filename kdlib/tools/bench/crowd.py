"""Random crowded boxes, as an untidy head answers: for the metric, for suppression and for
targets.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kdlib.metric.objects import EvalBoxes, Predictions, Truth


def crowd(
    frames: int = 1000, labels: int = 100, predictions: int = 200, seed: int = 0, half: float = 75.0
) -> EvalBoxes:
    """Return random boxes of three classes, as before non-maximum suppression.

    A third of the labels stands within a metre of another one, two thirds of the predictions lie on
    a label, several on some, and the others anywhere within ``half`` metres: the matching has
    chains to resolve, not just pairs.
    """
    rng = np.random.default_rng(seed)
    sizes, types = (
        np.array(((4.6, 2.0, 1.7), (0.9, 0.9, 1.75), (1.8, 0.8, 1.7))),
        np.array((1, 2, 4)),
    )
    kind = rng.integers(0, 3, (frames, labels))
    each = (frames, labels)
    parts = (
        rng.uniform(-half, half, (*each, 2)),
        rng.normal(1.0, 0.3, (*each, 1)),
        sizes[kind] * rng.uniform(0.8, 1.2, (*each, 3)),
        rng.uniform(-np.pi, np.pi, (*each, 1)),
    )
    truth = np.concatenate(parts, axis=-1)
    close = labels // 3
    truth[:, :close, :2] = truth[:, close : 2 * close, :2] + rng.uniform(
        -1.0, 1.0, (frames, close, 2)
    )
    near = rng.integers(0, labels, (frames, predictions))
    row = np.arange(frames)[:, None]
    predicted = truth[row, near] + rng.normal(size=(frames, predictions, 7)) * (
        0.2,
        0.2,
        0.1,
        0.1,
        0.1,
        0.05,
        0.1,
    )
    lost = rng.random((frames, predictions)) < 1 / 3
    predicted[lost, :2] = rng.uniform(-half, half, (int(lost.sum()), 2))
    score = np.clip(rng.beta(2, 3, (frames, predictions)) + np.where(lost, -0.1, 0.2), 0.0, 1.0)
    frame_p, frame_g = (
        np.repeat(np.arange(frames), predictions),
        np.repeat(np.arange(frames), labels),
    )
    box_p, box_g = (boxes.reshape(-1, 7).astype(np.float32) for boxes in (predicted, truth))
    scores, flags = score.ravel().astype(np.float32), np.zeros(score.size, np.bool_)
    return EvalBoxes(
        Predictions(frame_p, box_p, types[kind[row, near]].ravel(), scores, flags),
        Truth(frame_g, box_g, types[kind].ravel(), rng.integers(1, 3, frames * labels)),
        frames,
    )


def crowded_boxes(
    count: int, seed: int = 0, objects: int = 256, half: float = 75.0
) -> tuple[Tensor, Tensor]:
    """Return boxes (count, 7) and scores (count,) of one frame, several of every object."""
    predictions = crowd(1, objects, count, seed, half).predictions
    return torch.from_numpy(predictions.box), torch.from_numpy(predictions.score)
