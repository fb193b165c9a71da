"""A run and a frame's number in; its points, its labels and the boxes that models found in it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdlib.config import ModelConfig
from kdlib.errors import ConfigError
from kdlib.lab.explore.tables import CLASSES
from kdlib.lab.pipeline import Run
from kdlib.types import WAYMO_TYPES
from kdlib.viz import palette
from kdlib.viz.layers import BoxLayer, layer

BOX = ("x", "y", "z", "length", "width", "height", "heading")


def extent(model: ModelConfig) -> tuple[float, float, float, float]:
    """Return x and y minima, then maxima, of what a model sees, metres."""
    low_x, low_y, _, high_x, high_y, _ = model.grid.point_range
    return low_x, low_y, high_x, high_y


@dataclass(frozen=True)
class Scene:
    """One frame with the boxes to draw."""

    frame_id: str
    points: NDArray[np.float32]  # (N, 6) within the model's range
    layers: tuple[BoxLayer, ...]  # truth, then what was predicted

    def panels(self) -> dict[str, tuple[BoxLayer, ...]]:
        """Return one panel for each prediction, the truth beneath."""
        return {one.name: (self.layers[0], one) for one in self.layers[1:]}

    def only(self, *names: str) -> tuple[BoxLayer, ...]:
        """Return some layers by name, in the order asked for."""
        return tuple(one for name in names for one in self.layers if one.name == name)


# Layer names of the arms; the arms that are not shown together keep colours apart from teacher and student.
NAMES = {"teacher": "teacher", "alone": "student alone", "init": "initialised student", "full": "distilled student"}
COLORS = {"alone": palette.SERIES[3], "init": palette.SERIES[7]}


def scene(run: Run, frame: int, predictions: Mapping[str, pa.Table] | None = None, threshold: float = 0.0) -> Scene:
    """Return a validation frame (position in the evaluated list) with its labels and the predictions at or above a score.

    Raises:
        ConfigError: If there are fewer frames.
    """
    split = run.store.split("validation")
    numbers = split.frames(run.profile.evaluation.interval)
    if not 0 <= frame < len(numbers):
        raise ConfigError(f"FRAME={frame} is none of the {len(numbers)} evaluated frames; the last one is {len(numbers) - 1}")
    number = int(numbers[frame])
    low_x, low_y, high_x, high_y = extent(run.profile.student_model)
    points, labels = split.points(number), split.labels(number)
    points = points[(points[:, 0] > low_x) & (points[:, 0] < high_x) & (points[:, 1] > low_y) & (points[:, 1] < high_y)]
    near = (np.abs(labels.boxes[:, :2]) <= high_x).all(axis=1) & (labels.num_points > 0)
    kinds = _positions(labels.types)
    near &= kinds > 0
    layers = [layer("truth", labels.boxes[near], kinds[near])]
    for name, table in (predictions or {}).items():
        layers.append(predicted(table, split.frame_id(number), threshold, name))
    return Scene(split.frame_id(number), points, tuple(layers))


def _positions(types: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return 1-based class positions of Waymo's type numbers, 0 for other types."""
    lookup = np.zeros(256, np.int64)
    lookup[[WAYMO_TYPES[kind] for kind in CLASSES]] = np.arange(1, len(CLASSES) + 1)
    found: NDArray[np.int64] = lookup[types]
    return found


def predicted(table: pa.Table, frame_id: str, threshold: float, arm: str) -> BoxLayer:
    """Return an arm's boxes of one frame at or above a score, in the arm's colour."""
    rows = table.filter(pa.array(np.asarray(table.column("frame_id").to_numpy() == frame_id)))
    boxes = np.stack([rows.column(c).to_numpy() for c in BOX], axis=1) if len(rows) else np.zeros((0, 7))
    scores, types = rows.column("score").to_numpy(), rows.column("type").to_numpy().astype(np.int64)
    keep = scores >= threshold
    role = "teacher" if arm == "teacher" else "student"
    drawn = layer(role, boxes[keep], _positions(types)[keep], scores[keep], name=NAMES[arm])
    return replace(drawn, color=COLORS.get(arm, drawn.color))


def frame_count(run: Run) -> int:
    """Return the number of evaluated frames."""
    return len(run.store.split("validation").frames(run.profile.evaluation.interval))
