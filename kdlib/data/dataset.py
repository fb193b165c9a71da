"""Makes samples of a split's frames: augmented and masked for training, untouched for evaluation
(spec section 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdlib.config import CLASS_NAMES, AugmentConfig
from kdlib.config.model import Bounds
from kdlib.data.augment import (
    Augmentation,
    augment_boxes,
    augment_points,
    boxes_in_range,
    draw,
    points_in_range,
)
from kdlib.data.object_bank import ObjectBank, bank_path
from kdlib.data.object_sampling import ObjectSampler, Pasted
from kdlib.data.store import StoreSplit
from kdlib.errors import ConfigError, DataError
from kdlib.types import POINT_FEATURES, Float32, Int64, Sample

_TRIES = 100


# not torch's: a DataLoader asks for no more than __len__ and __getitem__, and numpy users need no
# torch
class FrameDataset:
    """Every ``interval``-th frame of a split as a :class:`~kdlib.types.Sample`.

    With ``drop_empty`` it is a training set: boxes without points are dropped, so are boxes outside
    ``point_range``, points are shuffled, and a frame left without any box is replaced by another
    one. Without, it is an evaluation set: all boxes of the classes, points in file order (a shuffle
    before a voxel cap would make the score depend on luck), empty frames as they are. Objects of
    other frames, where ``augment`` asks for them, are pasted after empty boxes are dropped and
    before the flips.

    Args:
        split: Where frames come from.
        class_names: Label n of a sample is the n-th of these.
        interval: Distance between two frames in the concatenated list of all segments.
        augment: Augmentations, None for none. ``augment.objects`` needs the split's object bank.
        seed: Samples are a pure function of (seed, epoch, frame number): workers, order and
            resuming do not matter.
        drop_empty: See above.
        point_range: x, y, z minima, then maxima, of the models fed; points are cut in x and y. None
            keeps all.

    Raises:
        ConfigError: If a class is unknown, or interval or seed out of range.
        DataError: If there is no frame, or none with a box to train on, or no sound object bank
            where one is needed.
    """

    def __init__(
        self,
        split: StoreSplit,
        class_names: Sequence[str] = CLASS_NAMES,
        interval: int = 1,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        drop_empty: bool = False,
        point_range: Bounds | None = None,
    ) -> None:
        if seed < 0:
            raise ConfigError(f"seed must not be negative: {seed}")
        self.split, self.class_names, self.interval = split, tuple(class_names), interval
        self._augment, self._seed, self._drop_empty, self._range = (
            augment,
            seed,
            drop_empty,
            point_range,
        )
        self._label_of = np.zeros(256, np.int64)
        self._label_of[list(split.class_types(class_names))] = np.arange(1, len(class_names) + 1)
        self._frames = split.frames(interval)
        if not len(self._frames):
            raise DataError(f"split '{split.name}' of {split.path} has no frames")
        useful = (self._label_of[split.types] > 0) & (split.num_points > 0)
        count = np.diff(np.concatenate(([0], np.cumsum(useful)))[split.first_box])
        self._with_boxes = self._frames[count[self._frames] > 0]
        if drop_empty and not len(self._with_boxes):
            raise DataError(
                f"no frame of split '{split.name}' of {split.path} has a box of "
                f"{', '.join(class_names)} to train on"
            )
        self._objects: ObjectSampler | None = None
        if augment and augment.objects:
            bank = ObjectBank.open(bank_path(split), split.fingerprint)
            self._objects = ObjectSampler(bank, class_names, augment.objects, split.class_names)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Return the sample of an index, or of an (epoch, index) pair; epoch 0 if not given."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        frame = self._frames[index]
        rng = np.random.default_rng([self._seed, epoch, frame])
        for attempt in range(_TRIES):
            boxes, labels, world, pasted = self._plan(frame, rng, epoch, attempt)
            if len(labels) or not self._drop_empty:
                points = self._points(frame, world, pasted)
                if self._drop_empty:
                    points = points.take(rng.permutation(len(points)), axis=0)
                return Sample(self.split.frame_id(frame), points, boxes, labels)
            frame = rng.choice(self._with_boxes)
        raise DataError(
            f"split '{self.split.name}' of {self.split.path}: {_TRIES} frames in a row have no "
            f"box inside {self._range}; "
            "widen the range or add data"
        )

    @property
    def frame_ids(self) -> list[str]:
        """Names of all frames, in order."""
        return self.split.frame_ids(self.interval)

    def _plan(
        self, frame: int, rng: np.random.Generator, epoch: int, attempt: int
    ) -> tuple[Float32, Int64, Augmentation, Pasted | None]:
        """Return a frame's boxes and labels, and what is to happen to its points."""
        world = draw(self._augment, rng) if self._augment else Augmentation()
        rows = self.split.box_rows(frame)
        boxes, labels = self.split.boxes[rows], self._label_of[self.split.types[rows]]
        if self._drop_empty:
            filled = self.split.num_points[rows] > 0
            boxes, labels = boxes[filled], labels[filled]
        pasted = None
        # boxes of other classes are still there: nothing may be pasted into them either
        if self._objects:
            # A stream of its own, so that with or without objects the world is augmented alike.
            pasted = self._objects.draw(
                boxes, labels, np.random.default_rng([self._seed, epoch, frame, 1 + attempt])
            )
            boxes, labels = (
                np.concatenate((boxes, pasted.boxes)),
                np.concatenate((labels, pasted.labels)),
            )
        boxes, labels = boxes[labels > 0], labels[labels > 0]
        if self._augment:
            boxes = augment_boxes(boxes, world)
        if self._drop_empty and self._range:
            inside = boxes_in_range(boxes, self._range)
            boxes, labels = boxes[inside], labels[inside]
        return boxes, labels, world, pasted

    def _points(self, frame: int, world: Augmentation, pasted: Pasted | None) -> Float32:
        # no-label-zone points stay, their flag is no feature (spec 1.3)
        points = self.split.points(frame)[:, :POINT_FEATURES]
        if self._objects and pasted:
            points = self._objects.paste(points, pasted)
        if self._augment:
            points = augment_points(points, world)
        if self._range:
            points = points[points_in_range(points, self._range)]
        return np.ascontiguousarray(points)
