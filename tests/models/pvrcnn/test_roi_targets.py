"""Which RoIs a step refines: numbers of each kind, matches by class, the same choice from the same
generator.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdlib.config import RoiSamplingConfig
from kdlib.models.geometry.rotated_iou import volume_iou
from kdlib.models.pvrcnn.roi_targets import choose_proposals, match_proposals, sample_rois
from kdlib.types import Detections, GroundTruth

CONFIG = RoiSamplingConfig()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def overlaps(foreground, hard, easy):
    """Foreground rows first, then hard and easy background."""
    return torch.cat(
        (torch.full((foreground,), 0.8), torch.full((hard,), 0.3), torch.full((easy,), 0.05))
    )


def kinds(rows, foreground, hard):
    kind = torch.where(rows < foreground, 0, torch.where(rows < foreground + hard, 1, 2))
    return kind.bincount(minlength=3).tolist()


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ((200, 200, 200), [64, 51, 13]),  # half foreground; int(64 * 0.8) hard ones
        ((10, 200, 200), [10, 94, 24]),  # all foreground there is
        ((10, 5, 200), [10, 5, 113]),  # no more hard ones than there are
        ((0, 7, 3), [0, 7, 121]),
        ((10, 0, 3), [10, 0, 118]),
        ((10, 3, 0), [10, 118, 0]),
        ((5, 0, 0), [128, 0, 0]),  # nothing but foreground: with repetition
        ((0, 0, 1), [0, 0, 128]),
        ((0, 0, 0), [0, 0, 0]),
    ],
)
def test_numbers_of_each_kind(there, wanted):
    rows = choose_proposals(overlaps(*there), CONFIG, generator())
    assert kinds(rows, *there[:2]) == wanted
    foreground = rows[rows < there[0]]
    if there[1] or there[2]:
        assert len(foreground.unique()) == len(foreground), "foreground is drawn without repetition"


def test_every_proposal_is_drawn_equally_often():
    counts, gen = torch.zeros(300), generator(1)
    for _ in range(400):
        counts += choose_proposals(overlaps(100, 100, 100), CONFIG, gen).bincount(minlength=300)
    # 400 draws of 64, 51 and 13 among 100
    for part, mean in zip(counts.split(100), (256.0, 204.0, 52.0)):
        assert part.mean() == pytest.approx(mean)
        assert (part - mean).abs().max() < 5 * mean**0.5


def test_the_same_generator_gives_the_same_choice():
    some = overlaps(90, 90, 90)
    assert torch.equal(
        choose_proposals(some, CONFIG, generator(3)), choose_proposals(some, CONFIG, generator(3))
    )
    assert not torch.equal(
        choose_proposals(some, CONFIG, generator(3)), choose_proposals(some, CONFIG, generator(4))
    )
    torch.manual_seed(0)
    before = torch.get_rng_state()
    choose_proposals(some, CONFIG, generator(3))
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator is left alone"


def box(x, y=0.0, dx=4.0, dy=2.0):
    return [x, y, 1.0, dx, dy, 1.6, 0.0]


def test_matches_are_of_the_same_class():
    truth, labels = torch.tensor([box(0), box(0.5), box(20)]), torch.tensor([2, 1, 1])
    found = Detections(
        torch.tensor([box(0), box(19.0), box(0), box(50)]),
        torch.ones(4),
        torch.tensor([1, 1, 3, 2]),
    )
    overlap, matched = match_proposals(found, truth, labels)
    wanted = volume_iou(found.boxes, truth)
    assert overlap.tolist() == pytest.approx([float(wanted[0, 1]), float(wanted[1, 2]), 0.0, 0.0])
    assert torch.equal(matched, torch.stack((truth[1], truth[2], found.boxes[2], truth[0])))


def test_targets_by_hand():
    """A box of 4 m moved by d along itself overlaps with (4 - d) / (4 + d)."""
    shifts = {0.2: 1.0, 1.0: 0.7, 1.7: 2 * (2.3 / 5.7 - 0.25), 3.0: 0.0}  # d -> wanted confidence
    proposals = [
        Detections(
            torch.tensor([box(d) for d in shifts]), torch.ones(4), torch.ones(4, dtype=torch.int64)
        )
    ]
    # the second is padding
    truth = GroundTruth(torch.tensor([[box(0), box(9)]]), torch.tensor([[1, 0]]))
    rois, targets = sample_rois(proposals, truth, replace(CONFIG, rois=200), generator())
    assert len(rois.boxes) == 200 and rois.frame.unique().tolist() == [0]
    for shift, wanted in shifts.items():
        own = rois.boxes[:, 0] == shift
        assert own.any()
        assert targets.confidence[own].tolist() == pytest.approx(
            [wanted] * int(own.sum()), abs=1e-5
        )
        assert targets.positive[own].all() == (shift <= 1.0)
    assert torch.equal(targets.boxes, truth.boxes[0, :1].expand(200, 7))


def test_frames_are_kept_apart_and_empty_ones_give_nothing():
    none = Detections(torch.zeros(0, 7), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    one = Detections(
        torch.tensor([box(0), box(3)]), torch.ones(2), torch.ones(2, dtype=torch.int64)
    )
    truth = GroundTruth(torch.tensor([[box(0)], [box(0)], [box(3)]]), torch.tensor([[1], [1], [0]]))
    rois, targets = sample_rois([one, none, one], truth, CONFIG, generator())
    assert rois.frame.bincount().tolist() == [128, 0, 128] and rois.batch_size == 3
    assert targets.positive[:128].any() and not targets.positive[128:].any(), (
        "no labels, nothing to learn a box from"
    )
    assert torch.equal(targets.overlap[128:], torch.zeros(128)) and torch.equal(
        targets.boxes[128:], rois.boxes[128:]
    )
