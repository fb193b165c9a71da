"""Weight files: there and back, what fits, and what damage is answered with."""

from __future__ import annotations

import errno
import gzip
import io
import os
import tarfile
import zipfile
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
    assert read_card(path) == read_card(str(path)) == {"arm": "plain", "seed": 3}
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


CUTS = {0: "is empty", 4: "holds no weights", 500: "is no complete", -1: "is no complete"}


@pytest.mark.parametrize("size", CUTS)
def test_truncated_files_are_named(tmp_path, model, size):
    path = tmp_path / "cut.safetensors"
    save_weights(path, model, {})
    path.write_bytes(path.read_bytes()[:size])
    for read in (read_weights, read_card, lambda p: load_weights(p, other())):
        with pytest.raises(DataError, match=rf"cut\.safetensors {CUTS[size]}"):
            read(path)


def zipped(**files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("teacher.pth"))
    return stream.getvalue()


def saved(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def scripted():
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), stream)
    return stream.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\nsize 5013\n"
IMPOSTORS = {
    "pointer": (POINTER, "is a git LFS pointer.*git lfs pull"),
    "page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
    "page_of_1999": ("<HTML><p>k\xe4se".encode("latin-1"), "is a web page"),
    "refusal": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "is a web page"),
    "text": (b"model: cp_pillar\n" * 50, "is a text .'model: cp_pillar model"),
    "gzip": (gzip.compress(b"weights"), "is a gzip archive; unpack"),
    "tar": (tarred(), "is a tar archive; unpack"),
    "zip": (zipped(**{"a/teacher.pth": b""}), "is a zip archive of a/teacher.pth; unpack"),
    "npz": (zipped(**{"weight.npy": b"", "bias.npy": b""}), "zip archive of weight.npy, bias.npy"),
    "script": (scripted(), "is TorchScript.*state_dict"),
    "torch": (saved({"weight": torch.zeros(2)}), "is a torch checkpoint.*import-checkpoint"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "holds no weights that can be read.*HDF"),
}


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_what_is_no_file_of_weights_is_called_what_it_is(tmp_path, model, kind):
    content, words = IMPOSTORS[kind]
    path = tmp_path / f"{kind}.safetensors"
    path.write_bytes(content)
    for read in (read_card, lambda path: load_weights(path, model)):
        with pytest.raises(DataError, match=rf"{kind}\.safetensors.* {words}"):
            read(path)


def test_folders_and_missing_files_are_named(tmp_path, model):
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match="run is a folder; give a file"):
        load_weights(tmp_path / "run", model)
    (tmp_path / "run" / "teacher.safetensors").touch()
    with pytest.raises(DataError, match=r"is a folder; give one of its files: teacher\.safet"):
        load_weights(tmp_path / "run", model)
    with pytest.raises(DataError, match="nothing does not exist"):
        load_weights(tmp_path / "nothing", model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(tmp_path, model, value, kind):
    path, name = tmp_path / "overflown.safetensors", "backbone_2d.blocks.0.1.weight"
    tensors = {key: value.to(kind, copy=True) for key, value in model.state_dict().items()}
    tensors[name][0] = value
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(DataError, match=rf"overflown\.safetensors: \d+ numbers of {name} are NaN"):
        load_weights(path, model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_weights_that_are_all_0_are_refused(tmp_path, model):
    path = tmp_path / "empty.safetensors"
    blank = {
        key: value if value.dim() < 2 else 0 * value for key, value in model.state_dict().items()
    }
    save_file({key: value.contiguous() for key, value in blank.items()}, path)
    with pytest.raises(DataError, match=r"empty\.safetensors: all its weights are 0"):
        load_weights(path, model)


def test_a_card_that_is_no_json_object_is_named(tmp_path):
    path = tmp_path / "theirs.safetensors"
    for card in ("hello", "[1]"):
        save_file({"weight": torch.zeros(1)}, path, {"card": card})
        with pytest.raises(DataError, match=r"the card in .*theirs\.safetensors is no JSON object"):
            read_card(path)


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
