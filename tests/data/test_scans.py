"""Scans of other LiDARs: what is assumed is true of the two real sweeps, said aloud, and can be
overridden.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.data.scans import LAYOUTS, ground_level, read_scan
from kdlib.errors import ConfigError, DataError


def street(height: float, seed: int = 0) -> np.ndarray:
    """(N, 3) points of a flat road and a few walls, seen from ``height`` metres above the road."""
    rng = np.random.default_rng(seed)
    road = np.column_stack((rng.uniform(-30, 30, (3000, 2)), rng.normal(-height, 0.02, 3000)))
    walls = np.column_stack(
        (rng.uniform(-30, 30, (1500, 2)), rng.uniform(-height, 6 - height, 1500))
    )
    return np.concatenate((road, walls)).astype(np.float32)


def kitti(folder: Path, name: str = "a.bin", count: int = 4500) -> Path:
    points = street(1.73)[:count]
    np.column_stack((points, np.linspace(0, 0.99, len(points)))).astype("<f4").tofile(folder / name)
    return folder / name


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def nuscenes(folder: Path, name: str = "a.bin", count: int = 4500) -> Path:
    points = street(1.84)[:count]
    rest = np.column_stack((np.arange(len(points)) % 256, np.arange(len(points)) % 32))
    np.column_stack((points, rest)).astype("<f4").tofile(folder / name)
    return folder / name


@pytest.mark.parametrize("count", [4500, 4499, 20, 40, 41, 7])
def test_kitti_and_nuscenes_are_told_apart(tmp_path: Path, count: int) -> None:
    assert read_scan(kitti(tmp_path, count=count)).layout == "kitti"
    assert read_scan(nuscenes(tmp_path, count=count)).layout == "nuscenes"


def test_the_real_sweeps(shared: Path, tmp_path: Path) -> None:
    for name, layout in (("kitti_000008.bin", "kitti"), ("nuscenes_lidar_top.pcd.bin", "nuscenes")):
        source = shared / "data" / name
        scan = read_scan(source)
        assert scan.layout == layout and abs(ground_level(scan.points[:, :3])) < 0.2
        hidden = tmp_path / "scan.bin"  # the values alone say which it is
        hidden.write_bytes(source.read_bytes())
        assert read_scan(hidden).layout == layout
        found = read_scan(hidden, layout="xyzi" if layout == "kitti" else layout, height=None)
        assert abs(ground_level(found.points[:, :3])) < 0.2


def test_nuscenes_is_turned_to_look_forward(tmp_path: Path) -> None:
    file = tmp_path / "a.pcd.bin"
    np.array([[0, 10, 0, 255, 1], [3, 0, 0, 51, 2]], "<f4").tofile(file)
    scan = read_scan(file)
    np.testing.assert_allclose(scan.points[:, :3], [[10, 0, 1.84], [0, -3, 1.84]], atol=1e-6)
    np.testing.assert_allclose(scan.points[:, 3], np.tanh([1, 0.2]), atol=1e-6)
    assert any("turned here to x forward" in sentence for sentence in scan.assumptions)


@given(st.floats(0.3, 4.0), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_the_road_is_found(height: float, seed: int) -> None:
    assert ground_level(street(height, seed).astype(np.float64)) == pytest.approx(-height, abs=0.1)


def test_an_unknown_sensor_is_put_above_its_road(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", street(2.5))
    scan = read_scan(tmp_path / "a.npy")
    assert scan.layout == "xyz" and abs(ground_level(scan.points[:, :3])) < 0.05
    assert any("taken for the road" in sentence for sentence in scan.assumptions)
    assert any("No intensity" in sentence for sentence in scan.assumptions)
    assert (scan.points[:, 3:] == 0).all()
    given_height = read_scan(tmp_path / "a.npy", height=3.0)
    assert ground_level(given_height.points[:, :3]) == pytest.approx(0.5, abs=0.05)
    assert any("3 m above the road (as given)" in sentence for sentence in given_height.assumptions)


def test_columns_of_an_array(tmp_path: Path) -> None:
    points, file = street(1.84), tmp_path / "a.npy"
    rest = np.column_stack((np.arange(len(points)) % 256, np.arange(len(points)) % 32)).astype(
        np.float32
    )
    on_road, raw = points + (0, 0, 1.84), rest[:, :1] / 300
    cases = {
        "waymo": np.column_stack((on_road, raw, raw, np.ones(len(points)))).astype(np.float32),
        "nuscenes": np.column_stack((points, rest)),
        "xyzi": np.column_stack((points, rest[:, :1])),
    }
    for layout, table in cases.items():
        np.save(file, table)
        assert read_scan(file).layout == layout
    record = np.zeros(
        50, [("X", "f4"), ("y", "f8"), ("z", "f4"), ("intensity", "u2"), ("name", "S3")]
    )
    record["z"], record["intensity"] = 2.0, np.arange(50) * 100
    np.save(file, record)
    scan = read_scan(file)
    assert scan.points[-1, 3] == pytest.approx(np.tanh(4900 / 65_535))


@pytest.mark.parametrize("ending", [".pcd", ".ply"])
def test_named_columns(tmp_path: Path, ending: str) -> None:
    rows = np.array([[5, 0, -2, 128], [6, 1, -2, 255], [np.nan, 0, 0, 7], [7, 0, -2, np.nan]])
    text = "\n".join(" ".join(map(str, row)) for row in rows)
    pcd = "FIELDS x y z reflectivity\nSIZE 4 4 4 4\nTYPE F F F F\nWIDTH 4\nHEIGHT 1\nDATA ascii\n"
    ply = "ply\nformat ascii 1.0\nelement vertex 4\n" + "".join(
        f"property float {c}\n" for c in ("x", "y", "z", "reflectivity")
    )
    file = tmp_path / f"a{ending}"
    file.write_text((pcd if ending == ".pcd" else ply + "end_header\n") + text)
    scan = read_scan(file)
    np.testing.assert_allclose(scan.points[:, :3], [[5, 0, 0], [6, 1, 0], [7, 0, 0]])
    np.testing.assert_allclose(scan.points[:, 3], np.tanh([128 / 255, 1, 0]), atol=1e-6)
    assert any("1 of 4 points hold NaN" in sentence for sentence in scan.assumptions)
    np.testing.assert_allclose(read_scan(file, "nuscenes", 2.0).points[1, :3], [1, -6, 0])


def test_units_are_checked_and_can_be_given(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", street(1.8) * 1000)
    with pytest.raises(DataError, match=r"--scale 0\.001 for millimetres"):
        read_scan(tmp_path / "a.npy")
    np.testing.assert_allclose(
        read_scan(tmp_path / "a.npy", scale=0.001).points[:, :2], street(1.8)[:, :2], atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"", "not a whole number of points"),
        ("a.bin", bytes(12), "not a whole number of points"),
        ("a.bin", np.full(20, -7, "<f4").tobytes(), "say which with --layout"),
        ("a.bin", np.full(8, np.inf, "<f4").tobytes(), "not finite"),
        ("a.npy", b"\x93NUMPY", "no array of numbers"),
        ("a.npy", b"<html>no such page</html>", "does not begin as .npy files do"),
        ("a.npy", npy(np.zeros((48, 64, 3), np.uint8)), r"uint8 of shape \(48, 64, 3\)"),
        ("a.bin", struct.pack("<20I", *[0x7FA00000] * 20), "looks like neither|not finite"),
        ("a.npy", b"PK\x03\x04", "it begins as .npz files do; rename it"),
        ("a.bin", b"\x93NUMPY" + bytes(26), "it begins as .npy files do"),
        ("a.npz", b"PK\x03\x04", "no archive of arrays"),
        ("a.csv", b"", "no line of numbers"),
        ("a.csv", b"x,y\n1,2\n", "has no column 'x'|no column 'z'"),
        ("a.txt", b"1 2 3\n1 2 3 4 5\n", "no table of numbers"),
        ("a.xyz", b"1 2 3\na b c\n", "could not convert string to float"),
        ("a.csv", b"time,lat\n1,2,3\n", "names 2 columns, but a line has 3"),
        ("a.csv", "x,y,z\n1,2,3".encode("utf-16"), "'utf-8' codec"),
        ("a.bin", b"version https://git-lfs.github.com/spec/v1\n", "run 'git lfs pull'"),
        ("a.las", b"LASF", "no readable .las file"),
        ("a.pcd", b"", "no PCD file"),
        ("a.ply", b"", "no PLY file"),
        (
            "a.pcd",
            b"FIELDS a b\nSIZE 4 4\nTYPE F F\nWIDTH 1\nDATA ascii\n1 2\n",
            "no column 'x'; its columns are: a, b; call three of them x, y and z",
        ),
        (
            "a.pcd",
            b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 0\nDATA ascii\n",
            "no finite points",
        ),
        (
            "a.zip",
            b"PK",
            "scans are .bin, .npy, .npz, .pcd, .ply, .las, .laz, .txt, .*, not '.zip'",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_scan(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_layouts_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=", ".join(LAYOUTS)):
        read_scan(kitti(tmp_path), layout="livox")
    with pytest.raises(DataError, match="5 float32"):
        read_scan(kitti(tmp_path, count=4), layout="nuscenes")
    with pytest.raises(DataError, match="does not exist"):
        read_scan(tmp_path / "none.bin")
    with pytest.raises(DataError, match="is a folder; give one of its scans"):
        read_scan(tmp_path)


@given(
    content=st.binary(max_size=200),
    ending=st.sampled_from((".bin", ".npy", ".npz", ".pcd", ".ply", ".csv", ".las", ".laz")),
    head=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_rubbish_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str, head: bool
) -> None:
    begin = (
        {
            ".npy": b"\x93NUMPY\x01\x00",
            ".ply": b"ply\n",
            ".pcd": b"FIELDS x y z\n",
            ".csv": b"1,2,3\n",
        }.get(ending, b"LASF" if ending.startswith(".la") else b"")
        if head
        else b""
    )
    file = tmp_path_factory.getbasetemp() / f"rubbish{ending}"
    file.write_bytes(begin + content)
    try:
        assert read_scan(file).points.shape[1] == 5
    except DataError as error:
        assert "\n" not in str(error)


@given(place=st.integers(0, 127), byte=st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_a_damaged_array_header(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.npy"
    np.save(file, street(1.7)[:50])
    content = bytearray(file.read_bytes())
    content[place] = byte
    file.write_bytes(bytes(content))
    try:
        read_scan(file)
    except DataError as error:
        assert "damaged.npy" in str(error)


# ---- what cannot be what it is taken for


def saved(folder: Path, *columns: np.ndarray, height: float = 1.8) -> Path:
    """A street seen from ``height`` metres with columns behind x, y, z."""
    np.save(folder / "a.npy", np.column_stack((street(height), *columns)))
    return folder / "a.npy"


N = 4500
GREY = (np.arange(N) * 7 % 256).astype(np.float64)


def test_a_road_far_from_the_assumed_frame_is_said(tmp_path: Path) -> None:
    """The height of an assumed layout gives way to the points', that of a named one does not."""
    file = kitti(tmp_path)
    values = np.fromfile(file, "<f4").reshape(-1, 4)
    (values - (0, 0, 1, 0)).astype("<f4").tofile(file)
    scan = read_scan(file)
    assert scan.layout == "kitti" and abs(ground_level(scan.points[:, :3])) < 0.05
    assert any("too far from 0: instead the most" in sentence for sentence in scan.assumptions)
    for options in ({"layout": "kitti"}, {"height": 1.73}):
        scan = read_scan(file, **options)
        assert ground_level(scan.points[:, :3]) == pytest.approx(-1, abs=0.05)
        assert any("far from 0 (--height 2." in sentence for sentence in scan.assumptions)
    waymo = (GREY / 300, GREY / 300, -np.ones(N))
    assert read_scan(saved(tmp_path, *waymo, height=0.0)).layout == "waymo"
    moved = read_scan(saved(tmp_path, *waymo))
    assert moved.layout == "xyzi" and abs(ground_level(moved.points[:, :3])) < 0.05


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ((GREY * 25,), "tanh of 'intensity' / 65535"),
        ((GREY * 16,), "tanh of 'intensity' / 4095"),
        ((GREY, np.linspace(0, 0.1, N)), "What column 5 holds"),
        ((GREY, GREY % 64, GREY % 3), "What columns 5 to 6 hold"),
        ((np.ones(N),), "Column 4 is 1 at every point"),
        ((GREY / 8 - 30,), "Column 4 goes down to -30"),
        ((1.69e9 + GREY,), "Column 4 reaches 1.69e+09"),
        ((GREY, GREY[::-1], GREY), "Columns 4 to 6 look like colours"),
        ((np.full(N, np.nan),), "Column 4 has no finite value"),
    ],
)
def test_columns_that_cannot_be_what_they_are_taken_for(
    tmp_path: Path, columns: tuple[np.ndarray, ...], sentence: str
) -> None:
    scan = read_scan(saved(tmp_path, *columns))
    assert any(sentence in line for line in scan.assumptions), scan.assumptions
    assert abs(ground_level(scan.points[:, :3])) < 0.05 and not scan.points[:, 4].any()
    assert ("intensity" in sentence or "What" in sentence) == scan.points[:, 3].any()


