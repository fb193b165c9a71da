"""Reads a scan of any LiDAR from a .bin, .npy, .pcd or .ply file: the points a network takes, with
what was assumed.

Networks here see Waymo's vehicle frame: metres, x forward, y left, z up, the road at z = 0, tanh of
the intensity. A file says none of this about itself, so every assumption is a sentence in
:attr:`Scan.assumptions`, and every one can be overridden.
"""

from __future__ import annotations

import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdlib.config import lookup
from kdlib.data.pointfiles import PointColumns, read_pcd, read_ply
from kdlib.errors import DataError
from kdlib.types import Float32, Float64, FloatArray, Sample

# metres; no LiDAR sees further, so the unit is another or the origin is not the sensor
_FARTHEST = 1000.0
_INTENSITY = (
    "intensity",
    "i",
    "reflectance",
    "reflectivity",
    "remission",
    "intensities",
    "scalar_intensity",
)


@dataclass(frozen=True)
class ScanLayout:
    """What the columns of a file mean."""

    name: str
    columns: tuple[str, ...]
    height: float | None  # of the file's origin above the road, metres; None: found from the points
    full_scale: float | None  # intensity that counts as 1; None: found from the values
    turned: bool = False  # x to the right and y forward, instead of x forward and y left


LAYOUTS: Mapping[str, ScanLayout] = {
    layout.name: layout
    for layout in (
        ScanLayout("kitti", ("x", "y", "z", "intensity"), 1.73, None),
        ScanLayout("nuscenes", ("x", "y", "z", "intensity", "ring"), 1.84, 255.0, turned=True),
        ScanLayout("waymo", ("x", "y", "z", "intensity", "elongation", "flag"), 0.0, 1.0),
        ScanLayout("xyz", ("x", "y", "z"), None, None),
        ScanLayout("xyzi", ("x", "y", "z", "intensity"), None, None),
    )
}


@dataclass(frozen=True)
class Scan:
    """One scan in Waymo's vehicle frame."""

    name: str
    layout: str
    points: Float32  # (N, 5) x, y, z, tanh(intensity), elongation
    assumptions: tuple[str, ...]  # sentences about units, axes, intensity, height

    def sample(self) -> Sample:
        """Return the scan as a frame without boxes."""
        return Sample.unlabelled(self.name, self.points)


def read_scan(
    path: Path, layout: str | None = None, height: float | None = None, scale: float = 1.0
) -> Scan:
    """Return a scan as a network takes it.

    Args:
        path: ``.bin`` (float32 columns), ``.npy`` (N, >=3 columns), ``.pcd`` or ``.ply`` (columns
            by name).
        layout: A name of ``LAYOUTS``; found from the file's name, size and values where None.
        height: Of the file's origin above the road, metres; the layout's own or found from the
            points where None.
        scale: Metres in one unit of the file, 0.001 for millimetres.

    Raises:
        ConfigError: If there is no such layout.
        DataError: If the file is missing, damaged, or cannot be in metres around a sensor; the
            message says what to do.
    """
    path = Path(path)
    chosen = lookup(LAYOUTS, layout, "layout") if layout is not None else None
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a scan as {', '.join(_READERS)}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: scans are {', '.join(_READERS)}, not '{path.suffix}'")
    meant, columns = reader(path, chosen)
    missing = [axis for axis in "xyz" if axis not in columns]
    if missing:
        raise DataError(
            f"{path} has no column '{missing[0]}'; its columns are: {', '.join(columns) or 'none'}"
        )
    return _place(path, meant, columns, height, scale, guessed=chosen is None)


