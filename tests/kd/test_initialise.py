from __future__ import annotations

import pytest
import torch
from torch import nn

from kdlib.errors import ConfigError
from kdlib.kd.initialise import initialise


def net(middle, seed, last=2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, middle), nn.Linear(middle, last))


def test_a_twin_is_copied_whole_and_independent():
    student, teacher = net(5, 0), net(5, 1)
    report = initialise(student, teacher.state_dict(), "matching")
    assert report.copied == report.total == len(student.state_dict())
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in student.state_dict().items())
    before = teacher[0].weight.clone()
    with torch.no_grad():
        student[0].weight.add_(1)
    assert torch.equal(teacher[0].weight, before)


def test_only_matching_tensors_are_copied_and_the_rest_is_listed():
    student, teacher = net(5, 0), net(6, 1)
    own = {k: v.clone() for k, v in student.state_dict().items()}
    given = {**teacher.state_dict(), "extra.weight": torch.zeros(2)}
    del given["3.bias"]
    report = initialise(student, given, "matching")
    rows = {row.name: row for row in report.rows}
    assert rows["0.weight"].reason == "copied" and torch.equal(student[0].weight, teacher[0].weight)
    assert rows["2.weight"].reason == "shapes differ" and torch.equal(student[2].weight, own["2.weight"])
    assert rows["3.bias"].reason == "only in the student" and rows["extra.weight"].reason == "only in the teacher"
    assert str(report).startswith(f"initialisation 'matching': {report.copied} of {report.total} student tensors copied")
    assert "2.weight: shapes differ (student (5, 4), teacher (6, 4))" in str(report)


def test_none_copies_nothing():
    student = net(5, 0)
    own = {k: v.clone() for k, v in student.state_dict().items()}
    assert initialise(student, net(5, 1).state_dict(), "none").copied == 0
    assert all(torch.equal(v, own[k]) for k, v in student.state_dict().items())


def test_nothing_to_copy_is_an_error_even_if_a_counter_fits():
    teacher = {"1.num_batches_tracked": torch.tensor(3), "other.weight": torch.zeros(2)}
    with pytest.raises(ConfigError, match="none of the teacher's 2 tensors"):
        initialise(net(5, 0), teacher, "matching")


def test_unknown_way_is_an_error():
    with pytest.raises(ConfigError, match="unknown initialisation 'fnav9'; use one of none, matching"):
        initialise(net(5, 0), {}, "fnav9")


def test_first_keeps_the_first_channels_and_says_so():
    student, teacher = net(5, 0), net(7, 1)
    report = initialise(student, teacher.state_dict(), "first")
    assert torch.equal(student[2].weight, teacher[2].weight[:5]) and torch.equal(student[3].weight, teacher[3].weight[:, :5])
    assert str(report) == (
        f"initialisation 'first': {report.total} of {report.total} student tensors copied from the teacher, "
        "3 of them by their first channels"
    )


def test_first_wants_every_tensor():
    with pytest.raises(ConfigError, match=r"2\.weight: axis 0 has 7 in the student, 5 in the teacher"):
        initialise(net(7, 0), net(5, 1).state_dict(), "first")
