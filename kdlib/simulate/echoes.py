"""Turns what rays hit into what a laser would report: noisy ranges, intensity, elongation,
drop-outs, second returns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlib.simulate.materials import FOLIAGE, GLASS, LOSS, REFLECTIVITY, RETRO
from kdlib.simulate.mesh import Rng
from kdlib.types import FloatArray, IntArray

_RANGE_NOISE = 0.012  # standard deviation of a range, metres; leaves have depth on top
SEPARATION = 1.0  # a second echo must come from at least so far behind the first, metres


@dataclass(frozen=True)
class Hits:
    """Where N rays end; ``distance`` is inf for those that meet nothing."""

    distance: FloatArray  # (N,)
    material: IntArray  # (N,)
    tint: FloatArray  # (N,)
    cosine: FloatArray  # (N,) of the angle of incidence, 0..1


def first_echoes(rng: Rng, hits: Hits, max_range: FloatArray) -> FloatArray:
    """Return the strongest return of every ray, noise and losses included: (N, 3) range (-1
    without), intensity, elongation.
    """
    count = len(hits.distance)
    hit = np.isfinite(hits.distance)
    distance = np.where(hit, hits.distance, 0.0)
    leaves = hits.material == FOLIAGE
    noise = _RANGE_NOISE * rng.standard_normal(count)
    depth = np.where(leaves, 0.2 * rng.exponential(1.0, count), 0.0)
    measured = distance + noise + depth
    # Dark things at a grazing angle and far things are lost more often.
    grazing = (1 - hits.cosine) ** 4
    far = distance / 75.0
    loss = 0.01 + LOSS[hits.material] + 0.25 * far**2 + 0.3 * grazing * far
    seen = hit & (rng.random(count) > loss) & (measured > 0.1) & (measured <= max_range)
    strength = REFLECTIVITY[hits.material] * hits.tint * (0.25 + 0.75 * hits.cosine)
    retro = hits.material == RETRO
    spread = np.where(retro, 1.2, 0.25)
    intensity = strength * np.exp(spread * rng.standard_normal(count)) * (1.1 - 0.4 * far)
    elongation = np.abs(rng.normal(0, 0.03, count)) + 0.25 * grazing * rng.random(count)
    elongation += np.where(leaves, rng.exponential(0.25, count), 0.0)
    return np.stack([np.where(seen, measured, -1.0), intensity, np.minimum(elongation, 1.5)], 1)


def second_candidates(rng: Rng, hits: Hits, first: FloatArray, ahead: IntArray) -> IntArray:
    """Return the rays, by index, part of whose light goes on: through leaves and panes, and past
    edges.

    ``first`` are their first returns (N, 3), ``ahead`` the indices (N,) of the neighbouring rays in
    the same beam row.
    """
    edge = hits.distance[ahead] > hits.distance + SEPARATION
    share = np.where(hits.material == FOLIAGE, 0.35, np.where(hits.material == GLASS, 0.25, 0.0))
    share = np.maximum(share, np.where(edge, 0.3, 0.0))
    return np.flatnonzero((first[:, 0] > 0) & (rng.random(len(share)) < share))


def second_echoes(
    rng: Rng, hits: Hits, first_range: FloatArray, max_range: FloatArray
) -> FloatArray:
    """Return the weaker return (N, 3) of rays that went on behind their first."""
    distance, intensity, elongation = first_echoes(rng, hits, max_range).T
    keep = (distance > 0) & (distance - first_range > SEPARATION)
    elongation = np.minimum(elongation + 0.3 * rng.random(len(first_range)), 1.5)
    return np.stack([np.where(keep, distance, -1.0), 0.4 * intensity, elongation], 1)
