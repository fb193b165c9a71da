"""Farthest points, RoI balls and sectors against loops over single points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.models.pvrcnn import sampling
from kdlib.models.pvrcnn.sampling import farthest_points, near_rois, sector_keypoints


def cloud(count, seed=0, spread=20.0):
    gen = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, generator=gen) - 0.5) * torch.tensor([2.0, 2.0, 0.2]) * spread


def boxes(count, seed=0, spread=20.0):
    gen = torch.Generator().manual_seed(seed + 100)
    centre = (torch.rand(count, 3, generator=gen) - 0.5) * torch.tensor([2.0, 2.0, 0.2]) * spread
    return torch.cat(
        (
            centre,
            0.5 + 4 * torch.rand(count, 3, generator=gen),
            torch.rand(count, 1, generator=gen),
        ),
        dim=1,
    )


def farthest_by_hand(points, count):
    points, picks = np.asarray(points), [0] if count else []
    while len(picks) < count:
        squares = ((points[:, None] - points[None, picks]) ** 2).astype(points.dtype)
        nearest = (squares[..., 0] + squares[..., 1] + squares[..., 2]).min(axis=1)
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))  # the first of several
    return picks


def near_by_hand(points, rois, margin):
    answers = []
    for point in points.double():
        distances = [(point - roi[:3].double()).norm().item() for roi in rois]
        nearest = int(np.argmin(distances)) if distances else 0
        answers.append(
            bool(distances)
            and distances[nearest] < (rois[nearest, 3:6].double() / 2).norm().item() + margin
        )
    return answers


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.data())
def test_farthest_points_equal_the_loop(count, data):
    # whole coordinates tie often, and stand for duplicates too
    points = torch.tensor(
        data.draw(st.lists(st.tuples(*[st.integers(-3, 3)] * 3), min_size=count, max_size=count))
    ).float()
    wanted = data.draw(st.integers(0, count))
    assert farthest_points(points, wanted).tolist() == farthest_by_hand(points, wanted)


def test_farthest_points_do_not_depend_on_the_order_without_ties():
    points = cloud(300)
    order = torch.cat(
        (
            torch.zeros(1, dtype=torch.int64),
            torch.randperm(299, generator=torch.Generator().manual_seed(1)) + 1,
        )
    )
    assert (
        order[farthest_points(points[order], 60)].tolist() == farthest_points(points, 60).tolist()
    )


def test_no_point_is_picked_twice_even_among_duplicates():
    points = torch.ones(5, 3)
    assert sorted(farthest_points(points, 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [4, -1])
def test_farthest_points_refuse_what_cannot_be(count):
    with pytest.raises(ValueError, match="cannot be picked from 3"):
        farthest_points(torch.zeros(3, 3), count)


def test_no_point_at_all():
    nothing = torch.zeros(0, 3)
    assert farthest_points(nothing, 0).tolist() == []
    assert near_rois(nothing, boxes(2), 1.0).tolist() == []
    assert sector_keypoints(nothing, near_rois(nothing, boxes(2), 1.6), 40, 6).tolist() == []


@pytest.mark.parametrize("margin", [0.0, 1.6])
@pytest.mark.parametrize("count", [0, 1, 12])
def test_near_rois_equals_the_loop(count, margin, monkeypatch):
    monkeypatch.setattr(sampling, "_PAIRS", 50)  # several parts
    points, rois = cloud(200), boxes(count)
    near = near_rois(points, rois, margin)
    assert near.tolist() == near_by_hand(points, rois, margin)
    assert count < 12 or 0 < near.sum() < 200


def test_the_nearest_roi_decides_not_the_largest():
    large, small = [0.0, 0, 0, 10, 10, 10, 0], [6.0, 0, 0, 1, 1, 1, 0]
    # inside the large ball (8.66 m), outside the small one (0.87 m), nearer to the small
    point = torch.tensor([[4.5, 0.0, 0.0]])
    assert near_rois(point, torch.tensor([large]), 0.0).tolist() == [True]
    assert near_rois(point, torch.tensor([large, small]), 0.0).tolist() == [False]


def test_the_ball_does_not_hold_its_surface():
    rois = torch.tensor([[1.0, 0, 0, 6, 0, 8, 0]])  # half the diagonal is 5
    points = torch.tensor([[7.0, 0.0, 0.0], [6.875, 0.0, 0.0]])
    assert near_rois(points, rois, 1.0).tolist() == [False, True]


def sectors_by_hand(points, rois, count, sectors, margin):
    kept = [i for i, near in enumerate(near_by_hand(points, rois, margin)) if near]
    if not kept:
        return [0]
    picks = []
    for number in range(sectors):
        angles = torch.atan2(points[kept, 1], points[kept, 0]) + math.pi
        inside = (
            (angles / (2 * math.pi / sectors)).floor().clamp(max=sectors - 1) == number
        ).tolist()
        rows = [row for row, here in zip(kept, inside) if here]
        share = min(len(rows), math.ceil(len(rows) / len(kept) * count))
        picks += [rows[i] for i in farthest_by_hand(points[rows], share)]
    return picks


@pytest.mark.parametrize(("count", "sectors"), [(50, 6), (1, 6), (64, 3), (1000, 6), (20, 1)])
def test_sector_keypoints_equal_the_loop(count, sectors):
    points, rois = cloud(400), boxes(15)
    near = near_rois(points, rois, 1.6)
    picks = sector_keypoints(points, near, count, sectors)
    assert picks.tolist() == sectors_by_hand(points, rois, count, sectors, 1.6)
    assert min(count, int(near.sum())) <= len(picks) < count + sectors and len(
        set(picks.tolist())
    ) == len(picks)


def test_without_rois_the_first_point_stays():
    for far in (boxes(0), boxes(1) + 1000):
        assert sector_keypoints(cloud(10), near_rois(cloud(10), far, 1.6), 40, 6).tolist() == [0]


def test_points_exactly_behind_the_vehicle_are_not_lost():
    # azimuth +pi and -pi
    points = torch.tensor([[-5.0, 0.0, 0.0], [-5.0, -0.0, 0.0], [-5.0, 1.0, 0.0], [5.0, 0.0, 0.0]])
    rois = torch.tensor([[0.0, 0, 0, 20, 20, 20, 0]])
    picks = sector_keypoints(points, near_rois(points, rois, 1.6), 100, 6)
    assert sorted(picks.tolist()) == [0, 1, 2, 3]
    # -pi begins the first sector, +pi ends the last
    assert picks.tolist()[0] == 1 and picks.tolist()[-2:] == [0, 2]


def test_each_sector_starts_at_its_first_point():
    points, rois = cloud(400), boxes(15)
    near = near_rois(points, rois, 1.6)
    picks = sector_keypoints(points, near, 60, 6)
    sector = ((torch.atan2(points[:, 1], points[:, 0]) + math.pi) / (math.pi / 3)).floor()
    for number in range(6):
        here = picks[sector[picks] == number]
        assert int(here[0]) == int(((sector == number) & near).nonzero()[0])
