"""Names what triangles are made of, and what each material does to light."""

from __future__ import annotations

import numpy as np

(
    ASPHALT,
    MARKING,
    PAVEMENT,
    GRASS,
    FACADE,
    GLASS,
    FOLIAGE,
    BARK,
    METAL,
    PAINT,
    TYRE,
    SKIN,
    CLOTH,
    RETRO,
) = range(14)

_OPTICS = {  # share of light sent back, and how often nothing is seen
    ASPHALT: (0.07, 0.01),
    MARKING: (0.45, 0.0),
    PAVEMENT: (0.16, 0.01),
    GRASS: (0.24, 0.04),
    FACADE: (0.28, 0.0),
    GLASS: (0.03, 0.60),
    FOLIAGE: (0.30, 0.12),
    BARK: (0.15, 0.01),
    METAL: (0.22, 0.04),
    PAINT: (0.22, 0.04),
    TYRE: (0.03, 0.08),
    SKIN: (0.25, 0.01),
    CLOTH: (0.20, 0.02),
    RETRO: (60.0, 0.0),
}
REFLECTIVITY, LOSS = np.array(list(_OPTICS.values())).T
