"""Turns the arguments of a frame of one's own into arrays, or says which value cannot be meant and
what to give instead.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kdlib.data.points import within_reach
from kdlib.data.segment import BOX_NUMBERS
from kdlib.errors import DataError
from kdlib.types import Float32, Float64, Int64

REACH = "80 m ahead or beside and 32 m up or down"
"""What a store can hold of a frame."""

_POINT_COLUMNS = ("x", "y", "z", "intensity", "elongation")
_LIMITS = {
    "intensity": (1.0, "its tanh, from 0 to 1: divide by the scale's end, or give np.tanh of it"),
    "elongation": (2.0, "0 to 2: leave the column out (points[:, :4]) if it is something else"),
}
_LEAST_WITHIN = 0.1  # share of a frame's points that a store must be able to hold
_FARTHEST_BOX = 500.0  # metres; no LiDAR labels objects beyond
_SIZES = (0.01, 80.0)  # metres
_MOST_HEADING = 1000.0  # radians; beyond, float32 no longer holds an angle
_FASTEST = 100.0  # metres a second
_LATEST = 4_102_444_800_000_000  # microseconds: the year 2100
_LONGEST = 200  # bytes of a folder's name; a file system's limit is 255, and it gets an ending
_MOST_CLASSES = 127  # a table's types have one byte
_MOST_LETTERS = 2000  # of all classes; the header of an object bank has 4096 bytes


def integer(value: Any, what: str, remedy: str) -> int:
    """Return a whole number that is not negative; raises DataError if it is none."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0 or isinstance(value, (bool, np.bool_)):
        raise DataError(f"{what} is {value!r}, not a whole number from 0 on; {remedy}")
    return number


def micros(value: Any, where: str) -> int:
    """Return a timestamp; raises DataError if it is no whole number of microseconds."""
    what = f"{where}: timestamp_micros"
    time = integer(value, what, "give microseconds: int(seconds * 1_000_000)")
    if time > _LATEST:
        raise DataError(
            f"{what} is {time}, after the year 2100; give microseconds, nanoseconds // 1000"
        )
    return time


def folder_name(name: Any, what: str) -> str:
    """Return a name that can be a folder's; raises DataError if it cannot."""
    text = name if isinstance(name, str) else ""
    bad = not text.isprintable() or text[:1] in ("", ".") or set(text) & set("/\\")
    if bad or len(text.encode()) > _LONGEST:
        raise DataError(
            f"{name!r:.100} cannot name a folder; name the {what} by a printable text of up to "
            f"{_LONGEST} bytes without slashes and leading dots"
        )
    return text


