"""Targets against hand values and against a loop over boxes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.config import CLASS_NAMES, GridConfig, HeadConfig, TargetConfig
from kdlib.models.targets import assign_targets, gaussian, gaussian_radius

GRID = GridConfig((-8.0, -6.0, -2.0, 8.0, 6.0, 4.0), (0.5, 0.5, 6.0), 10)
SPLITS = [
    (CLASS_NAMES,),
    (("Vehicle", "Cyclist"), ("Pedestrian",)),
    (("Pedestrian",), ("Cyclist",), ("Vehicle",)),
]


def test_d23_gaussian_by_hand():
    """Spec 13.1."""
    bell = gaussian(2)
    assert bell.shape == (5, 5) and bell.dtype == torch.float32
    for (y, x), value in {
        (0, 0): 1,
        (1, 0): 0.486752,
        (1, 1): 0.236928,
        (2, 0): 0.056135,
        (2, 1): 0.027324,
        (2, 2): 0.003151,
    }.items():
        for sy, sx in ((y, x), (-y, x), (y, -x), (x, y)):
            assert float(bell[2 + sy, 2 + sx]) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize(
    "length, width, radii",
    [
        (4.7, 2.1, (4, 3, 2, 2, 2)),
        (12.0, 3.0, (7, 6, 5, 3, 3)),
        (0.9, 0.8, (2, 2, 2, 2, 2)),
        (1.8, 0.8, (2, 2, 2, 2, 2)),
    ],
)
def test_radii_of_common_objects(length, width, radii):
    """Spec 5.1: vehicle, bus, pedestrian, cyclist on cells of 0.32, 0.40, 0.48, 0.64 and 0.8 m."""
    cells = torch.tensor([0.32, 0.40, 0.48, 0.64, 0.80])
    found = gaussian_radius(length / cells, width / cells, 0.1).int().clamp(min=2)
    assert found.tolist() == list(radii)


def radius_of(length, width, overlap):
    """Spec 5.1, the three roots one by one."""
    roots = []
    for b, product in (
        (length + width, 4 * length * width * (1 - overlap) / (1 + overlap)),
        (2 * (length + width), 16 * (1 - overlap) * length * width),
        (-2 * overlap * (length + width), 16 * overlap * (overlap - 1) * length * width),
    ):
        roots.append((b + math.sqrt(b * b - product)) / 2)
    return min(roots)


def loop(boxes, labels, grid, head):
    """One box after the other, spec 5.1."""
    cell = grid.voxel_size[0] * head.stride
    columns, rows = (n // head.stride for n in grid.grid_size[:2])
    answers = []
    for names in head.heads:
        heatmap = np.zeros((len(boxes), len(names), rows, columns))
        target = np.zeros((len(boxes), head.targets.max_objects, 8))
        indices = np.zeros(target.shape[:2], int)
        mask = np.zeros(target.shape[:2], bool)
        for frame, (own, marks) in enumerate(zip(boxes, labels)):
            slot = 0
            for (x, y, z, dx, dy, dz, heading), mark in zip(own, marks):
                if mark == 0 or CLASS_NAMES[mark - 1] not in names:
                    continue
                k, slot = slot, slot + 1
                if (
                    k >= head.targets.max_objects
                    or not np.isfinite([x, y, z, dx, dy, dz, heading]).all()
                    or min(dx, dy, dz) <= 0
                ):
                    continue
                cx = min(max((x - grid.point_range[0]) / cell, 0), columns - 0.5)
                cy = min(max((y - grid.point_range[1]) / cell, 0), rows - 0.5)
                ix, iy = int(cx), int(cy)
                target[frame, k] = (
                    cx - ix,
                    cy - iy,
                    z,
                    *np.log([dx, dy, dz]),
                    math.cos(heading),
                    math.sin(heading),
                )
                indices[frame, k], mask[frame, k] = iy * columns + ix, True
                radius = max(
                    int(radius_of(dx / cell, dy / cell, head.targets.gaussian_overlap)),
                    head.targets.min_radius,
                )
                sigma = (2 * radius + 1) / 6
                plane = heatmap[frame, names.index(CLASS_NAMES[mark - 1])]
                for v in range(max(0, iy - radius), min(rows, iy + radius + 1)):
                    for u in range(max(0, ix - radius), min(columns, ix + radius + 1)):
                        value = math.exp(-((u - ix) ** 2 + (v - iy) ** 2) / (2 * sigma**2))
                        plane[v, u] = max(plane[v, u], value if value >= np.finfo(float).eps else 0)
        answers.append((heatmap, target, indices, mask))
    return answers


def unambiguous(boxes, cell):
    """Keep off cell boundaries and whole radii, where float32 and float64 may disagree; the goldens
    cover those.
    """
    boxes = boxes.copy()
    for axis, low in ((0, GRID.point_range[0]), (1, GRID.point_range[1])):
        place = (boxes[..., axis] - low) / cell
        place += np.where(np.abs(place - place.round()) < 1e-3, 5e-3, 0)
        boxes[..., axis] = place * cell + low
    for index in np.ndindex(boxes.shape[:2]):
        length, width = boxes[index][3:5] / cell
        if (
            length > 0
            and width > 0
            and abs((radius := radius_of(length, width, 0.1)) - round(radius)) < 1e-3
        ):
            boxes[index][3] *= 1.01
    return boxes


def scene(seed, frames, count, stride):
    rng = np.random.default_rng(seed)
    low, high = np.array([-10, -8, -2, -0.5, -0.2, 0.2, -7]), np.array([10, 8, 4, 14, 6, 3, 7])
    boxes = unambiguous(rng.uniform(low, high, (frames, count, 7)), 0.5 * stride).astype(np.float32)
    return boxes, rng.integers(0, 4, (frames, count))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(SPLITS),
    st.integers(1, 3),
    st.integers(0, 12),
    st.sampled_from([1, 2]),
    st.integers(1, 8),
)
def test_b2_b18_every_head_split_equals_a_loop_over_boxes_and_leaves_the_input_alone(
    seed, split, frames, count, stride, slots
):
    boxes, labels = scene(seed, frames, count, stride)
    head = HeadConfig(heads=split, stride=stride, targets=TargetConfig(max_objects=slots))
    tensors = torch.from_numpy(boxes), torch.from_numpy(labels)
    before = [t.clone() for t in tensors]
    found = assign_targets(*tensors, grid=GRID, head=head)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))
    assert len(found) == len(split)
    for ours, (heatmap, target, indices, mask) in zip(
        found, loop(boxes.astype(float), labels, GRID, head)
    ):
        np.testing.assert_array_equal(ours.mask, mask)
        np.testing.assert_array_equal(ours.indices, indices)
        np.testing.assert_allclose(ours.boxes, target, atol=2e-5)
        np.testing.assert_allclose(ours.heatmap, heatmap, atol=1e-6)


def test_b2_a_cyclist_is_a_cyclist_in_every_head_split():
    boxes = torch.tensor([[[1.2, 1.2, 0, 1.8, 0.8, 1.7, 0.3], [-3.2, 2.2, 0, 0.9, 0.9, 1.7, 0.0]]])
    labels = torch.tensor([[3, 2]])
    whole = assign_targets(boxes, labels, grid=GRID, head=HeadConfig())[0].heatmap
    for split in SPLITS:
        found = assign_targets(boxes, labels, grid=GRID, head=HeadConfig(heads=split))
        for names, target in zip(split, found):
            for channel, name in enumerate(names):
                assert torch.equal(target.heatmap[:, channel], whole[:, CLASS_NAMES.index(name)])
    named = assign_targets(
        boxes,
        torch.tensor([[1, 2]]),
        grid=GRID,
        head=HeadConfig(heads=(("B",), ("A",))),
        class_names=("A", "B"),
    )
    assert torch.equal(named[1].heatmap[:, 0], whole[:, 2]) and torch.equal(
        named[0].heatmap[:, 0], whole[:, 1]
    )


DAMAGE = [(column, value) for column in range(7) for value in (math.nan, math.inf, -math.inf)]
DAMAGE += [(size, value) for size in (3, 4, 5) for value in (0.0, -1.0)]


@pytest.mark.parametrize("column, value", DAMAGE)
def test_a_damaged_box_keeps_its_slot_and_draws_nothing(column, value):
    """Erratum 1: the original let NaN into the loss."""
    good = torch.tensor([1.2, 1.2, 0, 4.0, 2.0, 1.5, 0.3])
    bad = good.clone()
    bad[column] = value
    labels = torch.tensor([[1, 1, 1]])
    other = good - torch.tensor([4.0, 3.0, 0, 0, 0, 0, 0])
    (found,) = assign_targets(
        torch.stack((good, bad, other))[None], labels, grid=GRID, head=HeadConfig()
    )
    (clean,) = assign_targets(
        torch.stack((good, other))[None], labels[:, :2], grid=GRID, head=HeadConfig()
    )
    assert found.mask[0, :4].tolist() == [True, False, True, False]
    assert torch.equal(found.heatmap, clean.heatmap)
    assert torch.equal(found.boxes[0, [0, 2]], clean.boxes[0, :2]) and not found.boxes[0, 1].any()


def test_an_absurd_box_draws_its_bell_on_the_map_and_nothing_more():
    """An untrained teacher's boxes are kilometres long; whole, their bells would fill terabytes."""
    grid = replace(GRID, point_range=(-4.0, -4.0, -2.0, 4.0, 4.0, 4.0))
    for length in (60.0, 3e3, 1e7, 3e38):
        boxes = torch.tensor([[[0.3, -1.2, 0.0, length, length, 1.0, 0.0]]])
        (found,) = assign_targets(
            boxes, torch.ones(1, 1, dtype=torch.long), grid=grid, head=HeadConfig()
        )
        row, column = divmod(int(found.indices[0, 0]), 16)
        assert found.heatmap[0, 0, row, column] == 1 and found.heatmap[0, 0].min() > 0
        if length < 1e4:
            radius = int(gaussian_radius(torch.tensor(2 * length), torch.tensor(2 * length), 0.1))
            whole = gaussian(radius)[
                radius - row : radius - row + 16, radius - column : radius - column + 16
            ]
            assert torch.equal(found.heatmap[0, 0], whole)


def test_frames_without_boxes():
    (found,) = assign_targets(
        torch.zeros(2, 0, 7), torch.zeros(2, 0, dtype=torch.long), grid=GRID, head=HeadConfig()
    )
    assert (
        found.heatmap.shape == (2, 3, 24, 32) and not found.heatmap.any() and not found.mask.any()
    )


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"boxes \(B, M, 7\)"):
        assign_targets(torch.zeros(2, 3, 8), torch.zeros(2, 3), grid=GRID, head=HeadConfig())
    with pytest.raises(ValueError, match="'Tram'"):
        head = replace(HeadConfig(), heads=(("Tram",),))
        assign_targets(
            torch.zeros(1, 1, 7), torch.ones(1, 1, dtype=torch.long), grid=GRID, head=head
        )