def test_a_named_elongation_that_is_none(tmp_path: Path) -> None:
    record = np.zeros(N, [(name, "f4") for name in ("x", "y", "z", "intensity", "elongation")])
    record["x"], record["y"], record["z"] = street(1.8).T
    record["elongation"] = GREY % 16
    np.save(tmp_path / "a.npy", record)
    said = " ".join(read_scan(tmp_path / "a.npy").assumptions)
    assert "'elongation' lies between 0 and 15" in said
    assert "'intensity' is 0 at every point" in said


def test_points_that_are_no_metres_around_a_sensor(tmp_path: Path) -> None:
    for change, sentence in (
        (lambda xyz: xyz * 40, "lie more than"),
        (lambda xyz: xyz / 100, "lie within 0."),
        (lambda xyz: xyz + (300, 200, 0), "around x = 3"),
        (lambda xyz: np.column_stack((xyz[:, 0], xyz[:, 2], 2 * xyz[:, 1])), "is it up"),
    ):
        np.save(tmp_path / "a.npy", change(street(1.8)))
        assert any(sentence in line for line in read_scan(tmp_path / "a.npy").assumptions)
    np.save(tmp_path / "a.npy", street(1.8) + (500_000.0, 4_000_000.0, 0))
    with pytest.raises(DataError, match=r"as on a map: subtract where the sensor was"):
        read_scan(tmp_path / "a.npy")


