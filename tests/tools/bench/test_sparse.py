from __future__ import annotations

import sys

import pytest
import torch

from kdlib.errors import ConfigError
from kdlib.models.sparse import SparseConv3d, SparseTensor, SubmConv3d
from kdlib.tools.bench import sparse
from kdlib.tools.bench.sparse import bench_sparse, encoder_input


@pytest.fixture
def small(monkeypatch):
    """A few sites and layers in the place of a full-size sweep and an encoder."""
    torch.manual_seed(0)
    coords = (torch.rand(1, 5, 12, 12) < 0.3).nonzero()
    sites = SparseTensor(torch.randn(len(coords), 4), coords, (5, 12, 12), 1)
    layers = [
        SubmConv3d(4, 8, bias=True, key="a"),
        SparseConv3d(8, 8, 3, stride=2, padding=1, key="b"),
    ]
    monkeypatch.setattr(sparse, "encoder_input", lambda model: (sites, layers))


def test_numbers_of_one_run(small):
    pytest.importorskip(
        "spconv.pytorch", reason="needs spconv's wheel for processors: pip install spconv==2.3.8"
    )
    outcome = bench_sparse(rounds=2)
    assert outcome["ratio"] == pytest.approx(outcome["wheel_ms"] / outcome["torch_ms"])
    assert 0 <= outcome["difference"] < 1e-5 and outcome["same_bits"] == 2
    assert outcome["backward_ms"] > 0 and not outcome.notes


def test_without_the_wheel_ours_is_measured(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    outcome = bench_sparse(rounds=1)
    assert outcome["wheel_ms"] is None and outcome["ratio"] is None and outcome["torch_ms"] > 0
    assert "not compared with the wheel" in outcome.notes[0]


def test_a_pillar_model_has_nothing_to_measure():
    with pytest.raises(ConfigError, match="cp_pillar has no sparse convolutions"):
        encoder_input("cp_pillar")
