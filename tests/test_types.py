"""The values that travel: they check their shapes, move between devices, and are never written
into.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from kdlib import types
from kdlib.types import Batch, Frame, FrameLabels, GroundTruth, HeadOutput, LossTerms, PointBatch


def labels(count: int, **changes) -> FrameLabels:
    values = {
        "boxes": np.zeros((count, 7)),
        "types": np.ones(count, np.int64),
        "ids": tuple(f"id{i}" for i in range(count)),
        "difficulty": np.zeros(count, np.int64),
        "num_points": np.full(count, 9),
        "velocity": np.zeros((count, 2)),
    }
    return FrameLabels(**{**values, **changes})


def test_waymo_numbers() -> None:
    assert dict(types.WAYMO_TYPES) == {"Vehicle": 1, "Pedestrian": 2, "Sign": 3, "Cyclist": 4}


def test_labels_need_columns_of_one_length() -> None:
    assert len(labels(3).ids) == 3
    with pytest.raises(ValueError, match=r"2 box ids but boxes of shape \(3, 7\)"):
        labels(2, boxes=np.zeros((3, 7)))
    with pytest.raises(ValueError, match="shape"):
        labels(2, boxes=np.zeros((2, 8)))
    for name in ("types", "difficulty", "num_points", "velocity"):
        with pytest.raises(ValueError, match=f"2 boxes but 1 values of '{name}'"):
            labels(2, **{name: np.zeros((1, 2) if name == "velocity" else 1, np.int64)})


def test_a_frame_without_boxes() -> None:
    none = FrameLabels.empty()
    assert none.ids == () and none.boxes.shape == (0, 7) and none.velocity.shape == (0, 2)


def test_frame_ids_sort_as_frames_do() -> None:
    frame = Frame("segment_1", 7, 0, np.zeros((0, 6), np.float32), np.eye(4), FrameLabels.empty())
    assert frame.frame_id == types.frame_id("segment_1", 7) == "segment_1_007"
    names = [types.frame_id("s", index) for index in range(200)]
    assert names == sorted(names)


def batch() -> Batch:
    points = PointBatch(torch.ones(4, 5), torch.tensor([0, 0, 1, 1]), 2, ("a_000", "a_001"))
    return Batch(points, GroundTruth(torch.zeros(2, 1, 7), torch.ones(2, 1, dtype=torch.int64)))


def test_moving_reaches_every_tensor_and_leaves_the_rest() -> None:
    before = batch()
    moved = before.to("meta")
    tensors = (moved.points.points, moved.points.batch_index, moved.truth.boxes, moved.truth.labels)
    assert all(value.device.type == "meta" for value in tensors)
    assert (moved.points.batch_size, moved.points.frame_ids) == (2, ("a_000", "a_001"))
    assert before.points.points.device.type == "cpu"


def test_values_are_frozen() -> None:
    values = [item for item in vars(types).values() if dataclasses.is_dataclass(item)]
    assert len(values) == 11
    assert all(value.__dataclass_params__.frozen for value in values)


def test_regression_maps_stand_in_target_order() -> None:
    channels = {"center": 2, "center_z": 1, "dim": 3, "rot": 2}
    maps = {
        name: torch.full((1, n, 2, 2), float(i)) for i, (name, n) in enumerate(channels.items())
    }
    output = HeadOutput(heatmap=torch.zeros(1, 3, 2, 2), **maps)
    assert output.regression[0, :, 0, 0].tolist() == [0, 0, 1, 2, 2, 2, 3, 3]


def test_parts_add_up_to_the_loss() -> None:
    a, b = torch.tensor(1.5, requires_grad=True), torch.tensor(2.0)
    terms = LossTerms.total({"a": a, "b": b})
    terms.loss.backward()
    assert (
        float(terms.loss.detach()) == 3.5
        and list(terms.parts) == ["a", "b"]
        and float(a.grad) == 1.0
    )
    with pytest.raises(ValueError, match="at least one part"):
        LossTerms.total({})
