"""The simulator as a command: true schemas, the same files for the same seed, nothing
half-written.
"""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from kdlib.errors import ConfigError, DataError
from kdlib.simulate import simulate
from kdlib.simulate.writer_v2 import SCHEMAS

COMPONENTS = {"lidar", "lidar_pose", "lidar_calibration", "lidar_box", "vehicle_pose", "stats"}


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def small(out, **changes):
    settings = {
        "segments": 2,
        "frames": 1,
        "seed": 3,
        "scale": "demo",
        "workers": 1,
        "progress": False,
    }
    return simulate(out, **{**settings, **changes})


def test_schemas_are_the_official_ones(segments, goldens):
    official = json.loads((goldens / "waymo_format" / "v2_schemas.json").read_text())
    assert set(SCHEMAS) == COMPONENTS
    for segment in segments:
        for component, table in segment.tables.items():
            assert [[field.name, str(field.type)] for field in table.schema] == official[component]


def test_rows_have_the_right_keys(segments):
    for segment in segments:
        frames = len(segment.frames)
        sizes = {name: table.num_rows for name, table in segment.tables.items()}
        assert sizes["lidar"] == 5 * frames
        assert sizes["lidar_pose"] == sizes["vehicle_pose"] == sizes["stats"] == frames
        assert sizes["lidar_calibration"] == 5
        times = [frame.timestamp for frame in segment.frames]
        assert set(np.diff(times)) == {100_000}
        for table in segment.tables.values():
            assert set(table["key.segment_context_name"].to_pylist()) == {segment.name}
        assert set(segment.tables["lidar_pose"]["key.laser_name"].to_pylist()) == {1}
        tables = segment.tables["lidar_calibration"].to_pylist()
        values = [row["[LiDARCalibrationComponent].beam_inclination.values"] for row in tables]
        assert values[0] == sorted(values[0])
        assert values[1:] == [None] * 4
        for row, frame in zip(segment.tables["stats"].to_pylist(), segment.frames):
            kinds = [box["[LiDARBoxComponent].type"] for box in frame.rows]
            types = row["[StatsComponent].lidar_object_counts.types"]
            assert row["[StatsComponent].lidar_object_counts.counts"] == [
                kinds.count(kind) for kind in types
            ]
            assert row["[StatsComponent].camera_object_counts.types"] is None


def test_names_look_like_waymo_and_differ(tmp_path):
    import re

    names = [
        *small(tmp_path),
        *small(tmp_path, split="validation"),
        *small(tmp_path / "other", seed=4),
    ]
    assert len(set(names)) == 6
    for name in names:
        assert re.fullmatch(r"\d{19}_\d+_000_\d+_000", name)


def test_a_seed_gives_the_same_bytes_whatever_the_workers(tmp_path):
    small(tmp_path / "one")
    small(tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    small(tmp_path / "more", segments=1)
    assert contents(tmp_path / "more").items() <= contents(tmp_path / "one").items()
    small(tmp_path / "other", seed=4)
    assert not set(contents(tmp_path / "other")) & set(contents(tmp_path / "one"))


def test_finished_segments_are_kept_and_damaged_ones_made_again(tmp_path):
    name = small(tmp_path, segments=1)[0]
    folder = tmp_path / "training"
    before = contents(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    small(tmp_path, segments=1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == times
    damaged = folder / "lidar" / f"{name}.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    (folder / "stats" / f".{name}.parquet.999999999.tmp").write_bytes(b"left by a killed process")
    small(tmp_path, segments=1)
    assert contents(folder) == before
    small(tmp_path, segments=1, frames=2)
    assert pq.read_metadata(folder / "vehicle_pose" / f"{name}.parquet").num_rows == 2


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    small(tmp_path, segments=1)
    before = contents(tmp_path)
    write = pq.ParquetWriter.write_table

    def full(self, table, *rest, **more):
        if "[LiDARBoxComponent].type" in table.column_names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, table, *rest, **more)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments": 0}, "segments is 0"),
        ({"frames": -1}, "frames is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": -2}, "workers is -2"),
        ({"scale": "tiny"}, "unknown scale 'tiny', choose one of demo, full"),
        ({"split": "../x"}, "unknown split"),
    ],
)
def test_bad_arguments(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        small(tmp_path, **changes)
    assert not contents(tmp_path)


def test_full_scale_has_waymos_resolution(tmp_path):
    name = small(tmp_path, segments=1, scale="full")[0]
    table = pq.read_table(tmp_path / "training" / "lidar" / f"{name}.parquet")
    shapes = table["[LiDARComponent].range_image_return1.shape"].to_pylist()
    assert shapes == [[64, 2650, 4]] + [[200, 600, 4]] * 4
    top = np.array(table["[LiDARComponent].range_image_return1.values"][0].values).reshape(-1, 4)
    assert 0.6 < (top[:, 0] > 0).mean() < 0.99
