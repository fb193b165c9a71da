"""PCD and PLY files: what PCL and open3d write is read to the last digit, and every damaged file is
one sentence.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdlib.data.pointfiles import _lzf, read_pcd, read_ply
from kdlib.errors import DataError

POINTS = np.array([[1, 2, -1.5, 0.25], [-3.5, 4, 0, 1], [7, 8, 9, 0]], np.float32)
PCD = (
    "VERSION 0.7\nFIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH "
    "3\nHEIGHT 1\nPOINTS 3\nDATA {}\n"
)
PLY = "ply\nformat {} 1.0\ncomment by hand\nelement vertex 3\n" + "".join(
    f"property float {c}\n" for c in ("x", "y", "z", "intensity")
)
FACES = "element face 1\nproperty list uchar int vertex_indices\n"
TEXT = "\n".join(" ".join(map(str, row)) for row in POINTS.tolist()).encode()


def literal(data: bytes) -> bytes:
    """LZF without any compression: runs of up to 32 bytes as they are."""
    return b"".join(
        bytes([len(data[i : i + 32]) - 1]) + data[i : i + 32] for i in range(0, len(data), 32)
    )


def packed(data: bytes) -> bytes:
    inner = literal(data)
    return np.array([len(inner), len(data)], "<u4").tobytes() + inner


WHOLE = {
    "ascii.pcd": PCD.format("ascii").encode() + TEXT,
    "binary.pcd": PCD.format("binary").encode() + POINTS.tobytes(),
    "compressed.pcd": PCD.format("binary_compressed").encode() + packed(POINTS.T.tobytes()),
    "ascii.ply": (PLY.format("ascii") + "end_header\n").encode() + TEXT,
    "little.ply": (PLY.format("binary_little_endian") + FACES + "end_header\n").encode()
    + POINTS.tobytes()
    + b"\x03"
    + bytes(12),
    "big.ply": (PLY.format("binary_big_endian") + "end_header\n").encode()
    + POINTS.astype(">f4").tobytes(),
}


def read(path: Path) -> dict[str, np.ndarray]:
    return (read_pcd if path.suffix == ".pcd" else read_ply)(path)


def written(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("name", WHOLE)
def test_every_storage_gives_the_same_columns(tmp_path: Path, name: str) -> None:
    columns = read(written(tmp_path, name, WHOLE[name]))
    assert list(columns) == ["x", "y", "z", "intensity"]
    np.testing.assert_array_equal(np.stack(list(columns.values()), 1), POINTS)


def test_windows_line_ends_and_upper_case_names(tmp_path: Path) -> None:
    head = PCD.format("ascii").replace("x y z intensity", "X Y Z Intensity").replace("\n", "\r\n")
    assert list(read_pcd(written(tmp_path, "a.pcd", head.encode() + TEXT))) == [
        "x",
        "y",
        "z",
        "intensity",
    ]


def test_padding_and_columns_of_several_numbers_are_passed_over(tmp_path: Path) -> None:
    columns = (
        "FIELDS x _ y normal z _ ring\nSIZE 4 1 4 4 8 1 2\nTYPE F U F F F U U\nCOUNT 1 4 1 "
        "3 1 2 1\n"
    )
    head = f"{columns}WIDTH 1\nHEIGHT 2\nDATA binary\n"
    row = np.dtype(
        [
            ("x", "<f4"),
            ("p", "u1", 4),
            ("y", "<f4"),
            ("n", "<f4", 3),
            ("z", "<f8"),
            ("q", "u1", 2),
            ("ring", "<u2"),
        ]
    )
    rows = np.zeros(2, row)
    rows["x"], rows["z"], rows["ring"] = (1, 2), (3, 4), (5, 600)
    found = read_pcd(written(tmp_path, "a.pcd", head.encode() + rows.tobytes()))
    assert list(found) == ["x", "y", "z", "ring"]
    assert found["z"].tolist() == [3, 4] and found["ring"].tolist() == [5, 600]


@given(st.binary(max_size=300), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_lzf_literals_and_copies(data: bytes, repeats: int) -> None:
    assert _lzf(literal(data), len(data)) == data
    # One byte, then a copy of itself from one byte back: the overlapping copy that makes runs.
    length = repeats + 2
    copy = bytes([length - 2 << 5, 0]) if length - 2 < 7 else bytes([7 << 5, length - 2 - 7, 0])
    assert _lzf(b"\x00a" + copy, length + 1) == b"a" * (length + 1)


@pytest.mark.skipif(
    find_spec("open3d") is None,
    reason="needs open3d, which writes the files: pip install kdlib[cpu]",
)
def test_files_of_open3d(tmp_path: Path) -> None:
    points = np.round(np.random.default_rng(0).normal(0, 10, (2000, 3)), 1)
    np.save(tmp_path / "points.npy", points)
    code = """