def class_list(names: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of a dataset; raises DataError if they cannot be told apart in tables."""
    if isinstance(names, (set, frozenset)):
        raise DataError(f"class_names are {names!r:.100}, a set; give a list, whose order stays")
    classes = (names,) if isinstance(names, str) else tuple(_listed(names, "class_names"))
    texts = [name for name in classes if isinstance(name, str) and name and name.isprintable()]
    apart = len({name.upper() for name in texts}) == len(classes)
    small = 0 < len(classes) <= _MOST_CLASSES and len(json.dumps(texts)) <= _MOST_LETTERS
    if not (small and apart) or "," in "".join(texts):
        raise DataError(
            f"class_names are {classes!r:.100}; give up to {_MOST_CLASSES} different short texts "
            "without commas, which differ by more than their case"
        )
    return tuple(map(str, classes))


def _listed(values: Any, what: str) -> list[Any]:
    """Return the items of a list, array or column."""
    try:
        return list(values)
    except TypeError:
        raise DataError(f"{what} are {values!r}; give a list") from None


def _numbers(values: ArrayLike, what: str) -> Float64:
    """Return values as numbers, whatever array library they come from."""
    if isinstance(values, np.ndarray) and values.dtype.names:
        raise DataError(
            f"{what} are records of {', '.join(values.dtype.names)}; stack the columns: "
            "np.column_stack([records['x'], records['y'], ...])"
        )
    try:
        if isinstance(values, np.ma.MaskedArray):
            values = np.ma.filled(values.astype(np.float64), np.nan)
        array = np.asarray(values)
        if array.dtype.kind not in "biufOU":
            raise TypeError(f"they are of type {array.dtype}")
        return array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{what} are no array of numbers ({reason}); give a NumPy one") from error


def point_columns(points: ArrayLike, where: str) -> Float32:
    """Return points (N, 6) as files have them: raw intensity, and no no-label zone."""
    given = np.atleast_2d(_numbers(points, f"{where}: points"))
    if given.size == 0:
        return np.zeros((0, 6), np.float32)
    if given.ndim != 2 or not 3 <= given.shape[1] <= 5:
        raise DataError(
            f"{where}: points of shape {np.shape(points)}; needed are (N, 3 to 5), a row a point: "
            f"{', '.join(_POINT_COLUMNS)}; transpose or reshape them, or leave columns out"
        )
    columns = np.zeros((len(given), 6), np.float32)
    with np.errstate(over="ignore"):
        columns[:, : given.shape[1]] = given
    bad = ~np.isfinite(columns)
    if bad.any():
        names = [_POINT_COLUMNS[column] for column in np.unique(np.nonzero(bad)[1])]
        raise DataError(
            f"{where}: {bad.any(axis=1).sum():,} of {len(columns):,} points hold NaN or infinity "
            f"in {', '.join(names)}; leave them out: points[np.isfinite(points).all(axis=1)]"
        )
    for column, (name, (most, needed)) in enumerate(_LIMITS.items(), 3):
        low, high = columns[:, column].min(), columns[:, column].max()
        if low < 0 or high > most * 1.001:
            raise DataError(f"{where}: {name} goes from {low:g} to {high:g}; needed is {needed}")
    _check_places(columns, where)
    # stores keep the tanh of raw intensities
    columns[:, 3] = np.arctanh(np.clip(columns[:, 3].astype(np.float64), 0, 1 - 1e-7))
    columns[:, 5] = -1  # in no no-label zone
    return columns


def _check_places(points: Float32, where: str) -> None:
    """Refuse points of another unit or another frame."""
    within = int(within_reach(points).sum())
    low, high = points[:, :3].min(axis=0), points[:, :3].max(axis=0)
    spans = ", ".join(f"{name} from {a:g} to {b:g}" for name, a, b in zip("xyz", low, high))
    remedy = "give metres in the vehicle frame, the road at z = 0"
    if within < _LEAST_WITHIN * len(points):
        raise DataError(
            f"{where}: {within:,} of {len(points):,} points lie within {REACH}: {spans}; {remedy} "
            "(map coordinates: times the inverse of the pose), or leave the frame out"
        )
    if len(points) >= 100 and np.abs(points[:, :3]).max() < 1:
        raise DataError(
            f"{where}: all {len(points):,} points lie within 1 m of the origin: {spans}; {remedy}"
        )


def labelled_boxes(
    boxes: ArrayLike, names: Sequence[str], classes: tuple[str, ...], where: str
) -> tuple[Float64, Int64]:
    """Return boxes (M, 7) and their type numbers (M,), positions in the classes from 1 on."""
    if isinstance(names, str):
        raise DataError(f"{where}: classes are one text, '{names}'; give a list, one a box")
    names = _listed(names, f"{where}: classes")
    own = _numbers(boxes, f"{where}: boxes")
    own = np.zeros((0, 7)) if own.size == 0 else np.atleast_2d(own)
    if own.shape != (len(names), 7):
        across = own.shape == (7, len(names))
        raise DataError(
            f"{where}: boxes of shape {np.shape(boxes)} and {len(names)} classes; needed are "
            f"(M, 7), {', '.join(BOX_NUMBERS)}, and M" + ("; transpose them" if across else "")
        )
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise DataError(
            f"{where}: class '{unknown[0]}' is none of {', '.join(classes)}; leave the box out, "
            "rename it, or name all classes of your dataset in class_names"
        )
    with np.errstate(over="ignore"):
        _refuse(own, ~np.isfinite(own.astype(np.float32)), where, "every box needs finite numbers")
    sizes = np.zeros(own.shape, np.bool_)
    sizes[:, 3:6] = (own[:, 3:6] < _SIZES[0]) | (own[:, 3:6] > _SIZES[1])
    _refuse(own, sizes, where, f"sizes are metres, above {_SIZES[0]:g} and up to {_SIZES[1]:g}")
    places = np.zeros(own.shape, np.bool_)
    places[:, :3] = np.abs(own[:, :3]) > _FARTHEST_BOX
    _refuse(
        own,
        places,
        where,
        "boxes lie in the vehicle frame, in metres, as the points do (map coordinates: times the "
        "inverse of the pose)",
    )
    turned = np.zeros(own.shape, np.bool_)
    turned[:, 6] = np.abs(own[:, 6]) > _MOST_HEADING
    _refuse(own, turned, where, "headings are radians")
    return own, np.array([classes.index(name) + 1 for name in names], np.int64)


def _refuse(boxes: Float64, bad: Any, where: str, needed: str) -> None:
    """Raise DataError naming the first bad value of some boxes."""
    if bad.any():
        box, column = np.argwhere(bad)[0]
        raise DataError(
            f"{where}: {BOX_NUMBERS[column]} of box {box} is {boxes[box, column]:g}; {needed}, "
            f"or leave the box out ({bad.any(axis=1).sum()} of {len(boxes)} are so)"
        )


def object_ids(
    ids: Sequence[str | int] | None, frame: int, count: int, where: str
) -> tuple[str, ...]:
    """Return an id for every box."""
    if ids is None:
        return tuple(f"{frame}_{number}" for number in range(count))
    given = [ids] if isinstance(ids, str) else _listed(ids, f"{where}: ids")
    if len(given) != count:
        raise DataError(
            f"{where}: {len(given)} ids for {count} boxes; give one a box, or leave ids out"
        )
    odd = [value for value in given if not isinstance(value, (str, int, np.integer)) or value == ""]
    if odd:
        raise DataError(f"{where}: id {odd[0]!r} is neither text nor a whole number; give str(id)")
    texts = tuple(map(str, given))
    strange = [text for text in texts if not text.isprintable()]
    if strange:
        raise DataError(
            f"{where}: id {strange[0]!r} holds letters that cannot be printed; rename it"
        )
    twice = [text for text in texts if texts.count(text) > 1]
    if twice:
        raise DataError(
            f"{where}: id '{twice[0]}' stands for {texts.count(twice[0])} boxes; an id names one "
            "object over a drive, so give every box of a frame its own, or leave ids out"
        )
    return texts


def speeds(velocity: ArrayLike | None, count: int, where: str) -> Float64:
    """Return the velocity (M, 2) of every box, 0 where none is given."""
    if velocity is None:
        return np.zeros((count, 2))
    given = _numbers(velocity, f"{where}: velocities")
    given = given.reshape(0, 2) if given.size == 0 else given
    if given.shape != (count, 2):
        raise DataError(
            f"{where}: velocity of shape {np.shape(velocity)} for {count} boxes; needed is "
            f"({count}, 2), along x and y"
        )
    bad = np.argwhere(~(np.abs(given) <= _FASTEST))
    if len(bad):
        box, axis = bad[0]
        raise DataError(
            f"{where}: velocity {'xy'[axis]} of box {box} is {given[box, axis]:g}; give metres a "
            f"second, up to {_FASTEST:g}, and 0 where it is not known (np.nan_to_num)"
        )
    return given


def pose_matrix(pose: ArrayLike | None, where: str) -> Float64:
    """Return where the vehicle is in the world, (4, 4)."""
    if pose is None:
        return np.eye(4)
    given = _numbers(pose, f"{where}: the pose's numbers")
    if given.shape != (4, 4):
        raise DataError(
            f"{where}: pose of shape {given.shape}; needed is (4, 4), world from vehicle, with the "
            "last row 0, 0, 0, 1"
        )
    if not np.isfinite(given).all():
        raise DataError(f"{where}: pose holds NaN or infinity; leave it out if it is not known")
    if not np.allclose(given[3], (0, 0, 0, 1), atol=1e-6):
        raise DataError(
            f"{where}: the pose's last row is {given[3].tolist()}, not 0, 0, 0, 1; transpose it"
        )
    turn = given[:3, :3]
    if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-2) or np.linalg.det(turn) < 0:
        raise DataError(
            f"{where}: the pose's first three rows and columns are no rotation (determinant "
            f"{np.linalg.det(turn):.3g}); give world from vehicle without scale or mirroring"
        )
    return given
