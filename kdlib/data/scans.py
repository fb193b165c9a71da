"""Reads a scan of any LiDAR from a file of points: what a network takes, with what was assumed.

Networks here see Waymo's vehicle frame: metres, x forward, y left, z up, the road at z = 0, tanh of
the intensity. A file says none of this about itself, so every assumption is a sentence in
:attr:`Scan.assumptions`, and every one can be overridden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdlib.config import lookup
from kdlib.data.arrayfiles import Read, read_las, read_npy, read_npz, read_text
from kdlib.data.layouts import (
    ELONGATION,
    ENOUGH,
    FARTHEST,
    LAYOUTS,
    ROAD_OFF,
    ScanLayout,
    by_position,
    ground_level,
    is_elongation,
    no_intensity,
    read_bin,
)
from kdlib.data.pointfiles import PointColumns, read_pcd, read_ply
from kdlib.errors import ConfigError, DataError
from kdlib.types import Float32, Float64, Sample

_USUAL = 100.0  # metres; half of the points lie nearer
_BELOW = 0.2  # share of points; so many do not lie below a road
_HIGHEST = 100.0  # metres above the road at which a sensor may be said to be
_FULL_SCALES = (1.0, 255.0, 4095.0, 65_535.0)  # of 8, 12 and 16 bits
_NOWHERE = 1e9  # metres or millimetres; on no map
_NO_RETURN = 1e6  # metres; few points beyond are a file's sign for none, many are another unit
_INTENSITY = (
    "intensity",
    "i",
    "reflectance",
    "reflectivity",
    "remission",
    "intensities",
    "signal",
    "amplitude",
)
_BEGINNINGS = {b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz", b"LASF": ".las", b"ply": ".ply"}


@dataclass(frozen=True)
class Scan:
    """One scan in Waymo's vehicle frame."""

    name: str
    layout: str
    points: Float32  # (N, 5) x, y, z, tanh(intensity), elongation
    assumptions: tuple[str, ...]  # sentences about units, axes, intensity, height
    raised: float  # metres by which the file's points were raised; what ``height`` would give

    def sample(self) -> Sample:
        """Return the scan as a frame without boxes."""
        return Sample.unlabelled(self.name, self.points)


def read_scan(
    path: Path, layout: str | None = None, height: float | None = None, scale: float = 1.0
) -> Scan:
    """Return a scan as a network takes it.

    Args:
        path: ``.bin`` (float32 columns), ``.npy`` or ``.npz`` ((N, >=3), organised, records),
            ``.txt``, ``.csv``, ``.xyz`` or ``.asc`` (a point a line), ``.pcd``, ``.ply``, ``.las``
            or ``.laz`` (columns by name).
        layout: A name of ``LAYOUTS``; found from the file's name, size and values where None.
        height: Of the file's origin above the road, metres; the layout's own or found from the
            points where None.
        scale: Metres in one unit of the file, 0.001 for millimetres.

    Raises:
        ConfigError: If there is no such layout, or height or scale cannot be one.
        DataError: If the file is missing, damaged, or cannot be in metres around a sensor; the
            message says what to do.
    """
    path = Path(path)
    chosen = lookup(LAYOUTS, layout, "--layout") if layout is not None else None
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(
            f"--scale is how many metres one unit of the file has, above 0, not {scale:g}"
        )
    if height is not None and not abs(height) <= _HIGHEST:
        raise ConfigError(
            f"--height is metres of the sensor above the road, at most {_HIGHEST:g}, not {height:g}"
        )
    if path.is_dir():
        raise DataError(f"{path} is a folder; give one of its scans")
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a scan as {', '.join(_READERS)}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: scans are {', '.join(_READERS)}, not '{path.suffix}'")
    _check_beginning(path)
    points, said = reader(path, chosen)
    if isinstance(points, dict):
        meant, columns = chosen or LAYOUTS["xyz"], points
    else:
        meant, columns, about = by_position(path, points, chosen, scale)
        said += about
    missing = [axis for axis in "xyz" if axis not in columns]
    if missing:
        names = ", ".join(columns) or "none"
        raise DataError(
            f"{path} has no column '{missing[0]}'; its columns are: {names}; call three of them x, "
            "y and z"
        )
    return _place(path, meant, columns, said, height, scale, guessed=chosen is None)