import sys, numpy as np, open3d as o3d
folder = sys.argv[1]
cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(np.load(folder + '/points.npy')))
for kind in ('pcd', 'ply'):
    o3d.io.write_point_cloud(f'{folder}/text.{kind}', cloud, write_ascii=True)
    o3d.io.write_point_cloud(f'{folder}/binary.{kind}', cloud)
o3d.io.write_point_cloud(f'{folder}/compressed.pcd', cloud, compressed=True)
assert b'binary_compressed' in open(folder + '/compressed.pcd', 'rb').read(400)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    for name in ("text.pcd", "binary.pcd", "compressed.pcd", "text.ply", "binary.ply"):
        columns = read(tmp_path / name)
        np.testing.assert_allclose(
            np.stack([columns[c] for c in "xyz"], 1), points, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    # the face behind the points is not read
    content = WHOLE[name].removesuffix(b"\x03" + bytes(12))
    # of a text, the last digits may be missing unnoticed
    for length in range(len(content) - (2 if "ascii" in name else 1)):
        with pytest.raises(DataError) as caught:
            read(written(tmp_path, name, content[:length]))
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", WHOLE)
@given(place=st.integers(0, 400), byte=st.integers(0, 255))
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_byte_is_read_or_refused(
    tmp_path: Path, name: str, place: int, byte: int
) -> None:
    content = bytearray(WHOLE[name])
    content[place % len(content)] = byte
    try:
        columns = read(written(tmp_path, name, bytes(content)))
    except DataError as error:
        assert name in str(error)
    else:
        assert len({len(column) for column in columns.values()}) <= 1


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("ascii.pcd", "DATA ascii", "DATA zip", "'zip'"),
        ("ascii.pcd", "SIZE 4 4 4 4", "SIZE 4 4 4", "one entry per column"),
        ("ascii.pcd", "TYPE F F F F", "TYPE F F F Q", "TYPE Q"),
        ("ascii.pcd", "POINTS 3", "POINTS many", "POINTS is 'many'"),
        ("ascii.pcd", "POINTS 3", "POINTS 4", "12 numbers are there"),
        ("ascii.pcd", "-1.5", "none", "no number"),
        ("binary.pcd", "POINTS 3", "POINTS 999999999999", "cut off"),
        ("ascii.ply", "format ascii", "format gzip", "'gzip'"),
        ("ascii.ply", "element vertex 3", "element face 3", "first element is 'face'"),
        ("ascii.ply", "property float x", "property list uchar int x", "not one number"),
        ("ascii.ply", "ply\n", "obj\n", "does not begin with 'ply'"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, name: str, old: str, new: str, message: str
) -> None:
    content = WHOLE[name].replace(old.encode(), new.encode())
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, name, content))


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    head = PCD.format("binary_compressed").encode()
    bomb = np.array([2, 4_000_000_000], "<u4").tobytes() + b"\x00a"
    with pytest.raises(DataError, match="cut off"):
        read_pcd(written(tmp_path, "a.pcd", head + bomb))
