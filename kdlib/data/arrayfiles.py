"""Reads arrays (.npy, .npz), text (.txt, .csv, .xyz, .asc) and .las or .laz files: columns by name
where the file has names, else a table (N, C) whose columns are known by their position.
"""

from __future__ import annotations

import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdlib.data.pointfiles import PointColumns
from kdlib.errors import DataError
from kdlib.types import Float64

Read = tuple[PointColumns | Float64, tuple[str, ...]]
"""What a file holds, and sentences about how it was read."""

_MOST_COLUMNS = 32  # of points; an array of more is a picture
_TIGHTEST = 10  # points a byte of .laz, at most
_TOO_MANY = "more is announced than it can hold"
_CLOUDS = ("points", "xyz", "xyzi", "cloud", "pointcloud", "lidar", "pc", "pos", "position", "data")
_NO_ARRAY = (
    *(ValueError, OSError, EOFError, SyntaxError, TypeError, MemoryError, OverflowError, KeyError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error, RuntimeError),
)


def read_npy(path: Path) -> Read:
    """Return the points of an array: (N, C), organised (H, W, C), transposed, or of records.

    Raises:
        DataError: If it is damaged, or no array of points.
    """
    try:
        with path.open("rb") as file:
            if file.read(6) != b"\x93NUMPY":  # NumPy would speak of unpickling it
                raise ValueError("it does not begin as .npy files do")
            file.seek(0)
            array = np.load(file, allow_pickle=False)
    except _NO_ARRAY as error:
        raise DataError(
            f"{path} is no array of numbers ({error}); write it with numpy.save"
        ) from error
    return _of_array(path, array)


