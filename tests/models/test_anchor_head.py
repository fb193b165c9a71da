"""The anchor head and its detectors: what a perfect answer decodes to, order, thresholds,
training.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kdlib.config import (
    CLASS_NAMES,
    AnchorHeadConfig,
    BackboneConfig,
    DecodeConfig,
    GridConfig,
    HeadConfig,
    ModelConfig,
    PillarEncoderConfig,
)
from kdlib.errors import ConfigError
from kdlib.kd.objective import Plain
from kdlib.models.anchor_head import AnchorHead, AnchorOutput
from kdlib.models.anchors import assign_anchors
from kdlib.models.build import build
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.models.geometry.boxes import wrap_angle
from kdlib.models.losses.detection import detector_loss
from kdlib.models.losses.loss_part import loss_terms
from kdlib.types import Batch, GroundTruth, PointBatch

GRID = GridConfig((-10.24, -10.24, -2.0, 10.24, 10.24, 4.0), (0.32, 0.32, 6.0), 10)
CONFIG = ModelConfig(
    name="tiny_anchors",
    grid=GRID,
    encoder=PillarEncoderConfig(filters=(8, 8)),
    backbone=BackboneConfig((1, 1), (1, 2), (8, 8), (1, 2), (8, 8)),
    head=AnchorHeadConfig(),
)
BOXES = torch.tensor(
    [
        [3.1, 2.2, 0.9, 4.4, 2.0, 1.6, 0.4],
        [-4.2, 5.1, 0.8, 5.1, 2.2, 1.9, -2.9],
        [2.3, -6.1, 0.9, 0.8, 0.8, 1.7, 2.0],
        [-5.3, -4.6, 0.9, 1.7, 0.7, 1.7, -1.3],
    ]
)
LABELS = torch.tensor([1, 1, 2, 3])


def head(**changes):
    torch.manual_seed(0)
    return AnchorHead(replace(CONFIG.head, **changes), GRID, 16, 3)


def perfect(one, boxes=BOXES, labels=LABELS, sure=4.0):
    targets = assign_anchors(boxes[None], labels[None], one.anchors, one.config, CLASS_NAMES)
    classes = F.one_hot(targets.labels.clamp(min=0), 4)[..., 1:] * (2 * sure) - sure
    return AnchorOutput(
        classes.float(), targets.codes, F.one_hot(targets.directions, 2) * 4.0 - 2.0
    )


def test_initial_weights():
    one = head()
    assert one.conv_cls.bias.tolist() == pytest.approx([-math.log(99)] * 18)
    assert one.conv_cls.bias[0].sigmoid().item() == pytest.approx(0.01)
    big = AnchorHead(CONFIG.head, GRID, 512, 3)
    assert big.conv_box.weight.std().item() == pytest.approx(0.001, rel=0.02)
    names = [
        "conv_cls.weight",
        "conv_cls.bias",
        "conv_box.weight",
        "conv_box.bias",
        "conv_dir_cls.weight",
        "conv_dir_cls.bias",
    ]
    assert list(one.state_dict()) == names, "anchors are no weights"


def test_channels_belong_to_their_anchor():
    one = head()
    bev = torch.randn(2, 16, 64, 64)
    (found,) = one(bev)
    assert (
        found.classes.shape == (2, 64 * 64 * 6, 3)
        and found.codes.shape[2] == 7
        and found.directions.shape[2] == 2
    )
    y, x, kind = 17, 40, 4
    number = (y * 64 + x) * 6 + kind
    with torch.no_grad():
        torch.testing.assert_close(
            found.classes[1, number], one.conv_cls(bev)[1, kind * 3 : kind * 3 + 3, y, x]
        )
        torch.testing.assert_close(
            found.codes[1, number], one.conv_box(bev)[1, kind * 7 : kind * 7 + 7, y, x]
        )
        torch.testing.assert_close(
            found.directions[1, number], one.conv_dir_cls(bev)[1, kind * 2 : kind * 2 + 2, y, x]
        )


def test_a_perfect_answer_decodes_to_the_boxes():
    one = head()
    (found,) = one.decode(perfect(one))
    assert len(found.boxes) == len(BOXES)
    assert sorted(found.labels.tolist()) == LABELS.tolist()
    for box, label in zip(found.boxes, found.labels):
        near = (BOXES[:, :2] - box[:2]).norm(dim=1).argmin()
        torch.testing.assert_close(box[:6], BOXES[near, :6], rtol=1e-5, atol=1e-4)
        assert abs(float(wrap_angle(box[6] - BOXES[near, 6]))) < 1e-4 and label == LABELS[near]
    (many,) = one.decode(perfect(one), nms=False)
    assert len(many.boxes) > len(BOXES) and many.scores.min() > 0.9


def test_a_wrong_half_turn_follows_the_direction():
    one = head()
    answer = perfect(one)
    codes = answer.codes.clone()
    codes[..., 6] += math.pi
    (found,) = one.decode(replace(answer, codes=codes))
    order = [int((BOXES[:, :2] - box[:2]).norm(dim=1).argmin()) for box in found.boxes]
    torch.testing.assert_close(
        wrap_angle(found.boxes[:, 6] - BOXES[order, 6]), torch.zeros(4), rtol=0, atol=1e-4
    )
    (turned,) = one.decode(replace(answer, directions=-answer.directions))
    assert wrap_angle(turned.boxes[:, 6] - found.boxes[:, 6]).abs().tolist() == pytest.approx(
        [math.pi] * 4, abs=1e-4
    )


def test_thresholds_and_limits():
    one = head(decode=DecodeConfig(score_threshold=0.5, nms_pre=7, nms_post=2))
    classes = torch.full((1, len(one.anchors), 3), -9.0)
    codes = torch.zeros(1, len(one.anchors), 7)
    sides = torch.zeros(1, len(one.anchors), 2)
    places = [(y * 64 + 9) * 6 for y in range(0, 64, 8)]
    for rank, place in enumerate(places):
        classes[0, place, rank % 3] = rank
    (found,) = one.decode(AnchorOutput(classes, codes, sides), nms=False)
    assert len(found.scores) == 7 and found.scores[-1] > 0.5, (
        "the last in rank has exactly the threshold"
    )
    assert found.labels.tolist() == [rank % 3 + 1 for rank in range(7, 0, -1)]
    (kept,) = one.decode(AnchorOutput(classes, codes, sides))
    assert len(kept.boxes) == 2
    one.config = replace(one.config, decode=DecodeConfig(score_threshold=0.5))
    (all_of_them,) = one.decode(AnchorOutput(classes, codes, sides))
    assert len(all_of_them.scores) == 8 and all_of_them.scores[-1] == 0.5, "not strict"


def test_suppression_is_across_classes():
    one = head()
    classes = torch.full((1, len(one.anchors), 3), -9.0)
    place = (20 * 64 + 20) * 6
    classes[0, place, 0], classes[0, place + 1, 1] = 2.0, 3.0
    codes = torch.zeros(1, len(one.anchors), 7)
    codes[0, place + 1, 6] = -1.57  # the second anchor turned onto the first
    (found,) = one.decode(AnchorOutput(classes, codes, torch.zeros(1, len(one.anchors), 2)))
    assert found.labels.tolist() == [2]


def points(frames=2, count=600):
    gen = torch.Generator().manual_seed(0)
    values = (torch.rand(frames * count, 5, generator=gen) - 0.5) * torch.tensor(
        [20, 20, 3, 1, 1.0]
    )
    return PointBatch(
        values,
        torch.arange(frames).repeat_interleave(count),
        frames,
        tuple(f"f{b}" for b in range(frames)),
    )


def truth(frames=2):
    return GroundTruth(BOXES.expand(frames, -1, -1), LABELS.expand(frames, -1))


def fresh(config=CONFIG):
    torch.manual_seed(0)
    return build(config)


def test_the_detector_trains_and_detects():
    model = fresh()
    assert isinstance(model, AnchorDetector)
    objective = Plain(model.train())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.003)
    data = Batch(points(), truth())
    first = None
    for _ in range(20):
        terms = objective(data)
        optimiser.zero_grad()
        terms.loss.backward()
        optimiser.step()
        first = first or terms.loss.item()
    assert list(terms.parts) == ["class", "box", "direction"] and terms.loss.item() < 0.5 * first
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        model.eval()
        assert len(model.detect(model(points()), nms=False)) == 2


def test_the_startup_report_counts_positive_anchors():
    model, data = fresh(), Batch(points(), truth())
    rows = {row.name: row for row in Plain(model).report(data)}
    (targets,) = model.targets(data.truth)
    assert {name: row.weight for name, row in rows.items()} == {
        "class": 1.0,
        "box": 2.0,
        "direction": 0.2,
    }
    assert rows["class"].positions is None
    assert rows["box"].positions == rows["direction"].positions == int(targets.positive.sum()) > 0


def test_a_frames_answer_does_not_depend_on_its_batch_mates():
    model = fresh().double().eval()
    batch = replace(points(), points=points().points.double())
    mine = batch.batch_index == 1
    alone = PointBatch(
        batch.points[mine], torch.zeros(int(mine.sum()), dtype=torch.long), 1, ("f1",)
    )
    with torch.no_grad():
        together, single = model(batch).heads[0], model(alone).heads[0]
    torch.testing.assert_close(together.codes[1:], single.codes, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together.classes[1:], single.classes, rtol=1e-9, atol=1e-9)


def test_mixed_precision_detects_in_float32():
    model = fresh(
        replace(CONFIG, head=AnchorHeadConfig(decode=DecodeConfig(score_threshold=0.0)))
    ).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = model(points())
        found = model.detect(prediction)[0]
    assert prediction.heads[0].classes.dtype == torch.bfloat16
    assert found.boxes.dtype == found.scores.dtype == torch.float32 and len(found.boxes) == 500
    terms = loss_terms(detector_loss(model, prediction, model.targets(truth())))
    assert terms.loss.dtype == torch.float32 and terms.loss.isfinite()


def test_frames_without_boxes_train():
    model = fresh()
    empty = GroundTruth(torch.zeros(2, 0, 7), torch.zeros(2, 0, dtype=torch.long))
    terms = Plain(model)(Batch(points(), empty))
    terms.loss.backward()
    assert (
        terms.parts["box"].item() == terms.parts["direction"].item() == 0
        and terms.parts["class"].item() > 0
    )
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_class_of_detector_takes_its_own_head():
    with pytest.raises(
        ConfigError, match="'tiny_anchors' has AnchorHeadConfig, CenterPoint needs HeadConfig"
    ):
        CenterPoint(CONFIG)
    with pytest.raises(
        ConfigError, match="'tiny_anchors' has HeadConfig, AnchorDetector needs AnchorHeadConfig"
    ):
        AnchorDetector(replace(CONFIG, head=HeadConfig()))
