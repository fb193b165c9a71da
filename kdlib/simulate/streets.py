"""A layout in, its streets as straight lines with their own coordinates out: u along, v to the left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdlib.simulate.layout import Layout, Road


@dataclass(frozen=True)
class Street:
    """One road of the layout; the crossing with the other one is a gap in it."""

    road: Road
    origin: tuple[float, float]
    angle: float  # of u in the layout
    start: float
    end: float
    gap: tuple[float, float]  # u from, u to; empty where start > end
    depth: float  # |v| up to which there is anything

    @property
    def length(self) -> float:
        """How long it is without the crossing."""
        return self.end - self.start - max(self.gap[1] - self.gap[0], 0.0)

    def place(self, u: float, v: float) -> tuple[float, float]:
        """Return the layout's x, y of a place."""
        cos, sin = float(np.cos(self.angle)), float(np.sin(self.angle))
        return self.origin[0] + cos * u - sin * v, self.origin[1] + sin * u + cos * v

    def in_gap(self, u: float, margin: float = 0.0) -> bool:
        """Tell whether a place along it lies in the crossing."""
        return self.gap[0] - margin < u < self.gap[1] + margin


def streets(layout: Layout) -> tuple[Street, ...]:
    """Return the main street and, where there is one, the crossing street."""
    none = (1.0, -1.0)
    if layout.cross is None:
        return (Street(layout.main, (0.0, 0.0), 0.0, *layout.reach, none, layout.depth),)
    gap = (layout.cross_x - layout.cross.half, layout.cross_x + layout.cross.half)
    main = Street(layout.main, (0.0, 0.0), 0.0, *layout.reach, gap, layout.depth)
    half = layout.main.half
    width = min(layout.cross_x - layout.reach[0], layout.reach[1] - layout.cross_x)
    cross = Street(layout.cross, (layout.cross_x, 0.0), np.pi / 2, -layout.depth, layout.depth, (-half, half), width)
    return main, cross