def _place(
    path: Path,
    layout: ScanLayout,
    columns: PointColumns,
    height: float | None,
    scale: float,
    guessed: bool,
) -> Scan:
    """Bring the columns into the vehicle frame and say how."""
    said = [
        (f"Layout {layout.name}{', found from the file' if guessed else ''}: {', '.join(columns)}.")
    ]
    xyz = np.stack([columns[axis] for axis in "xyz"], axis=1) * scale
    finite = np.all(np.isfinite(xyz), axis=1)
    if not finite.all():
        said.append(
            f"{(~finite).sum():,} of {len(finite):,} points hold NaN or infinity and are left out."
        )
        xyz, columns = xyz[finite], {name: column[finite] for name, column in columns.items()}
    if not len(xyz):
        raise DataError(f"{path} holds no finite points")
    reach = float(np.median(np.abs(xyz[:, :2]).max(axis=1)))
    if reach > _FARTHEST:
        raise DataError(
            f"{path}: half of its points lie more than {reach:,.0f} from the origin; wanted are "
            "metres around the sensor "
            "(--scale 0.001 for millimetres, --layout for other columns)"
        )
    axes = "x forward, y left, z up"
    if layout.turned:
        xyz = np.stack((xyz[:, 1], -xyz[:, 0], xyz[:, 2]), axis=1)
        axes = "x right, y forward, z up in the file, turned here to x forward, y left"
    said.append(f"Metres{'' if scale == 1 else f' (file times {scale:g})'}; {axes}.")
    raised, about_height = _height(layout, xyz, height)
    intensity, about_intensity = _intensity(layout, columns, len(xyz))
    elongation = columns.get("elongation", np.zeros(len(xyz)))
    about_elongation = (
        "Elongation from the file." if "elongation" in columns else "No elongation: 0."
    )
    points = np.column_stack(
        (xyz + (0, 0, raised), intensity, np.where(np.isfinite(elongation), elongation, 0))
    )
    sentences = (*said, about_height, about_intensity, about_elongation)
    return Scan(path.name.partition(".")[0], layout.name, points.astype(np.float32), sentences)


def _height(layout: ScanLayout, xyz: Float64, height: float | None) -> tuple[float, str]:
    """Return by how much to raise the points so that the road lies at 0, and the sentence about
    it.
    """
    road = ground_level(xyz)
    given = layout.height if height is None else height
    if given is None:
        raised = round(-road, 2) + 0.0
        return raised, (
            f"The most common low z is {road:.2f}, taken for the road and put at z = "
            "0 (--height to override)."
        )
    check = f"the road is then at about z = {road + given:.2f}"
    if height is None and given == 0:
        return 0.0, f"Vehicle frame with the road at z = 0; {check} (--height to override)."
    whose = (
        "as given" if height is not None else (f"as {layout.name} mounts it, --height to override")
    )
    return given, f"The sensor is {given:g} m above the road ({whose}); {check}."


def ground_level(xyz: FloatArray) -> float:
    """Return the height of the road: the commonest z, to 0.1 m, of the lower half of what lies 2 to
    30 m around.
    """
    distance = np.hypot(xyz[:, 0], xyz[:, 1])
    near = xyz[(distance > 2) & (distance < 30), 2]
    near = near if len(near) else xyz[:, 2]
    low = near[near <= np.median(near)]
    _, cell, counts = np.unique(np.floor(low * 10), return_inverse=True, return_counts=True)
    return float(np.median(low[cell == counts.argmax()]))


def _intensity(layout: ScanLayout, columns: PointColumns, count: int) -> tuple[Float64, str]:
    """Return tanh of the intensity on Waymo's scale, and the sentence about it."""
    name = next((name for name in _INTENSITY if name in columns), None)
    if name is None:
        return np.zeros(count), "No intensity: 0, although the network learned from it."
    values = np.where(np.isfinite(columns[name]), np.maximum(columns[name], 0), 0)
    most = float(values.max())
    full = layout.full_scale or next(
        (limit for limit in (1.0, 255.0, 65_535.0) if most <= limit), most
    )
    scaled = f"'{name}'" + ("" if full == 1 else f" / {full:g}")
    return np.tanh(values / full), (
        f"Intensity: tanh of {scaled}, as Waymo's is taken; the largest value is {most:g}."
    )


def _by_position(layout: ScanLayout, table: FloatArray) -> tuple[ScanLayout, PointColumns]:
    return layout, {
        name: column.astype(np.float64) for name, column in zip(layout.columns, table.T)
    }


