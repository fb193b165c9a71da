from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from kdlib import records
from kdlib.data.object_bank import bank_path
from kdlib.data.own import own_frame, store_frames
from kdlib.data.prepare import estimate_prepare, prepare
from kdlib.data.store import Store
from kdlib.errors import DataError
from kdlib.tools.server import verify as module
from kdlib.tools.server.verify import PUBLISHED, verify


@pytest.fixture
def copy(store, tmp_path):
    """A store that may be damaged."""
    return shutil.copytree(store.path, tmp_path / "store")


def test_a_sound_store(store, source):
    report = verify(store.path, source, progress=False)
    assert report.sound and report.damaged == () and report.fingerprint == store.fingerprint
    training = report.splits["training"]
    assert (training.segments, training.frames, training.frames_at_5, training.shortest) == (
        2,
        7,
        2,
        ("a", 3),
    )
    assert training.kind == "part"
    assert "a part of the Waymo" in str(report) and "sound" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["sound"] is True


def _damages(path):
    """Every kind of file, with some places to hit in each."""
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.stat().st_size:
            size = file.stat().st_size
            rng = np.random.default_rng(size)
            yield from (
                (file, int(place)) for place in (0, size // 2, size - 1, *rng.integers(0, size, 3))
            )


def test_a_flipped_bit_is_found_wherever_it_is(copy):
    kinds = set()
    for file, place in _damages(copy):
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            sentences = verify(copy, progress=False).damaged
        except DataError as error:  # of the index: there is no store without it
            assert file.name == "store.json"
            sentences = (str(error),)
        assert len(sentences) == 1 and file.name in sentences[0] and "\n" not in sentences[0], (
            file,
            place,
            sentences,
        )
        file.write_bytes(content)
        kinds.add(file.name)
    assert kinds == {
        "store.json",
        "points.npy",
        "frames.parquet",
        "boxes.parquet",
        "manifest.json",
        "objects.safetensors",
    }
    assert verify(copy, progress=False).sound


def test_all_damages_are_named_at_once(copy):
    (copy / "training" / "a" / "points.npy").write_bytes(b"")
    shutil.rmtree(copy / "validation" / "c")
    report = verify(copy, progress=False)
    assert not report.sound and len(report.damaged) == 2
    assert (
        "points.npy has 0 bytes" in report.damaged[0]
        and (f"{copy / 'validation' / 'c'} is missing") in report.damaged[1]
    )
    assert str(report).count("damaged: ") == 2


def test_a_segment_the_store_lacks_is_found(copy, source, tmp_path):
    waymo = shutil.copytree(source, tmp_path / "waymo")
    for path in waymo.glob("training/*/b.parquet"):
        shutil.copy(path, path.with_name("d.parquet"))
    (sentence,) = verify(copy, waymo, progress=False).damaged
    assert "split training lacks 1 segments" in sentence and "(the first: d)" in sentence


def test_another_segments_content_is_found(copy):
    shutil.rmtree(copy / "training" / "a")
    shutil.copytree(copy / "training" / "b", copy / "training" / "a")
    assert (
        f"{copy / 'training' / 'a' / 'manifest.json'} is not what was written"
        in verify(copy, progress=False).damaged[0]
    )


def test_a_store_of_an_older_kdlib_is_named_and_prepared_anew(copy, source):
    for path in copy.glob("*/*/manifest.json"):
        manifest = records.read_json(path)
        del manifest["checksum"], manifest["simulated"]  # as they were before manifests had either
        records.write_json(path, manifest)
    report = verify(copy, source, progress=False)
    assert not report.sound and len(report.damaged) == 3
    assert all("manifest.json is not what was written" in sentence for sentence in report.damaged)
    assert estimate_prepare(source, copy).finished == 0
    prepare(source, copy, progress=False)
    assert (
        verify(copy, source, progress=False).sound and estimate_prepare(source, copy).finished == 3
    )


def test_a_bank_of_other_frames_is_found(copy, store):
    other = bank_path(store.split("training")).read_bytes()
    path = copy / "training" / "objects.safetensors"
    shutil.rmtree(copy / "training" / "a")
    index = records.read_json(copy / "store.json")
    del index["splits"]["training"]["a"]
    records.write_json(
        copy / "store.json", {**index, "fingerprint": Store(copy, index["splits"]).fingerprint}
    )
    assert path.read_bytes() == other
    assert "made from other frames" in verify(copy, progress=False).damaged[0]


def test_the_published_counts_are_those_of_the_tables():
    assert PUBLISHED == {"training": (798, 158_081), "validation": (202, 39_987)}
    assert [-(-frames // 5) for _, frames in PUBLISHED.values()] == [31_617, 7_998]


@pytest.mark.parametrize(
    ("published", "kind", "sound"),
    [
        ((2, 7), "full", True),
        ((2, 8), "other", False),
        ((1, 7), "other", False),
        ((3, 9), "part", True),
    ],
)
def test_counts_are_compared_with_the_datasets(store, monkeypatch, published, kind, sound):
    monkeypatch.setattr(module, "PUBLISHED", {"training": published})
    report = verify(store.path, progress=False)
    assert report.splits["training"].kind == kind and report.sound is sound
    assert report.splits["validation"].kind == "uncounted"


def test_simulated_data_is_called_so(smoke_data):
    report = verify(smoke_data / "store", progress=False)
    assert report.sound and {check.kind for check in report.splits.values()} == {"simulated"}
    assert "SIMULATED data, not the Waymo Open Dataset" in str(report)


def test_own_frames_are_called_so(tmp_path):
    far = [[200.0, 0, 0], *np.zeros((20, 3))]
    with pytest.warns(UserWarning, match="1 of 21 points lie beyond"):
        store_frames([own_frame("drive", 0, far)], tmp_path)
    report = verify(tmp_path, progress=False)
    assert report.sound and report.splits["training"].kind == "own"
    assert "frames of one's own (shortest: drive, 1 frames, 1 points beyond" in str(report)
    assert "Waymo" not in str(report)
    points = tmp_path / "training" / "drive" / "points.npy"
    points.write_bytes(points.read_bytes()[:-1] + b"x")
    (sentence,) = verify(tmp_path, progress=False).damaged
    assert sentence.endswith("drive and store its frames again")


def test_no_store_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no finished store"):
        verify(tmp_path, progress=False)
