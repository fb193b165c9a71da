from __future__ import annotations

import errno
import json
import multiprocessing
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file

from kdlib.data import object_bank, store
from kdlib.data.object_bank import ObjectBank, bank_path, build_bank, is_current, verify_bank
from kdlib.data.prepare import prepare
from kdlib.data.store import Store
from kdlib.errors import DataError

SEGMENTS = {"a": [25, 20, 0], "b": [40] * 7, "c": [30] * 4}


@pytest.fixture(scope="module")
def split(crowd, tmp_path_factory):
    return crowd(tmp_path_factory.mktemp("bank") / "store", SEGMENTS)


@pytest.fixture(scope="module")
def bank(split):
    return ObjectBank.open(build_bank(split, progress=False), split.fingerprint)


@pytest.fixture
def own(split, bank, tmp_path):
    """A split with its bank to be damaged."""
    shutil.copytree(split.path, tmp_path / "store")
    return Store.open(tmp_path / "store").split("training")


def frame_ids(bank):
    """The frames objects were seen in, as the file has them."""
    tensors = load_file(bank.path)
    segments = tensors["segments"].tobytes().decode().split("\n")
    return [
        f"{segments[segment]}_{index:03d}"
        for segment, index in zip(tensors["segment"], tensors["index"])
    ]


def _naive(split, every):
    """Every object by a loop over points and boxes: (frame id, type, box, difficulty, points)."""
    for frame in range(len(split)):
        rows = split.box_rows(frame)
        kept = [
            row
            for row in range(rows.start, rows.stop)
            if frame % every.get(int(split.types[row]), 1) == 0
        ]
        points = split.points(frame)[:, :5]
        left = np.ones(len(points), bool)
        for row in kept:
            x, y, z, length, width, height, heading = split.boxes[row].astype(np.float64)
            turned = (points[:, 0] - x + 1j * (points[:, 1] - y)) * np.exp(-1j * heading)
            inside = left & (abs(turned.real) <= length / 2) & (abs(turned.imag) <= width / 2)
            inside &= abs(points[:, 2].astype(np.float64) - z) <= height / 2
            left &= ~inside
            if inside.any() and split.types[row] in (1, 2, 4):
                yield (
                    split.frame_id(frame),
                    split.types[row],
                    split.boxes[row],
                    split.difficulty[row],
                    points[inside],
                )


def test_the_bank_is_the_naive_one(split, bank):
    expected = list(_naive(split, {1: 4, 2: 2}))
    assert len(bank) == len(expected) > 100 and {1, 2, 4} == set(bank.types.tolist())
    names = frame_ids(bank)
    for row, (frame, kind, box, difficulty, points) in enumerate(expected):
        assert (names[row], bank.types[row], bank.difficulty[row]) == (frame, kind, difficulty)
        assert bank.counts[row] == len(points)
        np.testing.assert_array_equal(bank.boxes[row], box)
        np.testing.assert_array_equal(bank.points([row]), points)


def test_d32_vehicles_come_from_every_4th_and_pedestrians_from_every_2nd_frame_of_all_segments(
    split, bank
):
    numbers = {name: n for n, name in enumerate(split.frame_ids())}
    names = frame_ids(bank)
    seen = {
        kind: {numbers[names[row]] for row in np.flatnonzero(bank.types == kind)}
        for kind in (1, 2, 4)
    }
    assert seen[1] == {0, 4, 8, 12}
    assert seen[2] == {0, 4, 6, 8, 10, 12}  # frame 2 is empty
    assert seen[4] == set(range(14)) - {2}


def test_a_box_of_no_class_still_owns_its_points(crowd, tmp_path):
    split = crowd(tmp_path, {"a": [200]})
    bank = ObjectBank.open(build_bank(split, progress=False), split.fingerprint)
    expected = list(_naive(split, {1: 4, 2: 2}))
    assert 3 in split.types and bank.counts.tolist() == [len(points) for *_, points in expected]


def test_points_of_several_objects_come_one_after_the_other(bank):
    rows = [5, 2, 9]
    np.testing.assert_array_equal(
        bank.points(rows), np.concatenate([bank.points([row]) for row in rows])
    )
    assert bank.points([]).shape == (0, 5) and bank.points(rows).dtype == np.float32


def test_b14_it_is_one_safetensors_file_at_the_place_the_reader_looks(split, bank):
    path = bank_path(split)
    assert path == build_bank(split, progress=False) == bank.path
    tensors = load_file(path)
    np.testing.assert_array_equal(tensors["boxes"], bank.boxes)
    np.testing.assert_array_equal(tensors["points"].tobytes(), bank.stored.tobytes())
    assert verify_bank(path, split.fingerprint) == []
    assert len(Store.open(split.path).split("training")) == len(split)


def test_arrays_are_read_only_maps_of_the_file(bank):
    for array in (bank.boxes, bank.offsets, bank.stored):
        assert not array.flags.writeable and not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        bank.boxes[0] = 0


def _sum_in_child(bank, rows, answer):
    answer.put(float(bank.points(rows).sum()))