def test_padding_may_be_most_of_a_scan(tmp_path: Path) -> None:
    padded = np.concatenate((street(1.8), np.full((9000, 3), 1e30, np.float32)))
    grey = np.where(padded[:, 0] < 1e9, 0.3, 0.0).astype(np.float32)
    for name, columns in (("a.npy", padded), ("a.bin", np.column_stack((padded, grey)))):
        if name.endswith("bin"):
            columns.astype("<f4").tofile(tmp_path / name)
        else:
            np.save(tmp_path / name, columns)
        assert len(read_scan(tmp_path / name).points) == len(street(1.8)), name


def test_of_two_intensities_the_one_that_says_something_is_taken(tmp_path: Path) -> None:
    xyz = street(1.8)
    flat, grey = np.zeros(len(xyz)), np.linspace(0, 0.9, len(xyz))
    np.savez(tmp_path / "a.npz", x=xyz[:, 0], y=xyz[:, 1], z=xyz[:, 2], intensity=flat, signal=grey)
    scan = read_scan(tmp_path / "a.npz")
    assert any("tanh of 'signal'" in line for line in scan.assumptions)
    grey[7] = 60_000.0  # one wild value is no scale
    np.savez(tmp_path / "a.npz", x=xyz[:, 0], y=xyz[:, 1], z=xyz[:, 2], intensity=grey)
    assert np.median(read_scan(tmp_path / "a.npz").points[:, 3]) > 0.3


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y,z,X,intensity\n" + "1,2,3,0,0.5\n" * 200)
    with pytest.raises(DataError, match="2 columns are called 'x'; rename one"):
        read_scan(tmp_path / "a.csv")


