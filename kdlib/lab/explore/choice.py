"""What a reader may choose in notebook 04: models, frame, score, class, overlap, layers, a map, and
where to go next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdlib.errors import KdlibError

LAYERS = ("ground truth", "found boxes", "misses", "false alarms")
MAP_NAMES = ("none", "heatmap", "pivotal positions", "BEV features", "KD masks")
# Where the buttons lead; "right" is the student on the right, the distilled one where the teacher
# is.
JUMPS = {
    "helped": "most ahead of initialised",
    "hurt": "most behind initialised",
    "ahead": "most ahead of alone",
    "hardest": "most misses, right",
}
BASES = {"helped": "init", "hurt": "init", "ahead": "alone"}  # the arm that is compared with


class BrowserError(KdlibError):
    """Something to look at that is not there."""


@dataclass(frozen=True)
class Choice:
    """What the reader chose."""

    frame: int  # position among the evaluated frames
    left: str  # a model's name
    right: str
    min_score: float = 0.5
    class_name: str | None = None  # None: all
    iou: float | None = None  # that a match needs; None: Waymo's own
    layers: tuple[str, ...] = LAYERS
    map: str = "none"  # one of MAP_NAMES, under the boxes

    def check(self, models: Sequence[str], frames: int) -> None:
        """Check that all it names exists; BrowserError if the frame, a model, a layer or the map
        does not.
        """
        if not 0 <= self.frame < frames:
            raise BrowserError(f"frame {self.frame} asked for, there are 0 to {frames - 1}")
        for names, known in (
            ((self.left, self.right), models),
            ((self.map,), MAP_NAMES),
            (self.layers, LAYERS),
        ):
            for name in names:
                if name not in known:
                    raise BrowserError(f"'{name}' is none of: {', '.join(known)}")
