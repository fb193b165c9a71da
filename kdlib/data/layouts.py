"""Tells from a scan's values what its columns stand for: the datasets' layouts, where the road
lies, and which column can be an intensity or an elongation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdlib.data.arrayfiles import Read
from kdlib.data.pointfiles import PointColumns
from kdlib.errors import DataError
from kdlib.types import Float64, FloatArray

# metres; no LiDAR sees further, so the unit is another or the origin is not the sensor
FARTHEST = 1000.0
ENOUGH = 100  # points that make a road, or a column of one value, no accident
ROAD_OFF = 0.5  # metres from z = 0 at which an assumed height is not believed
ELONGATION = 2.0  # Waymo's reach about 1.5
_FLAGS = (-1, 0, 1)  # of Waymo's no-label zones


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


def no_intensity(values: Float64) -> str:
    """Return why a column cannot be intensities, empty where it can."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "has no finite value"
    low, high = float(values.min()), float(values.max())
    if np.mean(values < 0) > 0.01:
        return f"goes down to {low:g}"
    if high > 65_535:
        return f"reaches {high:g}"
    if low == high and len(values) >= ENOUGH:
        return f"is {low:g} at every point"
    return ""


def is_elongation(values: Float64) -> bool:
    """Say whether a column can be Waymo's elongation."""
    low, high = np.percentile(values, (1, 99))
    return bool(low >= 0 and high <= ELONGATION)


def by_position(
    path: Path, table: Float64, layout: ScanLayout | None, scale: float
) -> tuple[ScanLayout, PointColumns, tuple[str, ...]]:
    """Return what the columns of a table are, and a sentence about those that are left out."""
    said, width = "", table.shape[1]
    meant = layout
    if meant is None:
        finite = table[np.isfinite(table[:, :3]).all(axis=1) & table[:, :3].any(axis=1)]
        finite[:, :3] *= scale
        meant, said = _guess(path, finite) if len(finite) else (LAYOUTS["xyz"], "")
    columns = dict(zip(meant.columns, table.T))
    if width > len(columns) and not said:
        first = len(columns) + 1
        which = f"columns {first} to {width} hold" if first < width else f"column {width} holds"
        said = f"What {which}, the network does not know: left out."
    return meant, columns, (said,) if said else ()


def _guess(path: Path, table: Float64) -> tuple[ScanLayout, str]:
    """Return what the columns must be, from what they can be: OpenPCDet's Waymo files have six;
    KITTI's and nuScenes' points are often saved so, too.
    """
    width, file = table.shape[1], path.suffix.lower() == ".bin"
    if width == 3:
        return LAYOUTS["xyz"], ""
    if width == 5 and _is_nuscenes(table) and (file or table[:, 4].max() > 2):
        return LAYOUTS["nuscenes"], ""
    if width > 4 and _is_waymo(table):
        return LAYOUTS["waymo"], ""
    values, low = table[:, 3:6], table[:, 3:6].min(axis=0)
    whole = np.isfinite(values).all() and (values == np.floor(values)).all() and low.min() >= 0
    if width > 5 and whole and (values.max(axis=0) > 127).all() and values.max() <= 255:
        return LAYOUTS["xyz"], "Columns 4 to 6 look like colours and are left out."
    wrong = no_intensity(table[:, 3])
    if wrong:
        return LAYOUTS["xyz"], f"Column 4 {wrong}, which is no intensity: left out."
    kitti = file and width == 4 and np.nanmax(table[:, 3]) <= 1
    return LAYOUTS["kitti" if kitti else "xyzi"], ""


def _is_waymo(table: Float64) -> bool:
    """Say whether points can be Waymo's: an elongation and a flag; of enough points, the road at
    z = 0 and raw intensities, most of them below 1.
    """
    intensity, elongation, flag = table[:, 3], table[:, 4], table[:, 5:6]
    if no_intensity(intensity) or not is_elongation(elongation) or not np.isin(flag, _FLAGS).all():
        return False
    road = abs(ground_level(table)) <= ROAD_OFF
    return len(table) < ENOUGH or bool(road and np.nanmedian(intensity) <= 1)


def _is_nuscenes(table: Float64) -> bool:
    """Say whether points can be nuScenes': intensities to 255, 32 rings, the sensor 1.84 m up."""
    if not np.isfinite(table).all():
        return False
    ring, (low, high) = table[:, 4], (table.min(axis=0), table.max(axis=0))
    rings = (ring == np.floor(ring)).all() and low[4] >= 0 and high[4] < 32
    if not rings or low[3] < 0 or high[3] > 255 or np.abs(table[:, :3]).max() > FARTHEST:
        return False
    mounted = abs(ground_level(table) + 1.84) <= ROAD_OFF
    return len(table) < ENOUGH or bool(mounted and high[3] > 1)


def read_bin(path: Path, layout: ScanLayout | None) -> Read:
    """Return the rows of a file of numbers of 4 or 8 bytes; how many a point has is found from
    them, where no layout says so.

    Raises:
        DataError: If they are not a whole number of points, or look like nothing known.
    """
    size = path.stat().st_size
    if layout is None and path.name.lower().endswith(".pcd.bin"):
        layout = LAYOUTS["nuscenes"]
    widths = (len(layout.columns),) if layout else (4, 5, 6)
    if not size or all(size % (4 * width) for width in widths):
        raise DataError(
            f"{path}: {size} bytes are not a whole number of points of "
            f"{' or '.join(map(str, widths))} float32 values"
        )
    content = path.read_bytes()
    with np.errstate(invalid="ignore"):  # what is no points can be any bits
        tables = [
            np.frombuffer(content, kind).reshape(-1, width).astype(np.float64)
            for kind, item in (("<f4", 4), ("<f8", 8))
            for width in widths
            if size % (item * width) == 0
        ]
    likely = [table for table in tables if table.shape[1] == 5 and _is_nuscenes(table)]
    likely += [table for table in tables if _may_be_points(table)]
    likely += tables if layout else []
    if not likely:
        raise DataError(
            f"{path} looks like neither KITTI's nor nuScenes' columns; say which with "
            f"--layout ({', '.join(LAYOUTS)})"
        )
    said = "The numbers are of 8 bytes each, not of 4."
    return likely[0], (said,) if likely[0].size * 8 == size else ()


def _may_be_points(table: Float64) -> bool:
    """Say whether rows are points of so many columns: of a wrong number, the fourth would also hold
    coordinates, which are negative on one side.
    """
    rows = table[np.isfinite(table).all(axis=1) & (np.abs(table[:, :3]) < 1e9).all(axis=1)]
    if not len(rows):  # said of the points, later
        return True
    return bool((rows[:, 3:4] >= 0).all() and np.abs(rows[:, :3]).max() < 1000 * FARTHEST)