def _read_bin(path: Path, layout: ScanLayout | None) -> tuple[ScanLayout, PointColumns]:
    size = path.stat().st_size
    values = np.fromfile(path, "<f4") if size % 4 == 0 else np.zeros(0, "<f4")
    if layout is None and path.name.lower().endswith(".pcd.bin"):
        layout = LAYOUTS["nuscenes"]
    widths = (len(layout.columns),) if layout else (4, 5)
    if not values.size or all(values.size % width for width in widths):
        raise DataError(
            f"{path}: {size} bytes are not a whole number of points of "
            f"{' or '.join(map(str, widths))} float32 values"
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"{path} holds points that are not finite; it is damaged or of another format"
        )
    layout = layout or _guess_bin(path, values)
    return _by_position(layout, values.reshape(-1, len(layout.columns)))


def _guess_bin(path: Path, values: Float32) -> ScanLayout:
    """Tell KITTI's four columns from nuScenes' five by the number of values and by what the last
    columns can be.
    """
    if not values.size % 5 and _is_nuscenes(values.reshape(-1, 5)):
        return LAYOUTS["nuscenes"]
    if not values.size % 4 and (table := values.reshape(-1, 4))[:, 3].min() >= 0:
        if table[:, 3].max() <= 1:
            return LAYOUTS["kitti"]
        if np.abs(table[:, :3]).max() < _FARTHEST:
            return LAYOUTS["xyzi"]
    raise DataError(
        f"{path} looks like neither KITTI's nor nuScenes' columns; say which with "
        f"--layout ({', '.join(LAYOUTS)})"
    )


def _is_nuscenes(table: FloatArray) -> bool:
    ring = table[:, 4]
    low, high = table.min(axis=0), table.max(axis=0)
    whole = (ring == np.floor(ring)).all() and low[4] >= 0 and high[4] < 128
    return whole and low[3] >= 0 and high[3] <= 255 and np.abs(table[:, :3]).max() < _FARTHEST


def _read_npy(path: Path, layout: ScanLayout | None) -> tuple[ScanLayout, PointColumns]:
    with path.open("rb") as stream:
        if stream.read(6) != b"\x93NUMPY":
            raise DataError(
                f"{path} is no array of numbers (it does not begin as .npy files "
                "do); write it with numpy.save"
            )
    try:
        table = np.load(path, allow_pickle=False)
    except (
        ValueError,
        OSError,
        EOFError,
        SyntaxError,
        TypeError,
        MemoryError,
        OverflowError,
        tokenize.TokenError,
    ) as error:
        raise DataError(
            f"{path} is no array of numbers ({error}); write it with numpy.save"
        ) from error
    if table.dtype.names and table.ndim == 1:  # one record a point
        numbers = [name for name in table.dtype.names if table.dtype[name].kind in "fiu"]
        return layout or LAYOUTS["xyz"], {
            name.lower(): table[name].astype(np.float64) for name in numbers
        }
    if table.ndim != 2 or table.shape[1] < 3 or table.dtype.kind != "f":
        raise DataError(
            f"{path} holds {table.dtype} of shape {table.shape}; needed are floats (N, 3 or more)"
        )
    return _by_position(layout or _guess_npy(table), table)


def _guess_npy(table: FloatArray) -> ScanLayout:
    """Return what the columns must be: OpenPCDet's Waymo files have six; KITTI's and nuScenes'
    points are often saved so, too.
    """
    width = table.shape[1]
    if width == 3 or not len(table):
        return LAYOUTS["xyz"]
    if width == 5 and np.isfinite(table).all() and _is_nuscenes(table) and table[:, 4].max() > 2:
        return LAYOUTS["nuscenes"]
    return LAYOUTS["xyzi"] if width == 4 and not np.nanmax(table[:, 3]) > 255 else LAYOUTS["waymo"]


_READERS: Mapping[str, Callable[[Path, ScanLayout | None], tuple[ScanLayout, PointColumns]]] = {
    ".bin": _read_bin,
    ".npy": _read_npy,
    ".pcd": lambda path, layout: (layout or LAYOUTS["xyz"], read_pcd(path)),
    ".ply": lambda path, layout: (layout or LAYOUTS["xyz"], read_ply(path)),
}
