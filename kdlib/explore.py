"""A run in; tables and frames with their boxes out: what the notebooks look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdlib.config import ModelConfig
from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.data.store import Store
from kdlib.errors import ConfigError
from kdlib.evaluation.waymo_metrics import evaluate_tables
from kdlib.kd.initialise import initialise
from kdlib.kd.objective import Distillation
from kdlib.kd.pivotal import pivotal_mask
from kdlib.models.detector import CenterPoint, build
from kdlib.models.weights import load_weights
from kdlib.pipeline import Run, TeacherWeights
from kdlib.types import WAYMO_TYPES, Batch
from kdlib.viz import palette
from kdlib.viz.bev import draw_bev
from kdlib.viz.layers import BoxLayer, layer
from kdlib.viz.widgets import View
from kdlib.waymo.labels import difficulty_level

CLASSES = ("Vehicle", "Pedestrian", "Cyclist")
_BOX = ("x", "y", "z", "length", "width", "height", "heading")


def data_overview(store: Store) -> pd.DataFrame:
    """Return segments, frames, points and boxes of each split."""
    rows = []
    for name in store.contents:
        split = store.split(name)
        boxes = {kind: int((split.types == WAYMO_TYPES[kind]).sum()) for kind in CLASSES}
        points = int(np.mean([len(split.points(i)) for i in np.linspace(0, len(split) - 1, 10).astype(int)]))
        segments = len({frame.rsplit("_", 1)[0] for frame in split.frame_ids()})
        rows.append({"split": name, "segments": segments, "frames": len(split), "points per frame": points, **boxes})
    return pd.DataFrame(rows)


def difficulty_table(store: Store) -> pd.DataFrame:
    """Return the number of boxes of each class and effective difficulty level in the validation split."""
    split = store.split("validation")
    level = difficulty_level(split.difficulty, split.num_points)
    names = {1: "LEVEL_1", 2: "LEVEL_2", 0: "without points (not scored)"}
    rows = []
    for kind in CLASSES:
        own = split.types == WAYMO_TYPES[kind]
        rows.append({"class": kind, **{title: int((own & (level == number)).sum()) for number, title in names.items()}})
    return pd.DataFrame(rows)


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
_COLORS = {"alone": palette.SERIES[3], "init": palette.SERIES[7]}


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
        layers.append(_predicted(table, split.frame_id(number), threshold, name))
    return Scene(split.frame_id(number), points, tuple(layers))


def _positions(types: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return 1-based class positions of Waymo's type numbers, 0 for other types."""
    lookup = np.zeros(256, np.int64)
    lookup[[WAYMO_TYPES[kind] for kind in CLASSES]] = np.arange(1, len(CLASSES) + 1)
    found: NDArray[np.int64] = lookup[types]
    return found


def _predicted(table: pa.Table, frame_id: str, threshold: float, arm: str) -> BoxLayer:
    rows = table.filter(pa.array(np.asarray(table.column("frame_id").to_numpy() == frame_id)))
    boxes = np.stack([rows.column(c).to_numpy() for c in _BOX], axis=1) if len(rows) else np.zeros((0, 7))
    scores, types = rows.column("score").to_numpy(), rows.column("type").to_numpy().astype(np.int64)
    keep = scores >= threshold
    role = "teacher" if arm == "teacher" else "student"
    drawn = layer(role, boxes[keep], _positions(types)[keep], scores[keep], name=NAMES[arm])
    return replace(drawn, color=_COLORS.get(arm, drawn.color))


def frame_count(run: Run) -> int:
    """Return the number of evaluated frames."""
    return len(run.store.split("validation").frames(run.profile.evaluation.interval))


def most_improved_frame(predictions: Mapping[str, pa.Table], truth: pa.Table, run: Run) -> int:
    """Return the position of the frame where the last arm is furthest ahead of the first at a score of 0.3.

    A found object counts 1, a false alarm takes half a point off.
    """
    arms = [name for name in predictions if name != "teacher"] or ["teacher"]
    merit = {}
    for arm in (arms[0], arms[-1]):
        frames = evaluate_tables(predictions[arm], truth, ranges=False).frames
        assert frames is not None  # kept by default
        merit[arm] = (frames.counts.tp - 0.5 * frames.counts.fp)[:, :, 30].sum(axis=1)
        names = frames.frame_ids
    best = names[int(np.argmax(merit[arms[-1]] - merit[arms[0]]))]
    return run.store.split("validation").frame_ids(run.profile.evaluation.interval).index(best)


def drawer(run: Run, predictions: Mapping[str, pa.Table]) -> Callable[[int, View], Figure]:
    """Return what the browser calls to draw a frame as chosen."""

    def draw(frame: int, chosen: View) -> Figure:
        found = scene(run, frame, predictions)
        layers = chosen.apply(found.layers)
        return draw_bev(found.points, layers, extent=extent(run.profile.student_model), title=found.frame_id)

    return draw


@dataclass(frozen=True)
class PivotalExample:
    """Where one batch's logit distillation acts."""

    weight: NDArray[np.float32]  # (H, W) on the teacher's grid
    points: NDArray[np.float32]


def _first_batch(run: Run, count: int) -> Batch:
    model, config = run.profile.student_model, run.profile.student
    split = run.store.split("training")
    data = FrameDataset(split, model.class_names, config.interval, drop_empty=True, point_range=model.grid.point_range)
    return collate([data[index] for index in range(min(count, len(data)))])


def _teacher(teacher: TeacherWeights) -> CenterPoint:
    network = CenterPoint(teacher.model)
    load_weights(teacher.weights, network)
    return network


def pivotal_example(run: Run, teacher: TeacherWeights) -> PivotalExample:
    """Return the weights of logit distillation on a training frame."""
    logit = run.profile.kd.logit
    if logit is None:
        raise ValueError(f"the recipe of {run.profile.pair} has no logit distillation to show")
    batch = _first_batch(run, 1)
    network = _teacher(teacher).eval()
    with torch.inference_mode():
        probability = network(batch.points).heads[0].heatmap.sigmoid()
        weight = pivotal_mask(probability, network.targets(batch.truth)[0], logit)
    return PivotalExample(weight[0].numpy(), batch.points.points.numpy())


def startup_report(run: Run, teacher: TeacherWeights) -> pd.DataFrame:
    """Return every active term of the full recipe on one batch: weight, value, positions, labels from the teacher."""
    student = build(run.profile.student_model)
    network = _teacher(teacher)
    if run.profile.zoo_pair.initialise_from is None:  # otherwise that model is not trained yet
        initialise(student, network.state_dict(), run.profile.kd.initialisation)
    objective = Distillation(student, network, run.profile.kd)
    rows = objective.report(_first_batch(run, run.profile.student.batch_size))
    return pd.DataFrame([vars(row) for row in rows]).round(4)
