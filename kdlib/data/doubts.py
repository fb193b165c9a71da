"""Counts, while frames of one's own are stored, what was left out and what is allowed but rarely
meant.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from kdlib.data.layouts import ground_level
from kdlib.data.own_checks import REACH
from kdlib.data.points import within_reach
from kdlib.types import Frame

_ROAD = 1.0  # metres that the road, 0.5 that most boxes' lower faces may lie off z = 0
_BOTTOM = 0.5
_FLAT = 30.0  # metres around, where the road is about as high as here
_WIDER = 1.2  # width over length


class Doubts:
    """Counts over frames that pass by."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._roads: list[float] = []

    def watch(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Hand frames on, and count."""
        for frame in frames:
            yield frame  # what cannot be stored at all is refused first
            points, boxes = frame.points, frame.labels.boxes
            held = within_reach(points)
            if held.any():
                self._roads.append(ground_level(points[held, :3]))
            bottoms = boxes[:, 2] - boxes[:, 5] / 2
            flat = np.hypot(boxes[:, 0], boxes[:, 1]) < _FLAT
            alike = np.column_stack((frame.labels.types, np.rint(1000 * boxes)))  # to a millimetre
            self._count.update(
                points=len(points),
                lost=int((~held).sum()),
                boxes=len(boxes),
                far=int((~within_reach(boxes[:, :3].astype(np.float32))).sum()),
                empty=int((frame.labels.num_points == 0).sum()),
                turned=int((np.abs(boxes[:, 6]) > 2 * np.pi).sum()),
                wide=int((boxes[:, 4] > _WIDER * boxes[:, 3]).sum()),
                nowhere=int((~points[:, :3].any(axis=1)).sum()),
                twice=len(boxes) - len(np.unique(alike, axis=0)),
                near=int(flat.sum()),
                off=int((np.abs(bottoms[flat]) > _BOTTOM).sum()),
            )

    def warn(self, place: str, stacklevel: int = 2) -> None:
        """Warn once of each kind that occurred: of lost data always, of what may be meant where it
        is so of most.
        """
        for sentence in self._sentences():
            warnings.warn(f"{place}: {sentence}", stacklevel=stacklevel)

    def _sentences(self) -> Iterator[str]:
        count = self._count
        boxes, most = f"of {count['boxes']:,} boxes", count["boxes"] / 2
        if count["lost"]:
            yield (
                f"{count['lost']:,} of {count['points']:,} points lie beyond {REACH} and were left "
                "out"
            )
        if count["nowhere"]:
            yield (
                f"{count['nowhere']:,} of {count['points']:,} points lie at 0, 0, 0, as no return "
                "does; leave them out: points[points[:, :3].any(axis=1)]"
            )
        if count["twice"]:
            yield f"{count['twice']:,} {boxes} stand there twice, same class and place; keep one"
        if count["far"]:
            yield (
                f"{count['far']:,} {boxes} lie beyond {REACH}, where no points are stored; nothing "
                "learns them and the metric does not ask for them"
            )
        if count["empty"] > most:
            yield (
                f"{count['empty']:,} {boxes} hold no point; boxes and points must lie in one "
                "frame, in metres, headings counter-clockwise from x in radians"
            )
        if count["turned"]:
            yield f"{count['turned']:,} {boxes} have a heading beyond 2 pi; if degrees, np.deg2rad"
        if count["wide"] > most:
            yield f"{count['wide']:,} {boxes} are wider than long; a length lies along the heading"
        if count["off"] > count["near"] / 2:
            yield (
                f"the lower faces of {count['off']:,} of {count['near']:,} boxes within {_FLAT:g} m"
                f" lie more than {_BOTTOM:g} m off the road; z is of the geometric centre, and the "
                "road lies at z = 0"
            )
        off = [road for road in self._roads if abs(road) > _ROAD]
        if len(off) > len(self._roads) / 2:
            yield (
                f"in {len(off):,} of {len(self._roads):,} frames the road seems to lie at about "
                f"z = {np.median(off):.1f}; networks look for it at 0, so raise points and boxes"
            )
