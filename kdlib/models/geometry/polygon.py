"""The exact areas in which pairs of rotated rectangles overlap (numpy, float64)."""

from __future__ import annotations

import numpy as np

from kdlib.types import Float64

# Corners in units of half the length and half the width, counter-clockwise.
_CORNERS_X = np.array((1.0, -1.0, -1.0, 1.0))
_CORNERS_Y = np.array((1.0, 1.0, -1.0, -1.0))


def rectangle_overlap(a: Float64, b: Float64) -> Float64:
    """Return the intersection areas (N,) in square metres of the rectangles ``a[i]`` and ``b[i]``.

    A rectangle is ``x, y, length, width, heading`` (metres, radians). Seen from ``b``, whose sides are then the lines
    ``|x| = length / 2`` and ``|y| = width / 2``, Green's theorem turns the area into one integral along the four edges of ``a``:

        area = sum over edges of the integral of clamp(x) dy, over the part of the edge between the two lines of constant y

    No polygon is ever built, so nothing can overflow or go wrong on touching, contained, collinear or identical sides. The
    error is a few float64 roundings of the larger area.

    Raises:
        ValueError: If the shapes are not (N, 5), twice the same N.
    """
    if a.ndim != 2 or a.shape[-1] != 5 or a.shape != b.shape:
        raise ValueError(f"need two arrays of (N, 5) rectangles, not {a.shape} and {b.shape}")
    x, y = _corners_seen_from(a.astype(np.float64), b.astype(np.float64))
    half_x, half_y = 0.5 * np.abs(b[:, 2]).astype(np.float64), 0.5 * np.abs(b[:, 3]).astype(np.float64)
    edges = _edge_integral(x, y, np.roll(x, -1, axis=0), np.roll(y, -1, axis=0), half_x, half_y)
    area = edges[0] + edges[1] + edges[2] + edges[3]
    # Negative sizes turn the corners round; rounding may leave a touching pair a hair below zero.
    return np.maximum(np.abs(area), 0.0)


def _corners_seen_from(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    """Return x (4, N) and y (4, N) of the corners of ``a`` in the frames of ``b``."""
    dx, dy = a[:, 0] - b[:, 0], a[:, 1] - b[:, 1]
    cos_b, sin_b = np.cos(b[:, 4]), np.sin(b[:, 4])
    centre_x, centre_y = dx * cos_b + dy * sin_b, dy * cos_b - dx * sin_b
    turn = a[:, 4] - b[:, 4]  # equal headings give exactly 0, so aligned pairs stay exactly aligned
    cos, sin = np.cos(turn), np.sin(turn)
    along = 0.5 * a[:, 2] * _CORNERS_X[:, None]
    across = 0.5 * a[:, 3] * _CORNERS_Y[:, None]
    return centre_x + along * cos - across * sin, centre_y + along * sin + across * cos


def _edge_integral(x0: Float64, y0: Float64, x1: Float64, y1: Float64, half_x: Float64, half_y: Float64) -> Float64:
    """Return the integral of clamp(x, -half_x, half_x) dy along the edge's part with |y| <= half_y."""
    low, high = np.clip(y0, -half_y, half_y), np.clip(y1, -half_y, half_y)
    rise, run = y1 - y0, x1 - x0
    safe_rise = np.where(rise == 0.0, 1.0, rise)  # then low == high and the integral is zero anyway
    start = x0 + run * ((low - y0) / safe_rise)
    stop = x0 + run * ((high - y0) / safe_rise)

    # clamp(x) is piecewise linear along the edge: it bends where x leaves and enters the slab.
    span = stop - start
    safe_span = np.where(span == 0.0, 1.0, span)
    first, second = np.sort([np.clip((border - start) / safe_span, 0.0, 1.0) for border in (-half_x, half_x)], axis=0)
    bends = (start, start + first * span, start + second * span, stop)
    c0, c1, c2, c3 = (np.clip(x, -half_x, half_x) for x in bends)
    mean = 0.5 * (first * (c0 + c1) + (second - first) * (c1 + c2) + (1.0 - second) * (c2 + c3))
    result: Float64 = (high - low) * mean
    return result
