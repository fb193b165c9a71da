"""A range image with its calibration and poses enters, points in vehicle coordinates leave (format spec section 4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.types import FloatArray

Float32 = NDArray[np.float32]


class RangeImageError(DataError):
    """A range image that cannot be converted to points."""


def as_image(values: FloatArray, shape: tuple[int, ...], least_channels: int) -> FloatArray:
    """Return flat values as an (H, W, C) image.

    Raises:
        RangeImageError: If there are not three dimensions, too few channels, or another number of values than the shape says.
    """
    if len(shape) != 3 or min(shape) < 0 or shape[2] < least_channels:
        raise RangeImageError(f"range image of shape {shape}, expected (rows, columns, at least {least_channels} channels)")
    if int(np.prod(shape)) != len(values):
        raise RangeImageError(f"range image of shape {shape} needs {int(np.prod(shape))} values, the file holds {len(values)}")
    return values.reshape(shape)


def as_transform(values: FloatArray) -> NDArray[np.float64]:
    """Return 16 row-major numbers as a rigid (4, 4) transform.

    Raises:
        RangeImageError: If there are not 16 finite numbers or the last row is not 0 0 0 1.
    """
    if np.size(values) != 16:
        raise RangeImageError(f"a transform needs 16 numbers, not {np.size(values)}")
    transform = np.asarray(values, np.float64).reshape(4, 4)
    if not np.isfinite(transform).all():
        raise RangeImageError("a transform holds a number that is not finite")
    if not np.allclose(transform[3], (0.0, 0.0, 0.0, 1.0), rtol=0, atol=1e-6):
        raise RangeImageError(f"the last row of a transform must be 0 0 0 1, not {transform[3].tolist()}")
    return transform


def row_inclinations(table: FloatArray | None, lowest: float, highest: float, height: int) -> NDArray[np.float64]:
    """Return the inclination of every row in radians, row 0 being the highest beam.

    Args:
        table: The ascending beam table (H,), or None or empty for evenly spread beams.
        lowest: Inclination at the lower edge of the image, used without a table.
        highest: Inclination at the upper edge of the image, used without a table.
        height: Rows of the image.

    Raises:
        RangeImageError: If the table has another length than the image has rows.
    """
    if table is None or len(table) == 0:
        rows = np.arange(height - 1, -1, -1, dtype=np.float64)
        return lowest + (rows + 0.5) / max(height, 1) * (highest - lowest)
    if len(table) != height:
        raise RangeImageError(f"{len(table)} beam inclinations for a range image of {height} rows")
    return np.asarray(table, np.float64)[::-1]


def column_azimuths(width: int, extrinsic: FloatArray) -> NDArray[np.float64]:
    """Return the azimuth of every column in the laser's frame, radians; the middle column looks along the vehicle's +x."""
    columns = np.arange(width, dtype=np.float64)
    return np.pi * (2.0 * (width - columns - 0.5) / max(width, 1) - 1.0) - np.arctan2(extrinsic[1, 0], extrinsic[0, 0])


def range_image_to_points(
    image: FloatArray,
    extrinsic: FloatArray,
    inclinations: FloatArray,
    pixel_pose: FloatArray | None = None,
    frame_pose: FloatArray | None = None,
) -> Float32:
    """Convert the valid pixels (range strictly above 0) of one range image to points, in row-major order.

    Valid pixels are gathered before any arithmetic, which is float32 except for the difference of the two world translations:
    world coordinates are tens of kilometres, where a float32 step is 4 mm.

    Args:
        image: (H, W, >=4) range, intensity, elongation, no-label-zone flag.
        extrinsic: (4, 4) vehicle from laser.
        inclinations: (H,) radians, row 0 first (:func:`row_inclinations`).
        pixel_pose: (H, W, 6) roll, pitch, yaw, x, y, z: world from vehicle when the pixel was fired; None for side lasers.
        frame_pose: (4, 4) world from vehicle of the frame; needed with ``pixel_pose``.

    Returns:
        (n, 6) x, y, z in metres, intensity (raw), elongation, no-label-zone flag.

    Raises:
        RangeImageError: If shapes disagree, a valid pixel has no pose, or a point is not finite.
    """
    height, width = image.shape[:2]
    if len(inclinations) != height:
        raise RangeImageError(f"{len(inclinations)} beam inclinations for a range image of {height} rows")
    ranges = image[..., 0].ravel()
    finite = np.isfinite(ranges)
    if not finite.all():
        raise RangeImageError(f"{int((~finite).sum())} ranges are NaN or infinite; a missing pixel must be -1")
    valid = np.flatnonzero(ranges > 0)
    rows, columns = np.divmod(valid, max(width, 1))
    xyz = _in_vehicle(ranges[valid].astype(np.float32), rows, columns, inclinations, column_azimuths(width, extrinsic), extrinsic)
    if pixel_pose is not None:
        if frame_pose is None:
            raise RangeImageError("a pixel pose needs the pose of the frame")
        if pixel_pose.shape != (height, width, 6):
            raise RangeImageError(f"pixel poses of shape {pixel_pose.shape} for a range image of {height} x {width}")
        xyz = _at_frame_time(xyz, pixel_pose.reshape(-1, 6)[valid], np.asarray(frame_pose, np.float64))
    points = np.empty((len(valid), 6), np.float32)
    points[:, :3] = xyz
    points[:, 3:] = image.reshape(-1, image.shape[2])[valid, 1:4]
    broken = ~np.isfinite(points).all(axis=1)
    if broken.any():
        row, column = int(rows[broken][0]), int(columns[broken][0])
        raise RangeImageError(f"{int(broken.sum())} points are not finite, the first at row {row}, column {column}")
    return points


def _in_vehicle(
    ranges: Float32,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    inclinations: FloatArray,
    azimuths: FloatArray,
    extrinsic: FloatArray,
) -> Float32:
    """Polar to Cartesian, then laser to vehicle; sines are taken per row and per column, not per pixel."""
    flat = ranges * np.cos(inclinations).astype(np.float32)[rows]
    laser = np.empty((len(ranges), 3), np.float32)
    laser[:, 0] = flat * np.cos(azimuths).astype(np.float32)[columns]
    laser[:, 1] = flat * np.sin(azimuths).astype(np.float32)[columns]
    laser[:, 2] = ranges * np.sin(inclinations).astype(np.float32)[rows]
    return laser @ extrinsic[:3, :3].T.astype(np.float32) + extrinsic[:3, 3].astype(np.float32)


def _at_frame_time(xyz: Float32, poses: FloatArray, frame_pose: NDArray[np.float64]) -> Float32:
    """Move points from the vehicle at firing time to the vehicle at the frame's time."""
    unset = ~poses.any(axis=1)
    if unset.any():
        raise RangeImageError(f"{int(unset.sum())} valid pixels have an all-zero pose; their points could be metres off")
    shift = (poses[:, 3:6].astype(np.float64) - frame_pose[:3, 3]).astype(np.float32)
    angles = poses[:, :3].astype(np.float32)
    (sr, sp, sy), (cr, cp, cy) = np.sin(angles).T, np.cos(angles).T
    x, y, z = xyz.T
    # Rz(yaw) Ry(pitch) Rx(roll), roll first, written out
    y, z = cr * y - sr * z, sr * y + cr * z
    x, z = cp * x + sp * z, cp * z - sp * x
    x, y = cy * x - sy * y, sy * x + cy * y
    world = np.stack((x, y, z), axis=1) + shift
    moved: Float32 = world @ np.linalg.inv(frame_pose[:3, :3]).T.astype(np.float32)
    return moved
