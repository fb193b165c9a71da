from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlib.config import (
    BackboneConfig,
    FeatureKDConfig,
    GridConfig,
    HeadConfig,
    ModelConfig,
    VoxelEncoderConfig,
)
from kdlib.kd.adapter import Adapter
from kdlib.kd.local import edges, important_places, local_kd, teacher_at
from kdlib.models.build import build
from kdlib.models.detector import Sites

CONFIG = FeatureKDConfig("local", adapter="none", samples=5, neighbours=3)


def sites(columns, coords, width=4, seed=0, levels=1, features=None):
    """Sites on a grid over 8 x 8 x 4 m."""
    coords = torch.tensor(coords, dtype=torch.int64).reshape(-1, 4)
    if features is None:
        features = torch.randn(
            len(coords), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
    size = (8 / columns, 8 / columns, 4 / levels)
    return Sites(features, coords, (levels, columns, columns), (-4.0, -4.0, -2.0), size, 2)


def scatter(columns, count, seed, levels=1, frames=2):
    """Distinct occupied cells in random order."""
    torch.manual_seed(seed)
    cells = torch.randperm(frames * levels * columns * columns)[:count]
    x, rest = cells % columns, cells // columns
    return torch.stack(
        (rest // columns // levels, rest // columns % levels, rest % columns, x), dim=1
    ).tolist()


def naive_teacher(student, teacher):
    """Each of the student's cells, each of the teacher's, in plain numbers."""
    flat = 1 in (student.shape[0], teacher.shape[0])
    rows, known = [], []
    for b, z, y, x in student.coords.tolist():
        inside = []
        for n, (other, tz, ty, tx) in enumerate(teacher.coords.tolist()):
            place = [(k + 0.5) * teacher.size[a] for a, k in enumerate((tx, ty, tz))]
            # upper cell at a border
            cell = [math.floor(place[a] / student.size[a] + 1e-3) for a in range(2 if flat else 3)]
            if other == b and cell == [x, y, z][: len(cell)]:
                inside.append(teacher.features[n])
        known.append(bool(inside))
        rows.append(
            torch.stack(inside).amax(0) if inside else torch.zeros_like(teacher.features[0])
        )
    return torch.stack(rows), torch.tensor(known)


def naive_loss(student, teacher, config, layer=lambda edge: edge):
    theirs, known = naive_teacher(student, teacher)
    length = [math.hypot(*row.tolist()) for row in theirs]
    place = [
        [b, *((k + 0.5) * student.size[a] for a, k in enumerate((x, y, z)))]
        for b, z, y, x in student.coords.tolist()
    ]
    total = 0.0
    for frame in range(2):
        mine = [i for i in range(len(place)) if place[i][0] == frame and known[i]]
        chosen = sorted(mine, key=lambda i: -length[i])[: config.samples]
        for i in chosen:
            near = sorted(mine, key=lambda j: math.dist(place[i][1:], place[j][1:]))[
                : config.neighbours
            ]
            pooled = []
            for features, through in ((student.features, layer), (theirs, lambda edge: edge)):
                pooled.append(
                    torch.stack(
                        [through(torch.cat((features[i], features[j] - features[i]))) for j in near]
                    ).amax(0)
                )
            total += (
                length[i]
                / sum(length[k] for k in chosen)
                * (pooled[0] - pooled[1]).square().mean().item()
                / 2
            )
    return total


@pytest.mark.parametrize("grids", [(8, 8), (4, 8), (8, 4), (6, 9)])
@pytest.mark.parametrize("levels", [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_teacher_features_meet_the_students_cells_as_in_plain_loops(grids, levels):
    student = sites(grids[0], scatter(grids[0], 25, 1, levels[0]), levels=levels[0])
    teacher = sites(
        grids[1], scatter(grids[1], 40, 2, levels[1]), width=6, seed=3, levels=levels[1]
    )
    got, known = teacher_at(student, teacher)
    want, there = naive_teacher(student, teacher)
    assert (
        torch.equal(got, want) and torch.equal(known, there) and 0 < int(known.sum()) < len(known)
    )


def test_larger_cells_take_the_largest_by_hand():
    student = sites(4, [[0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
    teacher = sites(
        8,
        [[0, 0, 0, 0], [0, 0, 1, 1], [1, 0, 2, 0]],
        features=torch.tensor([[1.0, -5.0], [-2.0, 3.0], [9.0, 9.0]], dtype=torch.float64),
    )
    got, known = teacher_at(student, teacher)
    assert got.tolist() == [[1.0, 3.0], [0.0, 0.0], [0.0, 0.0]] and known.tolist() == [
        True,
        False,
        False,
    ]


def test_cells_of_the_teacher_outside_the_students_grid_do_not_wrap_around():
    student = sites(4, [[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 3, 3]])
    # one map further in x: column 4
    far = replace(sites(4, [[0, 0, 0, 0], [0, 0, 1, 0]]), low=(-4.0 + 8.0, -4.0, -2.0))
    assert not teacher_at(student, far)[1].any()
    tall = sites(4, [[0, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0]], levels=2)
    # a level above the uppermost
    high = replace(sites(4, [[0, 0, 0, 0]], levels=2), low=(-4.0, -4.0, -2.0 + 4.0))
    assert teacher_at(tall, sites(4, [[0, 1, 1, 0]], levels=2))[1].tolist() == [False, True, False]
    assert not teacher_at(tall, high)[1].any()


def test_edges_by_hand():
    features = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    got = edges(features, torch.tensor([1]), torch.tensor([[1, 0]]))
    assert got.tolist() == [[[4.0, 8.0, 0.0, 0.0], [4.0, 8.0, -3.0, -6.0]]]


def test_choice_by_hand():
    positions = torch.tensor([[70.0, 0, 0], [70.32, 0, 0], [71.0, 0, 0], [0.0, 0, 0]])
    centres, near = important_places(torch.tensor([1.0, 3.0, 0.5, 2.0]), positions, 2, 2)
    assert (
        centres.tolist() == [1, 3]
        and near[0].tolist() == [1, 0]
        and set(near[1].tolist()) == {3, 0}
    )
    assert [t.shape for t in important_places(torch.ones(2), positions[:2], 9, 9)] == [(2,), (2, 2)]
    assert [t.shape for t in important_places(torch.ones(0), positions[:0], 9, 9)] == [(0,), (0, 1)]


@pytest.mark.parametrize("widths", [(4, 4), (3, 5)])
def test_equals_plain_loops(widths):
    """Places off any lattice, so that no two neighbours are equally near."""
    student = sites(8, scatter(8, 50, 1), widths[0])
    teacher = sites(16, scatter(16, 250, 2), widths[1], seed=3)
    adapter = Adapter(2 * widths[0], 2 * widths[1], 1, seed=7).double()
    for config in (
        replace(CONFIG, neighbours=1),
        replace(CONFIG, neighbours=1000),
        replace(CONFIG, samples=2, neighbours=1000),
    ):
        value, places = local_kd(student, teacher, config, adapter)
        assert value.item() == pytest.approx(
            naive_loss(student, teacher, config, adapter.weight[..., 0, 0].mv), rel=1e-9
        )
        assert places == 2 * config.samples


def test_neighbours_are_the_nearest_where_distances_differ():
    """Along one row, at 0, 1, 3, 7, 12, 20 and 35 cells."""
    row = [[0, 0, 0, x] for x in (0, 1, 3, 7, 12, 20, 35)]
    student, teacher = sites(64, row, 3), sites(64, row, 3, seed=1)
    for k in (1, 2, 3, 5):
        config = replace(CONFIG, neighbours=k)
        assert local_kd(student, teacher, config, nn.Identity())[0].item() == pytest.approx(
            naive_loss(student, teacher, config)
        )


def test_hand_value():
    """Two places of one channel, teacher 3 and 1: weights 3/4 and 1/4; the student is 1 too high
    everywhere.
    """
    cells = [[0, 0, 0, 0], [0, 0, 0, 1]]
    teacher = sites(8, cells, features=torch.tensor([[3.0], [1.0]]))
    student = sites(8, cells, features=torch.tensor([[5.0], [1.0]]))
    config = replace(CONFIG, neighbours=2)
    # edges: place 0: [5, max(0, -4)] against [3, max(0, -2)]: (4 + 0) / 2; place 1: [1, 4] against
    # [1, 2]: (0 + 4) / 2
    value, places = local_kd(student, teacher, config, nn.Identity())
    # of two frames the second is empty
    assert value.item() == pytest.approx((3 / 4 * 2 + 1 / 4 * 2) / 2) and places == 2


@pytest.mark.parametrize("distance", ["mse", "smooth_l1", "cosine"])
def test_a_student_equal_to_its_teacher_gives_zero(distance):
    one = sites(8, scatter(8, 40, 1))
    assert (
        local_kd(one, one, replace(CONFIG, distance=distance), nn.Identity())[0].abs().item()
        < 1e-12
    )


def test_gradients_reach_student_and_adapter_alone():
    student, teacher = sites(6, scatter(6, 30, 1), 3), sites(9, scatter(9, 80, 2), 2, seed=5)
    teacher = replace(teacher, features=teacher.features.requires_grad_())
    adapter = Adapter(6, 4, 1, seed=0).double()

    def value(features, weight, bias):
        return torch.func.functional_call(
            _Through(adapter, replace(student, features=features), teacher),
            {"adapter.weight": weight, "adapter.bias": bias},
            (),
        )

    inputs = [
        t.detach().clone().requires_grad_()
        for t in (student.features, adapter.weight, adapter.bias)
    ]
    assert torch.autograd.gradcheck(value, inputs)
    value(*inputs).backward()
    assert teacher.features.grad is None and all(t.grad.abs().sum() > 0 for t in inputs)


class _Through(nn.Module):
    def __init__(self, adapter, student, teacher):
        super().__init__()
        self.adapter, self.student, self.teacher = adapter, student, teacher

    def forward(self):
        return local_kd(self.student, self.teacher, CONFIG, self.adapter)[0]


def test_nothing_in_common_is_zero_and_hangs_on_the_graph():
    student, teacher = sites(8, [[0, 0, 0, 0], [1, 0, 3, 3]]), sites(8, [[0, 0, 5, 5]], 2)
    student = replace(student, features=student.features.requires_grad_())
    adapter = Adapter(8, 4, 1, seed=0).double()
    for ours in (
        student,
        replace(student, features=student.features[:0], coords=student.coords[:0]),
    ):
        value, places = local_kd(ours, teacher, CONFIG, adapter)
        assert value.item() == 0 and places == 0
        value.backward()
    assert student.features.grad.abs().max() == 0 and adapter.weight.grad.abs().max() == 0


def test_inputs_stay_and_orders_do_not_matter():
    student, teacher = sites(8, scatter(8, 40, 1)), sites(16, scatter(16, 200, 2))
    before = [
        t.clone() for t in (student.features, student.coords, teacher.features, teacher.coords)
    ]
    config = replace(CONFIG, neighbours=1000)
    value = local_kd(student, teacher, config, nn.Identity())[0]
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            before, (student.features, student.coords, teacher.features, teacher.coords)
        )
    )
    mixed = torch.randperm(len(teacher.coords))
    shuffled = replace(teacher, features=teacher.features[mixed], coords=teacher.coords[mixed])
    assert local_kd(student, shuffled, config, nn.Identity())[0].item() == value.item()


def voxel_model(size, width):
    grid = GridConfig((-5.12, -5.12, -2.0, 5.12, 5.12, 4.0), (size, size, 0.15), 5)
    encoder = VoxelEncoderConfig((4, 4, 4, 8, 8, width))
    backbone, head = (
        BackboneConfig((1,), (1,), (8,), (1,), (8,)),
        HeadConfig(shared_channels=8, stride=8),
    )
    return build(
        ModelConfig(name="tiny_voxel", grid=grid, encoder=encoder, backbone=backbone, head=head)
    )


def test_voxels_of_two_grids(batch):
    """The last sparse stage's sites, eight cells wide, on both grids."""
    student, teacher = voxel_model(0.16, 4).eval(), voxel_model(0.08, 8).eval()
    with torch.no_grad():
        ours, theirs = (model(batch().points, sites=True) for model in (student, teacher))
    assert ours.sites.shape == (2, 8, 8) and theirs.sites.shape == (2, 16, 16)
    assert (
        theirs.sites.size == pytest.approx((0.64, 0.64, 3.0)) and ours.sites.features.shape[1] == 4
    )
    value, places = local_kd(ours.sites, theirs.sites, CONFIG, Adapter(8, 16, 1, seed=0))
    assert value > 0 and places == 10
    got, known = teacher_at(ours.sites, theirs.sites)
    want, there = naive_teacher(ours.sites, theirs.sites)
    assert torch.equal(got, want) and torch.equal(known, there) and bool(known.any())


@pytest.mark.parametrize("kind", ["pillar", "voxel"])
def test_asking_for_sites_changes_no_answer_and_sites_are_the_map(pair, batch, kind):
    model = (pair()[0] if kind == "pillar" else voxel_model(0.16, 4)).eval()
    with torch.no_grad():
        plain, asked = model(batch().points), model(batch().points, sites=True)
        canvas, found = model.encode(model.voxelize(batch().points))
    assert plain.sites is None and torch.equal(plain.heads[0].heatmap, asked.heads[0].heatmap)
    b, z, y, x = asked.sites.coords.unbind(1)
    depth = found.shape[0]
    column = canvas[b, :, y, x].unflatten(1, (-1, depth))[torch.arange(len(b)), :, z]
    assert torch.equal(column, found.features) and torch.equal(found.features, asked.sites.features)