def _check_beginning(path: Path) -> None:
    """Refuse a file that begins as those of another ending do."""
    with path.open("rb") as file:
        begin = file.read(32)
    ending = path.suffix.lower().replace(".laz", ".las")
    other = next((kind for first, kind in _BEGINNINGS.items() if begin.startswith(first)), ending)
    if begin.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a pointer of Git LFS, not the file; run 'git lfs pull'")
    if other != ending and (other != ".npz" or ending == ".npy"):
        raise DataError(f"{path} is no {ending} file: it begins as {other} files do; rename it")


def _place(
    path: Path,
    layout: ScanLayout,
    columns: PointColumns,
    said: tuple[str, ...],
    height: float | None,
    scale: float,
    guessed: bool,
) -> Scan:
    """Bring the columns into the vehicle frame and say how."""
    names = ", ".join(columns)
    sentences = [f"Layout {layout.name}{', found from the file' if guessed else ''}: {names}."]
    sentences += said
    xyz = np.stack([columns[axis] for axis in "xyz"], axis=1) * scale
    finite = np.all(np.abs(xyz) < np.finfo(np.float32).max, axis=1)  # NaN is not
    away = np.any(xyz != 0, axis=1)
    farthest = np.abs(xyz).max(axis=1, initial=0)
    beyond = finite & (farthest > _NO_RETURN)
    if beyond.sum() > np.sum(finite & away) / 2:  # of a map, or in another unit
        beyond = finite & (farthest > _NOWHERE)
    for gone, why in (
        (~finite, "hold NaN or infinity"),
        (~away, "lie at 0, 0, 0, as no return does"),
        (beyond, f"lie more than {_NO_RETURN / 1000:,.0f} km away, as no return does"),
    ):
        if gone.any():
            sentences.append(f"{gone.sum():,} of {len(xyz):,} points {why} and are left out.")
    kept = finite & away & ~beyond
    count, xyz = len(xyz), xyz[kept]
    columns = {name: column[kept] for name, column in columns.items()}
    if not len(xyz):
        why = f": all {count:,} are not finite or lie at 0, 0, 0" if count else ""
        raise DataError(f"{path} holds no finite points{why}; write the scan again")
    sentences += _check_units(path, xyz)
    axes = "x forward, y left, z up"
    if layout.turned:
        xyz = np.stack((xyz[:, 1], -xyz[:, 0], xyz[:, 2]), axis=1)
        axes = "x right, y forward, z up in the file, turned here to x forward, y left"
    sentences.append(f"Metres{'' if scale == 1 else f' (file times {scale:g})'}; {axes}.")
    raised, about_height = _height(layout, xyz, height, guessed)
    intensity, about_intensity = _intensity(layout, columns, len(xyz))
    elongation, about_elongation = _elongation(columns, len(xyz))
    points = np.column_stack((xyz + (0, 0, raised), intensity, elongation)).astype(np.float32)
    sentences += [about_height, about_intensity, about_elongation]
    return Scan(_name(path), layout.name, points, tuple(sentences), raised)


def _name(path: Path) -> str:
    """Return the file's name without its ending; a time stamp before it has dots, too."""
    stem = path.name[: -len(path.suffix)]
    return stem[:-4] if stem.lower().endswith(".pcd") else stem


def _check_units(path: Path, xyz: Float64) -> list[str]:
    """Refuse what cannot be metres around a sensor; return a sentence about what may not be."""
    ahead = np.abs(xyz[:, :2]).max(axis=1)
    reach, middle = float(np.median(ahead)), np.median(xyz[:, :2], axis=0)
    if reach > FARTHEST:
        around = np.abs(xyz[:, :2] - middle).max(axis=1)
        hint = "--scale 0.001 for millimetres, --layout for other columns"
        if np.median(around) < 0.1 * reach:
            hint = (
                f"they lie around x = {middle[0]:,.0f}, y = {middle[1]:,.0f}, as on a map: subtract"
                " where the sensor was"
            )
        raise DataError(
            f"{path}: half of its points lie more than {reach:,.0f} from the origin; wanted are "
            f"metres around the sensor ({hint})"
        )
    said = []
    if not 1 <= reach <= _USUAL:
        where = "more than" if reach > 1 else "within"
        said.append(
            f"Half of the points lie {where} {reach:,.3g} m from 0, around x = {middle[0]:,.3g}, "
            f"y = {middle[1]:,.3g}: are they in metres (--scale), around the sensor?"
        )
    low, high = np.percentile(xyz, (5, 95), axis=0)
    if len(xyz) >= ENOUGH and (high - low).argmax() == 2:
        said.append(
            f"z spreads over {high[2] - low[2]:.0f} m, more than x and y: is it up in this file?"
        )
    distance = np.hypot(xyz[:, 0], xyz[:, 1])
    near = xyz[(distance > 2) & (distance < 30), 2]
    if len(near) >= ENOUGH:  # what stands on a road is above it
        cells, counts = np.unique(np.floor(near * 10), return_counts=True)
        common = cells[counts.argmax()] / 10
        below, above = np.mean(near < common - 0.5), np.mean(near > common + 0.5)
        if below > max(_BELOW, 3 * above):
            said.append(
                f"{below:.0%} of the near points lie below the commonest z, {common:.1f}, only "
                f"{above:.0%} above: does z point up in this file?"
            )
    return said


