"""One validation frame of a run: its points, its labels and the boxes that models found in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdlib.config import CLASS_NAMES, ModelConfig
from kdlib.data.augment import points_in_range
from kdlib.data.segment import BOX_NUMBERS
from kdlib.data.store import StoreSplit, class_types
from kdlib.errors import ConfigError
from kdlib.lab.pipeline import Run
from kdlib.metric.box_tables import stated
from kdlib.types import WAYMO_TYPES, Float32, Int64, IntArray
from kdlib.viz import palette
from kdlib.viz.layers import BoxLayer, Panel, layer

# Layer names of the arms; the arms that are not shown together keep colours apart from teacher and
# student.
ARM_TITLES = {
    "teacher": "teacher",
    "alone": "student alone",
    "init": "initialised student",
    "full": "distilled student",
    "own": "student with own terms",
}
_COLORS = {"alone": palette.SERIES[3], "init": palette.SERIES[7], "own": palette.SERIES[0]}


@dataclass(frozen=True)
class FrameScene:
    """One frame with the boxes to draw."""

    frame_id: str
    points: Float32  # (N, 6) within the model's range
    layers: tuple[BoxLayer, ...]  # truth, then what was predicted

    def panels(self) -> tuple[Panel, ...]:
        """Return one panel for each prediction, the truth beneath."""
        return tuple(Panel(boxes.name, (self.layers[0], boxes)) for boxes in self.layers[1:])

    def only(self, *names: str) -> tuple[BoxLayer, ...]:
        """Return some layers by name, in the order asked for."""
        return tuple(boxes for name in names for boxes in self.layers if boxes.name == name)


def extent(model: ModelConfig) -> tuple[float, float, float, float]:
    """Return x and y minima, then maxima, of what a model sees, metres."""
    reach = model.grid.point_range
    return (*reach[:2], *reach[3:5])


def scene(
    run: Run, frame: int, predictions: Mapping[str, pa.Table] | None = None, threshold: float = 0.0
) -> FrameScene:
    """Return an evaluated frame by position, with labels and the predictions from a score on;
    ConfigError if there is none.
    """
    split = run.evaluated
    numbers = split.frames(run.profile.evaluation.interval)
    if not 0 <= frame < len(numbers):
        raise ConfigError(
            f"FRAME={frame} is none of the {len(numbers)} evaluated frames; the "
            f"last one is {len(numbers) - 1}"
        )
    number, model = int(numbers[frame]), run.profile.student_model
    points, frame_id = split.points(number), split.frame_id(number)
    truth = _truth(split, number, model)
    found = (
        predicted(table, frame_id, threshold, arm, model.class_names)
        for arm, table in (predictions or {}).items()
    )
    points = points[points_in_range(points, model.grid.point_range)]
    return FrameScene(frame_id, points, (truth, *found))


def true_boxes(run: Run) -> list[tuple[str, BoxLayer]]:
    """Return name and drawn labels of every evaluated frame, in order."""
    split, model = run.evaluated, run.profile.student_model
    numbers = map(int, split.frames(run.profile.evaluation.interval))
    return [(split.frame_id(number), _truth(split, number, model)) for number in numbers]


def of_class(boxes: BoxLayer, name: str | None) -> BoxLayer:
    """Return the boxes of one class, all where it is None."""
    if name is None:
        return boxes
    return boxes.part(boxes.labels == boxes.class_names.index(name) + 1)


def _truth(split: StoreSplit, number: int, model: ModelConfig) -> BoxLayer:
    """Return the labels of a frame that a model is asked to find: of its classes, near, seen."""
    labels, names, reach = split.labels(number), model.class_names, model.grid.point_range
    kinds = _labels(labels.types, names, split.class_names)
    near = (
        (labels.boxes[:, :2] >= reach[:2]).all(axis=1)
        & (labels.boxes[:, :2] <= reach[3:5]).all(axis=1)
        & (labels.num_points > 0)
        & (kinds > 0)
    )
    return layer("truth", labels.boxes[near], kinds[near], class_names=names)


def _labels(types: IntArray, class_names: Sequence[str], known: Sequence[str]) -> Int64:
    """Return 1-based class positions of type numbers, 0 for other types."""
    label_of = np.zeros(256, np.int64)
    label_of[list(class_types(class_names, known))] = np.arange(1, len(class_names) + 1)
    return np.asarray(label_of[types])


def predicted(
    table: pa.Table,
    frame_id: str,
    threshold: float,
    arm: str,
    class_names: Sequence[str] = CLASS_NAMES,
) -> BoxLayer:
    """Return an arm's boxes of one frame at or above a score, in the arm's colour."""
    rows = table.filter(pc.equal(table["frame_id"], frame_id))
    role = "teacher" if arm == "teacher" else "student"
    drawn = found_boxes(rows, threshold, class_names, role)
    return replace(drawn, name=ARM_TITLES[arm], color=_COLORS.get(arm, drawn.color))


def found_boxes(
    rows: pa.Table, threshold: float, class_names: Sequence[str], role: str = "student"
) -> BoxLayer:
    """Return one frame's predictions at or above a score."""
    known = stated(rows.schema, "type_names") or tuple(WAYMO_TYPES)
    rows = rows.filter(pc.greater_equal(rows["score"], threshold))
    boxes = np.stack([rows[name].to_numpy() for name in BOX_NUMBERS], axis=1)
    labels, scores = _labels(rows["type"].to_numpy(), class_names, known), rows["score"].to_numpy()
    return layer(role, boxes, labels, scores, class_names=class_names)
