"""The whole detector: what a frame's answer depends on, what training reaches, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdlib import zoo
from kdlib.config import (
    BackboneConfig,
    DecodeConfig,
    GridConfig,
    HeadConfig,
    ModelConfig,
    PillarEncoderConfig,
)
from kdlib.errors import ConfigError, DataError
from kdlib.models.build import build
from kdlib.models.losses.detection import detection_loss
from kdlib.models.losses.loss_part import loss_terms
from kdlib.types import GroundTruth, PointBatch

CONFIG = ModelConfig(
    name="tiny",
    grid=GridConfig((-5.12, -5.12, -2.0, 5.12, 5.12, 4.0), (0.64, 0.64, 6.0), 40),
    encoder=PillarEncoderConfig(filters=(8, 8)),
    backbone=BackboneConfig((1, 1), (1, 2), (8, 8), (1, 2), (8, 8)),
    head=HeadConfig(shared_channels=8, decode=DecodeConfig(score_threshold=0.05)),
)


def clouds(*counts, seed=0, dtype=torch.float32):
    gen = torch.Generator().manual_seed(seed)
    parts = [
        (torch.rand(n, 5, generator=gen, dtype=torch.float64) - 0.5)
        * torch.tensor([10, 10, 3, 1, 1.0])
        for n in counts
    ]
    index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return PointBatch(
        torch.cat(parts).to(dtype), index, len(counts), tuple(f"f{b}" for b in range(len(counts)))
    )


def truth(frames, labels=(1, 2, 3)):
    boxes = torch.tensor(
        [
            [1.1, 1.2, 0, 4.0, 2.0, 1.5, 0.4],
            [-3.2, 2.1, 0, 0.8, 0.8, 1.7, 0.0],
            [2.3, -3.1, 0, 1.8, 0.7, 1.7, 2.0],
        ]
    )
    return GroundTruth(boxes.expand(frames, -1, -1), torch.tensor(labels).expand(frames, -1))


def fresh(config=CONFIG):
    torch.manual_seed(0)
    return build(config)


def frame_of(batch, b):
    mine = batch.batch_index == b
    return PointBatch(
        batch.points[mine], torch.zeros(int(mine.sum()), dtype=torch.long), 1, (batch.frame_ids[b],)
    )


def close(a, b, **tolerance):
    for ours, theirs in zip(a.heads, b.heads):
        torch.testing.assert_close(ours.heatmap, theirs.heatmap, **tolerance)
        torch.testing.assert_close(ours.regression, theirs.regression, **tolerance)


def test_a_frames_answer_does_not_depend_on_its_batch_mates():
    model = fresh().double().eval()
    batch = clouds(300, 0, 500, dtype=torch.float64)
    with torch.no_grad():
        together = model(batch)
        found = model.detect(together)
        for b in range(3):
            alone = model(frame_of(batch, b))
            for whole, single in zip(together.heads, alone.heads):
                torch.testing.assert_close(
                    whole.heatmap[b : b + 1], single.heatmap, rtol=1e-9, atol=1e-9
                )
                torch.testing.assert_close(
                    whole.regression[b : b + 1], single.regression, rtol=1e-9, atol=1e-9
                )
            (boxes,) = model.detect(alone)
            torch.testing.assert_close(found[b].scores, boxes.scores, rtol=1e-9, atol=1e-9)
            assert torch.equal(found[b].labels, boxes.labels)


def test_b17_the_order_of_points_does_not_matter_while_no_cap_binds():
    model = fresh().double().eval()
    batch = clouds(600, dtype=torch.float64)
    assert int(model.voxelize(batch).num_points.max()) < CONFIG.grid.max_points
    shuffled = replace(
        batch, points=batch.points[torch.randperm(600, generator=torch.Generator().manual_seed(1))]
    )
    with torch.no_grad():
        close(model(batch), model(shuffled), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "heads", [(("Vehicle", "Pedestrian", "Cyclist"),), (("Vehicle", "Cyclist"), ("Pedestrian",))]
)
def test_training_reaches_every_parameter(heads):
    model = fresh(replace(CONFIG, head=replace(CONFIG.head, heads=heads)))
    prediction = model(clouds(400, 300))
    # Squares, for the signs of an absolute error may cancel exactly.
    sum(
        (m - 1).square().mean()
        for head in prediction.heads
        for m in (head.heatmap, head.regression)
    ).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # The constant a BatchNorm subtracts again has no effect, hence no gradient but rounding.
        if not name.endswith(("shared_conv.0.bias", ".0.0.bias")):
            assert parameter.grad.any(), name


def test_batch_without_points_trains():
    model = fresh()
    before = {name: value.clone() for name, value in model.vfe.named_buffers()}
    prediction = model(clouds(0, 0))
    assert prediction.voxels == 0
    loss_terms(
        detection_loss(prediction.heads, model.targets(truth(2)), model.config.head)
    ).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert not any(parameter.grad.any() for parameter in model.vfe.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.vfe.named_buffers())


def test_one_class_head():
    config = replace(
        CONFIG, class_names=("Pedestrian",), head=replace(CONFIG.head, heads=(("Pedestrian",),))
    )
    model = fresh(config)
    prediction = model(clouds(400, 300))
    (target,) = model.targets(truth(2, labels=(1, 1, 0)))
    assert prediction.heads[0].heatmap.shape == target.heatmap.shape == (2, 1, 16, 16)
    assert target.mask.sum(dim=1).tolist() == [2, 2]
    terms = loss_terms(detection_loss(prediction.heads, (target,), config.head))
    terms.loss.backward()
    assert terms.loss.isfinite()
    for found in model.eval().detect(model(clouds(400, 300))):
        assert len(found.labels) and set(found.labels.tolist()) == {1}


def test_labels_follow_names_through_targets_and_boxes():
    names = ("Cyclist", "Vehicle", "Pedestrian")
    split = (("Vehicle", "Pedestrian"), ("Cyclist",))
    model = fresh(replace(CONFIG, class_names=names, head=replace(CONFIG.head, heads=split)))
    first, second = model.targets(truth(1, labels=(2, 3, 1)))
    assert first.mask.sum() == 2 and second.mask.sum() == 1
    assert (first.heatmap[0] == 1).flatten(1).any(dim=1).all()
    prediction = model(clouds(400))
    heads = [replace(h, heatmap=torch.full_like(h.heatmap, -9)) for h in prediction.heads]
    heads[1].heatmap[0, 0, 3, 3] = 2.0
    (found,) = model.detect(replace(prediction, heads=tuple(heads)))
    assert found.labels.tolist() == [1]


def test_mixed_precision_detects_in_float32():
    model = fresh().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = model(clouds(400))
        (found,) = model.detect(prediction)
    assert prediction.heads[0].heatmap.dtype == torch.bfloat16
    assert found.boxes.dtype == found.scores.dtype == torch.float32 and len(found.boxes)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"grid": replace(CONFIG.grid, voxel_size=(0.64, 0.64, 1.5))}, "one cell in z, not 4"),
        (
            {"backbone": replace(CONFIG.backbone, strides=(1, 3), upsample_strides=(1, 3))},
            "divisible by 3, not 16 x 16",
        ),
        (
            {"backbone": replace(CONFIG.backbone, upsample_strides=(1, 1))},
            (r"strides \(1, 2\) " r"with upsample_strides \(1, 1\)"),
        ),
        ({"head": replace(CONFIG.head, stride=2)}, "head's stride of 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=f"'tiny': .*{message}"):
        build(replace(CONFIG, **change))


def test_head_on_a_coarser_map():
    backbone = replace(CONFIG.backbone, strides=(2, 2))
    model = fresh(replace(CONFIG, backbone=backbone, head=replace(CONFIG.head, stride=2)))
    assert (
        model(clouds(300)).heads[0].heatmap.shape
        == model.targets(truth(1))[0].heatmap.shape
        == (1, 3, 8, 8)
    )


@pytest.mark.parametrize("name", sorted(zoo.PAIRS))
def test_every_pair_of_the_zoo_can_be_built(name):
    pair = zoo.pair(name)
    assert build(pair.teacher).config == pair.teacher and build(pair.student).config == pair.student


def test_wrong_number_of_point_features_is_refused():
    batch = clouds(10)
    with pytest.raises(DataError, match="'tiny' takes 5 features a point, the batch has 4"):
        fresh()(replace(batch, points=batch.points[:, :4]))