def _height(
    layout: ScanLayout, xyz: Float64, height: float | None, guessed: bool
) -> tuple[float, str]:
    """Return by how much to raise the points so that the road lies at 0, and the sentence about
    it.
    """
    road = ground_level(xyz)
    given = layout.height if height is None else height
    raised = round(-road, 2) + 0.0
    if given is None:
        return raised, (
            f"The most common low z is {road:.2f}, taken for the road and put at z = "
            "0 (--height to override)."
        )
    check = f"the road is then at about z = {road + given:.2f}"
    near = np.hypot(xyz[:, 0], xyz[:, 1]) < 30
    sure = np.count_nonzero(near & (np.abs(xyz[:, 2] - road) < 0.2)) >= ENOUGH
    off = sure and abs(road + given) > ROAD_OFF
    if off and height is None and guessed:
        return raised, (
            f"As {layout.name} has it {check}, too far from 0: instead the most common low z, "
            f"{road:.2f}, is taken for the road and put at z = 0 (--height to override)."
        )
    check += f", far from 0 (--height {raised:g} would put it there)" if off else ""
    if height is None and given == 0:
        return 0.0, f"Vehicle frame with the road at z = 0; {check} (--height to override)."
    whose = (
        "as given" if height is not None else (f"as {layout.name} mounts it, --height to override")
    )
    return given, f"The sensor is {given:g} m above the road ({whose}); {check}."


def _intensity(layout: ScanLayout, columns: PointColumns, count: int) -> tuple[Float64, str]:
    """Return tanh of the intensity on Waymo's scale, and the sentence about it."""
    plain = {name.removeprefix("scalar_"): name for name in columns}
    names = [plain[name] for name in _INTENSITY if name in plain]
    if not names:
        return np.zeros(count), "No intensity: 0, although the network learned from it."
    name = next((name for name in names if not no_intensity(columns[name])), names[0])
    wrong = no_intensity(columns[name])
    if wrong:
        return np.zeros(count), f"'{name}' {wrong}, which is no intensity: 0 instead."
    values = np.where(np.isfinite(columns[name]), np.maximum(columns[name], 0), 0)
    most = float(values.max())
    parts = (values != np.floor(values)).any()  # Waymo's raw ones have them, and reach above 1
    usual = float(np.percentile(values, 99.9))  # one wild value is no scale
    full = layout.full_scale or next(
        limit for limit in _FULL_SCALES if usual <= max(limit, 5.0 * parts)
    )
    scaled = f"'{name}'" + ("" if full == 1 else f" / {full:g}")
    return np.tanh(values / full), (
        f"Intensity: tanh of {scaled}, as Waymo's is taken; the largest value is {most:g}."
    )


def _elongation(columns: PointColumns, count: int) -> tuple[Float64, str]:
    """Return the elongation, and the sentence about it."""
    if "elongation" not in columns:
        return np.zeros(count), "No elongation: 0."
    values = np.where(np.isfinite(columns["elongation"]), columns["elongation"], 0)
    if not is_elongation(values):
        return np.zeros(count), (
            f"'elongation' lies between {values.min():g} and {values.max():g}, Waymo's between 0 "
            "and 1.5: 0 instead."
        )
    return np.minimum(values, ELONGATION), "Elongation from the file."


_READERS: Mapping[str, Callable[[Path, ScanLayout | None], Read]] = {
    ".bin": read_bin,
    ".npy": lambda path, _: read_npy(path),
    ".npz": lambda path, _: read_npz(path),
    ".pcd": lambda path, _: (read_pcd(path), ()),
    ".ply": lambda path, _: (read_ply(path), ()),
    ".las": lambda path, _: read_las(path),
    ".laz": lambda path, _: read_las(path),
    **dict.fromkeys((".txt", ".csv", ".xyz", ".asc"), lambda path, _: read_text(path)),
}
