"""Means since the last line, and lines that can be taken back."""

from __future__ import annotations

import math

import pytest
import torch

from kdlib import records
from kdlib.training import history
from kdlib.training.history import Diverged, Meter
from kdlib.types import LossTerms


def terms(a: float, b: float) -> LossTerms:
    return LossTerms.total({"a": torch.tensor(a, requires_grad=True), "kd/b": torch.tensor(b)})


def test_means():
    meter = Meter()
    meter.add(terms(1.0, 2.0))
    meter.add(terms(3.0, 6.0))
    assert meter.means() == {"loss": 6.0, "parts": {"a": 2.0, "kd/b": 4.0}}
    assert meter.batches == 2


def test_state_goes_on_exactly():
    whole, first = Meter(), Meter()
    values = [(math.pi, math.e), (1 / 3, 1e-7), (2 / 7, 5.5)]
    for pair in values:
        whole.add(terms(*pair))
    first.add(terms(*values[0]))
    rest = Meter(**first.state())
    for pair in values[1:]:
        rest.add(terms(*pair))
    assert rest.state() == whole.state()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_number_is_named(bad):
    meter = Meter()
    meter.add(terms(1.0, bad))
    with pytest.raises(Diverged, match="loss, parts/kd/b became NaN or infinite"):
        meter.means()


def test_rewind(tmp_path):
    path = tmp_path / "h.jsonl"
    for step in range(1, 6):
        history.append(path, {"step": step, "loss": step / 3})
    with path.open("a") as stream:
        stream.write('{"step": 6, "lo')
    history.rewind(path, 3)
    assert [line["step"] for line in records.read_json_lines(path)] == [1, 2, 3]
    history.append(path, {"step": 4})
    assert len(records.read_json_lines(path)) == 4


@pytest.mark.parametrize(
    ("bad", "remedy"),
    [
        (("kd_heatmap",), "look at the teacher's weights"),
        (("kd_heatmap", "heatmap"), "lower learning_rate"),
    ],
)
def test_a_teacher_that_answers_nan_is_suspected(bad, remedy):
    parts = {"heatmap": torch.tensor(1.0), "kd_heatmap": torch.tensor(2.0)}
    meter = Meter()
    meter.add(LossTerms.total({**parts, **dict.fromkeys(bad, torch.tensor(torch.nan))}))
    with pytest.raises(Diverged, match=rf"parts/kd_heatmap.* became NaN or infinite; .*{remedy}"):
        meter.means()
