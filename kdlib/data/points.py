"""Packs float points into 8 bytes each and unpacks them: x and y in steps of 2.4 mm, z of 1 mm,
tanh(intensity) of 1/255.

Elongation has steps of 1/64 up to 127/64 (Waymo's reach about 1.5; what is above saturates), the
no-label-zone flag one bit. Intensity is unbounded in Waymo's files; networks see its tanh, and that
is what is kept. Points beyond +-80 m in x or y, or +-32 m in z, cannot be held; Waymo's lasers end
at 75 m and no published model looks beyond 75.2 m. They are counted and left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdlib.errors import DataError
from kdlib.types import Bool, Float32, Float64

StoredPoints = NDArray[np.void]
"""Points (N,) of ``POINT``."""

POINT = np.dtype(
    [("x", "<i2"), ("y", "<i2"), ("z", "<i2"), ("intensity", "u1"), ("elongation_nlz", "u1")]
)
"""One stored point."""

REACH = 80.0
"""Metres in x and y that points are held to."""

STEPS = {"x": REACH / 32767, "y": REACH / 32767, "z": 0.001}
"""Metres per count; the largest error is half a step."""

_ELONGATION = 64.0
_TANH = (np.arange(256) / 255.0).astype(np.float32)
_ELONGATIONS = ((np.arange(256) & 127) / _ELONGATION).astype(np.float32)
_FLAGS = np.where(np.arange(256) >= 128, 1.0, -1.0).astype(np.float32)


def encode_points(points: Float32) -> StoredPoints:
    """Compress points (N, 6) x, y, z, raw intensity, elongation, no-label-zone flag, in order;
    leave out those out of reach.

    Returns:
        (n,) of ``POINT``, n <= N.

    Raises:
        DataError: If a number is not finite.
    """
    if not np.isfinite(points).all():
        raise DataError(
            f"{(~np.isfinite(points).all(axis=1)).sum()} of {len(points)} points "
            "hold NaN or infinity"
        )
    held = within_reach(points)
    points = points[held]
    counts = _counts(points)
    stored = np.empty(len(points), POINT)
    for axis, name in enumerate(STEPS):
        stored[name] = counts[:, axis].astype(np.int16)
    # In float32 the last bits of a tanh differ between releases of NumPy, and with them the
    # fingerprint of a store.
    stored["intensity"] = np.rint(
        255 * np.tanh(np.maximum(points[:, 3], 0), dtype=np.float64)
    ).astype(np.uint8)
    elongation = np.clip(np.rint(points[:, 4] * _ELONGATION), 0, 127).astype(np.uint8)
    stored["elongation_nlz"] = elongation | np.where(points[:, 5] > 0, 128, 0).astype(np.uint8)
    return stored


def within_reach(points: Float32) -> Bool:
    """Return which points (N, >=3) a store can hold."""
    return np.asarray((np.abs(_counts(points)) <= 32767).all(axis=1))


def _counts(points: Float32) -> Float64:
    return np.rint(points[:, :3] / np.array(list(STEPS.values())))


def decode_points(stored: StoredPoints) -> Float32:
    """Return points (N, 6) x, y, z, tanh(intensity), elongation, no-label-zone flag (+1 inside, -1
    outside).
    """
    points = np.empty((len(stored), 6), np.float32)
    for axis, (name, step) in enumerate(STEPS.items()):
        np.multiply(stored[name], np.float32(step), out=points[:, axis])
    points[:, 3] = _TANH[stored["intensity"]]
    points[:, 4] = _ELONGATIONS[stored["elongation_nlz"]]
    points[:, 5] = _FLAGS[stored["elongation_nlz"]]
    return points
