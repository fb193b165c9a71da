"""Turns one laser's calibration and range images into points: what both Waymo formats share (format
spec section 4).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdlib.errors import DataError
from kdlib.types import Float32, Float64, FloatArray
from kdlib.waymo.range_image import (
    RangeImageError,
    as_transform,
    range_image_to_points,
    row_inclinations,
)

TOP = 1
_STEEPEST = 1.6  # radians: straight down, and a little for rounding
_MOUNTED = 20.0  # metres from the vehicle's origin, at most
_NAMES = {TOP: "TOP", 2: "FRONT", 3: "SIDE_LEFT", 4: "SIDE_RIGHT", 5: "REAR"}


def laser_name(number: int) -> str:
    """Return Waymo's name of a laser, or the number itself if there is no such laser."""
    return _NAMES.get(number, str(number))


@dataclass(frozen=True)
class Calibration:
    """Where one laser sits and how its beams are spread."""

    extrinsic: Float64  # (4, 4) vehicle from laser
    lowest: float  # radians
    highest: float
    table: Float64 | None  # ascending beam inclinations, None where they are even


def calibration(
    extrinsic: Sequence[float],
    lowest: float | None,
    highest: float | None,
    table: Sequence[float] | None,
) -> Calibration:
    """Check the numbers of one laser's calibration as a file holds them; limits may lack beside a
    table, a table beside limits.

    Raises:
        DataError: If the extrinsic is no transform within the vehicle, or beam inclinations are
            missing, not finite, not ascending or no radians.
    """
    beams = np.array(table, np.float64) if table else None
    limits = np.array([lowest, highest], np.float64)  # None becomes NaN
    angles = limits if beams is None else beams
    if not np.isfinite(angles).all():
        raise DataError("beam inclinations are missing or not finite")
    if np.abs(angles).max() > _STEEPEST:
        raise DataError(
            f"beam inclinations reach {angles[np.abs(angles).argmax()]:.4g}; they must be radians, "
            "not degrees"
        )
    if (np.diff(angles) < 0).any() or (beams is None and lowest == highest):
        raise DataError(
            f"beam inclinations from {angles[0]:.4g} to {angles[-1]:.4g} do not ascend; the lowest "
            "beam must come first"
        )
    transform = as_transform(np.array(extrinsic, np.float64))
    place = transform[:3, 3]
    if not (np.abs(place) < _MOUNTED).all():
        raise DataError(
            f"sits at {np.round(place, 1).tolist()} in the vehicle's frame; its place must be in "
            "metres"
        )
    return Calibration(transform, float(limits[0]), float(limits[1]), beams)


def laser_points(
    returns: Sequence[FloatArray | None],
    calibration: Calibration,
    pixel_pose: FloatArray | None,
    frame_pose: Float64,
) -> Float32:
    """Return the points (n, 6) of one laser, return 1 before return 2; an absent return is None.

    Raises:
        RangeImageError: If the first return is absent, shapes disagree, or a valid pixel has no
            pose.
    """
    if returns[0] is None:
        which = (
            "return 1 is an empty cell"
            if any(image is not None for image in returns)
            else "both returns are empty cells"
        )
        raise RangeImageError(f"{which}; the lidar images were stripped from this file")
    beams = (calibration.table, calibration.lowest, calibration.highest)
    clouds = [
        range_image_to_points(
            image,
            calibration.extrinsic,
            row_inclinations(*beams, image.shape[0]),
            pixel_pose,
            frame_pose,
        )
        for image in returns
        if image is not None  # some lasers have no second return
    ]
    return np.concatenate(clouds)


def check_size(
    returns: Sequence[FloatArray | None], laser: int, sizes: dict[int, tuple[int, ...]]
) -> None:
    """Check that the range images of a laser are of one size in all frames of a segment.

    ``sizes`` holds rows and columns seen by laser, and learns of new ones. A RangeImageError says
    both.
    """
    for image in returns:
        if image is None:
            continue
        known = sizes.setdefault(laser, image.shape[:2])
        for what, own, others in zip(("rows", "columns"), image.shape, known):
            if own != others:
                raise RangeImageError(
                    f"a range image has {own} {what}, others of this laser have {others}; "
                    "one calibration cannot hold for both"
                )


@contextmanager
def naming(path: Path, place: str = "") -> Iterator[None]:
    """Put file and place in front of an error, and the usual remedy behind it where it names none
    of its own.
    """
    try:
        yield
    except DataError as error:
        remedy = "" if "download" in str(error) else "; copy or download the file again"
        raise type(error)(f"{path}: {place}{error}{remedy}") from error


def warn_of_uneven_timing(path: Path, times: Sequence[int], stacklevel: int = 3) -> None:
    """Warn if frames are not 95 to 105 ms apart, timestamps in microseconds (format spec section
    8).
    """
    gaps = np.diff(times) / 1000.0
    odd = (gaps < 95) | (gaps > 105)
    if odd.any():
        message = (
            f"{path}: {odd.sum()} frames are not 95 to 105 ms after the one before (the "
            f"first: {gaps[odd][0]:.1f} ms)"
        )
        warnings.warn(message, stacklevel=stacklevel)