def test_it_travels_to_other_processes_as_a_path(bank):
    assert len(pickle.dumps(bank)) < 1000
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    children = [
        context.Process(target=_sum_in_child, args=(pickle.loads(pickle.dumps(bank)), [n], answer))
        for n in range(3)
    ]
    for child in children:
        child.start()
    sums = sorted(answer.get(timeout=30) for _ in children)
    for child in children:
        child.join()
    assert sums == sorted(float(bank.points([n]).sum()) for n in range(3))


def test_a_sound_bank_is_kept_and_a_stale_one_replaced(own, crowd, tmp_path):
    path = bank_path(own)
    before = path.stat().st_mtime_ns
    assert is_current(own) and build_bank(own, progress=False).stat().st_mtime_ns == before
    other = crowd(tmp_path / "other", SEGMENTS, seed=1)
    shutil.copy(path, bank_path(other))
    assert not is_current(other)
    with pytest.raises(DataError, match=r"other frames .*python -m kdlib prepare SRC"):
        ObjectBank.open(bank_path(other), other.fingerprint)
    assert len(ObjectBank.open(build_bank(other, progress=False), other.fingerprint))


def test_a_bank_of_fewer_classes_is_built_again_for_more(crowd, tmp_path, monkeypatch):
    split = crowd(tmp_path, {"a": [20]})
    with monkeypatch.context() as fewer:
        fewer.setattr(store, "CLASS_NAMES", ("Vehicle",))
        build_bank(split, progress=False)
        assert is_current(split)
    assert not is_current(split)
    assert set(ObjectBank.open(build_bank(split, progress=False), split.fingerprint).types) == {
        1,
        2,
        4,
    }


def test_building_twice_gives_the_same_bytes(own):
    path = bank_path(own)
    before = path.read_bytes()
    path.unlink()
    assert build_bank(own, progress=False).read_bytes() == before


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 5000, -9, -1])
def test_a_truncated_bank_is_one_error(own, length):
    path = bank_path(own)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(
        DataError, match=(r"objects\.safetensors cannot be used .*python -m kdlib " r"prepare SRC")
    ) as caught:
        ObjectBank.open(path, own.fingerprint)
    assert (
        "\n" not in str(caught.value)
        and not is_current(own)
        and len(verify_bank(path, own.fingerprint)) == 1
    )


def test_garbled_banks_are_errors(own):
    path = bank_path(own)
    whole = path.read_bytes()
    used = len(whole[:4096].rstrip())
    index = len(whole) - 2000
    rng = np.random.default_rng(0)
    for place in [*range(used), *rng.integers(index, len(whole), 100)]:
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"objects\.safetensors .*prepare SRC"):
            ObjectBank.open(path, own.fingerprint)


def test_points_that_changed_are_found_by_verify(own):
    path = bank_path(own)
    damaged = bytearray(path.read_bytes())
    damaged[4096 + 100] ^= 1
    path.write_bytes(damaged)
    assert "not what was written" in verify_bank(path, own.fingerprint)[0]


def test_another_version_and_no_bank_name_the_remedy(own):
    path = bank_path(own)
    with open(path, "r+b") as stream:
        header = json.loads(stream.read(4096)[8:])
        header["__metadata__"]["version"] = "0"
        stream.seek(8)
        stream.write(json.dumps(header).encode().ljust(4088))
    with pytest.raises(
        DataError,
        match=(
            r"version 0, this is version 1\); delete it and make it "
            r"with 'python -m kdlib prepare "
        ),
    ):
        ObjectBank.open(path, own.fingerprint)
    path.unlink()
    with pytest.raises(DataError, match=r"no object bank .*'python -m kdlib prepare SRC "):
        ObjectBank.open(path, own.fingerprint)


def test_a_failed_build_leaves_nothing_behind(own, monkeypatch):
    path = bank_path(own)
    path.unlink()
    points = path.parent / "b" / "points.npy"
    points.write_bytes(points.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"points\.npy ends after"):
        build_bank(own, progress=False)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(object_bank, "_write", full)
    with pytest.raises(DataError, match="disk is full"):
        build_bank(own, progress=False)
    assert sorted(file.name for file in path.parent.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("segments", [{"a": [0, 0]}, {"a": []}])
def test_a_bank_without_objects(crowd, tmp_path, segments):
    split = crowd(tmp_path, segments)
    bank = ObjectBank.open(build_bank(split, progress=False), split.fingerprint)
    assert len(bank) == 0 and bank.boxes.shape == (0, 7) and bank.points([]).shape == (0, 5)


def test_the_store_of_real_files_has_one_too(source, tmp_path):
    prepare(source, tmp_path / "store", progress=False)
    split = Store.open(tmp_path / "store").split("training")
    build_bank(split, progress=False)
    prepare(source, tmp_path / "store", progress=False)
    assert is_current(Store.open(tmp_path / "store").split("training"))


def test_memory_does_not_grow_with_the_frames(crowd, tmp_path):
    def peak(frames):
        split = crowd(tmp_path / str(frames), {"a": [20] * frames})
        build_bank(split, progress=False)
        bank_path(split).unlink()
        tracemalloc.start()
        path = build_bank(split, progress=False)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most, path.stat().st_size

    (few, small), (many, large) = peak(8), peak(64)
    assert large - small > 30_000
    # the index of 20 objects a frame, and nothing of the points
    assert many - few < 3 * 56 * 20 * 60
