from __future__ import annotations

import numpy as np
import torch

from kdlib.data.collate import collate
from kdlib.types import Sample


def _sample(name, points, boxes):
    rows = np.arange(points * 5, dtype=np.float32).reshape(points, 5)
    return Sample(
        name, rows, np.ones((boxes, 7), np.float32) * boxes, np.full(boxes, boxes, np.int64)
    )


def test_points_are_concatenated_and_boxes_padded():
    batch = collate([_sample("a", 3, 1), _sample("b", 0, 2), _sample("c", 2, 0)])
    assert batch.points.points.shape == (5, 5) and batch.points.points.dtype == torch.float32
    assert (
        batch.points.batch_index.tolist() == [0, 0, 0, 2, 2]
        and batch.points.batch_index.dtype == torch.int64
    )
    assert batch.points.batch_size == 3 and batch.points.frame_ids == ("a", "b", "c")
    assert batch.truth.labels.tolist() == [[1, 0], [2, 2], [0, 0]]
    assert batch.truth.boxes.shape == (3, 2, 7) and batch.truth.boxes[0, 1].abs().sum() == 0
    assert batch.truth.boxes[1].eq(2).all()


def test_a_batch_without_points_and_boxes():
    batch = collate([_sample("a", 0, 0)])
    assert batch.points.points.shape == (0, 5) and batch.truth.boxes.shape == (1, 0, 7)


def test_a_share_of_no_frame_is_an_empty_batch():
    batch = collate([])
    assert batch.points.points.shape == (0, 5) and batch.points.batch_index.dtype == torch.int64
    assert (batch.points.batch_size, batch.points.frame_ids) == (0, ())
    assert batch.truth.boxes.shape == (0, 0, 7) and batch.truth.labels.shape == (0, 0)
