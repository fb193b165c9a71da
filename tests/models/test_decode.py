"""Boxes out of maps: the inverse of the targets, precision, order and names."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from kdlib.config import CLASS_NAMES, DecodeConfig, GridConfig, HeadConfig
from kdlib.models.decode import decode_maps
from kdlib.models.geometry.boxes import wrap_angle
from kdlib.models.targets import assign_targets
from kdlib.types import HeadOutput

GRID = GridConfig((-16.0, -12.0, -2.0, 16.0, 12.0, 4.0), (0.5, 0.5, 6.0), 10)
SPLITS = [
    (CLASS_NAMES,),
    (("Vehicle", "Cyclist"), ("Pedestrian",)),
    (("Pedestrian",), ("Cyclist",), ("Vehicle",)),
]


def answers(boxes, labels, head, dtype=torch.float32):
    """Maps of a detector that answers its targets exactly."""
    found = []
    for target in assign_targets(boxes, labels, grid=GRID, head=head):
        frames, _, rows, columns = target.heatmap.shape
        maps = torch.zeros(frames, 8, rows * columns)
        for frame in range(frames):
            held = target.mask[frame]
            maps[frame][:, target.indices[frame, held]] = target.boxes[frame, held].T
        maps = maps.view(frames, 8, rows, columns)
        logits = torch.where(target.heatmap == 1, 4.0, -8.0)
        found.append(
            HeadOutput(
                *(
                    m.to(dtype)
                    for m in (logits, maps[:, :2], maps[:, 2:3], maps[:, 3:6], maps[:, 6:8])
                )
            )
        )
    return found


def scene():
    """Twelve boxes apart from each other, in two frames."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(-12, 13, 8.0), np.arange(-8, 9, 8.0))
    boxes = np.column_stack(
        (
            x.ravel(),
            y.ravel(),
            rng.uniform(-1, 1, 12),
            rng.uniform(0.5, 5, (12, 3)),
            rng.uniform(-7, 7, 12),
        )
    )
    boxes[:, :2] += rng.uniform(-0.9, 0.9, (12, 2))
    boxes = torch.from_numpy(boxes.astype(np.float32)).view(2, 6, 7)
    return boxes, torch.tensor([[1, 2, 3, 1, 2, 3], [3, 3, 2, 1, 0, 2]])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("nms", [False, True])
def test_decoding_inverts_assignment(split, nms):
    """Spec 13.7, and labels by name whatever the order of the heads."""
    boxes, labels = scene()
    head = HeadConfig(heads=split)
    found = decode_maps(answers(boxes, labels, head), grid=GRID, head=head, nms=nms)
    for frame, detections in enumerate(found):
        held = labels[frame] > 0
        expected, names = boxes[frame, held], labels[frame, held]
        assert len(detections.boxes) == len(expected)
        nearest = torch.cdist(expected[:, :2], detections.boxes[:, :2]).argmin(dim=1)
        ours = detections.boxes[nearest]
        torch.testing.assert_close(ours[:, :6], expected[:, :6], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            wrap_angle(ours[:, 6] - expected[:, 6]), torch.zeros(len(ours)), rtol=0, atol=1e-5
        )
        assert torch.equal(detections.labels[nearest], names)


def test_class_order_of_the_model_decides_labels():
    boxes, labels = scene()
    head = HeadConfig(heads=(("Vehicle", "Pedestrian", "Cyclist"),))
    found = decode_maps(
        answers(boxes, labels, head),
        grid=GRID,
        head=head,
        class_names=("Cyclist", "Vehicle", "Pedestrian"),
    )
    swapped = torch.tensor([0, 2, 3, 1])[labels]
    for frame, detections in enumerate(found):
        assert sorted(detections.labels.tolist()) == sorted(
            swapped[frame][labels[frame] > 0].tolist()
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_maps_are_decoded_in_float32(dtype):
    boxes, labels = scene()
    maps = answers(boxes, labels, HeadConfig(), dtype)
    (found, _) = decode_maps(maps, grid=GRID, head=HeadConfig())
    wide = [HeadOutput(*(getattr(m, f.name).float() for f in fields(m))) for m in maps]
    (expected, _) = decode_maps(wide, grid=GRID, head=HeadConfig())
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert torch.equal(found.boxes, expected.boxes) and torch.equal(found.scores, expected.scores)
    # A bfloat16 place at -16 m + 0.5 m * cell would be 6 cm off at best.
    nearest = torch.cdist(boxes[0, :, :2], found.boxes[:, :2]).min(dim=1).values
    assert float(nearest.max()) < 0.5 * 2**-7


def test_float64_maps_stay_float64():
    boxes, labels = scene()
    (found, _) = decode_maps(
        answers(boxes, labels, HeadConfig(), torch.float64), grid=GRID, head=HeadConfig()
    )
    assert found.boxes.dtype == found.scores.dtype == torch.float64


def test_several_heads_come_best_first():
    gen = torch.Generator().manual_seed(0)
    head = HeadConfig(heads=SPLITS[2])
    maps = [
        HeadOutput(*(torch.randn(2, n, 48, 64, generator=gen) for n in (1, 2, 1, 3, 2)))
        for _ in head.heads
    ]
    for detections in decode_maps(maps, grid=GRID, head=head):
        assert len(detections.boxes) == len(detections.scores) == len(detections.labels) > 100
        assert detections.scores.diff().le(0).all()
        assert set(detections.labels[:60].tolist()) == {1, 2, 3}


@pytest.mark.parametrize("split", SPLITS)
def test_nothing_found_is_an_empty_result(split):
    head = HeadConfig(heads=split)
    maps = [
        HeadOutput(
            torch.full((2, len(names), 48, 64), -9.0),
            *(torch.zeros(2, n, 48, 64) for n in (2, 1, 3, 2)),
        )
        for names in split
    ]
    for nms in (False, True):
        for detections in decode_maps(maps, grid=GRID, head=head, nms=nms):
            assert detections.boxes.shape == (
                0,
                7,
            ) and detections.scores.shape == detections.labels.shape == (0,)
            assert detections.labels.dtype == torch.int64


def test_threshold_is_strict_and_limits_inclusive():
    logits = torch.full((1, 1, 48, 64), -9.0)
    logits[0, 0, 0, 0], logits[0, 0, 10, 10], logits[0, 0, 47, 63] = 0.0, math.log(3), math.log(3)
    maps = [HeadOutput(logits, *(torch.zeros(1, n, 48, 64) for n in (2, 1, 3, 2)))]
    settings = DecodeConfig(score_threshold=0.5, center_limit=(-11.0, -7.0, 0.0, 15.0, 11.0, 0.0))
    head = HeadConfig(heads=(("Vehicle",),), decode=settings)
    (found,) = decode_maps(maps, grid=GRID, head=head)
    assert found.boxes[:, :2].tolist() == [[-11.0, -7.0]], (
        "0.5 is not above 0.5; x = 15.5 lies outside"
    )
    (found,) = decode_maps(
        maps, grid=GRID, head=replace(head, decode=DecodeConfig(score_threshold=0.49))
    )
    assert len(found.boxes) == 3


def test_wrong_number_of_outputs_is_refused():
    with pytest.raises(ValueError, match="0 outputs for 1 heads"):
        decode_maps([], grid=GRID, head=HeadConfig())
