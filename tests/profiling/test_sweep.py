"""Sweeps from files and from the simulator: columns, heights, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdlib.data.scans import read_scan
from kdlib.errors import DataError
from kdlib.profiling.sweep import simulated_sweeps
from kdlib.types import Sample


def read_sweep(path: Path) -> Sample:
    return read_scan(path).sample()


def test_kitti_and_nuscenes_columns(tmp_path: Path) -> None:
    kitti, nuscenes = tmp_path / "000001.bin", tmp_path / "sweep.pcd.bin"
    np.array([[1, 2, -1.73, 0.5], [3, 4, 0, 0]], "<f4").tofile(kitti)
    np.array([[1, 2, -1.84, 127.5, 31]], "<f4").tofile(nuscenes)
    np.testing.assert_allclose(
        read_sweep(kitti).points, [[1, 2, 0, np.tanh(0.5), 0], [3, 4, 1.73, 0, 0]], atol=1e-6
    )
    turned = [[2, -1, 0, np.tanh(0.5), 0]]  # nuScenes' sensor has x to the right and y forward
    np.testing.assert_allclose(read_sweep(nuscenes).points, turned, atol=1e-6)


def test_waymo_columns(tmp_path: Path) -> None:
    file = tmp_path / "0000.npy"
    # intensities are unbounded
    np.save(file, np.array([[1, 2, 3, 49_664.0, 0.25, -1.0]], np.float32))
    np.testing.assert_allclose(read_sweep(file).points, [[1, 2, 3, 1, 0.25]])


def test_the_two_real_sweeps(shared: Path) -> None:
    kitti, nuscenes = (
        read_sweep(shared / "data" / name)
        for name in ("kitti_000008.bin", "nuscenes_lidar_top.pcd.bin")
    )
    assert (len(kitti.points), len(nuscenes.points)) == (17_238, 34_688)
    for sample in (kitti, nuscenes):
        near = np.hypot(*sample.points[:, :2].T) < 15
        assert abs(np.percentile(sample.points[near, 2], 10)) < 0.4, "the road lies at z = 0"
        assert sample.points[:, 3].min() >= 0 and sample.points[:, 3].max() <= 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"", "not a whole number of points"),
        ("a.bin", b"12345", "not a whole number of points"),
        ("a.pcd.bin", np.zeros(4, "<f4").tobytes(), "points of 5 float32"),
        ("a.bin", np.full(4, np.nan, "<f4").tobytes(), "not finite"),
        ("a.npy", b"no array", "no array of numbers"),
        ("a.zip", b"", "not '.zip'"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_sweep(file)


def test_arrays_of_another_shape_are_refused(tmp_path: Path) -> None:
    for array in (
        np.zeros((3, 2), np.float32),
        np.zeros(8, np.float32),
        np.zeros((3, 4), np.bool_),
    ):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(DataError, match=r"needed are floats \(N, 3 or more\)"):
            read_sweep(tmp_path / "a.npy")
    with pytest.raises(DataError, match="does not exist"):
        read_sweep(tmp_path / "b.npy")


def test_simulated_sweeps_are_the_same_again() -> None:
    first, again = (simulated_sweeps(2, seed=3, scale="demo") for _ in range(2))
    assert [sample.frame_id for sample in first] == [sample.frame_id for sample in again]
    assert len({sample.frame_id for sample in first}) == 2
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a.points, b.points)
        assert a.points.shape[1] == 5 and len(a.points) > 1000
