"""Scans as arrays, text and .las: every disguise of the same street ends in the same points."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdlib.data.scans import Scan, read_scan
from kdlib.errors import DataError

COUNT = 1200
_RNG = np.random.default_rng(0)
ROAD = np.column_stack((_RNG.uniform(-30, 30, (1000, 2)), np.full(1000, -2.0)))
WALL = np.column_stack((_RNG.uniform(-30, 30, (200, 2)), _RNG.uniform(-2, 3, 200)))
XYZ = np.round(np.concatenate((ROAD, WALL)), 3)
GREY = (np.arange(COUNT) * 7) % 256
STREET = np.column_stack((XYZ, GREY))
EXPECTED = np.column_stack((XYZ + (0, 0, 2), np.tanh(GREY / 255), np.zeros(COUNT)))


def check(scan: Scan, expected: np.ndarray = EXPECTED) -> Scan:
    np.testing.assert_allclose(scan.points, expected, atol=2e-3)
    return scan


def records() -> np.ndarray:
    rows = np.zeros(COUNT, [("X", "<f8"), ("y", ">f4"), ("z", "<f4"), ("t", "<u4"), ("i", "<u2")])
    rows["X"], rows["y"], rows["z"] = XYZ.T
    rows["i"] = GREY
    return rows


def of_vectors() -> np.ndarray:
    rows = np.zeros(COUNT, [("xyz", "<f8", 3), ("intensity", "u1")])
    rows["xyz"], rows["intensity"] = XYZ, GREY
    return rows


@pytest.mark.parametrize(
    "array",
    [
        STREET.T,
        STREET.reshape(30, 40, 4),
        STREET.reshape(30, 40, 4).transpose(2, 0, 1),
        STREET[None],
        np.asfortranarray(STREET),
        STREET.astype(">f4"),
        records(),
        records().reshape(30, 40),
        of_vectors(),
        np.column_stack((STREET, np.linspace(0, 0.1, COUNT))),
        np.column_stack((STREET, np.full(COUNT, 9.0), GREY % 3, GREY % 5)),
    ],
    ids=[
        *("transposed", "organised", "channels_first", "batch_of_one", "fortran", "big_endian"),
        *("records", "organised_records", "records_of_vectors", "time_behind", "labels_behind"),
    ],
)
def test_arrays_in_disguise(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    check(read_scan(tmp_path / "a.npy"))


@pytest.mark.parametrize(
    "arrays",
    [
        {"arr_0": STREET},
        {"a": STREET.T},
        {"points": STREET, "labels": GREY, "pose": np.eye(4)},
        {"xyz": XYZ, "intensity": GREY},
        dict(zip(("x", "y", "z", "reflectivity"), STREET.T)),
        {"scan": records()},
    ],
)
def test_archives_of_arrays(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    check(read_scan(tmp_path / "a.npz"))


def test_which_array_of_an_archive_cannot_be_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=STREET, second=STREET)
    with pytest.raises(DataError, match=r"cannot be told \(first \(1200, 4\), second"):
        read_scan(tmp_path / "a.npz")


def lines(separator: str, names: str = "", decimal: str = ".", end: str = "\n") -> str:
    rows = [separator.join(f"{value:.3f}".replace(".", decimal) for value in row) for row in STREET]
    return end.join([*([names] if names else []), *rows, ""])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", lines(" ")),
        ("a.xyz", lines("\t")),
        ("a.asc", lines(" ", "//X Y Z Intensity")),
        ("a.csv", lines(",", "x,y,z,intensity")),
        ("a.csv", lines(", ", "\ufeffX [m], Y [m], Z [m], Intensity")),
        ("a.csv", lines(",", '"x","y","z","reflectivity"', end="\r\n")),
        ("a.csv", lines(";", "x;y;z;intensity", decimal=",")),
        ("a.txt", lines("  ", decimal=",")),
        ("a.xyz", lines(" ", str(COUNT))),
        ("a.txt", lines(" ", "# recorded on a Monday")),
        ("a.csv", lines(",", "x,y,z,intensity,").replace("\n", ",\n")),
    ],
)
def test_text_in_every_dialect(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    check(read_scan(tmp_path / name))


@pytest.mark.parametrize("ending", [".las", ".laz"])
def test_las_and_laz(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    laspy = pytest.importorskip("laspy")
    pytest.importorskip("lazrs")
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = np.full(3, 0.001), np.zeros(3)
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = XYZ.T
    cloud.intensity = GREY.astype(np.uint16)
    file = tmp_path / f"a{ending}"
    cloud.write(file)
    check(read_scan(file))
    (tmp_path / f"cut{ending}").write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"no readable .*copy it again"):
        read_scan(tmp_path / f"cut{ending}")
    monkeypatch.setattr(laspy.LazBackend, "detect_available", lambda: ())
    if ending == ".laz":
        with pytest.raises(DataError, match=r"need the package lazrs; pip install"):
            read_scan(file)
    monkeypatch.setitem(sys.modules, "laspy", None)
    with pytest.raises(DataError, match=r"need the package laspy; pip install"):
        read_scan(file)


def save_bin(path: Path, table: np.ndarray) -> None:
    table.astype("<f4").tofile(path)


def save_pcd(path: Path, table: np.ndarray) -> None:
    columns = "FIELDS x y z intensity\nSIZE 8 8 8 8\nTYPE F F F F\nCOUNT 1 1 1 1\n"
    head = f"{columns}WIDTH {len(table)}\nHEIGHT 1\nDATA binary\n"
    path.write_bytes(head.encode() + table.astype("<f8").tobytes())


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.bin", save_bin),
        ("a.pcd", save_pcd),
        ("a.npy", np.save),
        ("a.npz", np.savez),
        ("a.txt", np.savetxt),
    ],
)
def test_points_that_are_none_are_counted(
    tmp_path: Path, name: str, save: Callable[..., None]
) -> None:
    nan, zero = np.full((30, 4), np.nan), np.zeros((20, 4))
    save(tmp_path / name, np.concatenate((nan, STREET, zero)))
    said = check(read_scan(tmp_path / name)).assumptions
    assert any("30 of 1,250 points hold NaN or infinity" in sentence for sentence in said)
    assert any("20 of 1,250 points lie at 0, 0, 0" in sentence for sentence in said)
