"""Converts range images to points in vehicle coordinates, by calibration and poses (format spec
section 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.types import Float32, Float64, FloatArray

_SKEW = 1e-3  # a rotation in float32 is orthonormal to 1e-6
_FARTHEST = 1e8  # metres: twice around the Earth
_REACH = 1e3  # metres from the vehicle: many times what a LiDAR sees
_BLOCK = 1 << 14  # pixels at a time: what is computed in between stays in the cache


class RangeImageError(DataError):
    """A range image that cannot be converted to points."""


def as_image(values: FloatArray, shape: tuple[int, ...], least_channels: int) -> FloatArray:
    """Return flat values as an (H, W, C) image.

    Raises:
        RangeImageError: If there are not three dimensions, too few channels, or another number of
            values than the shape says.
    """
    if len(shape) != 3 or min(shape) < 0 or shape[2] < least_channels:
        raise RangeImageError(
            f"range image of shape {shape}, expected (rows, columns, at least "
            f"{least_channels} channels)"
        )
    if math.prod(shape) != len(values):
        raise RangeImageError(
            f"range image of shape {shape} needs {math.prod(shape)} values, "
            f"the file holds {len(values)}"
        )
    return values.reshape(shape)


def as_transform(values: FloatArray) -> Float64:
    """Return 16 row-major numbers as a rigid (4, 4) transform.

    Raises:
        RangeImageError: If there are not 16 finite numbers, the last row is not 0 0 0 1, or the
            rest turns lengths or handedness.
    """
    if np.size(values) != 16:
        raise RangeImageError(f"a transform needs 16 numbers, not {np.size(values)}")
    transform = np.asarray(values, np.float64).reshape(4, 4)
    if not np.isfinite(transform).all():
        raise RangeImageError("a transform holds a number that is not finite")
    if not np.allclose(transform[3], (0, 0, 0, 1), rtol=0, atol=1e-6):
        raise RangeImageError(
            f"the last row of a transform must be 0 0 0 1, not {transform[3].tolist()}"
        )
    if not (np.abs(transform) < _FARTHEST).all():
        raise RangeImageError(f"a transform moves by {np.abs(transform).max():.3g} m")
    rotation = transform[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > _SKEW or np.linalg.det(rotation) < 0:
        raise RangeImageError(
            f"the first three columns of a transform are no rotation: {rotation.tolist()}"
        )
    return transform


def row_inclinations(
    table: FloatArray | None, lowest: float, highest: float, height: int
) -> Float64:
    """Return the inclination of every row in radians, row 0 being the highest beam.

    They are the ascending beam table's (H,), or, without one, spread evenly between the lower and
    the upper edge of the image.

    Raises:
        RangeImageError: If the table has another length than the image has rows, or one value only.
    """
    if table is None or len(table) == 0:
        rows = np.arange(height - 1, -1, -1, dtype=np.float64)
        return lowest + (rows + 0.5) / max(height, 1) * (highest - lowest)
    if len(table) != height:
        raise RangeImageError(f"{len(table)} beam inclinations for a range image of {height} rows")
    if height > 1 and table[0] == table[-1]:
        raise RangeImageError(f"all {height} beam inclinations are {table[0]:.4g}")
    return np.asarray(table, np.float64)[::-1]


def column_azimuths(width: int, extrinsic: FloatArray) -> Float64:
    """Return the azimuth of every column in the laser's frame, radians; the middle column looks
    along the vehicle's +x.
    """
    columns = np.arange(width, dtype=np.float64)
    return np.pi * (2.0 * (width - columns - 0.5) / max(width, 1) - 1.0) - np.arctan2(
        extrinsic[1, 0], extrinsic[0, 0]
    )


@np.errstate(over="ignore", invalid="ignore")  # what overflows is found at the end
def range_image_to_points(
    image: FloatArray,
    extrinsic: FloatArray,
    inclinations: FloatArray,
    pixel_pose: FloatArray | None,
    frame_pose: Float64,
) -> Float32:
    """Convert the valid pixels (range strictly above 0) of one range image to points, in row-major
    order.

    Valid pixels are gathered before any arithmetic, which is float32 except for the difference of
    the two world translations: world coordinates are tens of kilometres, where a float32 step is 4
    mm.

    Args:
        image: (H, W, >=4) range, intensity, elongation, no-label-zone flag.
        extrinsic: (4, 4) vehicle from laser.
        inclinations: (H,) radians, row 0 first (:func:`row_inclinations`).
        pixel_pose: (H, W, 6) roll, pitch, yaw, x, y, z: world from vehicle when the pixel was
            fired; None for side lasers.
        frame_pose: (4, 4) world from vehicle of the frame.

    Returns:
        (n, 6) x, y, z in metres, intensity (raw), elongation, no-label-zone flag.

    Raises:
        RangeImageError: If shapes disagree, a valid pixel has no pose, or a point is not finite or
            farther than any LiDAR sees.
    """
    height, width = image.shape[:2]
    ranges = image[..., 0].ravel()
    finite = np.isfinite(ranges)
    if not finite.all():
        raise RangeImageError(
            f"{(~finite).sum()} ranges are NaN or infinite; a missing pixel must be -1"
        )
    valid = np.flatnonzero(ranges > 0)
    if pixel_pose is not None:
        if pixel_pose.shape != (height, width, 6):
            raise RangeImageError(
                f"pixel poses of shape {pixel_pose.shape} for a range image of {height} x {width}"
            )
        pixel_pose = pixel_pose.reshape(-1, 6)
    # Sines and cosines are taken per row and per column, not per pixel.
    angles = (inclinations, column_azimuths(width, extrinsic))
    directions = [
        function(angle).astype(np.float32) for angle in angles for function in (np.sin, np.cos)
    ]
    pixels = image.reshape(-1, image.shape[2])
    points = np.empty((len(valid), 6), np.float32)
    for start in range(0, len(valid), _BLOCK):
        block = valid[start : start + _BLOCK]
        seen = pixels.take(block, axis=0)  # several times as fast as pixels[block]
        xyz = _in_vehicle(
            seen[:, 0].astype(np.float32), *np.divmod(block, width), directions, extrinsic
        )
        if pixel_pose is not None:
            poses = np.ascontiguousarray(pixel_pose.take(block, axis=0).T)
            if not poses.any(axis=0).all():
                unset = (~pixel_pose[valid].any(axis=1)).sum()
                raise RangeImageError(
                    f"{unset} valid pixels have an all-zero pose; their points could be metres off"
                )
            xyz = _at_frame_time(xyz, poses, frame_pose)
        points[start : start + len(block), :3] = xyz
        points[start : start + len(block), 3:] = seen[:, 1:4]
    for right, said in (
        (np.isfinite(points), "are not finite"),
        (
            np.abs(points[:, :3]) < _REACH,
            f"lie more than {_REACH:g} m away; poses and ranges are metres",
        ),
    ):
        if not right.all():
            broken = ~right.all(axis=1)
            row, column = divmod(valid[broken][0], width)
            raise RangeImageError(
                f"{broken.sum()} points {said}: the first, of range {image[row, column, 0]:.4g} m, "
                f"at row {row}, column {column}"
            )
    return points


def _in_vehicle(
    ranges: Float32,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    directions: Sequence[Float32],
    extrinsic: FloatArray,
) -> Float32:
    """Polar to Cartesian, then laser to vehicle."""
    row_sin, row_cos, column_sin, column_cos = directions
    flat = ranges * row_cos[rows]
    laser = np.stack(
        (flat * column_cos[columns], flat * column_sin[columns], ranges * row_sin[rows]), axis=1
    )
    return laser @ extrinsic[:3, :3].T.astype(np.float32) + extrinsic[:3, 3].astype(np.float32)


def _at_frame_time(xyz: Float32, poses: FloatArray, frame_pose: Float64) -> Float32:
    """Move points (n, 3) from the vehicle at firing time, poses (6, n), to the vehicle at the
    frame's time.
    """
    shift = (poses[3:6].astype(np.float64) - frame_pose[:3, 3:]).astype(np.float32)
    angles = poses[:3].astype(np.float32)
    (sr, sp, sy), (cr, cp, cy) = np.sin(angles), np.cos(angles)
    x, y, z = np.ascontiguousarray(xyz.T)
    # Rz(yaw) Ry(pitch) Rx(roll), roll first, written out
    y, z = cr * y - sr * z, sr * y + cr * z
    x, z = cp * x + sp * z, cp * z - sp * x
    x, y = cy * x - sy * y, sy * x + cy * y
    world = np.stack((x + shift[0], y + shift[1], z + shift[2]), axis=1)
    return world @ np.linalg.inv(frame_pose[:3, :3]).T.astype(np.float32)
