"""What rays hit in, what a laser would report out: noisy ranges, intensity by material, elongation, drop-outs, second returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlib.simulate.mesh import BoolArray, Material
from kdlib.types import FloatArray, IntArray

Rng = np.random.Generator

# Share of light sent back, and how often nothing is seen, by material in the order of Material.
_OPTICS = {
    Material.ASPHALT: (0.07, 0.01),
    Material.MARKING: (0.45, 0.0),
    Material.PAVEMENT: (0.16, 0.01),
    Material.GRASS: (0.24, 0.04),
    Material.FACADE: (0.28, 0.0),
    Material.GLASS: (0.03, 0.60),
    Material.FOLIAGE: (0.30, 0.12),
    Material.BARK: (0.15, 0.01),
    Material.METAL: (0.22, 0.04),
    Material.PAINT: (0.22, 0.04),
    Material.TYRE: (0.03, 0.08),
    Material.SKIN: (0.25, 0.01),
    Material.CLOTH: (0.20, 0.02),
    Material.RETRO: (60.0, 0.0),
}
_REFLECTIVITY = np.array([_OPTICS[material][0] for material in Material])
_LOSS = np.array([_OPTICS[material][1] for material in Material])
RANGE_NOISE = 0.012
"""Standard deviation of a range, metres; leaves have depth on top."""
SEPARATION = 1.0
"""A second echo must come from at least so far behind the first, metres."""


@dataclass(frozen=True)
class Hits:
    """Where N rays end; ``distance`` is inf for those that meet nothing."""

    distance: FloatArray  # (N,)
    material: IntArray  # (N,)
    tint: FloatArray  # (N,)
    cosine: FloatArray  # (N,) of the angle of incidence, 0..1


@dataclass(frozen=True)
class Echoes:
    """One return of N rays: range (-1 without), intensity and elongation."""

    range: FloatArray
    intensity: FloatArray
    elongation: FloatArray

    @property
    def seen(self) -> BoolArray:
        """Which rays came back, (N,) bool."""
        return self.range > 0


def first_echoes(rng: Rng, hits: Hits, max_range: FloatArray) -> Echoes:
    """Return the strongest return of every ray, range noise and losses included."""
    count = len(hits.distance)
    hit = np.isfinite(hits.distance)
    distance = np.where(hit, hits.distance, 0.0)
    leaves = hits.material == Material.FOLIAGE
    noise = RANGE_NOISE * rng.standard_normal(count)
    depth = np.where(leaves, 0.2 * rng.exponential(1.0, count), 0.0)
    measured = distance + noise + depth
    # Dark things at a grazing angle and far things are lost more often.
    grazing = (1 - hits.cosine) ** 4
    far = distance / 75.0
    loss = 0.01 + _LOSS[hits.material] + 0.25 * far**2 + 0.3 * grazing * far
    seen = hit & (rng.random(count) > loss) & (measured > 0.1) & (measured <= max_range)
    strength = _REFLECTIVITY[hits.material] * hits.tint * (0.25 + 0.75 * hits.cosine)
    retro = hits.material == Material.RETRO
    spread = np.where(retro, 1.2, 0.25)
    intensity = strength * np.exp(spread * rng.standard_normal(count)) * (1.1 - 0.4 * far)
    elongation = (
        np.abs(rng.normal(0, 0.03, count))
        + 0.25 * grazing * rng.random(count)
        + np.where(leaves, rng.exponential(0.25, count), 0.0)
    )
    return Echoes(np.where(seen, measured, -1.0), intensity, np.minimum(elongation, 1.5))


def second_candidates(rng: Rng, hits: Hits, first: Echoes, ahead: IntArray) -> IntArray:
    """Return the rays, by index, part of whose light goes on: through leaves and panes, and past edges.

    Args:
        rng: Random generator.
        hits: Where the rays end.
        first: Their first return.
        ahead: (N,) index of the neighbouring ray in the same beam row.
    """
    count = len(hits.distance)
    edge = hits.distance[ahead] > hits.distance + SEPARATION
    share = np.where(hits.material == Material.FOLIAGE, 0.35, np.where(hits.material == Material.GLASS, 0.25, 0.0))
    share = np.maximum(share, np.where(edge, 0.3, 0.0))
    return np.flatnonzero(first.seen & (rng.random(count) < share))


def second_echoes(rng: Rng, hits: Hits, first_range: FloatArray, max_range: FloatArray) -> Echoes:
    """Return the weaker return of rays that went on behind their first."""
    behind = first_echoes(rng, hits, max_range)
    keep = behind.seen & (behind.range - first_range > SEPARATION)
    elongation = np.minimum(behind.elongation + 0.3 * rng.random(len(first_range)), 1.5)
    return Echoes(np.where(keep, behind.range, -1.0), 0.4 * behind.intensity, elongation)