@pytest.mark.parametrize("value", [1e30, -1e9, 3e38])
def test_few_points_out_of_the_world_are_counted_and_left_out(tmp_path: Path, value: float) -> None:
    padded = np.concatenate((street(1.8), np.full((700, 3), value, np.float32)))
    np.save(tmp_path / "a.npy", padded)
    scan = read_scan(tmp_path / "a.npy")
    assert len(scan.points) == len(street(1.8))
    assert any("700 of 5,200 points lie more than 1,000 km away" in s for s in scan.assumptions)


def test_names_with_dots_stay_apart(tmp_path: Path) -> None:
    names = {"1694.100000.npy", "1694.200000.npy", "a.b.npy"}
    for name in names:
        np.save(tmp_path / name, street(1.8))
    assert {f"{read_scan(tmp_path / name).name}.npy" for name in names} == names
    assert read_scan(nuscenes(tmp_path, "b.c.pcd.bin")).name == "b.c"


def test_z_that_points_down_is_said(tmp_path: Path) -> None:
    for name, turn in (("up", 1), ("down", -1)):
        np.save(tmp_path / f"{name}.npy", street(1.7) * (1, turn, turn))
        said = " ".join(read_scan(tmp_path / f"{name}.npy").assumptions)
        assert ("does z point up in this file?" in said) == (name == "down")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_and_heights_that_are_none(tmp_path: Path, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--scale is how many metres .* not {value:g}"):
        read_scan(kitti(tmp_path), scale=value)
    with pytest.raises(ConfigError, match=r"--height is metres of the sensor .* not"):
        read_scan(kitti(tmp_path), height=value * 1000 if value < 0 else float("nan"))
