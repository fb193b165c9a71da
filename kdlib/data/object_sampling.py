"""Pastes objects of other frames into a frame where they hit nothing (GT sampling, spec 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdlib.config import ObjectSamplingConfig
from kdlib.data.containment import collisions, owner_of_points
from kdlib.data.object_bank import ObjectBank, remedy
from kdlib.data.store import class_types
from kdlib.errors import ConfigError, DataError
from kdlib.types import WAYMO_TYPES, Float32, Int64, IntArray


@dataclass(frozen=True)
class Pasted:
    """Objects drawn for one frame."""

    rows: Int64  # (K,) in the bank
    boxes: Float32  # (K, 7)
    labels: Int64  # (K,) 1-based class positions


class ObjectSampler:
    """Draws objects of a bank for frames, in which label n is the n-th of the class names; type n
    in the bank is the n-th of those ``known``.

    Raises:
        ConfigError: If ``config.counts`` has not one number per class, or a class is unknown.
        DataError: If the bank was built without one of the classes.
    """

    def __init__(
        self,
        bank: ObjectBank,
        class_names: Sequence[str],
        config: ObjectSamplingConfig,
        known: Sequence[str] = tuple(WAYMO_TYPES),
    ) -> None:
        if len(config.counts) != len(class_names):
            raise ConfigError(
                f"object sampling has counts {config.counts} for the classes "
                f"{', '.join(class_names)}"
            )
        missing = [name for name in class_names if name not in bank.class_names]
        if missing:
            raise DataError(
                f"{bank.path} was made without {', '.join(missing)}; delete it and "
                f"{remedy(bank.path)}"
            )
        self.bank, self.config = bank, config
        usable = (bank.counts >= config.min_points) & (bank.difficulty >= 0)
        self.candidates = [
            np.flatnonzero(usable & (bank.types == kind)).astype(np.int32)
            for kind in class_types(class_names, known)
        ]

    def draw(self, boxes: Float32, labels: Int64, rng: np.random.Generator) -> Pasted:
        """Draw objects for a frame with boxes (M, 7) and labels (M,), 0 for boxes of no class; see
        :func:`draw_objects`.
        """
        rows, new = draw_objects(
            self.candidates, self.bank.boxes, self.config.counts, boxes, labels, rng
        )
        return Pasted(rows, np.asarray(self.bank.boxes[rows]), new)

    def paste(self, points: Float32, pasted: Pasted) -> Float32:
        """Return the points (N, 5) of the objects, then those of the frame that are in none of the
        pasted boxes.
        """
        if not len(pasted.rows):
            return points
        boxes = pasted.boxes.copy()
        boxes[:, 3:6] += np.array(self.config.extra_width, np.float32)
        return np.concatenate(
            (self.bank.points(pasted.rows), points[owner_of_points(points, boxes) < 0])
        )


def draw_objects(
    candidates: Sequence[IntArray],
    bank_boxes: Float32,
    counts: Sequence[int],
    boxes: Float32,
    labels: Int64,
    rng: np.random.Generator,
) -> tuple[Int64, Int64]:
    """Draw what fills a frame up to ``counts`` objects per class; return rows of the bank (K,) and
    their labels (K,).

    Class by class, as many candidates are drawn as are missing. One that overlaps, seen from above,
    a box of the frame (of any class), an object accepted before, or another candidate of the same
    draw is dropped: of two colliding candidates, both.

    The published code walks through one permutation of the bank with a pointer that moves on from
    frame to frame, so what a frame gets depends on the worker and all frames before it. Here each
    frame draws without replacement on its own: the same frequencies on average, and a result that
    depends on the generator alone.

    Args:
        candidates: Usable rows of the bank for each class.
        bank_boxes: (n, 7) boxes of the bank.
        counts: For each class, how many a frame should have; no more are drawn where it has them
            already.
        boxes: (M, 7) of the frame, all classes.
        labels: (M,) 1-based; 0 for a box of none of the classes.
        rng: Decides.
    """
    occupied, rows, new = boxes, [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for label, (usable, count) in enumerate(zip(candidates, counts), start=1):
        missing = min(count - int((labels == label).sum()), len(usable))
        if missing <= 0:
            continue
        drawn = usable[rng.choice(len(usable), missing, replace=False)].astype(np.int64)
        new_boxes = np.asarray(bank_boxes[drawn])
        among = collisions(new_boxes, new_boxes)
        np.fill_diagonal(among, False)
        free = ~(among.any(axis=1) | collisions(new_boxes, occupied).any(axis=1))
        occupied = np.concatenate((occupied, new_boxes[free]))
        rows.append(drawn[free])
        new.append(np.full(free.sum(), label))
    return np.concatenate(rows), np.concatenate(new)
