"""Weight files: there and back, what fits, and what damage is answered with."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdlib import zoo
from kdlib.errors import DataError
from kdlib.models.build import build
from kdlib.models.weights import cover, load_weights, read_card, read_weights, save_weights


@pytest.fixture
def model():
    torch.manual_seed(0)
    found = build(zoo.CP_PILLAR_DEMO)
    found.global_step.fill_(7)
    return found


def other():
    torch.manual_seed(1)
    return build(zoo.CP_PILLAR_DEMO)


def same(a, b):
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def test_there_and_back(tmp_path, model):
    path = tmp_path / "new" / "weights.safetensors"
    save_weights(path, model, {"arm": "plain", "seed": 3})
    assert read_card(path) == {"arm": "plain", "seed": 3}
    loaded = other()
    coverage = load_weights(path, loaded)
    assert coverage.complete and len(coverage.loaded) == len(model.state_dict())
    assert same(loaded, model) and int(loaded.global_step) == 7
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def halve(path, out):
    """Write a file of 16-bit floats, as others may come."""
    tensors = {
        name: value.half() if value.is_floating_point() else value
        for name, value in load_file(path).items()
    }
    save_file(tensors, out)


def test_half_precision_there_and_back(tmp_path, model):
    path, full = tmp_path / "half.safetensors", tmp_path / "full.safetensors"
    save_weights(full, model, {})
    halve(full, path)
    assert path.stat().st_size < 0.6 * full.stat().st_size
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = other()
    assert load_weights(path, loaded).complete
    for name, value in loaded.state_dict().items():
        assert value.dtype == before[name].dtype
        torch.testing.assert_close(value, before[name], rtol=1e-3, atol=1e-6)
    save_weights(full, loaded, {})
    halve(full, full)
    assert all(
        torch.equal(value, read_weights(full)[name]) for name, value in read_weights(path).items()
    ), "twice is once"


@pytest.mark.parametrize("size", [0, 4, 500, -1, -1000])
def test_truncated_files_are_named(tmp_path, model, size):
    path = tmp_path / "cut.safetensors"
    save_weights(path, model, {})
    path.write_bytes(path.read_bytes()[:size])
    for read in (read_weights, read_card, lambda p: load_weights(p, other())):
        with pytest.raises(DataError, match=r"cut\.safetensors is no complete safetensors file"):
            read(path)


def test_other_files_and_no_file_are_named(tmp_path, model):
    (tmp_path / "text").write_text("model: cp_pillar\n" * 50)
    with pytest.raises(DataError, match="no complete safetensors file"):
        load_weights(tmp_path / "text", model)
    with pytest.raises(DataError, match="nothing does not exist"):
        load_weights(tmp_path / "nothing", model)


def test_wrong_shapes_are_refused_before_anything_is_touched(tmp_path, model):
    path = tmp_path / "wide.safetensors"
    wide = build(
        replace(zoo.CP_PILLAR_DEMO, head=replace(zoo.CP_PILLAR_DEMO.head, shared_channels=24))
    )
    save_weights(path, wide, {})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        DataError,
        match=(
            r"wide\.safetensors does not fit.*center\.0\.0\.weight: model \(16, 16, "
            r"3, 3\), file \(24, "
        ),
    ):
        load_weights(path, model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    coverage = cover(wide.state_dict(), before)
    assert coverage.mismatched and not coverage.missing and not coverage.complete


def without(path, *names, **added):
    tensors = {name: value for name, value in load_file(path).items() if name not in names}
    save_file(tensors | added, path)


def test_b15_missing_and_unknown_tensors_are_named(tmp_path, model):
    path = tmp_path / "part.safetensors"
    save_weights(path, model, {})
    gone = "backbone_2d.blocks.0.1.weight"
    without(path, gone, extra=torch.zeros(1))
    loaded = other()
    with pytest.raises(
        DataError, match=f"missing in the file: {gone}; unknown to the model: extra"
    ):
        load_weights(path, loaded)
    coverage = cover(read_weights(path), loaded.state_dict())
    assert coverage.missing == (gone,) and coverage.unexpected == ("extra",)
    assert read_card(path) == {}, "a file of another origin has no card"


def test_the_step_counter_may_be_missing(tmp_path, model):
    path = tmp_path / "foreign.safetensors"
    save_weights(path, model, {})
    without(path, "global_step")
    loaded = other()
    coverage = load_weights(path, loaded)
    assert coverage.complete and coverage.missing == ("global_step",)
    assert "global_step (a counter, no weight)" in coverage.table()
    assert int(loaded.global_step) == 0
    assert torch.equal(
        loaded.vfe.pfn_layers[0].linear.weight, model.vfe.pfn_layers[0].linear.weight
    )


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, model, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, {"kept": True})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for target in (path, tmp_path / "second.safetensors"):
        with pytest.raises(OSError, match="No space left"):
            save_weights(target, other(), {})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert read_card(path) == {"kept": True}
