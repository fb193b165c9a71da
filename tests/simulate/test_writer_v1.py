"""Simulated TFRecord files: the frames of the Parquet files, whole or absent, made again only where
they must be.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kdlib.errors import ConfigError, DataError
from kdlib.simulate import simulate
from kdlib.simulate import writer_v1 as module
from kdlib.waymo import tfrecord
from kdlib.waymo.frame_proto import FRAME_MESSAGES, parse_frame
from kdlib.waymo.reader_v1 import frames_v1
from kdlib.waymo.reader_v2 import frames_v2


def small(out, **changes):
    settings = {
        "segments": 2,
        "frames": 2,
        "seed": 5,
        "scale": "demo",
        "workers": 1,
        "progress": False,
        "format": "v1",
    }
    return simulate(out, **{**settings, **changes})


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two segments; not to be changed."""
    out = tmp_path_factory.mktemp("v1")
    return out / "training", small(out)


def file_of(folder: Path, name: str) -> Path:
    return folder / f"segment-{name}_with_camera_labels.tfrecord"


def test_both_formats_hold_the_same_frames(made, tmp_path):
    folder, names = made
    assert small(tmp_path, format="v2") == names
    for name in names:
        pairs = zip(
            frames_v1(file_of(folder, name), name),
            frames_v2(tmp_path / "training", name),
            strict=True,
        )
        for one, other in pairs:
            assert one.frame_id == other.frame_id and one.timestamp_micros == other.timestamp_micros
            assert one.labels.ids == other.labels.ids and len(one.labels.ids) > 5
            assert 20_000 < len(one.points)
            assert one.labels.velocity.any()
            for part in ("points", "pose"):
                np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
            for part in ("boxes", "types", "difficulty", "num_points", "velocity"):
                np.testing.assert_array_equal(
                    getattr(one.labels, part), getattr(other.labels, part)
                )


def test_files_are_named_as_waymos_and_nothing_else_is_there(made):
    folder, names = made
    assert sorted(contents(folder)) == sorted(file_of(folder, name).name for name in names)


def test_messages_are_as_real_ones(made):
    folder, names = made
    for payload in tfrecord.iter_payloads(file_of(folder, names[0])):
        frame = parse_frame(payload)
        # alphabetical
        assert [row.name for row in frame.context.laser_calibrations] == [2, 5, 3, 4, 1]
        assert [len(row.beam_inclinations) for row in frame.context.laser_calibrations] == [
            0,
            0,
            0,
            0,
            40,
        ]
        assert [bool(entry.ri_return1.range_image_pose_compressed) for entry in frame.lasers] == [
            True,
            *[False] * 4,
        ]
        assert not any(entry.ri_return2.range_image_pose_compressed for entry in frame.lasers)
        assert all(
            echo.camera_projection_compressed
            for entry in frame.lasers
            for echo in (entry.ri_return1, entry.ri_return2)
        )
        kinds = [label.type for label in frame.laser_labels]
        assert {row.type: row.count for row in frame.context.stats.laser_object_counts} == {
            k: kinds.count(k) for k in kinds
        }
        signs = [label for label in frame.laser_labels if label.type == 3]
        assert signs and not any(label.HasField("metadata") for label in signs)
        assert all(label.HasField("num_lidar_points_in_box") for label in frame.laser_labels)
        assert len(frame.simulation) > 20 and not frame.no_label_zones
        # fields in order, as any writer has them
        assert parse_frame(payload).SerializeToString() == payload


def test_a_seed_gives_the_same_bytes_whatever_the_workers(made, tmp_path):
    small(tmp_path, workers=2)
    assert contents(tmp_path / "training") == contents(made[0])


def test_finished_segments_are_kept_and_others_made_again(tmp_path):
    name = small(tmp_path, segments=1)[0]
    path = file_of(tmp_path / "training", name)
    before = path.read_bytes()
    os.utime(path, ns=(1, 1))
    small(tmp_path, segments=1)
    assert path.stat().st_mtime_ns == 1
    (path.parent / f".{path.name}.999999999.tmp").write_bytes(b"left by a killed process")
    for damage in (
        before[:-100],
        before[: tfrecord.index(path)[1].start],
        b"",
        b"other",
        bytes(50) + before[50:],
    ):
        path.write_bytes(damage)
        small(tmp_path, segments=1)
        assert contents(tmp_path / "training") == {path.name: before}
    small(tmp_path, segments=1, frames=3)
    assert len(tfrecord.index(path)) == 3


def test_a_file_of_another_origin_is_no_finished_segment(tmp_path):
    name = small(tmp_path, segments=1, frames=1)[0]
    path = file_of(tmp_path / "training", name)
    before = path.read_bytes()
    (payload,) = tfrecord.iter_payloads(path)
    frame = parse_frame(payload)
    frame.ClearField("simulation")
    with open(path, "wb") as file:
        tfrecord.write_record(file, frame.SerializeToString())
    small(tmp_path, segments=1, frames=1)
    assert path.read_bytes() == before


def test_other_readers_pass_over_the_parameters():
    number = FRAME_MESSAGES["Frame"].DESCRIPTOR.fields_by_name["simulation"].number
    assert number >= 1000  # what the official Frame leaves to extensions
    assert not 19000 <= number < 20000  # protobuf's own


@pytest.mark.parametrize("where", ["pack_matrix", "write_record"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, where):
    small(tmp_path, segments=1)
    before = contents(tmp_path)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner = module if where == "pack_matrix" else tfrecord
    monkeypatch.setattr(owner, where, full)
    with pytest.raises(
        DataError,
        match=(r"cannot write segment .* below .*: No space left on " r"device; make room"),
    ):
        small(tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write segment .*file"):
        small(tmp_path / "file")


def test_formats_are_not_mixed(tmp_path):
    small(tmp_path, segments=1, frames=1)
    with pytest.raises(
        ConfigError,
        match=(r"holds segment-.*\.tfrecord, which is not v2; choose " r"another folder"),
    ):
        small(tmp_path, segments=1, frames=1, format="v2")
    small(tmp_path / "two", segments=1, frames=1, format="v2")
    with pytest.raises(
        ConfigError, match=(r"holds lidar/.*\.parquet, which is not v1; choose " r"another folder")
    ):
        small(tmp_path / "two", segments=1, frames=1)
    with pytest.raises(ConfigError, match="unknown format 'v3', choose one of v2, v1"):
        small(tmp_path, format="v3")


def test_the_command_writes_either(tmp_path):
    from kdlib.cli import app

    options = f"simulate --out {tmp_path} --segments 1 --frames 1 --seed 1 --workers 1".split()
    result = CliRunner().invoke(app, [*options, "--format", "v1"])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "training").glob("*.tfrecord"))) == 1