def read_npz(path: Path) -> Read:
    """Return the points of an archive: its one array, the one that is named as points are, or its
    arrays x, y, z.

    Raises:
        DataError: If it is damaged, or which array holds the points cannot be told.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except _NO_ARRAY as error:
        raise DataError(
            f"{path} is no archive of arrays of numbers ({error}); write it with numpy.savez"
        ) from error
    if len(arrays) == 1:
        return _of_array(path, *arrays.values())
    return _of_fields(path, arrays)


def _of_array(path: Path, array: NDArray[Any]) -> Read:
    if not array.dtype.names:
        return _table(path, array)
    records = array.reshape(-1)
    return _of_fields(path, {name: records[name] for name in array.dtype.names})


def _of_fields(path: Path, fields: Mapping[str, NDArray[Any]]) -> Read:
    """Return x, y, z and what has as many numbers; else the array that holds the points."""
    numbers = {
        name.lower(): values for name, values in fields.items() if values.dtype.kind in "fiu"
    }
    shapes = {numbers[axis].shape for axis in "xyz" if axis in numbers}
    if len(shapes) == 1 and all(axis in numbers for axis in "xyz"):
        (shape,) = shapes
        columns = {name: values for name, values in numbers.items() if values.shape == shape}
        return {name: values.reshape(-1).astype(np.float64) for name, values in columns.items()}, ()
    clouds = [
        name for name, values in numbers.items() if values.ndim > 1 and _axis(values) is not None
    ]
    named = [name for name in _CLOUDS if name in clouds] or clouds
    if not named or (len(named) > 1 and named == clouds):
        listed = ", ".join(f"{name} {values.shape}" for name, values in fields.items()) or "none"
        raise DataError(
            f"{path}: which of its arrays holds the points cannot be told ({listed}); name it "
            "'points', (N, 3 or more), or name columns x, y and z"
        )
    table, said = _table(path, numbers[named[0]])
    assert not isinstance(table, dict)
    said = (f"Points from '{named[0]}' of {', '.join(fields)}.", *said)
    beside = {
        name: values.reshape(-1).astype(np.float64)
        for name, values in numbers.items()
        if values.size == len(table) and name not in "xyz"
    }
    if table.shape[1] > 3 or not beside:
        return table, said
    return {**dict(zip("xyz", table.T)), **beside}, said


def _axis(array: NDArray[Any]) -> int | None:
    """Return along which axis the columns of points lie: the last, or the one that can be."""
    few = [axis for axis, count in enumerate(array.shape) if 3 <= count <= 10]
    last = array.ndim - 1
    if last in few or (len(few) != 1 and 3 <= array.shape[last] <= _MOST_COLUMNS):
        return last
    return few[0] if len(few) == 1 and array.shape[last] > 10 else None


def _table(path: Path, array: NDArray[Any]) -> Read:
    numbers = array.dtype.kind in "fiu" and array.dtype.itemsize > 1  # of one byte are pictures
    axis = _axis(array) if numbers and array.ndim > 1 else None
    if axis is None:
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}; needed are floats (N, 3 or more), "
            "organised ones (H, W, 3 or more), or records with x, y and z"
        )
    columns = array.shape[axis]
    table = np.moveaxis(array, axis, -1).reshape(-1, columns).astype(np.float64)
    if axis != array.ndim - 1:
        return table, (f"An array {array.shape} is taken for {len(table):,} points, transposed.",)
    return table, ()


def read_text(path: Path) -> Read:
    """Return the points of a text file, one a line: words apart by space, comma or semicolon, names
    in a line before them.

    Raises:
        DataError: If it is no text, or its lines are no numbers.
    """
    import pandas as pd

    try:
        with path.open(encoding="utf-8-sig") as file:
            start, names, separator, decimal = _begin(path, list(islice(file, 100)))
        frame = pd.read_csv(
            path,
            sep=separator,
            decimal=decimal,
            header=None,
            skiprows=start,
            comment="#",
            skipinitialspace=True,
            dtype=np.float64,
            encoding="utf-8-sig",
        )
    except DataError:
        raise
    except ValueError as error:  # also of decoding and of pandas' parser
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{path} is no table of numbers, one point a line ({reason}); write x y z intensity "
            "with numpy.savetxt"
        ) from error
    table = frame.to_numpy()
    while table.shape[1] and np.isnan(table[:, -1]).all():  # lines end with a separator
        table = table[:, :-1]
    while names and not names[-1]:
        names.pop()
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: {names.count(twice[0])} columns are called '{twice[0]}'; rename one"
        )
    if len(names) == table.shape[1]:
        return {name: column for name, column in zip(names, table.T) if name}, ()
    if names:
        raise DataError(
            f"{path}: its header names {len(names)} columns, but a line has {table.shape[1]}; "
            "write a name for each, x, y, z and intensity"
        )
    if table.shape[1] < 3:
        raise DataError(f"{path} has {table.shape[1]} numbers a line; needed are x y z, 3 or more")
    return table, ()


def _begin(path: Path, lines: list[str]) -> tuple[int, list[str], str, str]:
    """Return where the numbers begin, the names of the columns, what separates, and the decimal
    sign.
    """
    names: list[str] = []
    for number, line in enumerate(lines):
        comment = line.lstrip().startswith(("#", "//"))
        text = line.strip().strip("#/").strip()
        separator, decimal = _dialect(text)
        words = [word.strip() for word in re.split(separator, text)]
        if not comment and len(words) > 1 and _numbers(words, decimal):
            return number, names, separator, decimal
        named = [re.split(r"[\s\[(]", word.strip("\"'"))[0].lower() for word in words]
        # a comment may be anything; a line with the number of points is none of names
        if {"x", "y", "z"} <= set(named) or not (comment or len(words) == 1):
            names = named
    raise DataError(
        f"{path} has no line of numbers among its first {len(lines)}; one point a line is needed, "
        "x y z intensity"
    )


def _dialect(line: str) -> tuple[str, str]:
    """Return what separates the words of a line, and the decimal sign."""
    if ";" in line:
        return ";", "," if re.search(r"\d,\d", line) else "."
    if re.fullmatch(r"([-+]?\d+,\d+\s+){2,}[-+]?\d+,\d+", line):
        return r"\s+", ","
    return ("," if "," in line else r"\s+"), "."


def _numbers(words: list[str], decimal: str) -> bool:
    try:
        return bool([float(word.replace(decimal, ".")) for word in words if word])
    except ValueError:
        return False


def read_las(path: Path) -> Read:
    """Return x, y, z, intensity and extra columns of a .las or .laz file, in its own units.

    Raises:
        DataError: If it is damaged, or laspy or what unpacks .laz is missing.
    """
    remedy = "pip install laspy lazrs, or convert the file to .npy, .pcd or text"
    try:
        import laspy
    except ImportError as error:
        raise DataError(f"{path}: {path.suffix} files need the package laspy; {remedy}") from error
    try:
        if path.suffix.lower() == ".laz" and not laspy.LazBackend.detect_available():
            raise DataError(f"{path}: .laz files need the package lazrs; {remedy}")
        _check_las_counts(path)
        with np.errstate(all="ignore"), laspy.open(path) as file:
            if file.header.point_count > _TIGHTEST * path.stat().st_size:
                raise ValueError(_TOO_MANY)
            cloud = file.read()
            names = ("x", "y", "z", "intensity", *cloud.point_format.extra_dimension_names)
            columns = {name.lower(): np.asarray(cloud[name], np.float64) for name in names}
    except BaseException as error:
        # A damaged file makes laspy raise anything, and a panic of lazrs is no Exception.
        panic = type(error).__name__ == "PanicException"
        if panic or (isinstance(error, Exception) and not isinstance(error, DataError)):
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(
                f"{path} is no readable {path.suffix} file ({reason}); copy it again"
            ) from error
        raise
    return {name: values for name, values in columns.items() if values.ndim == 1}, ()


def _check_las_counts(path: Path) -> None:
    """Refuse more records and chunks than a file can hold: laspy reads on behind its end, and lazrs
    makes room for any number.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(247).ljust(247, b"\0")
        counts = [head[100:104], head[243:247] if head[25] > 3 else b"\0"]
        if head[104] >= 64:  # the points are compressed
            file.seek(int.from_bytes(head[96:100], "little"))
            place = int.from_bytes(file.read(8), "little", signed=True)
            if place == -1:  # of a stream, it stands at the end
                file.seek(-8, os.SEEK_END)
                place = int.from_bytes(file.read(8), "little", signed=True)
            file.seek(place + 4)
            counts.append(file.read(4))
    if max(int.from_bytes(count, "little") for count in counts) > size:
        raise ValueError(_TOO_MANY)
