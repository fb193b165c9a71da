"""Narrowing: equal width changes nothing, channels that do nothing are not missed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from narrow_models import (
    KINDS,
    RIGHT,
    WIDTHS,
    answer,
    cloud,
    every_kind,
    every_right_way,
    positive_scales,
    random_model,
    same,
    silence,
    voxel,
)

from kdlib import zoo
from kdlib.config import (
    PillarEncoderConfig,
)
from kdlib.kd.initialise import initialise
from kdlib.kd.remap import remap

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- equal width


@every_kind
def test_first_of_equal_width_is_a_copy(kind):
    teacher, student = random_model(KINDS[kind](1.0)), random_model(KINDS[kind](1.0), seed=1)
    report = initialise(student, teacher.state_dict(), "first")
    assert all(
        torch.equal(value, student.state_dict()[name])
        for name, value in teacher.state_dict().items()
    )
    assert {row.reason for row in report.rows} == {"copied"}
    with torch.no_grad():
        assert torch.equal(answer(student.eval()), answer(teacher.eval()))
        for parameter in student.parameters():
            parameter.add_(1)
    assert not torch.equal(
        student.dense_head.state_dict().popitem()[1], teacher.dense_head.state_dict().popitem()[1]
    )


@pytest.mark.parametrize("how", RIGHT[1:])
@every_kind
def test_equal_width_is_the_same_network_reordered(kind, how):
    """One axis that does not follow its group would change every answer."""
    teacher, student = random_model(KINDS[kind](1.0)), random_model(KINDS[kind](1.0), seed=1)
    report = initialise(student, teacher.state_dict(), how)
    reordered = sum(row.reason == "channels reordered" for row in report.rows)
    assert reordered > 0.5 * report.total
    assert report.summary().endswith(f"from the teacher, {reordered} channels reordered")
    with torch.no_grad():
        for training in (False, True):  # stored statistics, then those of the batch
            same(answer(student.train(training)), answer(teacher.train(training)))


@pytest.mark.parametrize("name", ["cp_pillar_demo", "cp_voxel_demo"])
def test_width_1_of_the_demos_models_answers_alike(name):
    """Pains 11: the whole models, in the precision they run in."""
    teacher = random_model(zoo.model(name)).float().eval()
    points = cloud(24.0, 24.0)
    points = replace(points, points=points.points.float())
    with torch.no_grad():
        want = answer(teacher, points)
        for how in ("first", "bn_scale", "l1"):
            student = random_model(zoo.model(name), seed=1).float().eval()
            initialise(student, teacher.state_dict(), how)
            found = answer(student, points)
            assert torch.equal(found, want) == (how == "first")
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


# ---- channels that do nothing


@every_right_way
@every_kind
def test_channels_that_do_nothing_are_not_missed(kind, how):
    """The decisive one: BEV levels, joined maps, residual sums and pillar halves all have to be
    met.
    """
    teacher, student = (
        positive_scales(random_model(KINDS[kind](1.0))),
        random_model(KINDS[kind](0.5), seed=1),
    )
    assert silence(teacher, student, anywhere=how != "first") > 20
    report = initialise(student, teacher.state_dict(), how)
    assert report.copied == report.total == len(student.state_dict())
    with torch.no_grad():
        for training in (False, True):  # stored statistics, then those of the batch
            same(answer(student.train(training)), answer(teacher.train(training)))


@pytest.mark.parametrize("width", WIDTHS)
@every_right_way
@pytest.mark.parametrize("kind", ["CP-Voxel", "CP-Pillar"])
def test_at_every_width(kind, how, width):
    teacher, student = (
        positive_scales(random_model(KINDS[kind](1.0))),
        random_model(KINDS[kind](width), seed=1),
    )
    silence(teacher, student, anywhere=how != "first")
    found = remap(teacher.state_dict(), student.state_dict(), how)
    assert {n: v.shape for n, v in found.tensors.items()} == {
        n: v.shape for n, v in student.state_dict().items()
    }
    initialise(student, teacher.state_dict(), how)
    with torch.no_grad():
        same(answer(student.eval()), answer(teacher.eval()))


def uneven(kind, draw):
    """Draw a student with a width of its own for every group a configuration can set."""
    wide = KINDS[kind](1.0)
    some = lambda filters: tuple(draw(st.integers(1, f)) for f in filters)  # noqa: E731
    backbone = replace(
        wide.backbone,
        filters=some(wide.backbone.filters),
        upsample_filters=some(wide.backbone.upsample_filters),
    )
    head = (
        wide.head
        if kind in ("SECOND", "PointPillar")
        else replace(wide.head, shared_channels=draw(st.integers(1, 8)))
    )
    if "Pillar" in kind:
        filters = (2 * draw(st.integers(1, 4)), draw(st.integers(1, 16)))
        return replace(
            wide, encoder=PillarEncoderConfig(filters=filters), backbone=backbone, head=head
        )
    filters = some(wide.encoder.filters)
    filters = (filters[0], filters[0], *filters[2:]) if wide.encoder.residual else filters
    return replace(
        wide, encoder=replace(wide.encoder, filters=filters), backbone=backbone, head=head
    )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    data=st.data(),
    kind=st.sampled_from(list(KINDS)),
    how=st.sampled_from(RIGHT),
    seed=st.integers(0, 99),
)
def test_a_width_of_its_own_for_every_group(data, kind, how, seed):
    teacher = positive_scales(random_model(KINDS[kind](1.0), seed))
    student = random_model(uneven(kind, data.draw), seed + 1)
    silence(teacher, student, anywhere=how != "first")
    initialise(student, teacher.state_dict(), how)
    with torch.no_grad():
        same(answer(student.eval()), answer(teacher.eval()))


@pytest.mark.parametrize("how", ["first_naive", "first_legacy", "bn_scale_legacy", "l1_legacy"])
def test_d09_d11_the_faulty_ways_are_other_networks(how):
    """The same teacher, the same dead channels: the ablations must not be right by accident."""
    teacher, student = positive_scales(random_model(voxel(1.0))), random_model(voxel(0.5), seed=1)
    silence(teacher, student, anywhere=not how.startswith("first"))
    initialise(student, teacher.state_dict(), how)
    with torch.no_grad():
        want, found = answer(teacher.train()), answer(student.train())
        off = float((found - want).abs().max() / want.abs().max())
    assert off > 0.05
