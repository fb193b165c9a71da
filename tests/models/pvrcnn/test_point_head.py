"""Key points on objects, around them and off them; the head's layers and a batch of one."""

from __future__ import annotations

import torch

from kdlib.config import PointHeadConfig
from kdlib.models.pvrcnn.point_head import PointHead, point_labels
from kdlib.types import GroundTruth


def test_labels_by_hand():
    truth = GroundTruth(
        torch.tensor(
            [
                [[0.0, 0, 0, 4, 2, 2, 0], [9.0, 9, 9, 9, 9, 9, 0]],
                [[0.0, 0, 0, 2, 4, 2, 0], [0.0, 0, 0, 2, 4, 2, 0]],
            ]
        ),
        torch.tensor([[1, 0], [2, 3]]),  # the 9 m box is padding
    )
    xyz = torch.tensor(
        [[1.9, 0, 0], [2.0, 0, 0], [2.05, 0, 0], [2.1, 0, 0], [2.15, 0, 0], [0, 0, 1.05], [9, 9, 9]]
    )
    frame = torch.zeros(7, dtype=torch.int64)
    assert point_labels(xyz, frame, truth, 0.2).tolist() == [1, 1, -1, -1, 0, -1, 0]
    assert point_labels(xyz, frame + 1, truth, 0.2).tolist() == [0, 0, 0, 0, 0, -1, 0]
    assert point_labels(xyz, frame, truth, 0.0).tolist() == [1, 1, 0, 0, 0, 0, 0]


def test_a_box_inside_the_surroundings_of_another_wins():
    truth = GroundTruth(
        torch.tensor([[[0.0, 0, 0, 4, 2, 2, 0], [3.05, 0, 0, 2, 2, 2, 0]]]), torch.tensor([[1, 1]])
    )
    assert point_labels(
        torch.tensor([[2.06, 0.0, 0.0]]), torch.zeros(1, dtype=torch.int64), truth, 0.2
    ).tolist() == [1]


def test_layers_and_rows():
    head = PointHead(PointHeadConfig(), 544)
    assert [name for name, _ in head.named_parameters()] == [
        f"cls_layers.{name}"
        for name in (
            "0.weight",
            "1.weight",
            "1.bias",
            "3.weight",
            "4.weight",
            "4.bias",
            "6.weight",
            "6.bias",
        )
    ]
    assert head(torch.randn(5, 544)).shape == (5,)
    assert head.train()(torch.randn(1, 544)).shape == (1,), (
        "a single row, as torch's own BatchNorm would refuse"
    )
    assert head(torch.zeros(0, 544)).shape == (0,)
    assert head.bfloat16()(torch.randn(5, 544).bfloat16()).dtype == torch.float32
